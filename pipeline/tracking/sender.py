"""A process of its own that speaks to MLflow for a stage: it begins the run, and sends what its journal holds.

Whatever a server does (is away, hangs, trickles, answers 500), it does it to this process, which its stage ends when its
time is over; nobody's training, progress line or exit waits here. Requests come by stdin and answers go by stdout, a line of
JSON each; when stdin ends the stage has ended, and so has this.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from pipeline.runtime import redaction
from pipeline.tracking import begin, database, journal, registry
from pipeline.tracking.journal import Journal, Reader, Record

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from pipeline.tracking.watch import Watch

ENVIRONMENT = {
    # nobody is told of a run but its own server
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # An exported program keeps its device, and ours is the CPU; where there is a GPU, MLflow would try that
    "MLFLOW_DEFAULT_PREDICTION_DEVICE": "cpu",
    # What failed is asked about before it is sent again, which MLflow's own retries do not
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
"""Read when mlflow is imported, so set before."""

PAUSE = 1.0
"""Seconds between two looks at the journal."""

LONGEST_PAUSE = 60.0
"""Seconds between two tries at a server that fails: twice as long after each, up to this."""

OLD = 15.0
"""Seconds that a stage waits for what earlier stages have left, before it begins."""

BATCH = 1000
"""Metrics to a request: the most that MLflow takes."""

REFUSED = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""MLflow's words for what it will not take the next time either."""


class Sender:
    """What is to be sent, to one server."""

    def __init__(self, uri: str, public: str, to: str) -> None:
        self.client = _client(uri)
        self.public, self.to = public, to
        self.waiting: list[Delivery] = []
        self.not_before = 0.0
        self.pause = PAUSE
        self.why = ""

    def follow(self, folder: Path) -> Delivery:
        """Takes the stage's own journal among those to be sent: behind what is left of the same run, before all others."""
        own = Delivery(self.client, Reader(folder), own=True)
        before = [each for each in self.waiting if each.run_id == own.run_id]
        self.waiting = [*before, own, *(each for each in self.waiting if each not in before)]
        return own

    def old(self, root: Path) -> int:
        """Takes the journals that earlier stages have left for this server, and returns their number."""
        left = [reader for reader in journal.pending(root) if reader.about["to"] == self.to and reader.over]
        self.waiting += [Delivery(self.client, reader, own=False) for reader in left]
        return len(left)

    def send(self, until: float, *, light: bool = False) -> None:
        """Sends in order until nothing is left, it is over, or the server fails; `light`: without models and files."""
        for delivery in list(self.waiting):
            while time.monotonic() < until and not (light and delivery.heavy):
                try:
                    more = delivery.step()
                except Exception as error:  # of whatever library: it is tried again, and said
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
        """Whether nothing is left to be sent now."""
        return not any(each.has_more for each in self.waiting)


