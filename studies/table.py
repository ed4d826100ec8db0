"""The table of a study: each variant's errors, its difference from the base with the same seeds, and the paper's number."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.comparing import markdown, seeds
from pipeline.comparing.seeds import Paired, spread
from studies import rows
from studies.rows import Row
from studies.study import Study

ONE_VIEW, ONE_VIEW_ADDS = "one view", 1.5
"""Name of the row for the base tested with the centre patch only; percentage points that this adds in the paper (top-1)."""

HEAD = (
    "variant", "§", "n", "top-1 error, %", "top-5 error, %", "pairs", "top-1 minus the base's, same seeds, points (95 %)",
    "the paper",
)  # fmt: skip

NOTE = (
    "Errors are means ± standard deviations over all n seeds of a row. A difference is paired: its two means are those of the "
    "seeds that the row and the base both have, as many as there are pairs; in brackets Student's interval of its mean. Each "
    "number is rounded by itself, so that the last digit of a difference may be off by one from that of the two beside it."
)
"""The text below the table."""


def table(study: Study) -> str:
    """The table in Markdown: mean ± standard deviation over seeds, the difference from the base, and what that is.

    Differences are paired by seed, with Student's 95 % interval of their mean; a variant with one pair has no interval.
    """
    views = "centre_" if study.target == "train" else ""
    measured = rows.by_variant(study)
    base = measured.get(study.variants[0].name, {})
    lines = []
    for variant in study.variants:
        if runs := measured.get(variant.name):
            beside = differences(runs, base, f"{views}top1_error") if runs is not base else None
            lines.append(_row([variant.name, variant.section], runs, views, beside, variant.paper))
    if base and not views:
        paper = f"+{ONE_VIEW_ADDS} (top-5 +1.3)"
        lines.append(_row([ONE_VIEW, "§4.1"], base, "centre_", view_differences(base), paper))
    return f"{markdown.table(HEAD, lines)}\n\n{NOTE}"


def _row(named: list[str], runs: Mapping[str, Row], views: str, beside: Paired | None, paper: str) -> list[str]:
    errors = [[100 * value for value in of_seeds(runs, f"{views}top{top}_error").values()] for top in (1, 5)]
    pairs = str(len(beside.own)) if beside else ""
    return [*named, str(len(runs)), *map(spread, errors), pairs, str(beside or ""), paper]


def differences(runs: Mapping[str, Row], base: Mapping[str, Row], error: str) -> Paired:
    """A variant's errors and the base's, in per cent, for each seed that both have."""
    return seeds.paired(of_seeds(runs, error), of_seeds(base, error))


def view_differences(base: Mapping[str, Row]) -> Paired:
    """The base's top-1 error by the centre patch and by ten views, in per cent, for each seed."""
    return seeds.paired(of_seeds(base, "centre_top1_error"), of_seeds(base, "top1_error"))


def of_seeds(runs: Mapping[str, Row], error: str) -> dict[str, float]:
    """One of the errors (0 to 1) by seed."""
    return {seed: float(run[error]) for seed, run in runs.items()}
