"""A folder of class folders, read in place; also Kaggle's copy of ILSVRC-2012 (§2).

The folder holds `train/CLASS/...` and `val/CLASS/...` (or validation, valid), optionally `test/CLASS/...`; or only class
folders, of which a share is held out. Kaggle's `ILSVRC/Data/CLS-LOC` has its validation pictures in one folder, and their
classes in `LOC_val_solution.csv`.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Literal

from pipeline.archives import class_folders, tree
from pipeline.archives.class_folders import UnlabelledPicture
from pipeline.archives.contents import Choice, Contents, check_choice, check_folder
from pipeline.archives.store import StorePath
from pipeline.archives.tree import Tree
from pipeline.runtime.paths import AnyPath

VAL_NAMES = ("val", "validation", "valid")

KAGGLE = "ILSVRC/Data/CLS-LOC"
SOLUTION = "LOC_val_solution.csv"
MAPPING = "LOC_synset_mapping.txt"


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFolder:
    """params.yaml, `source:` with `name: imagefolder`."""

    name: Literal["imagefolder"]
    folder: str
    """The folder's name in the data store. It may be a link: `ln -s /data/cats data/store/cats`."""
    classes: Choice
    """all, the first N in the order of names, or a list of class folders' names."""
    val_share: float
    """Share (0 to 1) of each class's training pictures to hold out as `val`; 0 if there is a validation folder."""
    seed: int
    """Seed of the choice of the pictures held out."""

    def __post_init__(self) -> None:
        check_folder(self.folder)
        check_choice(self.classes)
        if not 0 <= self.val_share < 1:
            raise ValueError(f"val_share has to be at least 0 and below 1, is {self.val_share}")

    def contents(self, store: AnyPath) -> Contents:
        """The contents of the folder; `ValueError` or `FileNotFoundError` if it cannot be used."""
        root = tree.of_folder(StorePath(store) / self.folder)
        kaggle = any(path.startswith(f"{KAGGLE}/") for path in root.files)
        base = f"{KAGGLE}/" if kaggle else ""
        notes: list[str] = []
        pictures: list[UnlabelledPicture] = []
        for folder, split in self._splits(root.under(KAGGLE) if kaggle else root).items():
            path = (base + folder).rstrip("/")
            pictures += _validation_pictures(root, path) if split == "val" else ()
            pictures += class_folders.find_pictures(root, path, split, notes, listed=pictures)
        return class_folders.contents(
            root, self._with_held_out(pictures), _words(root), self.classes, notes, short_names=kaggle
        )

    def _splits(self, base: Tree) -> dict[str, str]:
        """Folder → split; the folder "" is the data set's own."""
        tops = base.top_folders()
        vals = [name for name in VAL_NAMES if name in tops]
        if len(vals) > 1:
            raise ValueError(f"{base.where}: has both {vals[0]}/ and {vals[1]}/. Which is the validation split?")
        if vals and "train" not in tops:
            raise ValueError(f"{base.where}: has {vals[0]}/ but no train/")
        if vals and self.val_share:
            raise ValueError(
                f"{base.where}: has {vals[0]}/, so params.yaml: source.val_share has to be 0, is {self.val_share}"
            )
        if not vals and not self.val_share:
            raise ValueError(
                f"{base.where}: has none of {', '.join(f'{name}/' for name in VAL_NAMES)}. To hold out a part of the "
                "training pictures instead, set params.yaml: source.val_share: 0.1"
            )
        if "train" not in tops:
            return {"": "train"}
        return {"train": "train"} | dict.fromkeys(vals, "val") | ({"test": "test"} if "test" in tops else {})

    def _with_held_out(self, pictures: list[UnlabelledPicture]) -> list[UnlabelledPicture]:
        """The pictures, after the share `val_share` of the training pictures was moved to `val`."""
        train = [picture for picture in pictures if picture.split == "train"]
        others = [picture for picture in pictures if picture.split != "train"]
        return [*class_folders.hold_out(train, self.val_share, self.seed), *others]


def _validation_pictures(root: Tree, top: str) -> list[UnlabelledPicture]:
    """Kaggle's validation pictures, which are all in one folder; empty if Kaggle's list of them is missing."""
    lists = [path for path in (SOLUTION, f"{top}/{SOLUTION}", f"{KAGGLE}/{SOLUTION}") if path in root.files]
    if not lists:
        return []
    found = []
    for line, row in enumerate(_lines(root, lists[0]), start=1):
        if row == ["ImageId", "PredictionString"]:
            continue
        match row:
            case [name, boxes] if boxes.split():
                path = f"{top}/{name}.JPEG"
                if path in root.files:
                    found.append(UnlabelledPicture(path=path, split="val", wnid=boxes.split()[0]))
            case _:
                raise ValueError(
                    f"{root.where / lists[0]}: line {line} is {','.join(row)!r}, not a picture and its class"
                )
    return sorted(found, key=lambda picture: picture.path)


def _lines(root: Tree, path: str) -> list[list[str]]:
    try:
        return list(csv.reader(io.StringIO(root.read(path).decode("utf-8", "replace"), newline="")))
    except csv.Error as error:
        raise ValueError(f"{root.where / path}: no list of pictures and their classes ({error})") from None


def _words(root: Tree) -> dict[str, str]:
    """WordNet id → words, from Kaggle's list; empty if that is missing."""
    if MAPPING not in root.files:
        return {}
    lines = root.read(MAPPING).decode("utf-8", "replace").splitlines()
    return {wnid: words for wnid, _, words in (line.partition(" ") for line in lines) if words}
