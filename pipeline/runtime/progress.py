"""A stage's progress: one line that is overwritten on a terminal, or a line every ten seconds in a log."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import Self, TextIO

from alexnet.names import shown

TERMINAL_SECONDS = 0.2
LOG_SECONDS = 10.0
"""Seconds between two lines on a terminal, and in a log."""


class Progress:
    """`with Progress("resize", 1_331_167, "images") as progress: progress.add(8192)` writes to stderr.

    The last line has the number of units done, which may be more or fewer than `total`.
    """

    def __init__(self, name: str, total: int, unit: str, stream: TextIO | None = None) -> None:
        self.name, self.total, self.unit = shown(name), total, unit
        self.stream = stream or sys.stderr
        self.done = 0
        self._before = 0
        self._moves = self.stream.isatty()
        self._start = self._began = self._printed = time.monotonic()
        self._width = 0

    def begin(self, done: int) -> None:
        """Restarts the clock with `done` units already done, which do not count in the rate."""
        self.done = self._before = done
        self._began = time.monotonic()

    def add(self, count: int, words: str = "") -> None:
        """Adds `count` units, and prints the line if the last one is old enough, with `words` at its end."""
        self.done += count
        now = time.monotonic()
        if now - self._printed >= (TERMINAL_SECONDS if self._moves else LOG_SECONDS):
            self._printed = now
            self._write(self._line(now, words))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        now = time.monotonic()
        self._write(f"{self._line(now, '')}{'' if kind is None else ', stopped'}, {clock(now - self._start)}")
        if self._moves and self._width:
            print(file=self.stream, flush=True)

    def _line(self, now: float, words: str) -> str:
        seconds = now - self._began
        rate = (self.done - self._before) / seconds if seconds > 0 else 0.0
        line = f"{self.name}: {self.done:,} of {self.total:,} {self.unit}, {rate:,.0f}/s"
        if rate > 0 and self.done < self.total:
            line += f", {clock((self.total - self.done) / rate)} left"
        return f"{line}, {words}" if words else line

    def _write(self, line: str) -> None:
        if os.environ.get("ALEXNET_QUIET"):
            return
        if self._moves:
            print(f"\r{line:<{self._width}}", end="", file=self.stream, flush=True)
            self._width = len(line)
        else:
            print(line, file=self.stream, flush=True)


def clock(seconds: float) -> str:
    """Seconds as hours, minutes and seconds: 1:02:03, or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
