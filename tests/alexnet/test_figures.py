"""Figures: the same bytes for the same data, what has to be seen is there, and the process is left as it was."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from alexnet import figures
from tests.names import NASTY

NAMES = ["king snake, kingsnake", "ladybug", "a class with a name that is much too long for its place", "pizza"]


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        assert image.info.keys() <= {"dpi"}, f"the file says more than pixels: {image.info}"
        return np.asarray(image.convert("RGB")).astype(int)


def of_guesses() -> bytes:
    generator = np.random.default_rng(0)
    pictures = generator.integers(256, size=(3, 20, 20, 3), dtype=np.uint8)
    return figures.guesses(pictures, [0, 1, 2], np.eye(4)[[0, 1, 3]] * 0.9, NAMES)


def of_neighbours() -> bytes:
    pictures = np.full((2, 20, 20, 3), 90, np.uint8)
    return figures.neighbours(pictures, [pictures, pictures[:1]], ["a", "b"], [["a", "b"], ["a"]])


def of_saliency() -> bytes:
    generator = np.random.default_rng(0)
    pictures = generator.integers(256, size=(5, 20, 20, 3), dtype=np.uint8)
    return figures.saliency(pictures, generator.random((5, 20, 20)), [0, 1, 2, 3, 0], [0, 2, 2, 3, -1], NAMES)


def of_kernels() -> bytes:
    return figures.first_layer(np.random.default_rng(0).normal(size=(24, 3, 11, 11)))


def of_curves() -> bytes:
    lines = {"training": [2.0, math.nan, 1.0], "validation": [2.0, 1.5, 1.2]}
    return figures.curves([1, 2, 3], {"loss": lines, "rate": {"rate": [0.1, 0.1, 0.01]}}, logarithmic=("rate",))


def of_confusion() -> bytes:
    return figures.confusion(np.array([[3, 1, 0, 0], [0, 4, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]), NAMES)


def of_losses() -> bytes:
    return figures.losses(
        {"paper": [([10, 20], [2.3, 2.3]), ([10], [2.2])], "other": [([10, 20], [2.3, 1.0])]}, math.log(10)
    )


def of_differences() -> bytes:
    return figures.differences(
        {"one": [1.0, 2.0, 2.5], "other": [0.5]}, {"one": (0.2, 3.4)}, {"other": 1.7, "none": 9.0}
    )


def of_activations() -> bytes:
    runs = [[0.9, 0.5, 0.2], [0.9, 0.4, 0.3]]
    return figures.relu_and_tanh(
        {"one start": {"relu": runs, "tanh": runs}, "another": {"relu": runs, "tanh": runs[:1]}}, 0.25
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "draw",
    [
        of_guesses,
        of_saliency,
        of_neighbours,
        of_kernels,
        of_curves,
        of_confusion,
        of_losses,
        of_differences,
        of_activations,
    ],
)
def test_same_bytes_and_no_trace(draw: Callable[[], bytes]) -> None:
    before = dict(matplotlib.rcParams)
    first = draw()
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context({"axes.facecolor": "red", "xtick.labelsize": 30, "savefig.dpi": 20}):
        assert draw() == first, "a user's settings change the figure"
    assert pixels(first).std() > 5, "the figure is blank"


def test_bars_of_intervals_are_as_long_as_these() -> None:
    ends = {"one": (1.0, 2.0), "three": (1.0, 4.0), "two": (1.0, 3.0)}
    image = pixels(figures.differences({name: [0.0] for name in ends}, ends, {"one": 5.0}))
    blue = image[..., 2].astype(int) > image[..., 0].astype(int) + 15
    blue[:, image.shape[1] * 2 // 3 :] = False  # the legend
    bars = set()
    for row in blue[blue.sum(axis=1) > 60]:
        columns = np.flatnonzero(row)
        bars.add(int((columns > columns[0] + 60).sum()))  # behind the dot
    one, two, three = sorted(bars)
    assert (two, three) == (pytest.approx(2 * one, abs=2), pytest.approx(3 * one, abs=2))


def test_kernels_of_the_first_column_are_above() -> None:
    grey = np.zeros((96, 3, 11, 11))
    grey[:48, :, ::2] = 1.0  # stripes without colour
    grey[48:, 0, ::2] = 1.0  # red stripes
    image = pixels(figures.first_layer(grey))
    colourful = (np.ptp(image, axis=2) > 60).sum(axis=1)
    half = len(image) // 2
    assert colourful[:half].sum() == 0
    assert colourful[half:].sum() > 1000


def test_zero_is_mid_grey_and_scale_does_not_matter() -> None:
    kernels = np.random.default_rng(0).normal(size=(8, 3, 11, 11))
    assert figures.first_layer(kernels) == figures.first_layer(kernels * 1024)
    image = pixels(figures.first_layer(np.zeros((8, 3, 11, 11))))
    values, counts = np.unique(image, return_counts=True)
    assert set(values[np.argsort(counts)[-2:]]) <= {127, 128, 255}


@pytest.mark.parametrize(("kernels", "columns"), [(1, 1), (2, 2), (10, 2), (96, 1)])
def test_any_number_of_kernels(kernels: int, columns: int) -> None:
    pixels(figures.first_layer(np.random.default_rng(0).normal(size=(kernels, 3, 11, 11)), columns))


def reddish(image: np.ndarray) -> int:
    red, green, blue = np.moveaxis(image, -1, 0)
    return int(((red - green > 60) & (red - blue > 60)).sum())


def test_only_the_true_class_is_red() -> None:
    picture = np.full((1, 20, 20, 3), 128, np.uint8)
    shares = np.array([[0.7, 0.2, 0.06, 0.04]])
    assert reddish(pixels(figures.guesses(picture, [0], shares, NAMES))) > 1000
    # true, but the least probable of six, so not among the five bars
    six, names = np.array([[0.3, 0.25, 0.2, 0.15, 0.1, 0.0]]), [*NAMES, "e", "f"]
    assert reddish(pixels(figures.guesses(picture, [5], six, names))) == 0


def test_a_guess_is_red_only_if_it_is_right() -> None:
    picture, map_HW = np.full((1, 20, 20, 3), 128, np.uint8), np.zeros((1, 20, 20))
    right, wrong = (pixels(figures.saliency(picture, map_HW, [1], [guess], NAMES)) for guess in (1, 0))
    assert reddish(right) > 100
    assert reddish(wrong) == 0


def test_what_speaks_for_the_guess_is_the_brightest_and_its_size_does_not_matter() -> None:
    picture, map_HW = np.full((20, 20, 3), 128, np.uint8), np.zeros((20, 20))
    map_HW[4:8, 10:15] = 0.5
    map_HW[5, 12] = 1.0
    shown = figures._overlay(picture, map_HW).sum(axis=-1).astype(int)
    assert np.unravel_index(shown.argmax(), shown.shape) == (5, 12)
    rest = shown[map_HW == 0]
    assert len(np.unique(rest)) == 1
    np.testing.assert_array_equal(figures._overlay(picture, 1e-9 * map_HW), figures._overlay(picture, map_HW))


def test_a_note_can_be_read() -> None:
    assert pixels(figures.note("none were looked up")).min() < 200


@pytest.mark.slow
def test_nan_and_nothing_can_be_drawn() -> None:
    picture = np.full((1, 20, 20, 3), 128, np.uint8)
    pixels(figures.guesses(picture, [0], np.full((1, 4), np.nan), NAMES))
    pixels(figures.confusion(np.zeros((4, 4), int), NAMES))
    pixels(figures.confusion(np.eye(40, dtype=int), [str(k) for k in range(40)]))
    pixels(figures.neighbours(picture, [picture[:0]], ["a"], [[]]))
    pixels(figures.saliency(picture, np.zeros((1, 20, 20)), [0], [-1], NAMES))
    pixels(figures.curves([], {"loss": {"training": []}}))


def test_short_names_fit() -> None:
    assert figures._short("king snake, kingsnake") == "king snake"
    assert max(len(figures._short(name)) for name in [*NAMES, "x" * 80, "x" * 30 + " y"]) <= 24


def test_figure_1_has_a_line_at_its_target_and_ends_a_curve_where_it_is_nan() -> None:
    falling, rest = [0.9, 0.5, 0.3, 0.2], [math.nan] * 4
    whole = pixels(figures.relu_and_tanh({"": {"relu": [falling], "tanh": [[0.9, 0.7, 0.6, 0.5]]}}, 0.25))
    ended = pixels(figures.relu_and_tanh({"": {"relu": [rest], "tanh": [[0.9, 0.7, 0.6, 0.5]]}}, 0.25))
    assert reddish(whole) > reddish(ended) + 200
    assert figures.relu_and_tanh({"": {"relu": [falling], "tanh": [rest]}}, 0.5) != figures.relu_and_tanh(
        {"": {"relu": [falling], "tanh": [rest]}}, 0.25
    )


def some_text(draw: Callable[..., bytes], *words: object) -> list[str]:
    """All texts of a figure that is drawn, none of which is TeX; a warning about one is an error here."""
    with matplotlib.rc_context(figures.STYLE):  # type: ignore[arg-type]
        figure: Figure = draw.__wrapped__(*words)  # type: ignore[attr-defined]
        FigureCanvasAgg(figure)
        figure.draw_without_rendering()
    found = [text for text in figure.findobj(Text) if text.get_text()]
    assert not any(text.get_parse_math() for text in found)
    return [text.get_text() for text in found]


LINE = [([1.0, 2.0], [2.0, 1.0])]
GREY = np.full((1, 8, 8, 3), 128, np.uint8)


def test_a_class_of_any_name_is_drawn_and_read_as_it_is() -> None:
    """`$\\frac{$` ended the report, after the training."""
    texts = set(some_text(figures.losses, dict.fromkeys(NASTY, LINE), 1.0))
    assert {r"$\frac{$", "_underscored", "<script>alert(1)</script>", "a | b | c", "Case"} <= texts
    assert len(texts & set(figures._labels(NASTY))) == len(NASTY), "a name has no line, or looks like another"
    assert r"\x1b[31mred\x1b[2J\x1b]0;title\x07" in texts


@pytest.mark.slow
def test_any_names_are_classes_of_a_confusion() -> None:
    for some in (NASTY[:24], NASTY[24:]):
        texts = some_text(figures.confusion, np.eye(len(some), dtype=int), some)
        assert {*figures._labels(some, 22, figures._short)} <= {*texts}


def test_any_name_is_a_guess_a_neighbour_a_title_a_line_and_a_variant() -> None:
    three, shares = [r"$\frac{$", "_a\n", "猫"], np.array([[0.5, 0.3, 0.2]])
    shown = [r"$\frac{$", r"_a\n", "□"]
    for draw, *words in (
        (figures.guesses, GREY, [0], shares, three),
        (figures.neighbours, GREY, [np.concatenate([GREY, GREY])], three[:1], [three[1:]]),
        (figures.saliency, np.concatenate([GREY] * 3), np.zeros((3, 8, 8)), [0, 1, 2], [0, 1, 2], three),
        (figures.curves, [1, 2], {name: {key: [1.0, 2.0] for key in three} for name in three}, three[:1]),
        (figures.relu_and_tanh, {name: {key: [[0.5, 0.2]] for key in three[:2]} for name in three}, 0.25),
        (figures.differences, {name: [1.0] for name in three}, {}, {}),
    ):
        texts = some_text(draw, *words)
        assert {*shown} <= {*texts}, draw


def test_two_classes_that_look_the_same_when_they_are_cut_are_told_apart() -> None:
    long = ["a class with a long name, one", "a class with a long name, other", "caf\u00e9", "cafe\u0301", "猫", "犬"]
    texts = some_text(figures.guesses, GREY, [0], np.eye(6)[:1], long)
    assert len({*texts} & {*figures._labels(long, 24, figures._short)}) == 5
    assert figures._labels(long, 24, figures._short)[4:] == ["□ #4", "□ #5"]


def test_a_logarithmic_scale_is_labelled_without_tex() -> None:
    texts = some_text(figures.curves, [1, 2], {"rate": {"": [0.01, 0.0001]}}, ["rate"])
    assert not [text for text in texts if "$" in text or "math" in text]
    assert {"1e\u221203", "1e\u221202"} <= {*texts}
