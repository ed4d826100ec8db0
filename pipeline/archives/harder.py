"""Drawing the sample's hard pictures: other figures around the figure, bars over it, and a contrast that varies."""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.archives import drawing
from pipeline.archives.drawing import Colour, Shape, Texture


def picture(rng: Generator, shape: Shape, texture: Texture) -> Image.Image:
    """Draws a hard picture in RGB, of the sizes of the easy ones. Its class is that of the largest figure."""
    size = drawing.size(rng)
    side, whole = min(size), np.array(size)
    ground, *colours = drawing.colours(rng, apart=120)
    drawn = drawing.background(rng, *size, ground)
    drawing.clutter(rng, drawn, side, int(rng.integers(3, 8)))
    for plain in [True] * int(rng.integers(0, 4)) + [False] * int(rng.integers(0, 4)):
        _other(rng, drawn, plain, whole / 2 + rng.uniform(-0.45, 0.45, 2) * side, side)
    middle = whole / 2 + rng.uniform(-0.1, 0.1, 2) * side
    _figure(rng, drawn, shape, texture, middle, rng.uniform(0.3, 0.44) * side, side, *colours)
    for _ in range(int(rng.integers(0, 4))):
        _bar(rng, drawn, middle + rng.uniform(-0.3, 0.3, 2) * side, side)
    drawing.clutter(rng, drawn, side, int(rng.integers(0, 3)))
    return drawing.with_grain(rng, _contrasted(rng, drawn), most=8)


def _figure(
    rng: Generator,
    picture: Image.Image,
    shape: Shape,
    texture: Texture | None,
    middle: NDArray[Any],
    radius: float,
    side: int,
    first: Colour,
    second: Colour,
) -> None:
    """Draws a figure, plain without a texture, on a tile of its own size, and pastes it into the picture."""
    half = math.ceil(1.6 * radius)
    tile, centre = (2 * half, 2 * half), np.array([half, half], np.float64)
    outline = drawing.figure_mask(rng, shape, tile, centre, radius, turn=0.6, stretch=0.2)
    figure = Image.new("RGB", tile, first)
    if texture is not None:
        period = rng.uniform(0.085, 0.13) * side
        mask = drawing.texture_mask(rng, texture, tile, centre, 2 * half, period, turn=0.35)
        figure.paste(second, mask=mask)
    x, y = np.round(middle).astype(int) - half
    picture.paste(figure, (int(x), int(y)), mask=outline)


def _other(rng: Generator, picture: Image.Image, plain: bool, middle: NDArray[Any], side: int) -> None:
    """Draws one of the other figures: small and plain, of any shape, or a small disc of any texture."""
    shape: Shape = get_args(Shape)[rng.integers(5)] if plain else "disc"
    texture = None if plain else get_args(Texture)[rng.integers(2)]
    first, second = (drawing.colour(rng.integers(16, 240, 3)) for _ in range(2))
    _figure(rng, picture, shape, texture, middle, rng.uniform(0.06, 0.13) * side, side, first, second)


def _bar(rng: Generator, picture: Image.Image, middle: NDArray[Any], side: int) -> None:
    """Draws a straight bar across the picture, 2 to 6 % of its side wide."""
    half = rng.uniform(0.01, 0.03) * side
    corners = np.array([[-2 * side, -half], [2 * side, -half], [2 * side, half], [-2 * side, half]])
    points = drawing.rotate(corners, rng.uniform(0, math.pi)) + middle
    ImageDraw.Draw(picture).polygon(points.ravel().tolist(), fill=drawing.colour(rng.integers(16, 240, 3)))


def _contrasted(rng: Generator, picture: Image.Image) -> Image.Image:
    """Multiplies the contrast by a random factor, .5 to 2, which grows or falls along a random direction in the picture.

    A picture of less contrast is also brighter or darker.
    """
    contrast = math.exp(rng.uniform(-math.log(2), math.log(2)))
    free = max(0.0, 1 - contrast)
    middle = 127.5 * (1 + rng.uniform(-free, free))
    along, down = rng.uniform(-0.4, 0.4, 2)
    x = np.linspace(-1, 1, picture.width)
    y = np.linspace(-1, 1, picture.height)[:, None]
    factor_HW1 = (contrast * np.exp(along * x + down * y))[..., None]
    values = (np.asarray(picture, np.float64) - 127.5) * factor_HW1 + middle
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
