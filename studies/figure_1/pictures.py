"""CIFAR-10's training pictures in memory, read with the source pipeline/sources/cifar10.py."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.archives.contents import Contents
from pipeline.runtime import files
from pipeline.runtime.paths import AnyPath
from pipeline.sources.cifar10 import SIDE, Cifar10


@dataclass(frozen=True, slots=True)
class Cifar:
    """The training pictures, in the order of the source's index."""

    pictures_NHWC: Tensor
    """uint8, N×32×32×3."""
    labels_N: Tensor
    """int64, 0 to 9; the classes are in the order of their names."""
    mean_HWC: Tensor
    """The mean picture, float32, 0 to 255."""
    spread: float
    """Standard deviation of the pixels around the mean picture, over all pixels and colours."""
    sha256: str
    """SHA-256 of labels and pixels."""

    @classmethod
    def of(cls, pictures_NHWC: Tensor, labels_N: Tensor) -> Cifar:
        """The pictures with their mean, spread and digest; sums are over integers, so that they are exact."""
        total_HWC = square_HWC = torch.zeros(pictures_NHWC.shape[1:], dtype=torch.int64)
        for part_NHWC in pictures_NHWC.split(1000):  # type: ignore[no-untyped-call]
            total_HWC = total_HWC + part_NHWC.sum(dim=0, dtype=torch.int64)
            square_HWC = square_HWC + part_NHWC.int().square().sum(dim=0, dtype=torch.int64)
        mean_HWC = total_HWC.double() / len(pictures_NHWC)
        variance_HWC = square_HWC.double() / len(pictures_NHWC) - mean_HWC.square()
        digest = hashlib.sha256(labels_N.numpy().tobytes())
        digest.update(pictures_NHWC.numpy().tobytes())
        return cls(pictures_NHWC, labels_N, mean_HWC.float(), variance_HWC.mean().sqrt().item(), digest.hexdigest())


def read(source: Cifar10, store: AnyPath) -> Cifar:
    """Reads the source's training pictures from the data store; a missing archive is fetched first.

    `ValueError` if a picture cannot be decoded or has another size, and the errors of the source.
    """
    contents = source.contents(store)
    rows = contents.pictures.filter(pc.equal(contents.pictures["split"], "train"))
    pictures = np.empty((rows.num_rows, SIDE, SIDE, 3), dtype=np.uint8)
    for number, (name, data) in enumerate(_files(contents, store)):
        pictures[number] = _pixels(name, data)
    labels_N = torch.from_numpy(rows["label"].to_numpy().copy())
    return Cifar.of(torch.from_numpy(pictures), labels_N)


def _files(contents: Contents, store: AnyPath) -> Iterator[tuple[str, bytes]]:
    """Yields "ARCHIVE: NAME" and the bytes of each training picture."""
    rows = contents.pictures.filter(pc.equal(contents.pictures["split"], "train"))
    archive, file = None, None
    for row in rows.select(["id", "archive", "offset", "length"]).to_pylist():
        if file is None or row["archive"] != archive:
            archive = row["archive"]
            file = files.opened(store / archive)
        yield f"{store / archive}: {row['id']}", bytes(file.read_at(row["length"], row["offset"]))


def _pixels(name: str, data: bytes) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels_HWC = np.asarray(image.convert("RGB"))
    except OSError as error:
        raise ValueError(f"{name}: cannot be decoded: {error}") from None
    if pixels_HWC.shape != (SIDE, SIDE, 3):
        raise ValueError(f"{name}: has to be {SIDE}×{SIDE} pixels, is {pixels_HWC.shape[1]}×{pixels_HWC.shape[0]}")
    return pixels_HWC
