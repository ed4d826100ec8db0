"""A stage's client of the process `sender`: starts it, sends requests, waits for answers up to a limit, and ends it."""

from __future__ import annotations

import json
import os
import selectors
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pipeline.runtime import waiting
from pipeline.runtime.child import Child

ENVIRONMENT = {
    # no telemetry
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # an exported program keeps its device, here the CPU; on a machine with a GPU, MLflow would try the GPU
    "MLFLOW_DEFAULT_PREDICTION_DEVICE": "cpu",
    # no retries by MLflow: after a failure the last steps are requested before anything is sent again
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
"""Variables of the process, unless they are set; mlflow reads them when it is imported."""

READY = 180.0
"""Seconds in which the process has to be ready; it imports MLflow, perhaps from a slow disk."""

Event = dict[str, Any]


class Courier:
    """The client of the process that communicates with MLflow for one stage."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._start()

    def _start(self) -> None:
        self._child = Child("pipeline.tracking.sender", environment=ENVIRONMENT | os.environ)
        self._partial, self._number, self._closed = b"", 0, False
        self.spent = 0.0
        """Seconds that counted in the last `events`."""
        os.set_blocking(self._child.answers.fileno(), False)

    def restart(self) -> None:
        """Replaces the process, which has died, by a new one."""
        self.end()
        self._start()
        self.wait_ready()

    def wait_ready(self) -> None:
        """Waits until the process accepts requests; `OSError` after `READY` seconds."""
        with waiting.saying(self.name, "MLflow's client to be loaded", READY):
            for event in self.events(READY):
                if event["event"] == "ready":
                    return
        raise OSError(f"the process that communicates with MLflow was not ready after {READY:g} s. Try again")

    def ask(self, what: str, limit: float, **words: Any) -> Any:
        """Sends a request and returns its answer.

        Raises `TimeoutError` if there is none after `limit` seconds, `OSError` if the process died, and the `ValueError` or
        `OSError` with which the process answered.
        """
        number = self.tell(what, **words)
        for event in self.events(limit):
            if event.get("number") != number:
                continue
            if event["event"] == "done":
                return event["result"]
            if event["event"] == "error":
                raise (ValueError if event["kind"] == "ValueError" else OSError)(event["text"])
        if self.dead:
            raise OSError(
                "the process that communicates with MLflow was killed, perhaps because memory ran out. Try again"
            )
        raise TimeoutError(f"no answer within {limit:g} s")

    def tell(self, what: str, **words: Any) -> int:
        """Sends a request, and returns the number that its answer will have."""
        self._number += 1
        with suppress(BrokenPipeError):  # the process died, for example for lack of memory; `events` then ends
            self._child.ask.write(json.dumps({"do": what, "number": self._number, **words}).encode() + b"\n")
            self._child.ask.flush()
        return self._number

    @property
    def dead(self) -> bool:
        """Whether the process has ended."""
        return self._closed or self._child.process.poll() is not None

    def events(self, limit: float, counts: Callable[[], bool] = lambda: True) -> Iterator[Event]:
        """Yields the process's events for `limit` seconds in all; seconds in which `counts` returns false do not count."""
        last, self.spent = time.monotonic(), 0.0
        while limit > self.spent:
            if (data := self._read(min(limit - self.spent, 0.2))) == b"":
                self._closed = True
                return
            *lines, self._partial = (self._partial + (data or b"")).split(b"\n")
            for line in lines:
                yield json.loads(line)
            now = time.monotonic()
            self.spent, last = self.spent + (now - last if counts() else 0), now

    def _read(self, seconds: float) -> bytes | None:
        """The bytes that have arrived; None if there are none after `seconds`, empty at the end of the stream."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._child.answers, selectors.EVENT_READ)
            return os.read(self._child.answers.fileno(), 2**16) if selector.select(seconds) else None

    def end(self) -> None:
        """Kills the process."""
        self._child.end()


@contextmanager
def running(name: str) -> Iterator[Courier]:
    """Runs a process that communicates with MLflow while the block runs. `name`: the stage, for messages."""
    courier = Courier(name)
    try:
        courier.wait_ready()
        yield courier
    finally:
        courier.end()
