"""Showing a study's results: prints the table, and updates table.md and the figures after new runs."""

from __future__ import annotations

import math
from collections.abc import Mapping

from alexnet import figures
from pipeline.comparing.seeds import interval
from pipeline.runtime import files
from pipeline.runtime.printing import say
from studies import rows
from studies.rows import Row
from studies.study import Study
from studies.table import ONE_VIEW, ONE_VIEW_ADDS, differences, table, view_differences


def show(study: Study) -> None:
    """Prints the table; if it differs from table.md, draws the figures and rewrites table.md."""
    text, file = table(study), study.folder / "table.md"
    say(*text.split("\n"))
    if not file.exists() or file.read_text(encoding="utf-8") != f"{text}\n":
        draw(study)


def draw(study: Study) -> None:
    """Writes losses.png, differences.png if the runs were evaluated, and finally table.md; nothing if no run is finished."""
    measured, points = rows.by_variant(study), rows.curves(study)
    if not measured:
        return
    losses: dict[str, list[tuple[list[float], list[float]]]] = {}
    classes = 0
    for row in (row for by_seed in measured.values() for row in by_seed.values()):
        steps = points.get(row["key"], [])  # a run shorter than learning.log_steps has no points
        curve = [float(point["step"]) for point in steps], [float(point["loss"]) for point in steps]
        losses.setdefault(row["variant"], []).append(curve)
        classes = int(row["classes"])
    with files.atomic(study.folder / "losses.png") as made:
        made.write_bytes(figures.losses(losses, math.log(classes)))
    if study.target != "train":
        with files.atomic(study.folder / "differences.png") as made:
            made.write_bytes(_differences(study, measured))
    with files.atomic(study.folder / "table.md") as made:
        made.write_text(table(study) + "\n", encoding="utf-8")


def _differences(study: Study, measured: Mapping[str, Mapping[str, Row]]) -> bytes:
    base, *others = (variant.name for variant in study.variants)
    tested = {
        name: differences(measured[name], measured.get(base, {}), "top1_error").differences
        for name in others
        if name in measured
    }
    if base in measured:
        tested[ONE_VIEW] = view_differences(measured[base]).differences
    intervals = {name: ends for name, values in tested.items() if (ends := interval(values)) is not None}
    printed = {variant.name: variant.adds for variant in study.variants if variant.adds is not None}
    return figures.differences(tested, intervals, printed | {ONE_VIEW: ONE_VIEW_ADDS})
