"""The history of a training: its rows in CSV files, with every bit kept, and as MLflow's metrics."""

from __future__ import annotations

import csv
from pathlib import Path

from pipeline.runtime import documents, files

TABLES = ("steps.csv", "epochs.csv")
"""steps.csv has a row for every `learning.log_steps` steps, epochs.csv a row for every epoch."""

NAMES = {"loss": "train/loss", "top1_error": "train/top1_error", "images_per_second": "train/images_per_second"}
"""Column of steps.csv → name of MLflow's metric."""


def write(rows: list[dict[str, float]], file: Path) -> None:
    """Writes a table atomically; its columns are those of the first row."""
    head = list(rows[0]) if rows else ["step"]
    with files.atomic(file) as made:
        documents.write_records(made, head, rows)


def read(folder: Path) -> list[dict[str, float]]:
    """Reads the rows of a finished run: those of steps.csv, then those of epochs.csv."""
    rows = []
    for name in TABLES:
        with (folder / name).open(newline="") as handle:
            rows += [{key: float(value) for key, value in row.items()} for row in csv.DictReader(handle)]
    return rows


def metrics(row: dict[str, float]) -> tuple[int, dict[str, float]]:
    """MLflow's step and metrics of a row: train/… for a row of steps.csv; val/… and held_out/… for one of epochs.csv."""
    named = {}
    for key, value in row.items():
        if split := next((split for split in ("val", "held_out") if key.startswith(f"{split}_")), ""):
            named[f"{split}/{key.removeprefix(f'{split}_')}"] = value
        elif key in NAMES:
            named[NAMES[key]] = value
        elif key in ("rate", "epoch"):
            named[key] = value
    return int(row["step"]), named
