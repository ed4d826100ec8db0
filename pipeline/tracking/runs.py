"""A stage's run in MLflow: started before any work, logged to a journal, and sent by a separate process.

Each fingerprint has one run: `train` creates it, the later stages find it by its tag and add to it. Only drivers use MLflow;
workers report to their driver. After the start no stage waits for a server until its end; what is not sent by then is sent by
the next stage.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.runtime import machines, redaction, waiting
from pipeline.runtime.machines import Machine
from pipeline.tracking import addresses, cards, courier, database, description
from pipeline.tracking.courier import Courier, Event
from pipeline.tracking.description import Pictures
from pipeline.tracking.journal import Journal, Reader

if TYPE_CHECKING:
    from alexnet.network import Model

START = 45.0
"""Seconds in which a server has to answer before a stage starts its work."""

MAKING = 180.0
"""The same for a database on this machine, which may have to be created first."""

END = 30.0
"""Seconds for which a stage waits for MLflow at its end, in all."""

STOPPED = 2.0
"""The same for a stage that was stopped by a signal."""

EXPORT = 600.0
"""Seconds that the export of a network may take; they do not count in `END`."""

DOWNLOAD = 900.0
"""Seconds that the download of a model may take."""

READ = 120.0
"""Seconds that reading runs back may take."""

DATABASES = ("postgresql", "mysql", "mssql", "sqlite")
"""The databases that MLflow's server supports."""

SEND = "python -m pipeline.tracking send"


