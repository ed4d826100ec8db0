"""The measurements of a study: a row in runs.csv for each finished run, and the points of its curves in curves.csv.

Row and points belong to the run with the same key (`Run.key` in study.py). Rows whose key is that of no run stay in the
files: they were measured with other parameters.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.runtime import documents, files, git
from studies.study import Run, Study, Variant, runs_of

ERRORS = ("top1_error", "top5_error", "centre_top1_error", "centre_top5_error")
"""Error rates from 0 to 1, by ten views and by the centre patch."""

RUNS = ("variant", "seed", "key", "experiment", "commit", "minutes", "classes", *ERRORS, "images")
"""The columns of runs.csv."""

POINT_ID = ("variant", "seed", "key", "per")
"""The first columns of curves.csv. `per` is step or epoch: a row of steps.csv or of epochs.csv."""

CURVES = (
    *POINT_ID, "step", "epoch", "rate", "loss", "top1_error",
    "train_loss", "train_top1_error", "val_loss", "val_top1_error", "val_top5_error",
)  # fmt: skip
"""The columns of curves.csv. A point leaves the columns of the other `per` empty. Held-out pictures add more columns."""

Row = dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """The measurements of a finished run."""

    steps: Sequence[Mapping[str, Any]]
    """The rows of data/history/steps.csv."""
    epochs: Sequence[Mapping[str, Any]]
    """The rows of data/history/epochs.csv."""
    cells: Mapping[str, Any]
    """The cells of the row in runs.csv, without variant, seed and key."""


def read(study: Study) -> list[Row]:
    """Reads the rows of runs.csv."""
    return _read(study.folder / "runs.csv")


def missing(study: Study, variants: Sequence[Variant]) -> list[Run]:
    """The runs of these variants that have no row yet."""
    known = {row["key"] for row in read(study)}
    return [run for run in runs_of(study, variants) if run.key not in known]


def by_variant(study: Study) -> dict[str, dict[str, Row]]:
    """The rows of the study's own runs: variant → seed → row."""
    known = {row["key"]: row for row in read(study)}
    rows: dict[str, dict[str, Row]] = {}
    for run in runs_of(study, study.variants):
        if row := known.get(run.key):
            rows.setdefault(run.variant.name, {})[str(run.seed)] = row
    return rows


def curves(study: Study) -> dict[str, list[Row]]:
    """The points with `per` step: key of the run → points in the order of the steps."""
    points: dict[str, list[Row]] = {}
    for point in _read(study.folder / "curves.csv"):
        if point["per"] == "step":
            points.setdefault(point["key"], []).append(point)
    return points


def record(study: Study, run: Run, result: Result) -> None:
    """Records the measurements of a finished run: first its points in curves.csv, then its row in runs.csv."""
    named: dict[str, Any] = {"variant": run.variant.name, "seed": run.seed, "key": run.key}
    file = study.folder / "curves.csv"
    # a kill between the two files leaves points without a row: they are replaced
    points: list[Mapping[str, Any]] = [point for point in _read(file) if point["key"] != run.key]
    for per, measured in (("step", result.steps), ("epoch", result.epochs)):
        points += [{**named, "per": per, **point} for point in measured]
    _write(file, list(dict.fromkeys([*CURVES, *itertools.chain(*points)])), points)
    row = {**named, "commit": git.commit(), **result.cells}
    if study.target == "train":
        row |= {f"centre_top{top}_error": result.epochs[-1][f"val_top{top}_error"] for top in (1, 5)}
    _write(study.folder / "runs.csv", RUNS, [*read(study), row])


def _read(file: Path) -> list[Row]:
    if not file.exists():
        return []
    with file.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def _write(file: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    with files.atomic(file) as made:
        documents.write_records(made, columns, rows)
