"""Drawing the sample's easy pictures: a figure with one of five shapes and two textures on an uneven, cluttered background."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Shape = Literal["disc", "ring", "star", "triangle", "wings"]
Texture = Literal["dots", "stripes"]


def picture(rng: Generator, shape: Shape, texture: Texture) -> Image.Image:
    """Draws an easy picture in RGB. Its shorter side has 160 to 340 pixels, its longer side up to 1.6 times that."""
    width, height = size(rng)
    side = min(width, height)
    ground, first, second = colours(rng, apart=80)
    drawn = background(rng, width, height, ground)
    clutter(rng, drawn, side, int(rng.integers(3, 8)))
    middle = np.array([width, height]) / 2 + rng.uniform(-0.08, 0.08, 2) * side
    radius = rng.uniform(0.33, 0.44) * side
    outline = figure_mask(rng, shape, (width, height), middle, radius, turn=0.35, stretch=0.15)
    figure = Image.new("RGB", (width, height), first)
    period = rng.uniform(0.085, 0.13) * side
    figure.paste(second, mask=texture_mask(rng, texture, (width, height), middle, side, period, turn=0.35))
    drawn.paste(figure, mask=outline)
    clutter(rng, drawn, side, int(rng.integers(0, 3)))
    return with_grain(rng, drawn, most=8)


def size(rng: Generator) -> tuple[int, int]:
    """Width and height of a picture in pixels."""
    # one in twelve is smaller than 256 pixels, so that `resize` has to enlarge it
    short = int(rng.integers(160, 256) if rng.random() < 1 / 12 else rng.integers(256, 341))
    long = int(short * rng.choice([1.0, 4 / 3, 1.5, rng.uniform(1, 1.6)]))
    return (long, short) if rng.random() < 0.6 else (short, long)


Colour = tuple[int, int, int]


def colours(rng: Generator, *, apart: float) -> tuple[Colour, Colour, Colour]:
    """Random colours of the background and of the figure's two parts, any two of them at least `apart` in RGB."""
    while True:
        three = rng.integers(16, 240, (3, 3))
        distances = [np.linalg.norm(three[one] - three[other]) for one, other in ((0, 1), (0, 2), (1, 2))]
        if min(distances) >= apart:
            return colour(three[0]), colour(three[1]), colour(three[2])


def colour(values: NDArray[Any]) -> Colour:
    """Red, green and blue, 0 to 255, as Pillow takes them."""
    red, green, blue = (int(value) for value in values)
    return red, green, blue


def background(rng: Generator, width: int, height: int, ground: Colour) -> Image.Image:
    """The background: its colour, with smooth random shading."""
    shade = np.array(ground) + rng.normal(0, 18, (4, 4, 3))
    return Image.fromarray(np.clip(shade, 0, 255).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)


def clutter(rng: Generator, picture: Image.Image, side: int, count: int) -> None:
    """Draws lines and spots of random colours over the picture."""
    draw = ImageDraw.Draw(picture)
    for _ in range(count):
        x, y = rng.uniform(0, 1, 2) * picture.size
        fill = colour(rng.integers(0, 256, 3))
        if rng.random() < 0.5:
            dx, dy = rng.normal(0, 0.4, 2) * side
            draw.line([x, y, x + dx, y + dy], fill=fill, width=int(rng.integers(1, 5)))
        else:
            size = rng.uniform(0.01, 0.05) * side
            draw.ellipse([x - size, y - size, x + size, y + size], fill=fill)


