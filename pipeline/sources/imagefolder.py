"""A folder of class folders, read in place; also ILSVRC-2012 unpacked, and Kaggle's copy of it (§2).

The folder holds `train/CLASS/...` and `val/CLASS/...`, optionally `test/CLASS/...`, under any of the names in `SPLITS`; or
only class folders, of which a share is held out. The validation pictures may lie flat in one folder, as ILSVRC-2012 unpacks
them: `label_files` finds their labels. Kaggle's `ILSVRC/Data/CLS-LOC` is such a tree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pipeline.archives import class_folders, label_files, tree
from pipeline.archives.class_folders import SPLITS, UnlabelledPicture
from pipeline.archives.contents import Choice, Contents, check_choice, check_folder
from pipeline.archives.label_files import Labels
from pipeline.archives.store import StorePath
from pipeline.archives.tree import Tree
from pipeline.runtime.paths import AnyPath

NOUNS = {"train": "training", "val": "validation", "test": "test"}

KAGGLE = "ILSVRC/Data/CLS-LOC"
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
    val_labels: str = "auto"
    """auto: if the validation pictures lie flat, their labels are found beside them by usual names. Otherwise the path in the
    data store of the file with the labels, or of the devkit's folder. It has a default since recorded files lack it."""

    def __post_init__(self) -> None:
        check_folder(self.folder)
        if self.val_labels != "auto":
            check_folder(self.val_labels, "val_labels")
        check_choice(self.classes)
        if not 0 <= self.val_share < 1:
            raise ValueError(f"val_share has to be at least 0 and below 1, is {self.val_share}")

    def contents(self, store: AnyPath) -> Contents:
        """The contents of the folder; `ValueError` or `FileNotFoundError` if it cannot be used."""
        root = tree.of_folder(StorePath(store) / self.folder)
        base = _base(root)
        above = f"{base}/" if base else ""
        notes: list[str] = []
        pictures: list[UnlabelledPicture] = []
        labels = None
        data = root.under(base) if base else root
        splits = self._splits(data)
        for folder, split in splits.items():
            path = (above + folder).rstrip("/")
            if split == "val":
                path, labels = self._labels(root, path, {picture.wnid for picture in pictures})
                pictures += _labelled(root, path, labels, pictures)
            pictures += class_folders.find_pictures(root, path, split, notes, listed=pictures)
        notes += _beside(data, splits)
        return class_folders.contents(
            root,
            class_folders.with_held_out(pictures, self.val_share, self.seed),
            {**(labels.words if labels else {}), **_words(root, base)},
            self.classes,
            notes,
            short_names=bool(base),
            remarks=[f"the labels of {path} are those of {labels.file}"] if labels else [],
        )

    def _labels(self, root: Tree, top: str, classes: set[str]) -> tuple[str, Labels | None]:
        """The folder of the validation pictures, and their labels if they lie flat in it, in no class folders."""
        given = None if self.val_labels == "auto" else StorePath(root.where.root) / self.val_labels
        flat = label_files.flat_folder(root, top, classes)
        if flat is not None:
            return flat, label_files.find(root, flat, classes, given)
        if given is not None:
            raise ValueError(
                f"{root.where / top}: has class folders, which label its pictures, so params.yaml: source.val_labels has to be "
                f"auto, is {self.val_labels}"
            )
        return top, None

    def _splits(self, base: Tree) -> dict[str, str]:
        """Folder → split; the folder "" is the data set's own."""
        folders = _split_folders(base)
        if "val" in folders and "train" not in folders:
            raise ValueError(
                f"{base.where}: has {folders['val']}/ but no train/. Add the folder of the training pictures, or, if "
                f"{folders['val']} is a class, rename it"
            )
        if "val" in folders and self.val_share:
            raise ValueError(
                f"{base.where}: has {folders['val']}/, so params.yaml: source.val_share has to be 0, is {self.val_share}"
            )
        if "train" not in folders:
            _check_classes(base)
        if "val" not in folders and self.val_labels != "auto":
            raise ValueError(
                f"{base.where}: has no validation folder, so params.yaml: source.val_labels has to be auto, is {self.val_labels}"
            )
        if "val" not in folders and not self.val_share:
            has = f"has {folders['train']}/, but none of" if "train" in folders else "has none of"
            names = ", ".join(f"{name}/" for name, split in SPLITS.items() if split == "val")
            raise ValueError(
                f"{base.where}: {has} {names}. To hold out a part of the training pictures instead, set params.yaml: "
                "source.val_share: 0.1"
            )
        return {folder: split for split, folder in folders.items()} if "train" in folders else {"": "train"}


