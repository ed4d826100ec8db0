"""CIFAR-10: ten classes, pictures of 32 × 32 pixels; from the binary archive, or from class folders.

CIFAR-10 has no validation pictures: its 10,000 test pictures become the split `val`.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from pipeline.archives import class_folders, published, repacked, tree
from pipeline.archives.contents import Choice, Contents, check_choice
from pipeline.archives.store import StorePath
from pipeline.runtime.fetch import Remote
from pipeline.runtime.paths import AnyPath

ARCHIVE = Remote(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    bytes=170_052_171,
    md5="c32a1d4ab5d03f1284b67883e8d87530",
)
SIDE = 32
RECORD = 1 + 3 * SIDE * SIDE
"""Bytes of a picture in the archive: its class, then its red, green and blue plane, row by row."""
NAMES = "batches.meta.txt"
WHOLE = 2**28
"""The most bytes of the unpacked archive, which is held in memory; the real one has 184 million."""
CLASSES, TRAIN_IMAGES, TEST_IMAGES = 10, 5000, 1000
"""Number of classes, and of pictures in each class."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cifar10:
    """params.yaml, `source:` with `name: cifar10`."""

    name: Literal["cifar10"]
    classes: Choice
    """all, the first N in the order of names, or a list of names."""
    complete: bool
    """Whether all ten classes must have their 5,000 + 1,000 pictures; a missing archive is then fetched. false: any subset."""

    def __post_init__(self) -> None:
        check_choice(self.classes)

    @property
    def remotes(self) -> tuple[Remote, ...]:
        """The archives to fetch if they are missing."""
        return (ARCHIVE,) if self.complete else ()

    def contents(self, store: AnyPath) -> Contents:
        """The contents of `cifar10/` in the store: of the folders `train` and `test`, or of the archive."""
        folder = StorePath(store) / self.name
        if (folder / "train").path.is_dir():
            root = tree.of_folder(folder)
        else:
            root = published.open_archive(ARCHIVE, folder, self.complete, _pictures)
        notes: list[str] = []
        pictures = class_folders.find_pictures(root, "train", "train", notes)
        pictures += class_folders.find_pictures(root, "test", "val", notes)
        if self.complete:
            counts = {"train": TRAIN_IMAGES, "val": TEST_IMAGES}
            published.check_complete(root.where, pictures, counts, CLASSES, in_each=True)
        return class_folders.contents(root, pictures, {}, self.classes, notes)


def _pictures(origin: Path) -> Iterator[tuple[str, bytes]]:
    """Yields each record as a PPM file of its pixels, in a folder named after its class."""
    files, total = dict[str, bytes](), 0
    for name, data in repacked.untar(origin):
        files[PurePosixPath(name).name] = data
        total += tarfile.BLOCKSIZE + len(data)
        if total > WHOLE:
            raise ValueError(f"{origin}: more than {WHOLE:,} bytes come out. Is this {ARCHIVE.name}?")
    if NAMES not in files:
        raise ValueError(f"{origin}: holds no {NAMES}. Is this {ARCHIVE.name}?")
    names = files[NAMES].decode().split()
    for batch in sorted(name for name in files if name.endswith(".bin")):
        split = "test" if batch.startswith("test") else "train"
        data = files[batch]
        if len(data) % RECORD:
            raise ValueError(f"{origin}: {batch}: {len(data)} bytes are no whole number of records of {RECORD}")
        for number in range(len(data) // RECORD):
            record = data[number * RECORD : (number + 1) * RECORD]
            if record[0] >= len(names):
                raise ValueError(
                    f"{origin}: {batch}: picture {number} is of class {record[0]}, of which there are {len(names)}"
                )
            plane = SIDE * SIDE
            pixels = bytearray(3 * plane)
            for channel in range(3):
                pixels[channel::3] = record[1 + channel * plane : 1 + (channel + 1) * plane]
            name = f"{split}/{names[record[0]]}/{batch.removesuffix('.bin')}_{number:05}.ppm"
            yield name, f"P6 {SIDE} {SIDE} 255\n".encode() + pixels
