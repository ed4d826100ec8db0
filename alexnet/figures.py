"""Figures 1, 3 and 4 of the paper, the curves and the confusion, as PNG from data they are given.

Pictures are uint8, N×H×W×3. Every function returns the bytes of a PNG, the same for the same data: no date or version
is stored, fonts are matplotlib's own, and a user's matplotlibrc is not read. Names may be anything: no text is read as TeX,
what the font lacks is a □, and names that look the same when they are cut get their places behind them.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import LogFormatter, MaxNLocator
from numpy.typing import NDArray

from alexnet import names as words

P = ParamSpec("P")

Pictures = NDArray[np.uint8]
Floats = NDArray[np.floating[Any]]

RIGHT, WRONG, INK, PALE = "#c8442b", "#5b7ea4", "#222222", "#8a8a8a"
"""The colour of the true class, of the others, of words, and of what stands back."""

FONT = "DejaVu Sans"

STYLE = {
    "font.family": FONT,
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": PALE,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "text.parse_math": False,
}


def _as_png(draw: Callable[P, Figure]) -> Callable[P, bytes]:
    """Lets a function that makes a figure return its PNG, in our style; the process's settings stay as they are."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> bytes:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(STYLE)  # type: ignore[arg-type]
            figure, file = draw(*args, **kwargs), io.BytesIO()
            FigureCanvasAgg(figure)
            figure.savefig(file, format="png", dpi=150, facecolor="white", metadata={"Software": None})
        return file.getvalue()

    return drawn


@_as_png
def relu_and_tanh(panels: Mapping[str, Mapping[str, Sequence[Sequence[float]]]], target: float) -> Figure:
    """Figure 1: the training error after 0, 1, … epochs, a panel for each title, a name's runs in one kind of line.

    The first name is solid, the second dashed, as in the paper; a line at `target`. A curve ends where it is NaN.
    """
    figure = Figure(figsize=(4.1 * max(1, len(panels)), 3.3), layout="constrained")
    for place, (title, names) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), place + 1)
        axes.axhline(target, color=PALE, lw=0.8)
        handles = {}
        for (name, runs), colour, dashes in zip(names.items(), (RIGHT, WRONG), ("-", "--"), strict=False):
            for errors in runs:
                (handles[name],) = axes.plot(range(len(errors)), errors, ls=dashes, color=colour, lw=1.1, alpha=0.85)
        axes.set_title(_seen(title), loc="left")
        axes.set(xlabel="epochs", ylabel="training error", xlim=(0, None), ylim=(0, 0.8))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", color="#e6e6e6", lw=0.6)
        axes.set_axisbelow(True)
        _legend(axes, handles)
    return figure


