"""A stage's life: one at a time, stopped cleanly, its outs whole or not at all."""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from pipeline.runtime import edges, guard, redaction, waiting
from pipeline.runtime.guard import Stopped, reached
from pipeline.runtime.said import say

__all__ = ["WORK", "Stopped", "alone", "discard", "main", "put", "reached", "whole"]

WORK = Path("work")
"""Work in progress, beside the outs on the same disk, so that finishing is a rename."""

PATIENCE = 60.0
"""Seconds for which a stage waits for one of its kind that is about to end."""


def main(name: str, run: Callable[[], None], check: Callable[[], None] | None = None) -> None:
    """Runs a stage as a program, under a guard: what the user can mend is said in plain words, and the exit code is not 0.

    `check` comes before anything is written.
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
    """Ends the program with what the user can do about an error; a fault of ours is raised again."""
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


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """Gives a path to write `out` at, file or folder, and puts it in place at the end; after an error nothing changes."""
    made = WORK / "outs" / out
    discard(made)
    made.parent.mkdir(parents=True, exist_ok=True)
    yield made
    put(made, out)


def put(made: Path, out: Path) -> None:
    """Moves a finished file or folder to where it belongs, in place of what is there."""
    _sync(made)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.is_dir() or made.is_dir():
        discard(out)
    made.replace(out)


def discard(path: Path) -> None:
    """Removes a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