@dataclass
class Run:
    """A running MLflow run, to which a stage writes; `run` yields it."""

    run_id: str
    fingerprint: str
    manifest: Pictures | None
    journal: Journal = field(repr=False)
    _handover: Handover = field(repr=False)
    _scores: dict[str, float] = field(default_factory=dict, repr=False)
    _errors: dict[str, float] = field(default_factory=dict, repr=False)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs the metrics of one step."""
        self.log_all([(step, metrics)])

    def log_all(self, rows: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Logs the metrics of several steps, in ascending order; a metric's steps up to its last one in MLflow are skipped."""
        for step, metrics in rows:
            if metrics:
                self.journal.write({"step": step, "metrics": {name: float(value) for name, value in metrics.items()}})

    def score(self, metrics: Mapping[str, float]) -> None:
        """Logs metrics without a step; a metric that is in MLflow already only if its value changed."""
        scores = {name: float(value) for name, value in metrics.items()}
        self._scores |= scores
        self.journal.write({"score": scores})

    def tag(self, name: str, words: str) -> None:
        """Sets a tag, without secrets; replaces its old value."""
        self.journal.write({"tag": [name, redaction.redact(words)]})

    def describe(self, errors: Mapping[str, float]) -> None:
        """Writes the run's description anew, with its errors: metrics.json's `ten_views`."""
        self._errors = dict(errors)
        self.tag(description.NOTE, description.note(description.run_name({}), self.manifest, errors))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Adds a copy of a file, or of a folder's files, to the run's artifacts in `folder`."""
        self.journal.write({"artifact": self.journal.keep(path), "folder": folder})

    def publish(
        self, weights: bytes, model: Model, error: float, interval: Sequence[float] = (0, 1), guessing: float = math.nan
    ) -> tuple[str, ...]:
        """Registers the network; it becomes `candidate` or `champion` as `registry.deserved` says.

        `weights`: the bytes of its model.pt; equal weights are stored once. `error`: the top-1 error, from 0 to 1;
        `interval`: the ends of its 95 % interval; `guessing`: the error of guessing, NaN if unknown. The registered model's
        name is `model_name`. Returns the aliases that were set; none if MLflow does not answer: the model is
        then registered when the journal is sent. The page of the model says what `describe` was told, and has the metrics of
        `score`; that of the registered model says how to use it.
        """
        assert self.manifest is not None, "a model needs the manifest of its pictures"
        tags = {"fingerprint": self.fingerprint, "manifest": self.manifest.digest, "top1_error": repr(error)}
        tags |= {"top1_low": repr(interval[0]), "top1_high": repr(interval[1]), "guessing": repr(guessing)}
        kept, name = self.journal.keep_bytes("model.pt", weights), model_name(model, self.manifest)
        pictures = description.pictures(self.manifest)
        version = cards.of_version(name, self.manifest, self._errors)
        self.journal.write(
            {"publish": kept, "sha256": hashlib.sha256(weights).hexdigest(), "name": name, "tags": tags}
            | {"scores": self._scores, "dataset": {key: pictures[key] for key in ("name", "digest")}}
            | {"texts": {"model": cards.of_model(name, self.manifest), "version": version}}
        )
        return self._handover.published()


@dataclass
class Handover:
    """The process that sends the journal, and the seconds (`left`) that the stage will still wait for it."""

    courier: Courier
    public: str
    again: Callable[[], None]
    """Connects a new process to the server and the journal after the old one was killed."""
    left: float
    why: str = ""
    _free: float = 0.0
    """The time (`time.monotonic`) until which the process computes, so that waiting does not count."""

    def published(self) -> tuple[str, ...]:
        """Waits until the model is registered, and returns its aliases; an empty tuple after the limit."""
        for event in self._flush():
            if event["event"] == "published":
                if event["text"]:
                    print(event["text"])
                return tuple(event["aliases"])
        return ()

    def all_sent(self) -> bool:
        """Waits until all is sent; false after the limit."""
        return any(event["event"] == "done" for event in self._flush())

    def _flush(self) -> Iterator[Event]:
        if self.courier.dead:
            self.courier.restart()
            self.again()
        number = self.courier.tell("flush")
        try:
            with waiting.saying(self.courier.name, f"MLflow at {self.public}", self.left):
                for event in self.courier.events(self.left, lambda: time.monotonic() > self._free):
                    if event["event"] == "why":
                        self.why = event["text"]
                    elif event["event"] == "local":
                        self._free = time.monotonic() + EXPORT if event["on"] else 0.0
                    if event.get("number", number) == number:
                        yield event
                    if event.get("number") == number:
                        return
        finally:
            self.left -= self.courier.spent


@contextmanager
def run(
    machine: Machine,
    fingerprint: str,
    params: Mapping[str, Any],
    manifest: Pictures | None,
    stage: str,
    *,
    adopt: bool = False,
) -> Iterator[Run]:
    """The MLflow run of `fingerprint`: RUNNING while the block runs, then FINISHED, FAILED or KILLED.

    Continues an unfinished run of the same stage, or, with `adopt`, as the stages after `train` do, a FINISHED one; otherwise
    creates a run. `params` may be nested; each is logged once. `manifest`: that of the pictures, if there is one. Raises
    `OSError` before any work if the tracking server does not answer. If it stops answering later, a message says so, and the
    next stage sends what is missing.
    """
    uri = address(machine)
    wanted = description.wanted(uri, fingerprint, params, manifest, stage, adopt)
    with _prepared(uri, stage) as ready, courier.running(stage) as process:
        with _refused(public(uri)):
            _open(process, machine, uri)
            run_id = process.ask("begin", _limit(uri), wanted=wanted.plain, root=str(journals(machine)))
            book = Journal.begin(journals(machine), {"run_id": run_id, "to": _to(uri, machine), "stage": stage})
            process.ask("follow", START, folder=str(book.folder), system=_watched())
        ready()

        def again() -> None:
            _open(process, machine, uri)
            process.ask("follow", START, folder=str(book.folder), system=False)

        handover = Handover(process, public(uri), again, END)
        status = "FINISHED"
        try:
            yield Run(run_id, fingerprint, manifest, book, handover)
        except BaseException as error:
            # a stop signal raises Stopped, which is a SystemExit: the run did not fail
            status = "FAILED" if isinstance(error, Exception) else "KILLED"
            raise
        finally:
            _end(book, handover, status)


def address(machine: Machine) -> str:
    """The tracking URI: machine.yaml's, otherwise `MLFLOW_TRACKING_URI`, otherwise `mlflow.db` in the storage or working copy.

    A path in it is made absolute, because MLflow resolves it in the current folder, which differs in Ray's workers. Raises
    `ValueError` if it is no address of a server or a database.
    """
    uri = (
        os.environ.get("MLFLOW_TRACKING_URI")
        if machine.tracking == "auto"
        else redaction.hide_password(machine.tracking)
    )
    if not uri or not uri.strip():
        return database.address(machines.base(machine) / "mlflow.db")
    return addresses.absolute(addresses.parse(uri), machines.home())


def public(uri: str) -> str:
    """The address without user, password and token, for messages and records."""
    return redaction.redact(uri)


def journals(machine: Machine) -> Path:
    """The folder of the journals."""
    return machines.runs(machine) / "journal"


def weights(machine: Machine, model: str) -> bytes:
    """The model.pt of an MLflow model: models:/name@alias, models:/name/3, models:/m-… or runs:/…/model; or of a run.

    A run is named by its id, its fingerprint or its name. Raises `OSError` or `ValueError` if there is none, or the tracking
    server does not answer.
    """
    uri = address(machine)
    with (
        _prepared(uri, "MLflow"),
        courier.running("MLflow") as process,
        _refused(public(uri)),
        tempfile.TemporaryDirectory() as folder,
        waiting.saying("MLflow", f"{model} from {public(uri)}", DOWNLOAD),
    ):
        file = process.ask("weights", DOWNLOAD, uri=uri, public=public(uri), model=model, folder=folder)
        return Path(file).read_bytes()


def recorded(machine: Machine, names: Sequence[str] = (), last: int = 0) -> list[list[dict[str, Any]]]:
    """The runs in MLflow with each of these ids, fingerprints or names, then the newest `last` runs, as `records` returns them.

    A list is empty if there is no such run, or no database yet. Raises `OSError` if the tracking server does not answer.
    """
    uri = address(machine)
    file = database.path(uri)
    if file is not None and not file.exists():  # MLflow would make it
        return [[] for _ in range(len(names) + 1)]
    with (
        _prepared(uri, "MLflow"),
        courier.running("MLflow") as process,
        _refused(public(uri)),
        waiting.saying("MLflow", f"runs from {public(uri)}", READ),
    ):
        asked = {"uri": uri, "public": public(uri), "names": list(names), "most": last}
        found: list[list[dict[str, Any]]] = process.ask("records", READ, experiment=description.experiment(), **asked)
        return found


def model_name(model: Model, manifest: Pictures) -> str:
    """The registered model's name: alexnet, vgg16 or resnet50, followed by -drawn for drawn pictures."""
    return f"{model.network}-drawn" if manifest.drawn else model.network


