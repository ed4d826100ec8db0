"""§2 The data: pictures rescaled to 256×256, their mean image, and the covariance of their colours (§4.1).

Names of arrays end in their axes: B images, C channels (red, green, blue), H rows, W columns.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from alexnet import limits

Filter = Literal["bilinear", "bicubic", "area"]

Fit = Literal["crop", "warp"]


def resize(picture_CHW: Tensor, side: int, how: Filter, fit: Fit = "crop") -> Tensor:
    """Rescales so that the shorter side is `side` and takes the central patch (§2): uint8 3 x H x W -> 3 x side x side.

    bilinear and bicubic widen with the reduction (antialiasing), as Pillow's do, to within rounding. area is what the
    authors' later program does (cuda-convnet2, make-data): the mean of the pixels covered where the picture shrinks,
    bicubic interpolation where it grows. To warp is to make both sides `side`, whatever the shape; `area` cannot.
    """
    if fit == "warp":
        assert how != "area", "area keeps the shape"
        height = width = side
    else:
        picture_CHW = _without_far_ends(picture_CHW)
        _, height, width = picture_CHW.shape
    if how == "area":
        if min(height, width) > side:
            return _area(picture_CHW, side)
        if min(height, width) == side:
            return _centre(picture_CHW, side)
    size = (side, side * width // height) if height <= width else (side * height // width, side)
    mode, antialias = ("bicubic", False) if how == "area" else (how, True)
    # Said to lie as rows of pixels, which it does, the picture is not copied to planes and back: a quarter of the time
    picture_BCHW = picture_CHW.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    resized_BCHW = functional.interpolate(picture_BCHW, size=size, mode=mode, antialias=antialias)
    return _centre(resized_BCHW[0], side)


def _without_far_ends(picture_CHW: Tensor) -> Tensor:
    """Cuts whole squares off both ends of a picture five times as long as wide or more; none comes into the patch.

    For memory: a strip of 2 x 20,000 pixels would else be resized to 256 x 2,560,000.
    """
    height, width = picture_CHW.shape[1:]
    shorter = min(height, width)
    top, left = (shorter * max(0, (length // shorter - 3) // 2) for length in (height, width))
    return picture_CHW[:, top : height - top, left : width - left]


def _centre(picture_CHW: Tensor, side: int) -> Tensor:
    top, left = (round((length - side) / 2) for length in picture_CHW.shape[1:])
    return picture_CHW[:, top : top + side, left : left + side]


def _area(picture_CHW: Tensor, side: int) -> Tensor:
    """Means over the cells of a grid of side x side laid over the central square, in exact integers."""
    square = min(picture_CHW.shape[1:])
    whole = (2 * square) ** 2  # a cell is square / side pixels long, and counted in units of 1 / (2 side)
    means = []
    rows = max(1, limits.STRIP // picture_CHW.shape[2])  # at a time: in int64 a large picture takes gigabytes
    for channel_HW in picture_CHW.numpy():
        bands = (channel_HW[top : top + rows].astype(np.int64) for top in range(0, len(channel_HW), rows))
        sums_HW = np.concatenate([_sums_between(band_HW, square, side, axis=1) for band_HW in bands])
        sums_HW = _sums_between(sums_HW, square, side, axis=0)
        means.append(((2 * sums_HW + whole) // (2 * whole)).astype(np.uint8))
    return torch.from_numpy(np.stack(means))


def _sums_between(values: NDArray[np.int64], square: int, side: int, axis: int) -> NDArray[np.int64]:
    """Sums of `values` along `axis` over `side` equal cells that part its central `square`, times 2 * side."""
    length = values.shape[axis]
    before = np.zeros_like(values, shape=[1 if a == axis else n for a, n in enumerate(values.shape)])
    running = np.concatenate([before, values.cumsum(axis)], axis)
    # Edges of the cells in units of 1 / (2 side) of a pixel: half pixels where an odd number is cut off
    edges = (length - square) * side + 2 * square * np.arange(side + 1)
    pixel, part = np.divmod(edges, 2 * side)
    shape = [-1 if a == axis else 1 for a in range(values.ndim)]
    inside = np.take(values, np.minimum(pixel, length - 1), axis) * part.reshape(shape)
    below: NDArray[np.int64] = np.take(running, pixel, axis) * (2 * side) + inside
    return np.diff(below, axis=axis)


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over pictures in whole numbers: exact, so that any parting of the pictures gives the same."""

    images: int
    pixels_CHW: NDArray[np.int64]
    """Sum of the pictures."""
    products_CC: NDArray[np.int64]
    """Sum over pictures and places of one channel times another."""

    @classmethod
    def none(cls, side: int) -> Sums:
        """The sums over no picture."""
        return cls(0, np.zeros((3, side, side), np.int64), np.zeros((3, 3), np.int64))

    def add(self, images_BCHW: NDArray[np.uint8]) -> Sums:
        """The sums with further pictures, uint8 B x 3 x side x side."""
        assert images_BCHW.dtype == np.uint8, images_BCHW.dtype
        products = np.zeros((3, 3), np.int64)
        for picture_CHW in images_BCHW:
            flat = picture_CHW.reshape(3, -1).astype(np.float64)
            products += (flat @ flat.T).astype(np.int64)  # whole numbers far below 2^53, so exact
        return self.merge(Sums(len(images_BCHW), images_BCHW.sum(axis=0, dtype=np.int64), products))

    def merge(self, other: Sums) -> Sums:
        """The sums over the pictures of both."""
        return Sums(
            self.images + other.images, self.pixels_CHW + other.pixels_CHW, self.products_CC + other.products_CC
        )