class Delivery:
    """One journal on its way."""

    def __init__(self, client: MlflowClient, reader: Reader, *, own: bool) -> None:
        self.client, self.reader, self.own = client, reader, own
        self.run_id = str(reader.about["run_id"])
        self.done = False
        self.before_end: Callable[[], None] = lambda: None
        self._last: dict[str, int] | None = None

    @property
    def heavy(self) -> bool:
        """Whether what comes next may take long: a model, or files."""
        lines = self.reader.unsent(journal.ROWS, most=1)
        return any(key in record for _, record in lines for key in ("publish", "artifact"))

    @property
    def has_more(self) -> bool:
        """Whether there is a line that was not sent."""
        return not self.own or any(self.reader.unsent(name, most=1) for name in (journal.SYSTEM, journal.ROWS))

    def forget(self) -> None:
        """After a failure: a server that did not answer may have stored all the same, and is asked."""
        self._last = None

    def step(self) -> bool:
        """Sends the next lines, as many as make one request. False if there is none; `done` if there will be none."""
        with self._alone() as mine:
            if not mine:
                self.done = True  # another process sends it
                return False
            return any(self._lines(name) for name in (journal.SYSTEM, journal.ROWS)) or self._finish()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """Holds the journal against other senders; false where one is at it, unless it is our own."""
        try:
            with FileLock(self.reader.folder / "lock", timeout=-1 if self.own else 0):
                yield (self.reader.folder / journal.ROWS).exists()
        except Timeout:
            yield False

    def _lines(self, name: str) -> bool:
        lines = self.reader.unsent(name)
        if not lines:
            return False
        values = [record for _, record in lines[: _leading(lines)]]
        if values:
            self._metrics(values)
            self.reader.sent(name, lines[len(values) - 1][0])
        else:
            place, record = lines[0]
            self._other(record)
            if not self.done:
                self.reader.sent(name, place)
        return True

    def _metrics(self, records: list[Record]) -> None:
        """Writes values, each metric only past its last step.

        A resumed training goes again through steps that were written before it was killed. Those are left out, so that
        every metric keeps one value for each step. NaN is written: a run that diverged should show it.
        """
        from mlflow.entities import Metric

        last, new = self._lasts(), []
        for record in records:
            step, when = int(record["step"]), int(record["time"])
            for name, value in record["metrics"].items():
                if step > last.get(name, -1):
                    new.append(Metric(name, float(value), when, step))
                    last[name] = step
        for start in range(0, len(new), BATCH):
            self._tried(records[0], self.client.log_batch, self.run_id, metrics=new[start : start + BATCH])

    def _other(self, record: Record) -> None:
        if "score" in record:
            self._score(record)
        elif "tag" in record:
            self._tried(record, self.client.set_tag, self.run_id, *record["tag"])
        elif "artifact" in record:
            self._artifact(record)
        elif "publish" in record:
            self._publish(record)
        elif "end" in record:
            self.before_end()
            self._tried(record, self.client.set_terminated, self.run_id, record["end"], end_time=record["time"])
            self.reader.remove()
            self.done = True

    def _score(self, record: Record) -> None:
        """Writes metrics that have no step. One that is measured again is written again only if it changed."""
        known = self.client.get_run(self.run_id).data.metrics
        for name, value in record["score"].items():
            same = name in known and (known[name] == value or (known[name] != known[name] and value != value))
            if not same:
                step = self._lasts().get(name, -1) + 1
                self._metrics([{"step": step, "time": record["time"], "metrics": {name: value}}])

    def _artifact(self, record: Record) -> None:
        path, folder = self.reader.folder / record["artifact"], record["folder"]
        if path.is_dir():
            self._tried(record, self.client.log_artifacts, self.run_id, str(path), folder)
        elif path.exists():
            self._tried(record, self.client.log_artifact, self.run_id, str(path), folder)

    def _publish(self, record: Record) -> None:
        file = self.reader.folder / record["publish"]
        weights = file.read_bytes() if file.exists() else b""
        if hashlib.sha256(weights).hexdigest() != record["sha256"]:
            self.reader.put_aside(record, f"{file} is not as it was put there")
            return
        here = self.client.tracking_uri.startswith(database.SCHEME)
        with _local() if here else contextlib.nullcontext():
            working = contextlib.nullcontext if here else _local
            aliases, said = registry.publish(self.client, self.run_id, weights, record["name"], record["tags"], working)
        _answer(event="published", aliases=aliases, text=said)

    def _tried(self, record: Record, call: Any, *words: Any, **named: Any) -> None:
        """Calls MLflow; what it refuses for good is put aside, and the rest goes on."""
        from mlflow.exceptions import MlflowException

        try:
            call(*words, **named)
        except MlflowException as error:
            if error.error_code not in REFUSED:
                raise
            self.reader.put_aside(record, redaction.redact(str(error)))

    def _lasts(self) -> dict[str, int]:
        """The last step written, by metric; asked for once, since nobody else writes this run's metrics."""
        if self._last is None:
            record = self.client.get_run(self.run_id)
            # The public `metrics` has no steps, and a metric's whole history is long
            self._last = {metric.key: metric.step for metric in record.data._metric_objs}
        return self._last

    def next_system_step(self) -> int:
        """The step behind the last that was measured of the machine."""
        return 1 + max((step for name, step in self._lasts().items() if name.startswith("system/")), default=-1)

    def _finish(self) -> bool:
        """What a killed process has left ends without a last line: then the journal is sent when all its lines are."""
        if not self.own and self.reader.over:
            self.reader.remove()
            self.done = True
        return False


def _leading(lines: list[tuple[int, Record]]) -> int:
    """How many lines come before the first that is no row of metrics."""
    return next((place for place, (_, record) in enumerate(lines) if "metrics" not in record), len(lines))


