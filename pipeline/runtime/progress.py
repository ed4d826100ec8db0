"""A stage's progress: one line that is overwritten on a terminal, or a line every ten seconds in a log."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from contextlib import ExitStack
from types import TracebackType
from typing import Self, TextIO

from alexnet.names import cut, shown
from pipeline.runtime import waiting

TERMINAL_SECONDS = 0.2
LOG_SECONDS = 10.0
"""Seconds between two lines on a terminal, and in a log."""


class Progress:
    """`with Progress("resize", 1_331_167, "images") as progress: progress.add(8192)` writes to stderr.

    The last line has the number of units done, which may be more or fewer than `total`. A log gets a line at least every
    `LOG_SECONDS`, also if nothing is added. On a terminal it keeps to the width: it loses the count and the rate if there are
    words, and then its end.
    """

    def __init__(self, name: str, total: int, unit: str, stream: TextIO | None = None) -> None:
        self.name, self.total, self.unit = shown(name), total, unit
        self.stream = stream or sys.stderr
        self.done = 0
        self._before, self._words = 0, ""
        self._moves = self.stream.isatty()
        self._start = self._began = self._printed = time.monotonic()
        self._width = 0
        self._lock = threading.Lock()
        self._stack = ExitStack()

    def begin(self, done: int) -> None:
        """Restarts the clock with `done` units already done, which do not count in the rate."""
        with self._lock:
            self.done = self._before = done
            self._began = time.monotonic()

    def add(self, count: int, words: str = "") -> None:
        """Adds `count` units, and prints the line if the last one is old enough, with `words` at its end."""
        with self._lock:
            self.done += count
            self._words = words
            self._print_if_old(time.monotonic())

    def note(self, line: str) -> None:
        """Prints a whole line that stays, above the line of the progress."""
        with self._lock:
            begin = f"\r{'':<{self._width}}\r" if self._width else ""
            self._put(f"{begin}{self.name}: {line}\n")
            self._width = 0

    def __enter__(self) -> Self:
        self._stack.enter_context(waiting.beside(self._watch, f"progress of {self.name}", join=1.0))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        with self._lock:
            now = time.monotonic()
            self._write(f"{self._line(now, '')}{'' if kind is None else ', stopped'}, {clock(now - self._start)}")
            if self._moves and self._width:
                self._put("\n")

    def _watch(self, over: threading.Event) -> None:
        """Prints the line when nothing was added for long, so that a slow step is not taken for a hanging one."""
        while not over.wait(min(1.0, LOG_SECONDS / 4 or 1.0)):
            with self._lock:
                now = time.monotonic()
                if now - self._printed >= LOG_SECONDS:
                    self._print_if_old(now)

    def _print_if_old(self, now: float) -> None:
        if now - self._printed >= (TERMINAL_SECONDS if self._moves else LOG_SECONDS):
            self._printed = now
            line = self._line(now, self._words)
            if self._moves and self._words and len(line) > self._columns():
                line = self._line(now, self._words, with_count=False)
            self._write(line)

    def _line(self, now: float, words: str, *, with_count: bool = True) -> str:
        seconds = now - self._began
        rate = (self.done - self._before) / seconds if seconds > 0 else 0.0
        count = [f"{self.done:,} of {self.total:,} {self.unit}", f"{rate:,.0f}/s"] if with_count else []
        left = [f"{clock((self.total - self.done) / rate)} left"] if rate > 0 and self.done < self.total else []
        return f"{self.name}: {', '.join(filter(None, [*count, *left, words]))}"

    def _columns(self) -> int:
        return shutil.get_terminal_size().columns - 1

    def _write(self, line: str) -> None:
        if self._moves:
            line = cut(line, self._columns())
            self._put(f"\r{line:<{self._width}}")
            self._width = len(line)
        else:
            self._put(f"{line}\n")

    def _put(self, text: str) -> None:
        if os.environ.get("ALEXNET_QUIET"):
            return
        print(text, end="", file=self.stream, flush=True)


def clock(seconds: float) -> str:
    """Seconds as hours, minutes and seconds: 1:02:03, or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
