"""Figures as PNG: Figures 1, 3 and 4 of the paper, learning curves and the confusion matrix.

Pictures are uint8, N×H×W×3. Every function returns the bytes of a PNG, equal for equal data: no date or version is
stored, the fonts are matplotlib's own, and the user's matplotlibrc is not read. Names may be any text: none is read as
TeX, characters that the font lacks become □, and names that look the same when cut get their index appended.
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
"""Colours of the true class, of other classes, of text, and of axes and notes."""

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
    """Decorates a function that returns a figure to return its PNG, in `STYLE`; matplotlib's global settings are restored."""

    @functools.wraps(draw)
    def as_png(*args: P.args, **kwargs: P.kwargs) -> bytes:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(STYLE)  # type: ignore[arg-type]
            figure, file = draw(*args, **kwargs), io.BytesIO()
            FigureCanvasAgg(figure)
            figure.savefig(file, format="png", dpi=150, facecolor="white", metadata={"Software": None})
        return file.getvalue()

    return as_png


@_as_png
def relu_and_tanh(panels: Mapping[str, Mapping[str, Sequence[Sequence[float]]]], target: float) -> Figure:
    """Figure 1: the training error after 0, 1, … epochs. `panels`: title → name of a network → runs → errors, 0–1.

    The runs of a panel's first name are solid lines, of its second dashed, as in the paper; a grey line marks `target`. A
    curve ends at its first NaN.
    """
    figure = Figure(figsize=(4.1 * max(1, len(panels)), 3.3), layout="constrained")
    for index, (title, names) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), index + 1)
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
    """Figure 3: the kernels of layer 1, C×3×11×11, the first column's above the second's.

    Each kernel is divided by its largest magnitude, so that 0 is mid-grey and a colourless kernel looks grey.
    """
    peak = np.abs(kernels_CKHW).max(axis=(1, 2, 3), keepdims=True)
    shown = np.moveaxis(0.5 + 0.5 * kernels_CKHW / np.where(peak > 0, peak, 1), 1, -1)
    groups = np.array_split(np.nan_to_num(shown, nan=1.0), columns)
    across = min(16, max(len(group) for group in groups))
    sheets = [_sheet(group, across) for group in groups]
    inch = 7.6 / max(sheets[0].shape[1], 90)  # per pixel of a kernel
    left, gap = (0.3, 0.1) if columns > 1 else (0.05, 0)
    wide = left + sheets[0].shape[1] * inch + 0.05
    tall = sum(sheet.shape[0] * inch + gap for sheet in sheets) - gap + 0.1
    figure = Figure(figsize=(wide, tall))
    bottom = tall - 0.05
    for column, sheet in enumerate(sheets):
        high = sheet.shape[0] * inch
        bottom -= high
        axes = figure.add_axes((left / wide, bottom / tall, sheet.shape[1] * inch / wide, high / tall))
        axes.imshow(sheet, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        if columns > 1:
            middle = (bottom + high / 2) / tall
            figure.text(0.14 / wide, middle, f"column {column + 1}", rotation=90, ha="center", va="center")
        bottom -= gap
    return figure


def _sheet(tiles_NHWC: Floats, across: int) -> Floats:
    """One picture of all tiles, `across` in a row, with a white pixel around each."""
    down = math.ceil(len(tiles_NHWC) / across)
    high, wide = tiles_NHWC.shape[1] + 1, tiles_NHWC.shape[2] + 1
    sheet = np.ones((down * high + 1, across * wide + 1, 3))
    for index, tile in enumerate(tiles_NHWC):
        y, x = divmod(index, across)
        sheet[1 + y * high : (y + 1) * high, 1 + x * wide : (x + 1) * wide] = tile
    return sheet


@_as_png
def guesses(pictures: Pictures, labels: Sequence[int], probabilities_NK: Floats, names: Sequence[str]) -> Figure:
    """Figure 4, left: pictures, with the true class and bars of the five most probable classes under each."""
    across = min(4, max(1, len(pictures)))
    down = max(1, math.ceil(len(pictures) / across))
    figure, short = Figure(figsize=(2.6 * across, 4.3 * down)), _labels(names, 24, _short)
    grid = figure.add_gridspec(down, across, hspace=0.08, wspace=0.1, left=0.01, right=0.99, top=0.995, bottom=0.01)
    for index, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        cell = grid[divmod(index, across)].subgridspec(2, 1, height_ratios=[3, 2], hspace=0.16)
        above = figure.add_subplot(cell[0])
        above.imshow(picture)
        above.set_axis_off()
        above.text(0.5, -0.03, short[label], ha="center", va="top", weight="bold", transform=above.transAxes)
        _bars(figure.add_subplot(cell[1]), probabilities_NK[index], label, short)
    return figure


def _bars(axes: Axes, probabilities_K: Floats, label: int, names: Sequence[str]) -> None:
    order = np.argsort(-probabilities_K, kind="stable")[:5]
    if np.isnan(probabilities_K).any():
        axes.text(0.5, 0.9, "no answer: NaN", ha="center", va="top", color=PALE, transform=axes.transAxes)
        axes.set_axis_off()
        return
    best = probabilities_K[order]
    ranks = np.arange(len(order))
    axes.barh(ranks, np.ones(len(order)), color="#f1f1f1", height=0.86)
    axes.barh(ranks, best, color=[RIGHT if k == label else WRONG for k in order], height=0.86, alpha=0.55)
    for rank, k in enumerate(order):
        axes.text(0.02, rank, names[k], va="center", fontsize=8, weight="bold" if k == label else "normal")
        axes.text(0.985, rank, f"{100 * best[rank]:.0f} %", va="center", ha="right", fontsize=7.5)
    axes.set(xlim=(0, 1), ylim=(4.55, -0.55))
    axes.set_axis_off()


@_as_png
def saliency(
    pictures: Pictures, maps_NHW: Floats, labels: Sequence[int], guesses: Sequence[int], names: Sequence[str]
) -> Figure:
    """Pictures, each beside a copy overlaid with its saliency map, brightest where the map is largest.

    Under each copy stands the guess, in the colour of the true class if it is right; -1 means no guess, and as a label that the
    true class is not known.
    """
    across = min(4, max(1, len(pictures)))
    down = max(1, math.ceil(len(pictures) / across))
    figure, short = Figure(figsize=(2.6 * across, 1.5 * down)), _labels(names, 20, _short)
    grid = figure.add_gridspec(
        down, across, hspace=0.16, wspace=0.06, left=0.005, right=0.995, top=0.99, bottom=0.12 / down
    )
    for index, (picture, map_HW, guess) in enumerate(zip(pictures, maps_NHW, guesses, strict=True)):
        cell = grid[divmod(index, across)].subgridspec(1, 2, wspace=0.02)
        name = short[guess] if guess >= 0 else "no answer: NaN"
        right = RIGHT if guess == labels[index] else INK if labels[index] < 0 else WRONG
        colour = right if guess >= 0 else PALE
        _named(figure.add_subplot(cell[0]), picture, "", INK)
        _named(figure.add_subplot(cell[1]), _overlay(picture, map_HW), name, colour)
    return figure


def _overlay(picture: Pictures, map_HW: Floats) -> Pictures:
    """The picture with the map over it: dim grey where the map is 0, a bright colour where it is largest."""
    peak = map_HW.max()
    colours = matplotlib.colormaps["inferno"](map_HW / peak if peak > 0 else np.zeros_like(map_HW))[..., :3]
    grey = 0.1 + 0.5 * picture.mean(axis=-1, keepdims=True) / 255
    # "screen" blending never darkens, so that a larger value of the map is brighter on any picture
    overlay: Pictures = np.round(255 * (1 - (1 - grey) * (1 - 0.9 * colours))).astype(np.uint8)
    return overlay


@_as_png
def note(text: str) -> Figure:
    """A line of text in place of a figure that cannot be drawn."""
    figure = Figure(figsize=(5, 0.6))
    figure.text(0.5, 0.5, text, ha="center", va="center", color=PALE)
    return figure


@_as_png
def neighbours(
    queries: Pictures, nearest: Sequence[Pictures], query_names: Sequence[str], nearest_names: Sequence[Sequence[str]]
) -> Figure:
    """Figure 4, right: a test picture in each row's first column, then the training pictures nearest to it, nearest first.

    A neighbour's name has the colour of the true class if it is the query's class.
    """
    across, down = 1 + max((len(row) for row in nearest), default=0), max(1, len(queries))
    figure = Figure(figsize=(1.45 * across + 0.2, 1.68 * down + 0.25))
    names = list(dict.fromkeys([*query_names, *(name for row in nearest_names for name in row)]))
    short = dict(zip(names, _labels(names, 20, _short), strict=True))
    # a narrow empty column separates the queries from their neighbours
    grid = figure.add_gridspec(
        down, across + 1, width_ratios=[1, 0.12, *[1] * (across - 1)], hspace=0.2, wspace=0.06,
        left=0.01, right=0.99, top=1 - 0.26 / (1.68 * down + 0.25), bottom=0.22 / (1.68 * down + 0.25),
    )  # fmt: skip
    for row, query in enumerate(queries):
        _named(figure.add_subplot(grid[row, 0]), query, short[query_names[row]], INK)
        for index, picture in enumerate(nearest[row]):
            name = nearest_names[row][index]
            colour = RIGHT if name == query_names[row] else PALE
            _named(figure.add_subplot(grid[row, 2 + index]), picture, short[name], colour)
    for column, heading in ((0, "test"), (2, "nearest in training →")):
        if column < across + 1 and len(queries):
            corner = grid[0, column].get_position(figure).get_points()
            figure.text(
                corner[0, 0], corner[1, 1] + 0.03 / down, heading, ha="left", va="bottom", fontsize=9, color=PALE
            )
    return figure


def _named(axes: Axes, picture: Pictures, name: str, colour: str) -> None:
    axes.imshow(picture)
    axes.set_axis_off()
    axes.text(0.5, -0.03, name, ha="center", va="top", fontsize=7.5, color=colour, transform=axes.transAxes)


@_as_png
def curves(
    epochs: Sequence[float], panels: Mapping[str, Mapping[str, Sequence[float]]], logarithmic: Sequence[str] = ()
) -> Figure:
    """Learning curves over the epochs. `panels`: title → name of a line → values, one per entry of `epochs`.

    NaN values are skipped; panels named in `logarithmic` have a logarithmic axis.
    """
    figure = Figure(figsize=(4.1 * max(1, len(panels)), 3.1), layout="constrained")
    for index, (title, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), index + 1)
        handles = {}
        for number, (name, values) in enumerate(lines.items()):
            colour = (WRONG, RIGHT, "#6f9f58", "#a1779f")[number % 4]
            finite = np.isfinite(values)
            marker = "o" if finite.sum() <= 40 else None
            x, y = np.asarray(epochs)[finite], np.asarray(values)[finite]
            steps = "steps-mid" if title in logarithmic else "default"
            (handles[name],) = axes.plot(x, y, color=colour, lw=1.4, marker=marker, ms=2.5, drawstyle=steps)
        axes.set_title(_seen(title), loc="left")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", color="#e6e6e6", lw=0.6)
        axes.set_axisbelow(True)
        if title in logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(LogFormatter())  # the scale's default formatter writes TeX
            axes.yaxis.set_minor_formatter(LogFormatter())
        else:
            axes.set_ylim(bottom=0)
        if len(lines) > 1:
            _legend(axes, handles)
    return figure