def figure_mask(
    rng: Generator,
    shape: Shape,
    size: tuple[int, int],
    middle: NDArray[Any],
    radius: float,
    *,
    turn: float,
    stretch: float,
) -> Image.Image:
    """A mask of a figure, rotated at random by up to `turn` radians and stretched by up to the factor exp(`stretch`).

    All shapes have about the same area, 2 `radius`².
    """
    angle = rng.uniform(-turn, turn)
    factor = math.exp(rng.uniform(-stretch, stretch))
    outline = _outline(shape) * radius * np.array([factor, 1 / factor])
    points = rotate(outline, angle) + middle
    # drawn at twice the size and reduced, for smooth edges
    mask = Image.new("L", (2 * size[0], 2 * size[1]))
    draw = ImageDraw.Draw(mask)
    draw.polygon((2 * points).ravel().tolist(), fill=255)
    if shape == "ring":
        draw.polygon((2 * (rotate(outline * 0.45, angle) + middle)).ravel().tolist(), fill=0)
    return mask.reduce(2)


def _outline(shape: Shape) -> NDArray[np.float64]:
    """A shape's corners (x to the right, y down) around (0, 0): symmetric left to right, with an area near 2."""
    round_ = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    match shape:
        case "disc":
            return 0.8 * _polar(round_, np.ones(64))
        case "ring":
            return 0.9 * _polar(round_, np.ones(64))
        case "star":
            angles = np.arange(10) * np.pi / 5 - np.pi / 2
            return 1.2 * _polar(angles, np.where(np.arange(10) % 2, 0.5, 1.0))
        case "triangle":
            return 1.2 * _polar(np.arange(3) * 2 * np.pi / 3 - np.pi / 2, np.ones(3)) + [0, 0.15]
        case "wings":
            return 0.75 * _polar(round_, 1 + 0.62 * np.cos(4 * round_ - np.pi))


def _polar(angles: NDArray[Any], radii: NDArray[Any]) -> NDArray[np.float64]:
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def rotate(points: NDArray[Any], angle: float) -> NDArray[np.float64]:
    """Points N×2, rotated around (0, 0) by an angle in radians."""
    cos, sin = math.cos(angle), math.sin(angle)
    return np.stack([cos * points[:, 0] - sin * points[:, 1], sin * points[:, 0] + cos * points[:, 1]], axis=1)


def texture_mask(
    rng: Generator,
    texture: Texture,
    size: tuple[int, int],
    middle: NDArray[Any],
    side: int,
    period: float,
    *,
    turn: float,
) -> Image.Image:
    """A mask of a figure's second colour: half of the area in both textures, with a random offset.

    `period`: of dots or stripes, in pixels; `turn`: the angle is random, up to so many radians; `side` bounds the area.
    """
    angle = rng.uniform(-turn, turn)
    reach = int(0.75 * side / period) + 2
    steps = np.arange(-reach, reach + 1) * period + rng.uniform(0, period)
    mask = Image.new("L", (2 * size[0], 2 * size[1]))
    draw = ImageDraw.Draw(mask)
    if texture == "stripes":
        half, far = period / 4, 1.5 * side
        for y in steps:
            band = np.array([[-far, y - half], [far, y - half], [far, y + half], [-far, y + half]])
            draw.polygon((2 * (rotate(band, angle) + middle)).ravel().tolist(), fill=255)
    else:
        dot = period * math.sqrt(0.5 / math.pi)
        across, down = np.meshgrid(steps, steps)
        for x, y in rotate(np.stack([across.ravel(), down.ravel()], axis=1), angle) + middle:
            # Pillow includes the right and lower edge
            draw.ellipse([2 * (x - dot), 2 * (y - dot), 2 * (x + dot) - 1, 2 * (y + dot) - 1], fill=255)
    return mask.reduce(2)


def with_grain(rng: Generator, picture: Image.Image, *, most: float) -> Image.Image:
    """Adds film grain: smooth noise, equal in the three colours, of a standard deviation of 2 to `most`."""
    grain = rng.normal(0, rng.uniform(2, most), (picture.height // 2, picture.width // 2))
    noise = np.clip(128 + grain, 0, 255).astype(np.uint8)
    soft = np.asarray(Image.fromarray(noise).resize(picture.size, Image.Resampling.BILINEAR), np.int16) - 128
    values = np.asarray(picture, np.int16) + soft[..., None]
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
