"""What a terminal shows and what a log gets."""

from __future__ import annotations

import io
import time

import pytest

from pipeline.runtime import progress
from pipeline.runtime.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_whole_lines_and_the_last_says_what_was_done() -> None:
    log = io.StringIO()
    with Progress("resize", 2000, "images", log) as told:
        told.add(500)
        told.add(1500)
    assert "\r" not in log.getvalue()
    (line,) = log.getvalue().splitlines()  # ten seconds did not pass
    assert line.startswith("resize: 2,000 of 2,000 images, ")
    assert line.endswith("/s, 0:00")


def test_a_log_is_not_flooded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    log = io.StringIO()
    with Progress("resize", 10, "images", log) as told:
        told.add(4, "3 rejected")
        monkeypatch.setattr(progress, "LOG_SECONDS", 3600.0)
        told.add(4)
    first, last = log.getvalue().splitlines()
    assert first.startswith("resize: 4 of 10 images, ")
    assert first.endswith(" left, 3 rejected")
    assert last.startswith("resize: 8 of 10 images, ")


def test_a_terminal_has_one_line_and_nothing_of_a_longer_one_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "TERMINAL_SECONDS", 0.0)
    terminal = Terminal()
    with Progress("mean", 10, "images", terminal) as told:
        told.add(1, "a long remark that has to go")
        told.add(1)
    assert terminal.getvalue().count("\n") == 1
    _, long, short, _ = terminal.getvalue().split("\r")
    assert len(short) == len(long)
    assert short.startswith("mean: 2 of 10 images")


@pytest.mark.parametrize(("columns", "count"), [(130, True), (80, False)])
def test_a_narrow_terminal_loses_the_count_before_the_words(
    monkeypatch: pytest.MonkeyPatch, columns: int, count: bool
) -> None:
    monkeypatch.setattr(progress, "TERMINAL_SECONDS", 0.0)
    monkeypatch.setenv("COLUMNS", str(columns))
    terminal = Terminal()
    words = "epoch 9 of 20, error 12.0%, best 10.0% (epoch 7), loss 1.234"
    with Progress("train", 29_980, "images", terminal) as told:
        told.add(12_000, words)
    line = terminal.getvalue().split("\r")[1]
    assert line.endswith(f" left, {words}")
    assert ("12,000 of 29,980 images" in line) == count
    assert len(line) < columns


def test_what_was_done_before_is_done_but_was_not_done_this_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    log = io.StringIO()
    with Progress("train", 1000, "images", log) as told:
        now += 60  # until there is somebody to work
        told.begin(500)
        now += 10
        told.add(100)
        now += 40
        told.add(400)
    assert log.getvalue().splitlines() == [
        "train: 600 of 1,000 images, 10/s, 0:40 left",
        "train: 1,000 of 1,000 images, 10/s",
        "train: 1,000 of 1,000 images, 10/s, 1:50",
    ]


def test_an_error_is_not_hidden_and_the_line_says_stopped() -> None:
    log = io.StringIO()
    with pytest.raises(ValueError, match="mine"), Progress("mean", 10, "images", log):
        raise ValueError("mine")
    assert ", stopped, " in log.getvalue()


def test_a_log_is_not_silent_while_nothing_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.05)
    log = io.StringIO()
    with Progress("evaluate", 10, "images", log) as told:
        told.add(1, "a word")
        begun = len(log.getvalue().splitlines())
        until = time.monotonic() + 10
        while len(log.getvalue().splitlines()) < begun + 2 and time.monotonic() < until:
            time.sleep(0.01)
    *lines, _ = log.getvalue().splitlines()[begun:]
    assert len(lines) >= 2
    assert all(line.startswith("evaluate: 1 of 10 images, ") and line.endswith(", a word") for line in lines)


def test_on_a_terminal_a_line_is_no_wider_and_a_note_stays_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "TERMINAL_SECONDS", 0.0)
    monkeypatch.setenv("COLUMNS", "40")
    terminal = Terminal()
    with Progress("train", 10, "images", terminal) as told:
        told.add(1, "many words " * 10)
        told.note("epoch 1 of 2: error 5.0%")
        told.add(1)
    first, blank, note, *_ = terminal.getvalue().split("\r")[1:]
    assert len(first) <= 39 and first.endswith("…")
    assert blank == " " * len(first)
    assert note == "train: epoch 1 of 2: error 5.0%\n"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3600 * 30 + 62, "30:01:02")]
)
def test_times_read_as_a_clock(seconds: float, words: str) -> None:
    assert progress.clock(seconds) == words
