"""The process that communicates with MLflow for a stage: it starts the run, and sends the journal.

A server that is down, hangs, trickles or answers 500 delays only this process, which its stage ends after a limit; no training
waits for it. Requests come on stdin and answers go to stdout, one line of JSON each. When stdin ends, the stage has ended, and
this process ends too.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import mlflow
from mlflow import MlflowClient

from pipeline.runtime import redaction
from pipeline.tracking import addresses, begin, database, journal
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.description import Wanted
from pipeline.tracking.journal import Journal, Reader, Record
from pipeline.tracking.watch import Watch

PAUSE = 1.0
"""Seconds between two readings of the journal."""

LONGEST_PAUSE = 60.0
"""The longest pause, in seconds, after a failure; the pause doubles with each failure in a row."""

OLD = 15.0
"""Seconds that a stage waits, before it begins, while journals of earlier stages are sent."""


class Sender:
    """The journals that are sent to one server."""

    def __init__(self, uri: str, public: str, to: str) -> None:
        self.client = _client(uri)
        self.public, self.to = public, to
        self.waiting: list[Delivery] = []
        self.not_before = 0.0
        self.pause = PAUSE
        self.why = ""

    def follow(self, folder: Path) -> Delivery:
        """Queues the stage's own journal: after older ones of the same run, before all others."""
        own = Delivery(self.client, Reader(folder), _answer, own=True)
        before = [each for each in self.waiting if each.run_id == own.run_id]
        self.waiting = [*before, own, *(each for each in self.waiting if each not in before)]
        return own

    def old(self, root: Path) -> int:
        """Queues the journals that earlier stages left for this server, and returns their number."""
        left = [reader for reader in journal.pending(root) if reader.about["to"] == self.to and reader.over]
        self.waiting += [Delivery(self.client, reader, _answer, own=False) for reader in left]
        return len(left)

    def send(self, until: float, *, light: bool = False) -> None:
        """Sends in order until nothing is left, the time `until`, or a failure; `light`: without models and files."""
        for delivery in list(self.waiting):
            while time.monotonic() < until and not (light and delivery.heavy):
                try:
                    more = delivery.step()
                except Exception as error:  # from any library: it is reported, and sending is tried again
                    self._failed(delivery, _first_line(error))
                    return
                self.pause, self.why = PAUSE, ""
                if delivery.done:
                    self.waiting.remove(delivery)
                if delivery.done or not more:
                    break

    def _failed(self, delivery: Delivery, why: str) -> None:
        delivery.forget()
        self.why, self.not_before = why, time.monotonic() + self.pause
        self.pause = min(LONGEST_PAUSE, 2 * self.pause)

    @property
    def drained(self) -> bool:
        """Whether all is sent."""
        return not any(each.has_more for each in self.waiting)


def _client(uri: str) -> MlflowClient:
    _hush()
    file = database.path(uri)
    if file is not None:
        # only the file's name: MLflow would create the folder of a longer path, with its characters quoted
        os.chdir(file.parent)
        uri = database.address(Path(file.name))
        # otherwise MLflow writes the current folder, unquoted, into the SQL that creates its unused first experiment
        os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = (file.parent / "mlruns").as_uri()
    mlflow.set_tracking_uri(uri)
    return MlflowClient(uri)


