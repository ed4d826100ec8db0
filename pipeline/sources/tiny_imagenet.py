"""Tiny ImageNet: 200 classes of ImageNet, pictures of 64 × 64 pixels; from Stanford's zip, packed or unpacked.

The 10,000 test pictures have no labels and are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.archives import class_folders, published, repacked, tree
from pipeline.archives.class_folders import UnlabelledPicture
from pipeline.archives.contents import Choice, Contents, check_choice
from pipeline.archives.store import StorePath
from pipeline.archives.tree import Tree
from pipeline.runtime.fetch import Remote
from pipeline.runtime.paths import AnyPath

ARCHIVE = Remote(
    url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    bytes=248_100_043,
    md5="90528d7ca1a48142e341f4ef8d21d0de",
)
TOP = "tiny-imagenet-200"
ANNOTATIONS = "val/val_annotations.txt"
CLASSES, TRAIN_IMAGES, VAL_IMAGES = 200, 500, 50
"""Number of classes, and of pictures in each class."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyImageNet:
    """params.yaml, `source:` with `name: tiny_imagenet`."""

    name: Literal["tiny_imagenet"]
    classes: Choice
    """all, the first N in the order of WordNet ids, or a list of WordNet ids."""
    complete: bool
    """Whether all 200 classes must have their 500 + 50 pictures; a missing archive is then fetched. false: any subset."""

    def __post_init__(self) -> None:
        check_choice(self.classes)

    @property
    def remotes(self) -> tuple[Remote, ...]:
        """The archives to fetch if they are missing."""
        return (ARCHIVE,) if self.complete else ()

    def contents(self, store: AnyPath) -> Contents:
        """The contents of `tiny_imagenet/` in the store: of the folder `tiny-imagenet-200`, or of the archive."""
        folder = StorePath(store) / self.name
        if (folder / TOP).path.is_dir():
            root = tree.of_folder(folder / TOP)
        else:
            root = published.open_archive(ARCHIVE, folder, self.complete, repacked.unzip).under(TOP)
        notes: list[str] = []
        pictures = class_folders.find_pictures(root, "train", "train", notes) + _validation_pictures(root)
        if self.complete:
            counts = {"train": TRAIN_IMAGES, "val": VAL_IMAGES}
            published.check_complete(root.where, pictures, counts, CLASSES, in_each=True)
        if test := len(root.under("test").pictures()[0]):
            notes.append(f"{root.where / 'test'}: {test:,} pictures without labels")
        words = dict(line.split("\t", 1) for line in _lines(root, "words.txt") if "\t" in line)
        return class_folders.contents(root, pictures, words, self.classes, notes, short_names=True)


def _validation_pictures(root: Tree) -> list[UnlabelledPicture]:
    """The validation pictures, with their classes from the annotations."""
    found = []
    for number, line in enumerate(_lines(root, ANNOTATIONS), start=1):
        name, _, rest = line.partition("\t")
        path, wnid = f"val/images/{name}", rest.partition("\t")[0]
        if not wnid:
            raise ValueError(f"{root.where / ANNOTATIONS}: line {number} is {line!r}, not a picture and its class")
        if path not in root.files:
            raise ValueError(f"{root.where / ANNOTATIONS}: line {number} names {name}, which is not in val/images")
        found.append(UnlabelledPicture(path=path, split="val", wnid=wnid))
    return sorted(found, key=lambda picture: picture.path)


def _lines(root: Tree, path: str) -> list[str]:
    if path not in root.files:
        raise ValueError(f"{root.where}: has no {path}. Is this {TOP}, unpacked whole?")
    return root.read(path).decode("utf-8", "replace").splitlines()