@_as_png
def first_layer(kernels_CKHW: Floats, columns: int = 2) -> Figure:
    """Figure 3: the kernels of layer 1, C×3×11×11, those of the first column above, those of the second below.

    Each is scaled by its largest magnitude, so that 0 is mid-grey in all and a kernel without colour looks grey.
    """
    peak = np.abs(kernels_CKHW).max(axis=(1, 2, 3), keepdims=True)
    shown = np.moveaxis(0.5 + 0.5 * kernels_CKHW / np.where(peak > 0, peak, 1), 1, -1)
    groups = np.array_split(np.nan_to_num(shown, nan=1.0), columns)
    across = min(16, max(len(group) for group in groups))
    sheets = [_sheet(group, across) for group in groups]
    inch = 7.6 / max(sheets[0].shape[1], 90)  # for a pixel of a kernel
    left, gap = (0.3, 0.1) if columns > 1 else (0.05, 0)
    wide = left + sheets[0].shape[1] * inch + 0.05
    tall = sum(sheet.shape[0] * inch + gap for sheet in sheets) - gap + 0.1
    figure = Figure(figsize=(wide, tall))
    bottom = tall - 0.05
    for place, sheet in enumerate(sheets):
        high = sheet.shape[0] * inch
        bottom -= high
        axes = figure.add_axes((left / wide, bottom / tall, sheet.shape[1] * inch / wide, high / tall))
        axes.imshow(sheet, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        if columns > 1:
            middle = (bottom + high / 2) / tall
            figure.text(0.14 / wide, middle, f"column {place + 1}", rotation=90, ha="center", va="center")
        bottom -= gap
    return figure


def _sheet(tiles_NHWC: Floats, across: int) -> Floats:
    """The tiles in rows of `across`, with a white pixel around each."""
    down = math.ceil(len(tiles_NHWC) / across)
    high, wide = tiles_NHWC.shape[1] + 1, tiles_NHWC.shape[2] + 1
    sheet = np.ones((down * high + 1, across * wide + 1, 3))
    for place, tile in enumerate(tiles_NHWC):
        y, x = divmod(place, across)
        sheet[1 + y * high : (y + 1) * high, 1 + x * wide : (x + 1) * wide] = tile
    return sheet


@_as_png
def guesses(pictures: Pictures, labels: Sequence[int], probabilities_NK: Floats, names: Sequence[str]) -> Figure:
    """Figure 4, left: pictures, the true class under each, and its five most probable classes as bars."""
    across = min(4, max(1, len(pictures)))
    down = max(1, math.ceil(len(pictures) / across))
    figure, short = Figure(figsize=(2.6 * across, 4.3 * down)), _labels(names, 24, _short)
    grid = figure.add_gridspec(down, across, hspace=0.08, wspace=0.1, left=0.01, right=0.99, top=0.995, bottom=0.01)
    for place, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        cell = grid[divmod(place, across)].subgridspec(2, 1, height_ratios=[3, 2], hspace=0.16)
        above = figure.add_subplot(cell[0])
        above.imshow(picture)
        above.set_axis_off()
        above.text(0.5, -0.03, short[label], ha="center", va="top", weight="bold", transform=above.transAxes)
        _bars(figure.add_subplot(cell[1]), probabilities_NK[place], label, short)
    return figure


def _bars(axes: Axes, probabilities_K: Floats, label: int, names: Sequence[str]) -> None:
    order = np.argsort(-probabilities_K, kind="stable")[:5]
    if np.isnan(probabilities_K).any():
        axes.text(0.5, 0.9, "no answer: NaN", ha="center", va="top", color=PALE, transform=axes.transAxes)
        axes.set_axis_off()
        return
    shares = probabilities_K[order]
    places = np.arange(len(order))
    axes.barh(places, np.ones(len(order)), color="#f1f1f1", height=0.86)
    axes.barh(places, shares, color=[RIGHT if k == label else WRONG for k in order], height=0.86, alpha=0.55)
    for place, k in enumerate(order):
        axes.text(0.02, place, names[k], va="center", fontsize=8, weight="bold" if k == label else "normal")
        axes.text(0.985, place, f"{100 * shares[place]:.0f} %", va="center", ha="right", fontsize=7.5)
    axes.set(xlim=(0, 1), ylim=(4.55, -0.55))
    axes.set_axis_off()


@_as_png
def saliency(
    pictures: Pictures, maps_NHW: Floats, labels: Sequence[int], guesses: Sequence[int], names: Sequence[str]
) -> Figure:
    """Pictures, each beside itself with what speaks for its guess laid over, brightest where the map is largest.

    Under it stands the guess, in the colour of the true class where it is that; a guess of -1 is none.
    """
    across = min(4, max(1, len(pictures)))
    down = max(1, math.ceil(len(pictures) / across))
    figure, short = Figure(figsize=(2.6 * across, 1.5 * down)), _labels(names, 20, _short)
    grid = figure.add_gridspec(
        down, across, hspace=0.16, wspace=0.06, left=0.005, right=0.995, top=0.99, bottom=0.12 / down
    )
    for place, (picture, map_HW, guess) in enumerate(zip(pictures, maps_NHW, guesses, strict=True)):
        cell = grid[divmod(place, across)].subgridspec(1, 2, wspace=0.02)
        name = short[guess] if guess >= 0 else "no answer: NaN"
        colour = PALE if guess < 0 else RIGHT if guess == labels[place] else WRONG
        _named(figure.add_subplot(cell[0]), picture, "", INK)
        _named(figure.add_subplot(cell[1]), _laid_over(picture, map_HW), name, colour)
    return figure


def _laid_over(picture: Pictures, map_HW: Floats) -> Pictures:
    """The picture in dim grey where the map is 0, in a bright colour where it is largest."""
    peak = map_HW.max()
    colours = matplotlib.colormaps["inferno"](map_HW / peak if peak > 0 else np.zeros_like(map_HW))[..., :3]
    grey = 0.1 + 0.5 * picture.mean(axis=-1, keepdims=True) / 255
    # as light on a screen: nothing gets darker, so that more is brighter everywhere
    laid_over: Pictures = np.round(255 * (1 - (1 - grey) * (1 - 0.9 * colours))).astype(np.uint8)
    return laid_over


@_as_png
def note(said: str) -> Figure:
    """No figure, but a word on why there is none."""
    figure = Figure(figsize=(5, 0.6))
    figure.text(0.5, 0.5, said, ha="center", va="center", color=PALE)
    return figure


@_as_png
def neighbours(
    queries: Pictures, found: Sequence[Pictures], query_names: Sequence[str], found_names: Sequence[Sequence[str]]
) -> Figure:
    """Figure 4, right: in the first column a picture of the test, beside it the nearest of the training, nearest first.

    A name is printed in the colour of the true class where it is the query's.
    """
    across, down = 1 + max((len(row) for row in found), default=0), max(1, len(queries))
    figure = Figure(figsize=(1.45 * across + 0.2, 1.68 * down + 0.25))
    known = list(dict.fromkeys([*query_names, *(name for row in found_names for name in row)]))
    short = dict(zip(known, _labels(known, 20, _short), strict=True))
    # the queries stand apart by a narrow empty column
    grid = figure.add_gridspec(
        down, across + 1, width_ratios=[1, 0.12, *[1] * (across - 1)], hspace=0.2, wspace=0.06,
        left=0.01, right=0.99, top=1 - 0.26 / (1.68 * down + 0.25), bottom=0.22 / (1.68 * down + 0.25),
    )  # fmt: skip
    for row, query in enumerate(queries):
        _named(figure.add_subplot(grid[row, 0]), query, short[query_names[row]], INK)
        for place, picture in enumerate(found[row]):
            name = found_names[row][place]
            colour = RIGHT if name == query_names[row] else PALE
            _named(figure.add_subplot(grid[row, 2 + place]), picture, short[name], colour)
    for column, said in ((0, "test"), (2, "nearest in training →")):
        if column < across + 1 and len(queries):
            corner = grid[0, column].get_position(figure).get_points()
            figure.text(corner[0, 0], corner[1, 1] + 0.03 / down, said, ha="left", va="bottom", fontsize=9, color=PALE)
    return figure


def _named(axes: Axes, picture: Pictures, name: str, colour: str) -> None:
    axes.imshow(picture)
    axes.set_axis_off()
    axes.text(0.5, -0.03, name, ha="center", va="top", fontsize=7.5, color=colour, transform=axes.transAxes)


@_as_png
def curves(
    epochs: Sequence[float], panels: Mapping[str, Mapping[str, Sequence[float]]], logarithmic: Sequence[str] = ()
) -> Figure:
    """Learning over the epochs: a panel for each title, with its lines by name; NaN, what was not measured, is left out."""
    figure = Figure(figsize=(4.1 * max(1, len(panels)), 3.1), layout="constrained")
    for place, (title, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), place + 1)
        handles = {}
        for number, (name, values) in enumerate(lines.items()):
            colour = (WRONG, RIGHT, "#6f9f58", "#a1779f")[number % 4]
            kept = np.isfinite(values)
            marker = "o" if kept.sum() <= 40 else None
            x, y = np.asarray(epochs)[kept], np.asarray(values)[kept]
            steps = "steps-mid" if title in logarithmic else "default"
            (handles[name],) = axes.plot(x, y, color=colour, lw=1.4, marker=marker, ms=2.5, drawstyle=steps)
        axes.set_title(_seen(title), loc="left")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", color="#e6e6e6", lw=0.6)
        axes.set_axisbelow(True)
        if title in logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(LogFormatter())  # the scale's own writes TeX
            axes.yaxis.set_minor_formatter(LogFormatter())
        else:
            axes.set_ylim(bottom=0)
        if len(lines) > 1:
            _legend(axes, handles)
    return figure


