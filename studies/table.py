"""The table of a study: each variant's errors, its difference from the base, and the paper's number."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from scipy.special import stdtrit

from alexnet.names import shown
from studies import rows
from studies.rows import Row
from studies.study import Study

ONE_VIEW, ONE_VIEW_ADDS = "one view", 1.5
"""Name of the row for the base tested with the centre patch only; percentage points that this adds in the paper (top-1)."""

HEAD = (
    "| variant | § | n | top-1 error, % | top-5 error, % | top-1 minus the base's, points (95 %) | the paper |",
    "| --- | --- | --- | --- | --- | --- | --- |",
)


def table(study: Study) -> str:
    """The table in Markdown: mean ± standard deviation over seeds, and the difference from the base.

    Differences are paired by seed, with Student's 95 % interval of their mean; a variant with one seed has no interval.
    """
    views = "centre_" if study.target == "train" else ""
    measured = rows.by_variant(study)
    base = measured.get(study.variants[0].name, {})
    lines = [*HEAD]
    for variant in study.variants:
        if runs := measured.get(variant.name):
            one, five = f"{views}top1_error", f"{views}top5_error"
            cells = [
                cell(variant.name),
                cell(variant.section),
                str(len(runs)),
                spread([100 * float(run[one]) for run in runs.values()]),
                spread([100 * float(run[five]) for run in runs.values()]),
                difference(differences(runs, base, one) if runs is not base else []),
                cell(variant.paper),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    if base and not views:
        lines.append(_one_view(base))
    return "\n".join(lines)


def _one_view(base: Mapping[str, Row]) -> str:
    """The row for the base tested with the centre patch only."""
    errors = [[100 * float(run[f"centre_top{top}_error"]) for run in base.values()] for top in (1, 5)]
    added = f"+{ONE_VIEW_ADDS} (top-5 +1.3)"
    cells = [ONE_VIEW, "§4.1", str(len(base)), *map(spread, errors), difference(view_differences(base)), added]
    return f"| {' | '.join(cells)} |"


def differences(runs: Mapping[str, Row], base: Mapping[str, Row], error: str) -> list[float]:
    """Error of a variant minus that of the base with the same seed, in percentage points, for each seed that both have."""
    return [100 * (float(run[error]) - float(base[seed][error])) for seed, run in runs.items() if seed in base]


def view_differences(base: Mapping[str, Row]) -> list[float]:
    """The base's top-1 error by the centre patch minus that by ten views, in percentage points, for each seed."""
    return [100 * (float(run["centre_top1_error"]) - float(run["top1_error"])) for run in base.values()]


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's 95 % interval of the mean; None for fewer than two values."""
    count = len(values)
    if count < 2:
        return None
    mean, deviation = statistics.mean(values), statistics.stdev(values)
    half = float(stdtrit(count - 1, 0.975)) * deviation / math.sqrt(count)
    return mean - half, mean + half


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation; only the mean for one value."""
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def difference(values: Sequence[float]) -> str:
    """The mean of differences with its 95 % interval; empty if there is no difference."""
    if not values:
        return ""
    ends = interval(values)
    return f"{statistics.mean(values):+.2f}" + (f" ({ends[0]:+.2f} to {ends[1]:+.2f})" if ends else "")


def cell(text: str) -> str:
    """A text escaped for a cell of a Markdown table."""
    return shown(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
