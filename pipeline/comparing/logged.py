"""A measured run from MLflow, as `tracking` reads it back."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from pipeline.comparing import measured, outs
from pipeline.comparing.measured import Cost, MeasuredRun, PictureSet, Rate
from pipeline.runtime import git, machines, owner, run_record
from pipeline.tracking import runs

Record = Mapping[str, Any]

STATES = {
    "FAILED": "failed",
    "KILLED": "stopped before its end",
    "SCHEDULED": "not begun",
}


def find(names: Sequence[str]) -> list[MeasuredRun | None]:
    """The run of each id, fingerprint or name, with its curves; None where MLflow has none. Of several, the newest."""
    found = runs.recorded(machines.read(), names)[:-1]
    return [_newest(name, records) if records else None for name, records in zip(names, found, strict=True)]


def _newest(name: str, records: Sequence[Record]) -> MeasuredRun:
    others = [each["run_id"][:8] for each in records[1:]]
    note = (
        f"{len(records)} runs are called {name}; this is the newest; older ones: {', '.join(others)}" if others else ""
    )
    return of_record(records[0], note)


def last(number: int) -> list[tuple[MeasuredRun, Record]]:
    """The newest runs, newest first, then champions that are older, each with its record."""
    return [(of_record(record), record) for record in runs.recorded(machines.read(), last=number)[-1]]


def of_record(record: Record, note: str = "") -> MeasuredRun:
    """The run of a record."""
    metrics, tags = _metrics(record), record["tags"]
    values = {key: tags.get(f"now.{key}", value) for key, value in record["params"].items()}
    parameters = {key: _parsed(value) for key, value in values.items()}
    curves = record.get("curves", {})
    experiment = tags.get("dvc.exp_name", "")
    rates = _rates(record, metrics, parameters)
    return MeasuredRun(
        name=f"{record['name']}",
        origin=f"MLflow run {record['run_id'][:8]}",
        state=_state(record, bool(rates)),
        params=parameters,
        rates=rates,
        tested=_tested(record, metrics, parameters),
        steps=_points(curves, {"train/loss": "loss", "train/top1_error": "top1_error", "rate": "rate"}),
        epochs=_points(
            curves, {name: name.replace("/", "_") for name in curves if name.startswith(("val/", "held_out/"))}
        ),
        cost=_cost(record),
        date=_date(record["start"]),
        commit=tags.get("git.commit", ""),
        fingerprint=tags.get("fingerprint", ""),
        notes=(note,) * bool(note),
        predictions=_predictions(experiment) if experiment else None,
    )


def _predictions(experiment: str) -> Any:
    commit = git.commit_of(experiment)
    return outs.revision(experiment, commit).predictions if commit else None


def _metrics(record: Record) -> dict[str, Any]:
    """The contents of the run's metrics.json; empty if it has none."""
    with suppress(ValueError):
        document = json.loads(record["files"].get("evaluation/metrics.json", "{}"))
        if isinstance(document, dict):
            return document
    return {}


def _rates(record: Record, metrics: Record, parameters: Record) -> dict[str, Rate]:
    if rates := measured.rates(metrics):
        return rates
    images = _pictures(record).get(parameters.get("results.split", ""))
    logged = record["metrics"]
    return {
        key: Rate(error=float(logged[key]), images=images)
        for view in measured.VIEWS
        for top in (1, 5)
        if (key := f"{view}/top{top}_error") in logged
    }


def _pictures(record: Record) -> dict[str, int]:
    """Split → number of pictures, as the data set's profile has them."""
    with suppress(ValueError, TypeError, IndexError):
        profile = json.loads(record["pictures"][0]["profile"])
        return {str(split): int(count) for split, count in profile.items()}
    return {}


def _tested(record: Record, metrics: Record, parameters: Record) -> PictureSet:
    split = parameters.get("results.split", "")
    names = [each["name"] for each in record["pictures"]]
    return PictureSet(
        split=split,
        manifest=record["tags"].get("manifest", ""),
        images=metrics.get("images") or _pictures(record).get(split),
        classes=metrics.get("classes"),
        drawn="drawn pictures" in names if names else None,
        source=str(parameters.get("source.name", "")),
    )


def _state(record: Record, evaluated: bool) -> str:
    status = record["status"]
    if status == "RUNNING":
        alive = owner.lives(record["tags"].get("process", ""))
        stage = record["tags"].get("stage", "")
        return f"running: {stage}" if alive is not False else f"its process is gone, in {stage}"
    if status != "FINISHED":
        stage = record["tags"].get("stage", "a stage")
        return f"{STATES.get(status, status.lower())}, in {stage}"
    return "finished" if evaluated else "not evaluated"


def _cost(record: Record) -> Cost:
    minutes = (record["end"] - record["start"]) / 60_000 if record["end"] and record["start"] else None
    if fingerprint := record["tags"].get("fingerprint"):  # a stage that was run again later is part of MLflow's time
        trained = run_record.read(machines.runs(machines.read()) / fingerprint)
        minutes = trained.seconds / 60 if trained else minutes
    rate = record["metrics"].get("train/images_per_second")
    tags = record["tags"]
    machine = ", ".join(filter(None, (tags.get("host", ""), tags.get("gpu", ""))))
    return Cost(minutes=minutes, images_per_second=None if rate is None else float(rate), machine=machine)


def _date(milliseconds: int | None) -> str:
    if not milliseconds:
        return ""
    return datetime.datetime.fromtimestamp(milliseconds / 1000).astimezone().isoformat(timespec="minutes")


def _parsed(value: str) -> Any:
    """A parameter's value as in params.yaml, from the text that MLflow stores."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def _points(curves: Mapping[str, Sequence[tuple[int, Any]]], names: Mapping[str, str]) -> list[dict[str, float]]:
    """Rows by step, as in the files of data/history, of these metrics."""
    rows: dict[int, dict[str, float]] = {}
    for name, column in names.items():
        for step, value in curves.get(name, ()):
            rows.setdefault(step, {"step": float(step)})[column] = float(value)
    for step, value in curves.get("epoch", ()):
        if step in rows:
            rows[step]["epoch"] = float(value)
    return [rows[step] for step in sorted(rows)]
