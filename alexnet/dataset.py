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
    """Rescales the shorter side to `side` and cuts out the central square (§2): uint8 3×H×W → uint8 3×side×side.

    `how`: bilinear and bicubic are antialiased, equal to Pillow's to within rounding. area is what the authors' later
    program does (cuda-convnet2, make-data): the mean of the covered pixels where the picture shrinks, bicubic
    interpolation where it grows. `fit`: crop as in §2; warp scales both sides to `side` and changes the aspect ratio
    (not with area).
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
    # The pixels lie in memory as H×W×C. Strides that say so spare two copies between layouts: a quarter of the time
    picture_BCHW = picture_CHW.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    resized_BCHW = functional.interpolate(picture_BCHW, size=size, mode=mode, antialias=antialias)
    return _centre(resized_BCHW[0], side)


def _without_far_ends(picture_CHW: Tensor) -> Tensor:
    """Cuts whole squares, outside the central one, off both ends of a picture at least five times as long as wide.

    This bounds memory: a strip of 2 × 20,000 pixels would otherwise be resized to 256 × 2,560,000.
    """
    height, width = picture_CHW.shape[1:]
    shorter = min(height, width)
    top, left = (shorter * max(0, (length // shorter - 3) // 2) for length in (height, width))
    return picture_CHW[:, top : height - top, left : width - left]


def _centre(picture_CHW: Tensor, side: int) -> Tensor:
    top, left = (round((length - side) / 2) for length in picture_CHW.shape[1:])
    return picture_CHW[:, top : top + side, left : left + side]


def _area(picture_CHW: Tensor, side: int) -> Tensor:
    """Means over the cells of a side×side grid on the central square, in exact integer arithmetic."""
    square = min(picture_CHW.shape[1:])
    whole = (2 * square) ** 2  # the area of a cell: its length is square / side pixels, in units of 1 / (2 side) pixel
    means = []
    rows = max(1, limits.STRIP // picture_CHW.shape[2])  # strips, because in int64 a large picture takes gigabytes
    for channel_HW in picture_CHW.numpy():
        bands = (channel_HW[top : top + rows].astype(np.int64) for top in range(0, len(channel_HW), rows))
        sums_HW = np.concatenate([_sums_between(band_HW, square, side, axis=1) for band_HW in bands])
        sums_HW = _sums_between(sums_HW, square, side, axis=0)
        means.append(((2 * sums_HW + whole) // (2 * whole)).astype(np.uint8))
    return torch.from_numpy(np.stack(means))


def _sums_between(values: NDArray[np.int64], square: int, side: int, axis: int) -> NDArray[np.int64]:
    """Sums of `values` along `axis` over the `side` equal cells of its central `square`, multiplied by 2·side."""
    length = values.shape[axis]
    before = np.zeros_like(values, shape=[1 if a == axis else n for a, n in enumerate(values.shape)])
    running = np.concatenate([before, values.cumsum(axis)], axis)
    # Edges of the cells in units of 1 / (2 side) pixel, so that they are whole numbers even when an odd number is cut off
    edges = (length - square) * side + 2 * square * np.arange(side + 1)
    pixel, part = np.divmod(edges, 2 * side)
    shape = [-1 if a == axis else 1 for a in range(values.ndim)]
    inside = np.take(values, np.minimum(pixel, length - 1), axis) * part.reshape(shape)
    below: NDArray[np.int64] = np.take(running, pixel, axis) * (2 * side) + inside
    return np.diff(below, axis=axis)


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over pictures, in exact integers, so that the result does not depend on how the pictures are divided up."""

    images: int
    """Number of pictures."""
    pixels_CHW: NDArray[np.int64]
    """Sum of the pictures."""
    products_CC: NDArray[np.int64]
    """Sum, over all pixels of all pictures, of one channel times another."""

    @classmethod
    def none(cls, side: int) -> Sums:
        """Sums over zero pictures."""
        return cls(0, np.zeros((3, side, side), np.int64), np.zeros((3, 3), np.int64))

    def add(self, images_BCHW: NDArray[np.uint8]) -> Sums:
        """These sums plus those of further pictures, uint8 B×3×side×side."""
        assert images_BCHW.dtype == np.uint8, images_BCHW.dtype
        products = np.zeros((3, 3), np.int64)
        for picture_CHW in images_BCHW:
            flat = picture_CHW.reshape(3, -1).astype(np.float64)
            products += (flat @ flat.T).astype(np.int64)  # whole numbers far below 2^53, so exact
        return self.merge(Sums(len(images_BCHW), images_BCHW.sum(axis=0, dtype=np.int64), products))

    def merge(self, other: Sums) -> Sums:
        """The sums over both sets of pictures."""
        return Sums(
            self.images + other.images, self.pixels_CHW + other.pixels_CHW, self.products_CC + other.products_CC
        )


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean image of the training pictures (§2) and the covariance of their colours (§4.1), for pixels in 0–255."""

    image_CHW: NDArray[np.float32]
    """The mean image."""
    covariance_CC: NDArray[np.float64]
    """Covariance of red, green and blue over all pixels, about each channel's mean over all pixels."""
    eigenvalues_C: NDArray[np.float64]
    """Eigenvalues of the covariance, the largest first."""
    eigenvectors_CC: NDArray[np.float64]
    """The eigenvectors as columns, in the order of the eigenvalues; the largest entry of each is positive."""
    images: int
    """Number of training pictures."""

    @classmethod
    def of(cls, sums: Sums) -> Mean:
        """Computes the mean from sums over the training pictures; `ValueError` if there are no pictures."""
        if sums.images == 0:
            raise ValueError("the mean of no pictures")
        covariance_CC = _covariance(sums)
        values, vectors = eigen(covariance_CC)
        largest = vectors[np.abs(vectors).argmax(axis=0), range(3)]
        return cls(
            image_CHW=(sums.pixels_CHW / sums.images).astype(np.float32),
            covariance_CC=covariance_CC,
            eigenvalues_C=np.maximum(values, 0.0),  # rounding can make a zero negative, and their roots are needed
            eigenvectors_CC=vectors * np.sign(largest),
            images=sums.images,
        )

    def save(self, file: Path | BinaryIO) -> None:
        """Writes an .npz file; equal numbers give equal bytes."""
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
        """Reads a file that `save` wrote. `ValueError` if any byte differs: its numbers, saved again, must give it."""
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
            raise ValueError(f"{file}: damaged, or not a file of the stage mean: {error}") from None
        if again.getvalue() != data:
            raise ValueError(f"{file}: damaged, or written by another version of numpy")
        return mean


def _covariance(sums: Sums) -> NDArray[np.float64]:
    """The covariance, in exact fractions: in floating point, E[xy] - E[x]E[y] loses the digits that matter."""
    count = sums.images * sums.pixels_CHW[0].size
    totals = [int(total) for total in sums.pixels_CHW.sum(axis=(1, 2))]
    rows = [
        [float(Fraction(count * int(sums.products_CC[i, j]) - totals[i] * totals[j], count**2)) for j in range(3)]
        for i in range(3)
    ]
    return np.array(rows)


def eigen(symmetric: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Eigenvalues of a small symmetric matrix in descending order, and its eigenvectors as columns, by Jacobi's rotations.

    Jacobi (1846). Python's floats give the same bits on every machine. LAPACK's results differ in their last bits between
    processors, and so would the hash of data/mean.npz and of everything computed from it.
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
            a[p][q] = a[q][p] = 0.0  # exactly; the rotation leaves a rounding error
    order = sorted(range(size), key=lambda index: -a[index][index])
    return np.array([a[index][index] for index in order]), np.array(vectors)[:, order]