def _client(uri: str) -> MlflowClient:
    import mlflow

    _hush()
    file = database.path(uri)
    if file is not None:
        # a name alone: MLflow makes the folder of whatever path it is given, with its characters quoted
        os.chdir(file.parent)
        uri = database.address(Path(file.name))
        # its first experiment, which nobody uses, else goes by the current folder's name, unquoted, into a line of SQL
        os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = (file.parent / "mlruns").as_uri()
    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient(uri)


def _hush() -> None:
    """Leaves it to the answers to say what failed, unless MLflow's own setting says otherwise; it sets levels when imported."""
    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        for name in ("mlflow", "mlflow.store.db.utils", "alembic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


@contextlib.contextmanager
def _spoken(public: str) -> Iterator[None]:
    """Turns whatever a library raises while MLflow is spoken to into an `OSError` that says which server."""
    try:
        yield
    except ValueError as error:
        raise ValueError(_first_line(error)) from error
    except Exception as error:
        raise OSError(f"MLflow at {public}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    """The error in one line that is not too long, without secrets: of a chain of causes the first."""
    words = " ".join(redaction.redact(str(error)).split()).rpartition("Caused by ")[2] or type(error).__name__
    return words if len(words) <= 200 else f"{words[:200]}..."


@contextlib.contextmanager
def _local() -> Iterator[None]:
    """Says that what is done now is work here: a network to be exported is not a server that makes us wait."""
    _answer(event="local", on=True)
    try:
        yield
    finally:
        _answer(event="local", on=False)


class Program:
    """The process: requests in, answers out, and between them the journals."""

    def __init__(self) -> None:
        self.requests: queue.Queue[Record] = queue.Queue()
        self.sender: Sender | None = None
        self.watch: Watch | None = None

    def listen(self) -> None:
        """Takes requests as they come; where none can come any more the stage has ended."""
        for line in sys.stdin:
            self.requests.put(json.loads(line))
        os._exit(0)  # whatever the other thread is at: its stage is gone, and the journal is not

    def run(self) -> None:
        """Answers requests, and sends while there is none."""
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
        """Joins the server, and sends what earlier stages have left for it, as far as that does not take long."""
        with _spoken(public):
            self.sender = Sender(uri, public, to)
            self.sender.client.search_experiments(max_results=1)
        left = self.sender.old(Path(root))
        self.sender.send(time.monotonic() + OLD, light=True)
        return left

    def _begin(self, wanted: Record, root: str) -> str:
        """Starts the run."""
        assert self.sender is not None
        ending = {reader.about["run_id"] for reader in journal.pending(Path(root)) if reader.ended}
        with _spoken(self.sender.public):
            return begin.begin(self.sender.client, begin.Wanted(**wanted), ending)

    def _follow(self, folder: str, system: bool) -> None:
        """Sends the stage's own journal from now on, with what is measured of the machine."""
        assert self.sender is not None
        if not (Path(folder) / journal.ROWS).exists():
            return  # it has ended, and was sent with what earlier stages had left
        own = self.sender.follow(Path(folder))
        if system:
            from pipeline.tracking.watch import Watch

            with _spoken(self.sender.public):
                self.watch = Watch(own.run_id, Journal(Path(folder)), own.next_system_step())
            own.before_end = self.watch.stop

    def _flush(self) -> None:
        """Sends all, however often it fails: the stage ends this process when its time is over."""
        assert self.sender is not None
        told = ""
        while not self.sender.drained:
            self.sender.send(time.monotonic() + PAUSE)
            if self.sender.why:
                if self.sender.why != told:
                    _answer(event="why", text=self.sender.why)
                told, self.sender.why = self.sender.why, ""
                time.sleep(PAUSE)

    def _weights(self, uri: str, public: str, model: str, folder: str) -> str:
        """Downloads the model.pt of an MLflow model."""
        with _spoken(public):
            _client(uri)
            file = registry.fetch(model, Path(folder))
        if file is None:
            raise OSError(f"MLflow at {public}: {model} has no model.pt, as `evaluate` adds it. Give the file itself")
        return str(file)


def main() -> None:
    """The program, as a stage starts it."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    _answers.append(os.fdopen(os.dup(1), "w", buffering=1))
    os.dup2(2, 1)
    # MLflow prints where to look at each run, with the password of the address
    sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    sys.stderr = redaction.Redacted(sys.stderr)
    Program().run()


_answers: list[IO[str]] = []


def _answer(**words: Any) -> None:
    for answers in _answers:
        answers.write(json.dumps(words) + "\n")
        answers.flush()
