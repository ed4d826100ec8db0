"""Sending one journal to MLflow: its lines in order, each value once; lines that MLflow refuses are set aside."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from pipeline.runtime import redaction
from pipeline.tracking import cards, database, journal
from pipeline.tracking.journal import Reader, Record

BATCH = 1000
"""Metrics in one request: MLflow's maximum."""

REFUSED = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""MLflow's error codes for requests that would fail again."""


class Delivery:
    """The sending of one journal. `answer` sends an event to the stage; `own`: whether it is the running stage's own journal."""

    def __init__(self, client: MlflowClient, reader: Reader, answer: Callable[..., None], *, own: bool) -> None:
        self.client, self.reader, self.own, self._answer = client, reader, own, answer
        self.run_id = str(reader.about["run_id"])
        self.done = False
        self.before_end: Callable[[], None] = lambda: None
        self._last: dict[str, int] | None = None

    @property
    def heavy(self) -> bool:
        """Whether the next line may take long: a model, or files."""
        lines = self.reader.unsent(journal.ROWS, most=1)
        return any(key in record for _, record in lines for key in ("publish", "artifact"))

    @property
    def has_more(self) -> bool:
        """Whether there are unsent lines; always true for another stage's journal until it is done."""
        return not self.own or any(self.reader.unsent(name, most=1) for name in (journal.SYSTEM, journal.ROWS))

    def forget(self) -> None:
        """To be called after a failure: the last steps are requested again, since the server may have stored the values."""
        self._last = None

    def step(self) -> bool:
        """Sends the next lines. Returns false if there are none now; sets `done` if there will be no more."""
        with self._locked() as locked:
            if not locked:
                self.done = True  # another process sends it
                return False
            return any(self._lines(name) for name in (journal.SYSTEM, journal.ROWS)) or self._finish()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[bool]:
        """Locks the journal; yields false if another process has the lock or has sent it. Waits for the stage's own journal."""
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
            offset, record = lines[0]
            self._other(record)
            if not self.done:
                self.reader.sent(name, offset)
        return True

    def _metrics(self, records: list[Record]) -> None:
        """Logs metrics, each only for steps after its last step in MLflow.

        A resumed training repeats steps that were logged before it was killed. They are skipped, so that every metric has one
        value for each step. NaN is logged: a run that diverged should show it.
        """
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
        """Logs metrics without a step; a metric that is in MLflow already only if its value changed."""
        logged = self.client.get_run(self.run_id).data.metrics
        for name, value in record["score"].items():
            same = name in logged and (logged[name] == value or (logged[name] != logged[name] and value != value))
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
        with self._local():  # it imports torch, perhaps from a slow disk
            from pipeline.tracking import registry
        on_disk = self.client.tracking_uri.startswith(database.SCHEME)
        with self._local() if on_disk else contextlib.nullcontext():
            working = contextlib.nullcontext if on_disk else self._local
            made = registry.publish(self.client, self.run_id, weights, record["name"], record["tags"], working)
        if made.model_id:
            self._tried(record, self._link, record, made.model_id)
        if texts := record.get("texts"):  # a journal of older code has none
            self._tried(record, cards.write, self.client, record["name"], made.version, texts)
        self._answer(event="published", aliases=made.aliases, text=made.note)

    def _link(self, record: Record, model_id: str) -> None:
        """Links the run's errors to the model and the data set, so that the model's page has them.

        They are logged with the time and step that they have in the run, so that MLflow adds no second value there. Those
        that are linked already are left out, since MLflow fails on them.
        """
        linked = {
            (each.key, each.timestamp, each.step, each.run_id)
            for each in self.client.get_logged_model(model_id).metrics or []
        }
        run, scores, data = self.client.get_run(self.run_id), record.get("scores", {}), record.get("dataset", {})
        where = {"model_id": model_id, "dataset_name": data.get("name"), "dataset_digest": data.get("digest")}
        for each in run.data._metric_objs:  # the public `metrics` has no steps
            if each.key in scores and (each.key, each.timestamp, each.step, self.run_id) not in linked:
                # not log_batch, which drops the data set
                self.client.log_metric(self.run_id, each.key, each.value, each.timestamp, each.step, **where)

    @contextlib.contextmanager
    def _local(self) -> Iterator[None]:
        """Tells the stage that this process computes, as in an export, so that the time does not count as waiting."""
        self._answer(event="local", on=True)
        try:
            yield
        finally:
            self._answer(event="local", on=False)

    def _tried(self, record: Record, call: Any, *words: Any, **named: Any) -> None:
        """Calls MLflow; sets the record aside if MLflow refuses it with an error that would recur."""
        try:
            call(*words, **named)
        except MlflowException as error:
            if error.error_code not in REFUSED:
                raise
            self.reader.put_aside(record, redaction.redact(str(error)))

    def _lasts(self) -> dict[str, int]:
        """Metric → its last step in MLflow; requested once, since no other process logs this run's metrics."""
        if self._last is None:
            record = self.client.get_run(self.run_id)
            # the public `metrics` has no steps, and a metric's whole history is long
            self._last = {metric.key: metric.step for metric in record.data._metric_objs}
        return self._last

    def next_system_step(self) -> int:
        """The step after that of the last system metrics."""
        return 1 + max((step for name, step in self._lasts().items() if name.startswith("system/")), default=-1)

    def _finish(self) -> bool:
        """Removes another stage's journal that a killed process left without a last line, once it is sent; returns false."""
        if not self.own and self.reader.over:
            self.reader.remove()
            self.done = True
        return False


def _leading(lines: list[tuple[int, Record]]) -> int:
    """The number of lines with metrics before the first line of another kind."""
    return next((number for number, (_, record) in enumerate(lines) if "metrics" not in record), len(lines))
