"""CIFAR-10: ten classes of 32 x 32 pixels; its binary archive, or class folders as others have unpacked it.

Its 10,000 test pictures are what is measured on: the split `val` here, as there is no third one.
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
"""Bytes of a picture in the archive: its class, then red, green and blue, each row by row."""
NAMES = "batches.meta.txt"
WHOLE = 2**28
"""Bytes of the archive unpacked, all of which are in memory; there are 184 million."""
CLASSES, TRAIN_IMAGES, TEST_IMAGES = 10, 5000, 1000
"""Classes, and pictures of each class."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cifar10:
    """params.yaml, `source:` with `name: cifar10`."""

    name: Literal["cifar10"]
    classes: Choice
    """all, the first N in the order of names, or a list of names."""
    complete: bool
    """Whether all ten classes have to be there with their 5,000 + 1,000 pictures; false: what is there is used."""

    def __post_init__(self) -> None:
        check_choice(self.classes)

    @property
    def remotes(self) -> tuple[Remote, ...]:
        """The archives that are fetched if they are not in the store."""
        return (ARCHIVE,) if self.complete else ()

    def contents(self, store: AnyPath) -> Contents:
        """The contents of the archive, or of the folders `train` and `test`, in the store's folder `cifar10`."""
        folder = StorePath(store) / self.name
        if (folder / "train").path.is_dir():
            root = tree.of_folder(folder)
        else:
            root = published.opened(ARCHIVE, folder, self.complete, _pictures)
        notes: list[str] = []
        found = class_folders.found(root, "train", "train", notes) + class_folders.found(root, "test", "val", notes)
        if self.complete:
            counts = {"train": TRAIN_IMAGES, "val": TEST_IMAGES}
            published.check_complete(root.where, found, counts, CLASSES, in_each=True)
        return class_folders.contents(root, found, {}, self.classes, notes)


def _pictures(origin: Path) -> Iterator[tuple[str, bytes]]:
    """Each record as a PPM, the plainest file for its pixels, in a folder for its class."""
    files, total = dict[str, bytes](), 0
    for name, data in repacked.untarred(origin):
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
