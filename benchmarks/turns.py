"""Contenders that take turns: each is a process that waits for a line, does its work once, and says how long that took.

Only one works at a time, and the order alternates, so that what else the machine does meets all of them. This file needs only the
standard library: contenders of other projects import it in their own environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

READY = 600.0
"""Seconds in which a contender has to be ready, and in which a turn has to end."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What a contender did in a turn."""

    seconds: float
    count: int
    """Pictures, or what else it works on."""
    memory: int
    """Bytes of memory that the process and those that it started had at the end, as far as they are their own."""

    @property
    def rate(self) -> float:
        """Pictures a second."""
        return self.count / self.seconds


class Contender:
    """A process that works when it is its turn."""

    def __init__(
        self, name: str, command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name, self.log = name, folder / f"{name.replace(' ', '-')}.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def wait(self) -> None:
        """Waits until it is ready. `RuntimeError` with the end of its log if it ends before."""
        self._answer()

    def turn(self) -> Turn:
        """Lets it work once."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return Turn(**self._answer())

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        late = threading.Timer(READY, self._process.kill)
        late.start()
        try:
            for line in self._process.stdout:
                if line.startswith("{"):
                    return dict(json.loads(line))
        finally:
            late.cancel()
        end = self.log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{self.name} ended, or said nothing for {READY:g} s:\n{end}")

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


@contextlib.contextmanager
def ready(contenders: Sequence[Contender]) -> Iterator[list[Contender]]:
    """Those that are ready; one that cannot run here is left out with its reason on the terminal."""
    there = []
    try:
        for contender in contenders:
            try:
                contender.wait()
            except RuntimeError as error:
                print(f"left out: {error}", file=sys.stderr, flush=True)
            else:
                there.append(contender)
        yield there
    finally:
        for contender in contenders:
            contender.close()


def rounds(contenders: Sequence[Contender], count: int) -> dict[str, list[Turn]]:
    """Name → its turns, one for each round; a further round before them warms up."""
    turns: dict[str, list[Turn]] = {contender.name: [] for contender in contenders}
    for number in range(count + 1):
        for contender in contenders if number % 2 else reversed(contenders):
            turn = contender.turn()
            if number:
                turns[contender.name].append(turn)
    return turns


def work(once: Callable[[], int]) -> None:
    """The contender's side: works once for each line of standard input; `once` returns the number of pictures."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log
    print("{}", file=answers, flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        count = once()
        answer = {"seconds": time.perf_counter() - began, "count": count, "memory": memory()}
        print(json.dumps(answer), file=answers, flush=True)


def memory() -> int:
    """Bytes of memory that this process and its descendants have and share with nobody; 0 where the system does not say."""
    total, left = 0, [str(os.getpid())]
    while left:
        process = left.pop()
        with contextlib.suppress(OSError, ValueError):
            for thread in Path(f"/proc/{process}/task").iterdir():
                left += (thread / "children").read_text().split()
            for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
                if line.startswith(("Private_Clean", "Private_Dirty")):
                    total += 1024 * int(line.split()[1])
    return total
