"""The clock of a training: each second counts once, for the innermost part."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from pipeline.runtime.clock import PARTS, Clock


class Hands:
    """A time that passes when told."""

    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at

    def run(self, seconds: float) -> None:
        self.at += seconds


def test_each_second_counts_once_for_the_innermost_part() -> None:
    hands = Hands()
    clock = Clock(now=hands)
    hands.run(1)
    with clock.during("computing"):
        hands.run(2)
        with clock.exchange():
            hands.run(4)
        hands.run(8)
    with clock.during("waiting"):
        hands.run(16)
    expected = dict.fromkeys(PARTS, 0.0) | {"other": 1, "computing": 10, "exchanging": 4, "waiting": 16}
    assert clock.seconds() == expected
    hands.run(32)
    assert clock.seconds() == expected | {"other": 33}
    clock.begin()
    assert set(clock.seconds().values()) == {0.0}


def test_what_a_checkpoint_needs_is_the_checkpoint_s() -> None:
    hands = Hands()
    clock = Clock(now=hands)
    with clock.during("checkpoints"):
        hands.run(1)
        with clock.exchange():
            hands.run(2)
        hands.run(4)
    assert clock.seconds()["checkpoints"] == 7
    assert clock.seconds()["exchanging"] == 0


def test_an_error_in_a_part_ends_it() -> None:
    hands = Hands()
    clock = Clock(now=hands)
    with pytest.raises(ZeroDivisionError), clock.during("computing"):
        hands.run(1)
        raise ZeroDivisionError
    hands.run(2)
    assert (clock.seconds()["computing"], clock.seconds()["other"]) == (1, 2)


def test_an_exchange_in_autograd_s_thread_interrupts_the_step() -> None:
    """On a GPU the backward pass runs in a thread of its own, while the step waits for it."""
    hands = Hands()
    clock = Clock(now=hands)

    def backward() -> None:
        with clock.exchange():
            hands.run(4)

    with clock.during("computing"):
        hands.run(1)
        thread = threading.Thread(target=backward)
        thread.start()
        thread.join()
        hands.run(2)
    assert (clock.seconds()["computing"], clock.seconds()["exchanging"]) == (3, 4)


class Event:
    """An event in the queue of a device whose time passes with the hands, and which ends what it was given later."""

    hands = Hands()
    ended = True

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at = 0.0

    def record(self) -> None:
        self.at = self.hands.at

    def query(self) -> bool:
        return self.ended

    def elapsed_time(self, end: Event) -> float:
        return 1000 * (end.at - self.at + 3)


def test_what_a_gpu_exchanges_after_the_call_is_taken_out_of_what_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.Event", Event)
    hands = Event.hands
    clock = Clock(gpu=True, now=hands)
    with clock.during("computing"):
        with clock.exchange():
            pass  # the call returns at once; the device takes 3 s
        hands.run(10)
    monkeypatch.setattr(Event, "ended", False)
    assert (clock.seconds()["computing"], clock.seconds()["exchanging"]) == (10, 0), "it is not waited for"
    monkeypatch.setattr(Event, "ended", True)
    clock.settle()
    assert (clock.seconds()["computing"], clock.seconds()["exchanging"]) == (7, 3)
    with clock.during("checkpoints"), clock.exchange():
        hands.run(5)
    assert (clock.seconds()["checkpoints"], clock.seconds()["exchanging"]) == (5, 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_s_own_queue_is_timed() -> None:
    clock = Clock(gpu=True)
    started = time.perf_counter()
    with clock.during("computing"):
        with clock.exchange():
            torch.cuda._sleep(500_000_000)
        torch.cuda.synchronize()
    whole, seconds = time.perf_counter() - started, clock.seconds()
    assert seconds["exchanging"] > 0.8 * whole
    assert seconds["computing"] >= 0
    assert seconds["computing"] + seconds["exchanging"] == pytest.approx(whole, rel=0.05)
