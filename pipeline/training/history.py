"""The history of a training: its rows as csv files, to the last bit, and under the names that MLflow has for them."""

from __future__ import annotations

import csv
from pathlib import Path

from pipeline.runtime import documents, files

TABLES = ("steps.csv", "epochs.csv")
"""A row for each `learning.log_steps` steps, and one for each epoch."""

NAMES = {"loss": "train/loss", "top1_error": "train/top1_error", "images_per_second": "train/images_per_second"}
"""MLflow's names for the columns of a row by step."""


def write(rows: list[dict[str, float]], file: Path) -> None:
    """Writes a table, whole or not at all. Its columns are those of the first row."""
    head = list(rows[0]) if rows else ["step"]
    with files.atomic(file) as made:
        documents.write_records(made, head, rows)


def read(folder: Path) -> list[dict[str, float]]:
    """The rows of a finished run: all by step, then all by epoch."""
    rows = []
    for name in TABLES:
        with (folder / name).open(newline="") as handle:
            rows += [{key: float(value) for key, value in row.items()} for row in csv.DictReader(handle)]
    return rows


def metrics(row: dict[str, float]) -> tuple[int, dict[str, float]]:
    """A row as MLflow's step and metrics: by epoch val/…, by step train/…."""
    named = {}
    for key, value in row.items():
        if split := next((split for split in ("val", "held_out") if key.startswith(f"{split}_")), ""):
            named[f"{split}/{key.removeprefix(f'{split}_')}"] = value
        elif key in NAMES:
            named[NAMES[key]] = value
        elif key in ("rate", "epoch"):
            named[key] = value
    return int(row["step"]), named
