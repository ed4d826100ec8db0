"""Tiny ImageNet: 200 classes of ImageNet, 64 x 64 pixels each; Stanford's zip, or what was unpacked from it.

Its 10,000 test pictures have no labels and are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.archives import class_folders, published, repacked, tree
from pipeline.archives.class_folders import Found
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
"""Classes, and pictures of each class."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyImageNet:
    """params.yaml, `source:` with `name: tiny_imagenet`."""

    name: Literal["tiny_imagenet"]
    classes: Choice
    """all, the first N in the order of WordNet ids, or a list of WordNet ids."""
    complete: bool
    """Whether all 200 classes have to be there with their 500 + 50 pictures; false: what is there is used."""

    def __post_init__(self) -> None:
        check_choice(self.classes)

    @property
    def remotes(self) -> tuple[Remote, ...]:
        """The archives that are fetched if they are not in the store."""
        return (ARCHIVE,) if self.complete else ()

    def contents(self, store: AnyPath) -> Contents:
        """The contents of the archive, or of the folder `tiny-imagenet-200`, in the store's folder `tiny_imagenet`."""
        folder = StorePath(store) / self.name
        if (folder / TOP).path.is_dir():
            root = tree.of_folder(folder / TOP)
        else:
            root = published.opened(ARCHIVE, folder, self.complete, repacked.unzipped).under(TOP)
        notes: list[str] = []
        found = class_folders.found(root, "train", "train", notes) + _annotated(root)
        if self.complete:
            counts = {"train": TRAIN_IMAGES, "val": VAL_IMAGES}
            published.check_complete(root.where, found, counts, CLASSES, in_each=True)
        if test := len(root.under("test").pictures()[0]):
            notes.append(f"{root.where / 'test'}: {test:,} pictures without labels")
        words = dict(line.split("\t", 1) for line in _lines(root, "words.txt") if "\t" in line)
        return class_folders.contents(root, found, words, self.classes, notes, short_names=True)


def _annotated(root: Tree) -> list[Found]:
    """The validation pictures and their classes, as the annotations have them."""
    found = []
    for number, line in enumerate(_lines(root, ANNOTATIONS), start=1):
        name, _, rest = line.partition("\t")
        path, wnid = f"val/images/{name}", rest.partition("\t")[0]
        if not wnid:
            raise ValueError(f"{root.where / ANNOTATIONS}: line {number} is {line!r}, not a picture and its class")
        if path not in root.files:
            raise ValueError(f"{root.where / ANNOTATIONS}: line {number} names {name}, which is not in val/images")
        found.append(Found(path=path, split="val", wnid=wnid))
    return sorted(found, key=lambda picture: picture.path)


def _lines(root: Tree, path: str) -> list[str]:
    if path not in root.files:
        raise ValueError(f"{root.where}: has no {path}. Is this {TOP}, unpacked whole?")
    return root.read(path).decode("utf-8", "replace").splitlines()
