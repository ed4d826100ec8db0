"""The runs of a study, from its folder's files by their documented format: study.yaml, base.yaml, runs.csv and curves.csv."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.comparing import measured
from pipeline.comparing.measured import SEED, Cost, MeasuredRun, PictureSet, Rate
from pipeline.runtime import added, documents, params

STUDIES = Path("studies")

RUNS, CURVES = "runs.csv", "curves.csv"

COLUMNS = {"ten_views": "", "centre": "centre_"}
"""View → the beginning of its columns in runs.csv."""

NAMED = ("variant", "seed", "key", "per")
"""Columns of curves.csv that are no measurements."""


def folder(name: str) -> Path | None:
    """The folder of a study that is given by its path or by its name in studies/; None if it has no runs.csv."""
    return next((each for each in (Path(name), STUDIES / name) if (each / RUNS).is_file()), None)


def runs(folder: Path, chosen: str = "") -> list[MeasuredRun]:
    """The study's runs, in the order of variants and seeds; `chosen`: one variant. `ValueError` if a file is not as documented.

    A row of other parameters than the study has now is left out: what it was measured with is not recorded.
    """
    rows = {row["key"]: row for row in _rows(folder / RUNS, ("variant", "seed", "key"))}
    points = _points(folder / CURVES)
    found, known = [], []
    for variant, seed, document in _asked(folder):
        known.append(variant)
        row = rows.get(measured.key(document))
        if row and chosen in ("", variant):
            found.append(_run(folder.name, variant, seed, document, row, points.get(row["key"], {})))
    if chosen and chosen not in known:
        raise ValueError(f"{folder}: there is no variant {chosen!r}; there are {', '.join(dict.fromkeys(known))}")
    if not found:
        raise ValueError(f"{folder / RUNS}: has no row of the parameters in study.yaml and base.yaml")
    return found


def _asked(folder: Path) -> Iterator[tuple[str, object, dict[str, Any]]]:
    """Yields variant, seed and params document of each run that the study asks for."""
    study = params.load(folder / "study.yaml")
    base = added.completed(params.load(folder / "base.yaml"))
    other = study.get("variants_of")
    variants = params.load(folder.parent / other / "study.yaml")["variants"] if other else study.get("variants", [])
    for variant in variants:
        changes = {**variant.get("changes", {}), **study.get("besides", {}).get(variant["name"], {})}
        for seed in study.get("seeds", []):
            document = copy.deepcopy(base)
            for key, value in {**changes, SEED: seed}.items():
                section, _, last = key.partition(".")
                document.setdefault(section, {})[last] = value
            yield variant["name"], seed, document


def _run(
    study: str,
    variant: str,
    seed: object,
    document: Mapping[str, Any],
    row: Mapping[str, str],
    points: Mapping[str, list[dict[str, float]]],
) -> MeasuredRun:
    images = int(row["images"]) if row.get("images") else None
    rates = {
        f"{view}/top{top}_error": Rate(error=float(value), images=images)
        for view, prefix in COLUMNS.items()
        for top in (1, 5)
        if (value := row.get(f"{prefix}top{top}_error"))
    }
    tested = PictureSet(
        split=document.get("results", {}).get("split", ""),
        made=measured.made(document),
        images=images,
        classes=int(row["classes"]) if row.get("classes") else None,
        source=document.get("source", {}).get("name", ""),
    )
    return MeasuredRun(
        name=f"{variant}, seed {seed}", origin=f"study {study}", params=params.flat(document), rates=rates, tested=tested,
        steps=points.get("step", []), epochs=points.get("epoch", []), commit=row.get("commit", ""),
        cost=Cost(minutes=float(row["minutes"]) if row.get("minutes") else None),
    )  # fmt: skip


def _points(file: Path) -> dict[str, dict[str, list[dict[str, float]]]]:
    """The points of curves.csv: key of the run → step or epoch → rows."""
    points: dict[str, dict[str, list[dict[str, float]]]] = {}
    for row in _rows(file, NAMED) if file.is_file() else []:
        values = {name: float(value) for name, value in row.items() if name not in NAMED and value}
        points.setdefault(row["key"], {}).setdefault(row["per"], []).append(values)
    return points


def _rows(file: Path, required: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        rows = documents.rows(file.read_bytes(), dict.fromkeys(required, str), file, "evaluate")
    except ValueError as error:
        raise ValueError(str(error).partition(". Run: ")[0] + ". docs/studies.md says what it has to hold") from None
    return rows
