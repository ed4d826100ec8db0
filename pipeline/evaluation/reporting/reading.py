"""What the report shows of earlier stages' outs: each file is compared with its digest before it is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.names import NO_ANSWER
from pipeline.evaluation import choice
from pipeline.evaluation.trained import OUT as EVALUATION
from pipeline.runtime import digests, documents
from pipeline.shards import artifacts, duplicates, tables

HISTORY = Path("data/history/epochs.csv")
REJECTED = artifacts.SHARDS / "rejected.parquet"
DAMAGED = artifacts.SHARDS / "damaged.parquet"
DUPLICATES = artifacts.SHARDS / duplicates.FILE
PICTURES = artifacts.SHARDS / "pictures.json"

LOSS, ERROR, RATE = "loss", "error, %", "learning rate"
"""Titles of the curves over the epochs."""


def read_metrics(file: Path) -> dict[str, Any]:
    """The contents of metrics.json, checked against the digest that `evaluate` recorded."""
    return documents.load(digests.read(file, "evaluate", EVALUATION), file, "evaluate")


def random_rows(name: str, number: int, seed: int, use: int) -> list[dict[str, Any]]:
    """Random rows of a table that `evaluate` wrote; see `choice.random_rows`."""
    digests.check(EVALUATION / name, "evaluate")
    rows: list[dict[str, Any]] = choice.random_rows(EVALUATION / name, number, seed, use).to_pylist()
    return rows


def listed_pictures(file: Path) -> list[dict[str, Any]]:
    """The rows of rejected.parquet, damaged.parquet or duplicates.parquet, sorted by id."""
    rows: list[dict[str, Any]] = tables.parse(digests.read(file, "resize"), file).sort_by("id").to_pylist()
    return rows


def history(file: Path) -> tuple[list[float], dict[str, dict[str, list[float]]]]:
    """The epochs, counted from 1, and the panels for `figures.curves`: panel → line → value per epoch, errors in per cent."""
    rows = documents.rows(digests.read(file, "train"), {"epoch": float}, file, "train", others=_measured)
    lines = {
        LOSS: {"training": "train_loss", "validation": "val_loss"},
        ERROR: {
            "training, top-1": "train_top1_error",
            "validation, top-1": "val_top1_error",
            "validation, top-5": "val_top5_error",
        },
        RATE: {"rate": "rate"},
    }
    panels = {
        panel: {
            name: [(100 if panel == ERROR else 1) * row.get(key, float("nan")) for row in rows]
            for name, key in columns.items()
        }
        for panel, columns in lines.items()
    }
    return [row["epoch"] + 1 for row in rows], panels


def confusion(file: Path, classes: Sequence[str]) -> NDArray[np.int64]:
    """Counts of true classes (rows) by answers (columns), K×K, from confusion.csv; missing answers are not counted."""
    label_of = {name: label for label, name in enumerate(classes)}
    matrix_KK = np.zeros((len(classes), len(classes)), np.int64)
    for row in documents.rows(digests.read(file, "evaluate"), {"actual": str, "predicted": str}, file, "evaluate"):
        actual, predicted = row["actual"], row["predicted"]
        if unknown := {actual, predicted} - label_of.keys() - {NO_ANSWER}:
            raise ValueError(f"{file}: data/shards has no class '{min(unknown)}'. {digests.again('evaluate')}")
        if predicted != NO_ANSWER:
            matrix_KK[label_of[actual], label_of[predicted]] += 1
    return matrix_KK


def hard_classes(file: Path) -> list[dict[str, Any]]:
    """The rows of per_class.csv for classes with tested pictures, highest top-1 error first."""
    columns: dict[str, Callable[[str], Any]] = {"label": int, "top1_error": _measured, "top5_error": _measured}
    rows = documents.rows(digests.read(file, "evaluate"), columns, file, "evaluate")
    tested = [row for row in rows if not math.isnan(row["top1_error"])]
    return sorted(tested, key=lambda row: (-row["top1_error"], row["label"]))


def _measured(text: str) -> float:
    return float(text) if text else float("nan")