def _split_folders(base: Tree) -> dict[str, str]:
    """Split → folder, by the folders' names; empty if what is called a split holds pictures as a class does."""
    named: dict[str, list[str]] = {}
    for folder in base.top_folders():
        if split := SPLITS.get(folder.casefold()):
            named.setdefault(split, []).append(folder)
    for split, (first, *others) in named.items():
        if others:
            raise ValueError(f"{base.where}: has both {first}/ and {others[0]}/. Which is the {NOUNS[split]} split?")
    if "train" in named and not _class_folders(base, named["train"][0]):
        return {}
    if "train" not in named:
        named.pop("test", None)  # a class may be called so
        if "val" in named and not _class_folders(base, named["val"][0]):
            return {}
    return {split: named[split][0] for split in ("train", "val", "test") if split in named}


def _class_folders(base: Tree, folder: str) -> set[str]:
    """The folders in a folder that hold a picture."""
    paths, _ = base.under(folder).pictures()
    return {path.partition("/")[0] for path in paths if "/" in path}


def _check_classes(base: Tree) -> None:
    """`ValueError` if the top-level folders look like data sets or splits: folders of the same classes, without pictures."""
    paths, _ = base.pictures()
    inside: dict[str, set[str]] = {}
    for top, *below in (path.split("/") for path in paths if "/" in path):
        inside.setdefault(top, set()).add(below[0] if len(below) > 1 else "")
    if not inside:
        lie = (
            f"{len(paths):,} pictures lie directly in it"
            if paths
            else f"it has {len(base.files):,} files and no picture"
        )
        raise ValueError(
            f"{base.where}: no folder of pictures; {lie}. Each class has to be a folder, such as {base.where}/cat/1.jpg"
        )
    if any("" in folders or len(folders) < 2 for folders in inside.values()):
        return
    if len(inside) == 1:
        ((top, folders),) = inside.items()
        raise ValueError(
            f"{base.where}: its only folder with pictures is {top}/, which holds {_some(folders)}. If these are the classes, set "
            f"params.yaml: source.folder to this folder and /{top}"
        )
    common = set.intersection(*inside.values())
    if len(common) >= 2:
        raise ValueError(
            f"{base.where}: {_some(inside)} hold no pictures but the same folders of them, {_some(common)}. They look like "
            "splits, not like classes: name them train and val (and test), or set params.yaml: source.folder to one of them"
        )


def _beside(base: Tree, splits: dict[str, str]) -> list[str]:
    """Lines that count what lies beside the splits' folders, which is not used."""
    if "" in splits:
        return []
    rest = {path: part for path, part in base.files.items() if path.partition("/")[0] not in splits}
    paths, notes = dataclasses.replace(base, files=rest).pictures()
    unused = {path.rpartition("/")[0].partition("/")[0] or "." for path in paths}
    return notes + [f"{base.where}: {len(paths):,} pictures in no split's folder ({_some(unused)})"] * bool(paths)


def _some(folders: Iterable[str]) -> str:
    """The first three folders by name, in words."""
    names = sorted(folders)
    return ", ".join(f"{name}/" for name in names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def _labelled(root: Tree, top: str, labels: Labels | None, trained: list[UnlabelledPicture]) -> list[UnlabelledPicture]:
    """The pictures that lie flat in the validation folder; of those beside class folders, the ones that Kaggle lists."""
    if labels is not None:
        wnids = dict(labels.wnids)
    else:
        wnids = label_files.listed_by_kaggle(root, top, {picture.wnid for picture in trained})
    return [UnlabelledPicture(path=path, split="val", wnid=wnids[path]) for path in sorted(wnids)]


def _base(root: Tree) -> str:
    """The folder with the splits, in Kaggle's layout, also where it is pointed at from above or inside; else empty."""
    if any(path.startswith(f"{KAGGLE}/") for path in root.files):
        return KAGGLE
    inside = next((path for path in root.files if "/CLS-LOC/train/" in f"/{path}"), None)
    return "" if inside is None or _split_folders(root) else inside[: inside.index("CLS-LOC/train/") + len("CLS-LOC")]


def _words(root: Tree, base: str) -> dict[str, str]:
    """WordNet id → words, from Kaggle's list, in a folder above `base` or the tree's own; empty if that is missing."""
    parts = base.split("/") if base else []
    above = ("/".join([*parts[:count], MAPPING]) for count in range(len(parts) + 1))
    path = next((path for path in above if path in root.files), None)
    if path is None:
        return {}
    lines = root.read(path).decode("utf-8", "replace").splitlines()
    return {wnid: words for wnid, _, words in (line.partition(" ") for line in lines) if words}
