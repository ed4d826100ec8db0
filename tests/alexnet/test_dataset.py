"""Rescaling against Pillow and against the definition; sums, covariance and eigenvectors against numpy."""

from __future__ import annotations

import zipfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from alexnet.dataset import Mean, Sums, eigen, resize
from tests.alexnet.test_pictures import psnr, scene, tensor


def by_pillow_resized(picture: NDArray[np.uint8], side: int, how: Image.Resampling) -> NDArray[np.uint8]:
    height, width = picture.shape[:2]
    scale = Fraction(side, min(height, width))
    size = int(width * scale), int(height * scale)
    left, top = (round((length - side) / 2) for length in size)
    resized = Image.fromarray(picture).resize(size, how).crop((left, top, left + side, top + side))
    return np.asarray(resized).transpose(2, 0, 1)


SHAPES = [(375, 500), (500, 333), (64, 64), (100, 75), (50, 321), (701, 64), (1000, 1503), (40, 65)]


@pytest.mark.parametrize(("height", "width"), SHAPES)
@pytest.mark.parametrize("how", ["bilinear", "bicubic"])
def test_resizes_as_pillow_does(height: int, width: int, how: Any) -> None:
    picture = scene(height, width)
    resized_CHW = resize(tensor(picture), 64, how)
    assert resized_CHW.shape == (3, 64, 64)
    resampling = Image.Resampling[how.upper()]
    # The longest lose their far ends first, and with them a fraction of a pixel
    assert psnr(resized_CHW, by_pillow_resized(picture, 64, resampling)) > (
        60 if max(height, width) < 5 * min(height, width) else 30
    )


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_warped_it_is_the_whole_picture_in_a_square(height: int, width: int) -> None:
    picture = scene(height, width)
    theirs = np.asarray(Image.fromarray(picture).resize((64, 64), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert psnr(resize(tensor(picture), 64, "bilinear", "warp"), theirs) > 50  # one level off in some pixels


@pytest.mark.parametrize(("height", "width"), [(20, 20), (16, 23), (31, 16), (9, 14)])
def test_area_is_the_mean_of_what_is_covered(height: int, width: int) -> None:
    side = 7
    picture = scene(height, width)
    cell = Fraction(min(height, width), side)

    def weights(length: int, place: int) -> list[Fraction]:
        start = Fraction(length - min(height, width), 2) + place * cell
        covered = [min(Fraction(pixel + 1), start + cell) - max(Fraction(pixel), start) for pixel in range(length)]
        return [max(Fraction(0), part) / cell for part in covered]

    resized_CHW = resize(tensor(picture), side, "area")
    for y in range(side):
        for x in range(side):
            down, across = weights(height, y), weights(width, x)
            mean = sum(
                down[row] * across[column] * int(picture[row, column, 0])
                for row in range(height)
                for column in range(width)
                if down[row] and across[column]
            )
            assert int(resized_CHW[0, y, x]) == int(mean + Fraction(1, 2))


def test_area_grows_by_bicubic_interpolation_and_keeps_what_fits() -> None:
    picture = scene(40, 64)
    assert psnr(resize(tensor(picture), 60, "area"), by_pillow_resized(picture, 60, Image.Resampling.BICUBIC)) > 30
    assert torch.equal(resize(tensor(picture), 40, "area"), tensor(picture)[:, :, 12:52])


@pytest.mark.parametrize("how", ["bilinear", "bicubic", "area"])
@pytest.mark.parametrize(("height", "width"), [(64, 66), (65, 68), (300, 302)])
def test_mirrored_pictures_resize_mirrored(how: Any, height: int, width: int) -> None:
    picture_CHW = tensor(scene(height, width))  # resized, an even number is cut off, so the centre has a mirror image
    mirrored_CHW = resize(picture_CHW.flip(2), 64, how).flip(2)
    difference = mirrored_CHW.int() - resize(picture_CHW, 64, how).int()
    assert difference.abs().max() <= (0 if how == "area" else 1)


def test_a_strip_takes_no_more_memory_than_a_picture() -> None:
    picture_CHW = torch.zeros(3, 1, 300_000, dtype=torch.uint8)
    picture_CHW[:, :, 150_000:] = 255
    resized_CHW = resize(picture_CHW, 256, "bilinear")
    assert resized_CHW.shape == (3, 256, 256)


IMAGES_BCHW = np.stack([scene(16, 16, seed).transpose(2, 0, 1) for seed in range(11)])


def test_sums_do_not_depend_on_the_parting() -> None:
    whole = Sums.none(16).add(IMAGES_BCHW)
    parts = Sums.none(16).add(IMAGES_BCHW[7:]).merge(Sums.none(16).add(IMAGES_BCHW[:3]).add(IMAGES_BCHW[3:7]))
    assert whole.images == parts.images == 11
    np.testing.assert_array_equal(whole.pixels_CHW, parts.pixels_CHW)
    np.testing.assert_array_equal(whole.products_CC, parts.products_CC)


def test_mean_and_covariance_are_numpys() -> None:
    mean = Mean.of(Sums.none(16).add(IMAGES_BCHW))
    floats = IMAGES_BCHW.astype(np.float64)
    np.testing.assert_allclose(mean.image_CHW, floats.mean(axis=0), rtol=1e-6)
    pixels = floats.transpose(1, 0, 2, 3).reshape(3, -1)
    np.testing.assert_allclose(mean.covariance_CC, np.cov(pixels, bias=True), rtol=1e-12)
    assert mean.images == 11


@pytest.mark.parametrize("seed", range(20))
def test_the_axes_are_the_covariances(seed: int) -> None:
    mixed = np.einsum("cd,bdhw->bchw", np.random.default_rng(seed).normal(size=(3, 3)) / 3, IMAGES_BCHW - 128.0) + 128
    mean = Mean.of(Sums.none(16).add(mixed.clip(0, 255).astype(np.uint8)))
    values, vectors = mean.eigenvalues_C, mean.eigenvectors_CC
    np.testing.assert_allclose(vectors @ np.diag(values) @ vectors.T, mean.covariance_CC, atol=1e-9)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=1e-12)
    assert list(values) == sorted(values, reverse=True)
    assert (vectors[np.abs(vectors).argmax(axis=0), range(3)] > 0).all()


@pytest.mark.parametrize("kind", ["any", "nearly equal", "of rank 1", "diagonal", "nothing"])
def test_eigenvalues_and_vectors_are_lapack_s(kind: str) -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        half = generator.normal(size=(3, 3)) * 50
        symmetric = {
            "any": half @ half.T,
            "nearly equal": np.eye(3) + 1e-9 * (half + half.T),
            "of rank 1": np.outer(half[0], half[0]),
            "diagonal": np.diag(half[0]),
            "nothing": np.zeros((3, 3)),
        }[kind]
        values, vectors = eigen(symmetric)
        size = np.abs(symmetric).max()
        np.testing.assert_allclose(values, np.linalg.eigvalsh(symmetric)[::-1], atol=1e-14 * size)
        np.testing.assert_allclose(symmetric @ vectors, vectors * values, atol=1e-14 * size)
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=1e-14)


