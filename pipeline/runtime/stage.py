"""A stage's process: one of a kind at a time in a working copy, stopped cleanly, its errors in plain words."""

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
from pipeline.runtime.said import say

__all__ = ["WORK", "Stopped", "alone", "main", "reached"]

WORK = Path("work")
"""Work in progress, beside the outs on the same disk, so that finishing is a rename."""

PATIENCE = 60.0
"""Seconds for which a stage waits for another of its kind to end."""


def main(name: str, run: Callable[[], None], check: Callable[[], None] | None = None) -> None:
    """Runs a stage as a program under a guard; an error that the user can mend is told in plain words, with exit code 1.

    `check` runs before anything is written.
    """
    if not guard.guarded():
        guard.over(name)
    with redaction.guarded():
        try:
            if check is not None:
                check()
            with alone(name):
                run()
        except Exception as error:
            fail(name, error)


def fail(name: str, error: Exception) -> NoReturn:
    """Exits with what the user can do about an error; a bug of ours is raised again."""
    words = edges.said(error)
    if words is None:
        raise error
    if os.environ.get("ALEXNET_TRACEBACK"):
        traceback.print_exception(error)
    say(*f"{name}: {words}".split("\n"), to=sys.stderr)
    raise SystemExit(1) from None


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Holds the stage's lock in this working copy."""
    with waiting.locked(WORK / f"{name}.lock", name, f"another '{name}' that is at work in {Path.cwd()}", PATIENCE):
        yield
