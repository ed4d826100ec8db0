"""Waits with a limit: after some seconds a line says what is waited for, after the limit they end."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from pipeline.runtime.said import say

Result = TypeVar("Result")

SAID_AFTER = 10.0
"""Seconds of silence before a line says what a stage waits for."""

HONEST = 3.0
"""A step or a task may take this many times as long as the longest one before it without a line about it."""

LONGEST = 10.0
"""It may take this many times as long as the longest one before it, whatever the patience of machine.yaml."""

BEGIN = 3
"""Workers may take this many times the patience to begin: they may wait for a node, and read where each shard lies."""


@contextmanager
def saying(name: str, what: str, limit: float | None = None) -> Iterator[None]:
    """Prints `name: waiting for what` to stderr if the block takes longer than `SAID_AFTER` seconds."""
    timer = threading.Timer(SAID_AFTER, tell, (name, line(what, limit)))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def watched(name: str, what: str, count: Callable[[], int], least: int, seconds: float) -> Iterator[None]:
    """Prints `name: waiting for what` to stderr if fewer bytes arrive than at a rate of `least` in `seconds`.

    `count` returns the bytes that have arrived; it is called in a thread. Each slow period gets one line.
    """

    def watch(over: threading.Event) -> None:
        before, said = count(), False
        while not over.wait(SAID_AFTER):
            total = count()
            came, before = total - before, total
            slow = came * seconds < least * SAID_AFTER
            if slow and not said:
                words = (
                    f"{came:,} bytes came in {SAID_AFTER:g} s; tried again if it stays below {least:,} in {seconds:g} s"
                )
                tell(name, f"{line(what)}: {words}")
            said = slow

    with beside(watch, "watch"):
        yield


@contextmanager
def beside(watch: Callable[[threading.Event], None], name: str, join: float = 0.0) -> Iterator[threading.Thread]:
    """Runs `watch` in a thread while the block runs; its argument is an event that is set when the block ends.

    The thread is then joined, for at most `join` seconds.
    """
    over = threading.Event()
    thread = threading.Thread(target=watch, args=(over,), name=name, daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        over.set()
        thread.join(join)


def line(what: str, limit: float | None = None) -> str:
    """The words for a wait, with its limit in seconds if it has one."""
    return f"waiting for {what}{'' if limit is None else f', {limit:,.0f} s at most'}"


def tell(name: str, words: str) -> None:
    """Prints `name: words` to stderr, as a line of its own."""
    say(f"{name}: {words}", to=sys.stderr)


@contextmanager
def locked(file: Path, name: str, what: str, limit: float) -> Iterator[None]:
    """Holds the lock `file` while the block runs.

    Waits `limit` seconds for another process that holds it, then raises `TimeoutError`: `what`, which lock, what to do.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        with saying(name, what, limit):
            lock.acquire(timeout=limit)
    except Timeout:
        raise TimeoutError(
            f"gave up waiting for {what} after {limit:,.0f} s: another process holds {file}. Wait for it, or end it"
        ) from None
    try:
        yield
    finally:
        lock.release()


def until(ready: Callable[[], Result | None], name: str, what: str, limit: float, *, pause: float = 0.2) -> Result:
    """Calls `ready` every `pause` seconds until it returns something; `TimeoutError` after `limit` seconds."""
    end = time.monotonic() + limit
    with saying(name, what, limit):
        while (found := ready()) is None:
            if time.monotonic() >= end:
                raise TimeoutError(f"gave up waiting for {what} after {limit:,.0f} s")
            time.sleep(pause)
    return found
