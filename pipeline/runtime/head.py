"""A watch on the head of a joined cluster: reports when it does not answer, and ends the stage if it stays away."""

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
"""Seconds between two connection attempts, and the timeout of each."""

LIMIT = 50.0
"""Seconds for which a head may be away. After a minute Ray itself ends the process, whatever it is doing."""

_AWAY = (errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN)


@contextmanager
def watched(address: str) -> Iterator[None]:
    """Connects to the head at host:port repeatedly while the block runs; ends the stage after `LIMIT` seconds without success."""
    with waiting.beside(functools.partial(_watch, address), "head"):
        yield


def _watch(address: str, over: threading.Event) -> None:
    # Failed attempts are counted, not seconds: on a machine that is loaded, or slept for an hour, time passes without one
    missed, reported, began = 0, False, 0.0
    while not over.wait(max(0.0, began + EVERY - time.monotonic())):
        began = time.monotonic()
        try:
            why = refusal(address)
        except OSError:  # this machine has no more file descriptors or ports
            continue
        if over.is_set():
            return
        if why is None:
            if reported:
                waiting.tell("ray", f"the head of the cluster at {address} answers again")
            missed, reported = 0, False
            continue
        missed += 1
        away = missed * EVERY
        if away >= waiting.SAID_AFTER and not reported:
            reported = True
            waiting.tell("ray", waiting.line(f"the head of the cluster at {address}, which is away ({why})", LIMIT))
        if away >= LIMIT:
            guard.end(
                f"the head of the Ray cluster at {address} has been away for {away:,.0f} s ({why})",
                "Start it and its nodes again (ray start), or mend the network between",
            )
            return


def refusal(address: str, limit: float | None = None) -> str | None:
    """Why no connection to the head can be made in `limit` seconds (`EVERY`); None if it can.

    `OSError` if the cause is on this machine.
    """
    host, _, port = address.rpartition(":")
    try:
        # the system accepts connections for a busy process, so a loaded head does not count as away
        socket.create_connection((host.strip("[]"), int(port)), timeout=limit or EVERY).close()
    except TimeoutError:
        return "it does not answer"
    except OSError as error:
        if error.errno not in _AWAY:
            raise
        return os.strerror(error.errno)
    return None