def _hush() -> None:
    """Silences MLflow's log unless MLFLOW_LOGGING_LEVEL is set. To be called after mlflow's import, which sets the levels."""
    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        for name in ("mlflow", "mlflow.store.db.utils", "alembic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


@contextlib.contextmanager
def _named_errors(public: str) -> Iterator[None]:
    """Turns a library's error into an `OSError` that names the server; a `ValueError` stays one."""
    try:
        yield
    except ValueError as error:
        raise ValueError(_first_line(error)) from error
    except Exception as error:
        raise OSError(f"MLflow at {public}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    """The first cause of an error on one short line, without secrets."""
    words = " ".join(redaction.redact(str(error)).split()).rpartition("Caused by ")[2] or type(error).__name__
    return words if len(words) <= 200 else f"{words[:200]}..."


class Program:
    """The process's main loop: answers requests, and sends journals between them."""

    def __init__(self) -> None:
        self.requests: queue.Queue[Record] = queue.Queue()
        self.sender: Sender | None = None
        self.watch: Watch | None = None

    def listen(self) -> None:
        """Reads requests; exits at the end of stdin, when the stage has ended."""
        for line in sys.stdin:
            self.requests.put(json.loads(line))
        os._exit(0)  # whatever the other thread does: the stage has ended, and the journal remains

    def run(self) -> None:
        """Answers requests, and sends while there are none."""
        threading.Thread(target=self.listen, daemon=True).start()
        _answer(event="ready")
        while True:
            with contextlib.suppress(queue.Empty):
                self._do(self.requests.get(timeout=PAUSE))
            if self.sender and time.monotonic() >= self.sender.not_before:
                self.sender.send(time.monotonic() + PAUSE)

    def _do(self, request: Record) -> None:
        what, number = request.pop("do"), request.pop("number")
        try:
            answer = getattr(self, f"_{what}")(**request)
        except (ValueError, OSError) as error:
            kind = "ValueError" if isinstance(error, ValueError) else "OSError"
            _answer(event="error", number=number, kind=kind, text=str(error))
        else:
            _answer(event="done", number=number, result=answer)

    def _open(self, uri: str, public: str, to: str, root: str) -> int:
        """Connects to the server, and sends journals of earlier stages for at most `OLD` seconds; returns their number."""
        with _named_errors(public):
            self.sender = Sender(uri, public, to)
            self.sender.client.search_experiments(max_results=1)
        left = self.sender.old(Path(root))
        self.sender.send(time.monotonic() + OLD, light=True)
        return left

    def _begin(self, wanted: Record, root: str) -> str:
        """Starts the run, and returns its id."""
        assert self.sender is not None
        ending = {reader.about["run_id"] for reader in journal.pending(Path(root)) if reader.ended}
        with _named_errors(self.sender.public):
            return begin.begin(self.sender.client, Wanted(**wanted), ending)

    def _follow(self, folder: str, system: bool) -> None:
        """Sends the stage's own journal from now on, with system metrics."""
        assert self.sender is not None
        if not (Path(folder) / journal.ROWS).exists():
            return  # it has ended, and was sent with the journals of earlier stages
        own = self.sender.follow(Path(folder))
        if system:
            with _named_errors(self.sender.public):
                self.watch = Watch(own.run_id, Journal(Path(folder)), own.next_system_step())
            own.before_end = self.watch.stop

    def _flush(self) -> None:
        """Sends everything, however often it fails; the stage ends this process after its limit."""
        assert self.sender is not None
        reported = ""
        while not self.sender.drained:
            self.sender.send(time.monotonic() + PAUSE)
            if self.sender.why:
                if self.sender.why != reported:
                    _answer(event="why", text=self.sender.why)
                reported, self.sender.why = self.sender.why, ""
                time.sleep(PAUSE)

    def _weights(self, uri: str, public: str, model: str, folder: str) -> str:
        """Downloads the model.pt of an MLflow model, or of a run's, to `folder`, and returns its path."""
        from pipeline.tracking import registry  # it imports torch

        with _named_errors(public):
            client = _client(uri)
            address = model if model.startswith(addresses.OF_MODELS) else registry.of_run(client, model)
            file = registry.fetch(address, Path(folder))
        if file is None:
            raise OSError(f"MLflow at {public}: {model} has no model.pt, as `evaluate` adds it. Give the file itself")
        return str(file)

    def _records(self, uri: str, public: str, experiment: str, names: list[str], most: int) -> list[list[Record]]:
        """The runs with each of these names, and the newest `most` at the end: see `records`."""
        from pipeline.tracking import records

        with _named_errors(public):
            client = _client(uri)
            named = [records.named(client, experiment, name) for name in names]
            return [*named, records.last(client, experiment, most) if most else []]


def main(answers: BinaryIO) -> None:
    """Runs the process. `answers`: the stream for answers."""
    _answers.append(answers)
    # MLflow prints each run's address with its password
    sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    sys.stderr = redaction.Redacted(sys.stderr)
    Program().run()


_answers: list[BinaryIO] = []


def _answer(**words: Any) -> None:
    for answers in _answers:
        answers.write(json.dumps(words).encode() + b"\n")
        answers.flush()
