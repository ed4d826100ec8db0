"""A watch over the head of a cluster that a stage has joined: says when it is away, and ends the stage if it stays away."""

from __future__ import annotations

import errno
import functools
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.runtime import guard, waiting

EVERY = 2.0
"""Seconds between two connection attempts, and the timeout of one."""

LIMIT = 50.0
"""Seconds for which a head may be away. After a minute Ray itself ends the process, in whatever state."""

_AWAY = (errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN)


@contextmanager
def watched(address: str) -> Iterator[None]:
    """Connects to the head at host:port repeatedly while the block runs; ends the stage after `LIMIT` seconds without success."""
    with waiting.beside(functools.partial(_watch, address), "head"):
        yield


def _watch(address: str, over: threading.Event) -> None:
    # Knocks are counted, and not seconds: a machine that is loaded, or asleep for an hour, is late, and no head is lost
    missed, said, began = 0, False, 0.0
    while not over.wait(max(0.0, began + EVERY - time.monotonic())):
        began = time.monotonic()
        try:
            why = _knock(address)
        except OSError:  # it is this machine that has no more files, or ports
            continue
        if over.is_set():
            return
        if why is None:
            if said:
                waiting.tell("ray", f"the head of the cluster at {address} answers again")
            missed, said = 0, False
            continue
        missed += 1
        away = missed * EVERY
        if away >= waiting.SAID_AFTER and not said:
            said = True
            waiting.tell("ray", waiting.line(f"the head of the cluster at {address}, which is away ({why})", LIMIT))
        if away >= LIMIT:
            guard.end(
                f"the head of the Ray cluster at {address} has been away for {away:,.0f} s ({why})",
                "Start it and its nodes again (ray start), or mend the network between",
            )
            return


def _knock(address: str) -> str | None:
    """Why the head cannot be connected to; None if it can. `OSError` if that is this machine's fault."""
    host, _, port = address.rpartition(":")
    try:
        # the system takes a connection for a process that is busy, and so a loaded head is there
        socket.create_connection((host.strip("[]"), int(port)), timeout=EVERY).close()
    except TimeoutError:
        return "it does not answer"
    except OSError as error:
        if error.errno not in _AWAY:
            raise
        return os.strerror(error.errno)
    return None