def test_grey_pictures_vary_along_grey_alone() -> None:
    grey_BCHW = np.repeat(IMAGES_BCHW[:, :1], 3, axis=1)
    mean = Mean.of(Sums.none(16).add(grey_BCHW))
    np.testing.assert_allclose(mean.eigenvectors_CC[:, 0], np.full(3, 3**-0.5), atol=1e-12)
    np.testing.assert_allclose(mean.eigenvalues_C[1:], 0, atol=1e-9)
    assert (mean.eigenvalues_C >= 0).all()


def test_a_mean_with_any_other_byte_is_refused(tmp_path: Path) -> None:
    """Also in what a zip has beside the numbers, such as the time of its files."""
    file = tmp_path / "mean.npz"
    Mean.of(Sums.none(16).add(IMAGES_BCHW)).save(file)
    data = file.read_bytes()
    for place in [*range(0, len(data), 149), *range(len(data) - 300, len(data), 7)]:
        for mask in (1, 0x80):
            file.write_bytes(data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :])
            with pytest.raises(ValueError, match=r"mean\.npz: damaged, or "):
                Mean.load(file)
    for other in (b"", data[:-1], data + b"x", b"PK\x05\x06" + bytes(18)):
        file.write_bytes(other)
        with pytest.raises(ValueError, match=r"mean\.npz: damaged, or "):
            Mean.load(file)


def test_no_pictures_have_no_mean() -> None:
    with pytest.raises(ValueError, match="no pictures"):
        Mean.of(Sums.none(16))


def test_a_saved_mean_is_read_back_and_holds_no_time(tmp_path: Path) -> None:
    mean = Mean.of(Sums.none(16).add(IMAGES_BCHW))
    mean.save(tmp_path / "mean.npz")
    read = Mean.load(tmp_path / "mean.npz")
    for name in ("image_CHW", "covariance_CC", "eigenvalues_C", "eigenvectors_CC", "images"):
        np.testing.assert_array_equal(getattr(read, name), getattr(mean, name))
    with zipfile.ZipFile(tmp_path / "mean.npz") as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