@dataclass(frozen=True, slots=True)
class Mean:
    """What the training pictures have in common: the mean image (§2) and how their colours vary (§4.1); 0 to 255."""

    image_CHW: NDArray[np.float32]
    covariance_CC: NDArray[np.float64]
    """Covariance of red, green and blue over all pixels, about their mean over all places."""
    eigenvalues_C: NDArray[np.float64]
    """Eigenvalues of the covariance, the largest first."""
    eigenvectors_CC: NDArray[np.float64]
    """In columns, in the order of the eigenvalues; the largest entry of each is positive."""
    images: int

    @classmethod
    def of(cls, sums: Sums) -> Mean:
        """From the sums over the training pictures; `ValueError` if there are none."""
        if sums.images == 0:
            raise ValueError("the mean of no pictures")
        covariance_CC = _covariance(sums)
        values, vectors = eigen(covariance_CC)
        largest = vectors[np.abs(vectors).argmax(axis=0), range(3)]
        return cls(
            image_CHW=(sums.pixels_CHW / sums.images).astype(np.float32),
            covariance_CC=covariance_CC,
            eigenvalues_C=np.maximum(values, 0.0),  # rounding makes a zero negative, and roots are drawn of these
            eigenvectors_CC=vectors * np.sign(largest),
            images=sums.images,
        )

    def save(self, file: Path | BinaryIO) -> None:
        """Writes an .npz, the same bytes for the same numbers."""
        np.savez(
            file,
            mean=self.image_CHW,
            covariance=self.covariance_CC,
            eigenvalues=self.eigenvalues_C,
            eigenvectors=self.eigenvectors_CC,
            images=np.int64(self.images),
        )

    @classmethod
    def load(cls, file: Path) -> Mean:
        """Reads what `save` wrote; `ValueError` if a byte is another: equal numbers have equal bytes."""
        data, again = file.read_bytes(), io.BytesIO()
        try:
            with np.load(io.BytesIO(data)) as arrays:
                mean = cls(
                    image_CHW=arrays["mean"],
                    covariance_CC=arrays["covariance"],
                    eigenvalues_C=arrays["eigenvalues"],
                    eigenvectors_CC=arrays["eigenvectors"],
                    images=int(arrays["images"]),
                )
            mean.save(again)
        except Exception as error:  # a broken zip can raise anything
            raise ValueError(f"{file}: damaged, or no mean of ours: {error}") from None
        if again.getvalue() != data:
            raise ValueError(f"{file}: damaged, or written by another version of numpy")
        return mean


def _covariance(sums: Sums) -> NDArray[np.float64]:
    """In fractions, since E[xy] - E[x]E[y] in floating point loses the digits that matter."""
    count = sums.images * sums.pixels_CHW[0].size
    totals = [int(total) for total in sums.pixels_CHW.sum(axis=(1, 2))]
    rows = [
        [float(Fraction(count * int(sums.products_CC[i, j]) - totals[i] * totals[j], count**2)) for j in range(3)]
        for i in range(3)
    ]
    return np.array(rows)


def eigen(symmetric: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Eigenvalues of a small symmetric matrix, falling, and its eigenvectors in columns: Jacobi's rotations (1846).

    In Python's own arithmetic, the same to the last bit on every machine. LAPACK's is not: its last bits differ between
    processors, and with them went the hash of data/mean.npz and all that is made of it.
    """
    size = len(symmetric)
    a = [[float(value) for value in row] for row in symmetric]
    vectors = [[float(i == j) for j in range(size)] for i in range(size)]
    pairs = [(p, q) for p in range(size) for q in range(p + 1, size)]
    scale = max(abs(value) for row in a for value in row)
    while max(abs(a[p][q]) for p, q in pairs) > scale * 1e-18:
        for p, q in pairs:
            if a[p][q] == 0:
                continue
            half = (a[q][q] - a[p][p]) / (2 * a[p][q])
            tangent = (1 if half >= 0 else -1) / (abs(half) + math.sqrt(half * half + 1))
            cosine = 1 / math.sqrt(tangent * tangent + 1)
            sine = tangent * cosine
            for rows, columns in ((a, False), (a, True), (vectors, False)):
                for k in range(size):
                    (i, j), (m, n) = ((p, k), (q, k)) if columns else ((k, p), (k, q))
                    one, other = rows[i][j], rows[m][n]
                    rows[i][j], rows[m][n] = cosine * one - sine * other, sine * one + cosine * other
            a[p][q] = a[q][p] = 0.0  # which it is but for rounding
    order = sorted(range(size), key=lambda place: -a[place][place])
    return np.array([a[place][place] for place in order]), np.array(vectors)[:, order]