@_as_png
def losses(runs: Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]], level: float) -> Figure:
    """The training loss by step. `runs`: name → runs → (steps, losses); a dotted line marks `level`, the loss of guessing."""
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
    """Differences of the variants' top-1 errors from the base's, in percentage points: a dot for each run.

    Where a variant is in `intervals` it has a bar, the 95 % interval; where it is in `printed`, a diamond, the paper's value.
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
    """The confusion matrix: true classes in rows, answers in columns, as fractions of the row.

    `matrix_KK` has counts. Up to 30 classes are named, and up to 16 also have percentages.
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


def _legend(axes: Axes, handles: Mapping[str, Artist], **options: Any) -> None:
    """A legend of these names. By default matplotlib omits names that are empty or begin with an underscore."""
    axes.legend([*handles.values()], _labels([*handles]), fontsize=8, **options)


def _labels(names: Sequence[str], most: int = 40, look: Callable[[str, int], str] | None = None) -> list[str]:
    """The names as they look in a figure, no two alike."""
    return words.told_apart(names, most, look or _seen)


def _short(name: str, most: int = 24) -> str:
    """The first of a class's synonyms, cut to `most` characters, all of them in the font."""
    return _drawable(words.short(name, most))


def _seen(text: str, most: int = 40) -> str:
    return _drawable(words.cut(text, most))


def _drawable(text: str) -> str:
    return "".join(letter if ord(letter) in _letters() else "□" for letter in text)


@functools.cache
def _letters() -> frozenset[int]:
    """Code points of the characters that the font has in both of its weights in use."""
    fonts = [FontProperties(family=FONT, weight=weight) for weight in ("normal", "bold")]
    normal, bold = (get_font(findfont(font)).get_charmap().keys() for font in fonts)
    return frozenset(normal & bold)
