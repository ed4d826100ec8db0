"""Curves of several runs over each other, as SVG that stands in a page and takes the page's colour of text."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from html import escape

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from alexnet import names
from alexnet.figures import INK, STYLE
from pipeline.comparing.measured import Points

Line = tuple[Sequence[float], Sequence[float]]

COLOURS = ("#5b7ea4", "#c8442b", "#6f9f58", "#a1779f", "#c28b2c", "#4f9c9c", "#8a6d5a", "#9a9a9a", "#7d6fc4", "#d07fa8")
"""Colours that can be told from a white page and from a dark one."""

DASHES = ("-", "--", ":")
"""How lines differ when there are more than colours."""

PALE = "#8c8c8c"


def panel(title: str, x: str, lines: Mapping[str, Sequence[Line]]) -> str:
    """SVG of one panel. `lines`: name → lines of this name, of one colour; equal data give equal text.

    Names may be any text. The SVG has no address and no script.
    """
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the browser has its own
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)  # type: ignore[arg-type]
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": title})
        figure, file = Figure(figsize=(4.8, 2.6 + 0.18 * len(lines)), layout="constrained"), io.StringIO()
        FigureCanvasSVG(figure)
        _draw(figure, x, lines)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    return (
        svg.replace(INK, "currentColor").replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1).strip()
    )


def _draw(figure: Figure, x: str, lines: Mapping[str, Sequence[Line]]) -> None:
    axes = figure.add_subplot()
    shown = names.told_apart([*lines], 36, names.cut)
    handles = []
    for number, runs in enumerate(lines.values()):
        colour, dashes = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]
        for steps, values in runs:
            marker = "o" if len(values) <= 12 else None
            (handle,) = axes.plot(steps, values, color=colour, ls=dashes, lw=1.3, marker=marker, ms=2.5)
        handles.append(handle)
    axes.set_xlabel(x)
    axes.grid(axis="y", color=PALE, lw=0.4, alpha=0.5)
    axes.set_axisbelow(True)
    axes.legend(handles, shown, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)


def line(points: Points, x: str, y: str) -> Line | None:
    """The values of a column over another, without those that are missing or not finite; None if there are none."""
    pairs = [
        (row[x], row[y])
        for row in points
        if math.isfinite(row.get(x, math.nan)) and math.isfinite(row.get(y, math.nan))
    ]
    return ([one for one, _ in pairs], [two for _, two in pairs]) if pairs else None