@_as_png
def losses(runs: Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]], level: float) -> Figure:
    """The training loss by step, (steps, losses) for each run of a name; a line at `level`, where nothing is known."""
    figure = Figure(figsize=(7.6, max(4.2, 0.18 * len(runs) + 0.6)), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(level, color=PALE, lw=0.8, ls=":")
    colours = matplotlib.colormaps["tab20"](np.linspace(0, 0.999, 20))
    order = [*range(0, 20, 2), *range(1, 20, 2)]
    handles = {}
    for number, (name, lines) in enumerate(runs.items()):
        for steps, values in lines:
            (handles[name],) = axes.plot(steps, values, color=colours[order[number % 20]], lw=1.0, alpha=0.85)
    axes.set(xlabel="step", ylabel="training loss")
    axes.grid(axis="y", color="#e6e6e6", lw=0.6)
    axes.set_axisbelow(True)
    _legend(axes, handles, loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


@_as_png
def differences(
    runs: Mapping[str, Sequence[float]], intervals: Mapping[str, tuple[float, float]], printed: Mapping[str, float]
) -> Figure:
    """What each variant adds to an error, in points: a dot for a run, a bar for an interval, a diamond as the paper has it.

    A name that has no interval, or is not in the paper, has none drawn.
    """
    names = [*runs]
    figure = Figure(figsize=(6.4, 0.9 + 0.32 * max(1, len(names))), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color=PALE, lw=0.8, ls=":")
    kinds: dict[str, Any] = {}
    for row, name in enumerate(names):
        if name in intervals:
            (kinds["95 % interval of the mean"],) = axes.plot(
                intervals[name], (row, row), color=WRONG, lw=5, alpha=0.35, solid_capstyle="butt"
            )
        (kinds["a seed"],) = axes.plot(runs[name], [row] * len(runs[name]), "o", color=WRONG, ms=4)
        if name in printed:
            (kinds["the paper, ImageNet"],) = axes.plot(printed[name], row, "D", color=RIGHT, ms=5)
    axes.set_yticks(range(len(names)), _labels(names))
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set(xlabel="top-1 error less the base's, points")
    axes.grid(axis="x", color="#e6e6e6", lw=0.6)
    axes.set_axisbelow(True)
    if kinds:
        _legend(axes, kinds, loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


@_as_png
def confusion(matrix_KK: NDArray[np.integer[Any]], names: Sequence[str]) -> Figure:
    """How often pictures of a class (row) were taken for a class (column), as shares of the row.

    Up to 30 classes are named, up to 16 with their percentages; of more, only the picture is readable.
    """
    totals = matrix_KK.sum(axis=1, keepdims=True)
    shares = matrix_KK / np.where(totals > 0, totals, 1)
    classes = len(names)
    side = min(9.0, 2.8 + 0.42 * classes) if classes <= 30 else 8.0
    figure = Figure(figsize=(side + 0.6, side), layout="compressed")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.spines[:].set_visible(False)
    axes.set(xlabel="answer", ylabel="class")
    if classes <= 30:
        short = _labels(names, 22, _short)
        axes.set_xticks(range(matrix_KK.shape[1]), short[: matrix_KK.shape[1]], rotation=45, ha="right", fontsize=8)
        axes.set_yticks(range(classes), short, fontsize=8)
        axes.tick_params(length=0)
    if classes <= 16:
        for (row, column), share in np.ndenumerate(shares):
            if share > 0:
                colour = "white" if share > 0.55 else INK
                axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7.5, color=colour)
    bar = figure.colorbar(image, ax=axes, shrink=0.5, aspect=25, ticks=[0, 0.5, 1])
    bar.ax.set_yticklabels(["0 %", "50 %", "100 %"])
    bar.outline.set_visible(False)
    return figure


def _legend(axes: Axes, handles: Mapping[str, Artist], **place: Any) -> None:
    """A legend of these names; matplotlib's own leaves out one that is empty or begins with an underscore."""
    axes.legend([*handles.values()], _labels([*handles]), fontsize=8, **place)


def _labels(names: Sequence[str], most: int = 40, look: Callable[[str, int], str] | None = None) -> list[str]:
    """The names as they look in a figure, no two the same."""
    return words.told_apart(names, most, look or _seen)


def _short(name: str, most: int = 24) -> str:
    """The first of a class's synonyms, cut to `most` letters that the font has."""
    return _drawable(words.short(name, most))


def _seen(text: str, most: int = 40) -> str:
    return _drawable(words.cut(text, most))


def _drawable(text: str) -> str:
    return "".join(letter if ord(letter) in _letters() else "□" for letter in text)


@functools.cache
def _letters() -> frozenset[int]:
    """What the font has, in both weights that are used."""
    fonts = [FontProperties(family=FONT, weight=weight) for weight in ("normal", "bold")]
    normal, bold = (get_font(findfont(font)).get_charmap().keys() for font in fonts)
    return frozenset(normal & bold)
