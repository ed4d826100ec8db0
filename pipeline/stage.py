"""A stage's life: one at a time, stopped cleanly, its outs whole or not at all."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import psutil
from filelock import FileLock, Timeout

from pipeline.said import say

WORK = Path("work")
"""Work in progress, beside the outs on the same disk, so that finishing is a rename."""

PATIENCE = 60.0
"""Seconds for which a stage waits for one of its kind that is about to end."""


SHELLS = ("sh", "bash", "dash", "zsh", "fish", "ksh")
"""What DVC may put between itself and a stage."""


class Stopped(SystemExit):
    """The stage was told to stop; the code is 128 + the signal's number."""


def main(name: str, run: Callable[[], None]) -> None:
    """Runs a stage as a program: what the user can mend is said in plain words, and the exit code is not 0."""
    try:
        with alone(name):
            run()
    except (ValueError, OSError) as error:
        if os.environ.get("ALEXNET_TRACEBACK"):
            raise
        say(*f"{name}: {error}".split("\n"), to=sys.stderr)
        raise SystemExit(1) from None


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Holds the stage's lock in this working copy, turns SIGTERM, SIGINT and SIGHUP into `Stopped`, follows DVC.

    DVC's own lock goes with DVC: after `kill -9` of it the stage would run on, and a second `dvc repro` would start
    beside it. So the stage ends when DVC has, and the next one waits for that.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _stop)
    _follow_dvc()
    WORK.mkdir(exist_ok=True)
    lock = FileLock(WORK / f"{name}.lock")
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise ValueError(
            f"another '{name}' has been at work in {Path.cwd()} for {PATIENCE:g} seconds. Wait for it, or end it"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _stop(number: int, _: FrameType | None) -> None:
    raise Stopped(128 + number)


def _follow_dvc() -> None:
    if "DVC_STAGE" not in os.environ:
        return
    chain = []
    for process in psutil.Process().parents():
        chain.append(process)
        if any(Path(word).name == "dvc" or word == "dvc" for word in _words(process)):
            threading.Thread(target=_watch, args=(chain,), daemon=True).start()
            return
    # DVC_STAGE is set, yet no dvc is above us: it was killed before we could look, or another program set it
    above = [process.pid for process in chain if Path(next(iter(_words(process)), "")).name not in SHELLS]
    if not above or above[0] == 1:
        raise Stopped(128 + signal.SIGHUP)


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _watch(chain: list[psutil.Process]) -> None:
    while all(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in chain):
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGHUP)


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


def reached(words: str) -> None:
    """Notes how far the work is that a stop does not lose, such as `step 340`."""


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
