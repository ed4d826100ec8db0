"""The clock of a training: seconds spent on waiting for data, computing, exchanging, validating, and writing checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch.cuda import Event

Part = Literal["waiting", "computing", "exchanging", "validating", "checkpoints", "other"]

PARTS: tuple[Part, ...] = ("waiting", "computing", "exchanging", "validating", "checkpoints", "other")
"""waiting: for the loader's next batch; exchanging: between processes, whether columns, gradients or sums; other: the rest."""


class Clock:
    """Adds up one process's seconds by part. A part that begins inside another interrupts it: no second counts twice.

    What a checkpoint needs, exchanges included, counts as checkpoints. On a GPU an exchange goes on after the call that begins
    it has returned; events in the GPU's own queue measure it, for which no step waits.
    """

    def __init__(self, gpu: bool = False, now: Callable[[], float] = time.perf_counter) -> None:
        self._gpu, self._now, self._inside = gpu, now, list[Part](["other"])
        self._pending: list[tuple[Part, Event, Event]] = []
        self._seconds, self._since = dict[Part, float](), 0.0
        self.begin()

    def begin(self) -> None:
        """Sets all seconds to 0."""
        self._pending.clear()
        self._seconds, self._since = dict.fromkeys(PARTS, 0.0), self._now()

    @contextmanager
    def during(self, part: Part) -> Iterator[None]:
        """Counts the seconds of the block as this part's."""
        if self._inside[-1] == "checkpoints":
            yield
            return
        self._charge()
        self._inside.append(part)
        try:
            yield
        finally:
            self._charge()
            self._inside.pop()

    @contextmanager
    def exchange(self) -> Iterator[None]:
        """Counts what the block sends and receives as exchanging."""
        interrupted = self._inside[-1]
        with self.during("exchanging"):
            if not self._gpu or interrupted == "checkpoints":
                yield
                return
            from torch.cuda import Event

            start, end = Event(enable_timing=True), Event(enable_timing=True)  # type: ignore[no-untyped-call]
            start.record()
            yield
            end.record()
            self._pending.append((interrupted, start, end))

    def settle(self) -> None:
        """Takes the exchanges that the GPU has ended out of the parts that waited for it."""
        ended = [each for each in self._pending if each[2].query()]  # type: ignore[no-untyped-call]
        self._pending = self._pending[len(ended) :]  # they end in order
        for part, start, end in ended:
            seconds = start.elapsed_time(end) / 1000
            self._seconds["exchanging"] += seconds
            self._seconds[part] -= seconds

    def seconds(self) -> dict[str, float]:
        """The seconds of each part since `begin`."""
        self._charge()
        self.settle()
        return {str(part): seconds for part, seconds in self._seconds.items()}

    def _charge(self) -> None:
        now = self._now()
        self._seconds[self._inside[-1]] += now - self._since
        self._since = now
