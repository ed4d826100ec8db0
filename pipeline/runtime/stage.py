"""Running a stage: one process of each stage per working copy, stopped cleanly, with plain error messages."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from pipeline.runtime import edges, guard, redaction, waiting
from pipeline.runtime.guard import Stopped, reached
from pipeline.runtime.printing import say

__all__ = ["WORK", "Stopped", "alone", "main", "reached"]

WORK = Path("work")
"""The folder for unfinished outs, on the same disk as the outs, so that finishing one is a rename."""

PATIENCE = 60.0
"""Seconds to wait for another process of the same stage to end."""


def main(name: str, run: Callable[[], None], check: Callable[[], None] | None = None) -> None:
    """Runs a stage under a guard. An error that the user can fix is printed as a plain message, with exit code 1.

    `check` runs before anything is written.
    """
    if not guard.guarded():
        guard.start(name)
    with redaction.guarded():
        try:
            if check is not None:
                check()
            with alone(name):
                run()
        except Exception as error:
            fail(name, error)


def fail(name: str, error: Exception) -> NoReturn:
    """Prints an error's message for the user and exits with code 1; raises a bug of this code again."""
    words = edges.message(error)
    if words is None:
        raise error
    if os.environ.get("ALEXNET_TRACEBACK"):
        traceback.print_exception(error)
    say(*f"{name}: {words}".split("\n"), to=sys.stderr)
    raise SystemExit(1) from None


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Holds the stage's lock in this working copy while the block runs; `TimeoutError` after `PATIENCE` seconds."""
    with waiting.locked(WORK / f"{name}.lock", name, f"another '{name}' that is at work in {Path.cwd()}", PATIENCE):
        yield
