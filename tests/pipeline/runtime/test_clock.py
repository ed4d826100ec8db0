"""The clock of a training: each second counts once, for the innermost part."""

from __future__ import annotations

import threading

import pytest

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