# How a run begins and ends


@contextmanager
def _prepared(uri: str, name: str) -> Iterator[Callable[[], None]]:
    """Waits until the database is free, corrects its artifact locations, and yields a function that releases its lock.

    Without the lock, processes that find no database would create it at the same time and spoil its tables.
    """
    file = database.path(uri)
    with ExitStack() as stack:
        if file is not None:
            what = f"{file}, which another stage makes or looks through"
            stack.enter_context(waiting.locked(Path(f"{file}.lock"), name, what, MAKING))
            database.wait_until_free(file, name)
            if note := database.repoint_artifacts(file):
                print(f"{name}: {note}")
        yield stack.close


def _open(process: Courier, machine: Machine, uri: str) -> None:
    """Connects the process to the server, or the database."""
    with waiting.saying(process.name, f"MLflow at {public(uri)}", _limit(uri)):
        try:
            root = str(journals(machine))
            process.ask("open", _limit(uri), uri=uri, public=public(uri), to=_to(uri, machine), root=root)
        except OSError as error:
            raise type(error)(
                f"{error}. It has to answer before any work; machine.yaml, tracking, says where"
            ) from None


def _limit(uri: str) -> float:
    return START if database.path(uri) is None else MAKING


@contextmanager
def _refused(where: str) -> Iterator[None]:
    """Turns a `TimeoutError` into an `OSError` that names MLflow's address."""
    try:
        yield
    except TimeoutError as error:
        raise OSError(f"MLflow at {where}: {error}") from None


def _end(book: Journal, handover: Handover, status: str) -> None:
    """Writes the end of the run, waits for MLflow within the limit, and prints what is not sent."""
    book.write({"end": status})
    if status == "KILLED":
        handover.left = min(handover.left, STOPPED)
    reader = Reader(book.folder)
    if not handover.all_sent():
        print(
            f"{handover.courier.name}: not all is in MLflow at {handover.public} ({handover.why or 'no answer'}): "
            f"{reader.left()} in {book.folder}. The next stage sends it, or: {SEND}",
            file=sys.stderr,
        )
    if reader.refused:
        print(
            f"{handover.courier.name}: MLflow refuses {reader.refused} lines: {book.folder}/refused.jsonl",
            file=sys.stderr,
        )


def _watched() -> bool:
    return os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true").lower() not in ("false", "0")


def _to(uri: str, machine: Machine) -> str:
    """The name of a journal's server; for a database in the working copy its relative path, since the copy may be moved."""
    file, base = database.path(uri), machines.base(machine)
    return public(uri) if file is None or not file.is_relative_to(base) else f"{file.relative_to(base)}"
