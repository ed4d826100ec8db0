"""Waiting with a message after some seconds and an error after a limit."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from pipeline.runtime.printing import say

Result = TypeVar("Result")

SAID_AFTER = 10.0
"""Seconds of waiting before a line says what a stage waits for."""

HONEST = 3.0
"""A step or task may take this many times as long as the longest one before it without a message."""

LONGEST = 10.0
"""A step or task may take this many times as long as the longest one before it, even if that exceeds machine.yaml's patience."""

BEGIN = 3
"""Workers may take this many times the patience to begin: they may wait for a node, and they read the index of each shard."""


@contextmanager
def saying(name: str, what: str, limit: float | None = None) -> Iterator[None]:
    """Prints `name: waiting for what` to stderr if the block takes longer than `SAID_AFTER` seconds. `limit`: in seconds."""
    timer = threading.Timer(SAID_AFTER, tell, (name, line(what, limit)))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def watched(name: str, what: str, count: Callable[[], int], least: int, seconds: float) -> Iterator[None]:
    """Prints `name: waiting for what` to stderr if bytes arrive at a lower rate than `least` in `seconds`.

    `count` returns the number of bytes that have arrived; it is called in a thread. Each slow period gets one line.
    """

    def watch(over: threading.Event) -> None:
        before, reported = count(), False
        while not over.wait(SAID_AFTER):
            total = count()
            arrived, before = total - before, total
            slow = arrived * seconds < least * SAID_AFTER
            if slow and not reported:
                words = f"{arrived:,} bytes came in {SAID_AFTER:g} s; tried again if it stays below {least:,} in {seconds:g} s"
                tell(name, f"{line(what)}: {words}")
            reported = slow

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
    """The message of a wait, with its limit in seconds if it has one."""
    return f"waiting for {what}{'' if limit is None else f', {limit:,.0f} s at most'}"


def tell(name: str, words: str) -> None:
    """Prints `name: words` to stderr, as a line of its own."""
    say(f"{name}: {words}", to=sys.stderr)


@contextmanager
def locked(file: Path, name: str, what: str, limit: float) -> Iterator[None]:
    """Locks `file` while the block runs.

    Waits at most `limit` seconds for another process, then raises `TimeoutError` with `what`, the lock's path and what to do.
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
        while (result := ready()) is None:
            if time.monotonic() >= end:
                raise TimeoutError(f"gave up waiting for {what} after {limit:,.0f} s")
            time.sleep(pause)
    return result
