"""One run beside another: better, worse or as good, by how much, and whether their intervals overlap."""

from __future__ import annotations

import math

from pipeline.comparing.measured import MeasuredRun


def better(apart: float) -> str:
    """Better than, worse than or as good as, for a difference of errors in points."""
    same = not round(apart, 2) or math.isnan(apart)
    return "as good as" if same else "better than" if apart < 0 else "worse than"


def guessing(run: MeasuredRun) -> str:
    """Words for a run whose interval reaches the error of guessing; empty for another run, or if that is not known."""
    rate, classes = run.rate(), run.tested.classes
    if rate is None or rate.interval is None or not classes or rate.interval[1] < 1 - 1 / classes:
        return ""
    return f"cannot be told from guessing among {classes:,} classes, which errs by {100 * (1 - 1 / classes):.4g} %"


def beside(run: MeasuredRun, other: MeasuredRun) -> str:
    """Better, worse or as good as another run, by how much, and whether their intervals overlap; or why they are not compared."""
    mine, theirs = run.rate(), other.rate()
    assert mine is not None
    assert theirs is not None
    named = f"{other.name}, with {theirs} %"
    if run.view != other.view:
        return f"{named}, was tested on other views: not compared."
    match run.tested.same(other.tested):
        case False:
            return f"{named}, was tested on other pictures: not compared."
        case None:
            return f"{named}: whether it was tested on the same pictures is not recorded: not compared."
    apart = 100 * (mine.error - theirs.error)
    by = f" by {abs(apart):.2f} points" if round(apart, 2) else ""
    words = f"{better(apart).replace(' than', f'{by} than')} {other.name}, which has {theirs} %"
    if mine.interval is None or theirs.interval is None:
        return f"{words}."
    overlap = mine.interval[0] <= theirs.interval[1] and theirs.interval[0] <= mine.interval[1]
    return f"{words}; their intervals {'overlap' if overlap else 'do not overlap'}."
