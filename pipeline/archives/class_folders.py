"""Class folders, one folder of pictures for each class: finding and naming the pictures, holding out a validation share."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from pipeline.archives.contents import Choice, Contents, Picture, gather
from pipeline.archives.tree import Tree

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""Name that people give to a split, in upper or lower case → the split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UnlabelledPicture:
    """A picture in a tree, before labels are assigned."""

    path: str
    """Path in the tree."""
    split: str
    """train, val or test."""
    wnid: str
    """WordNet id, or the class folder's name."""


def find_pictures(
    tree: Tree, top: str, split: str, notes: list[str], listed: Collection[UnlabelledPicture] = ()
) -> list[UnlabelledPicture]:
    """The pictures below `top`, a folder of the tree or "" for its root; the first folder below `top` names the class.

    Pictures outside class folders are left out, and so are folders without a picture. A line is added to `notes` for each
    kind, but for pictures in `listed`, which a list names.
    """
    below = tree.under(top) if top else tree
    paths, others = below.pictures()
    notes += others
    above = f"{top}/" if top else ""
    pictures = [
        UnlabelledPicture(path=above + path, split=split, wnid=path.partition("/")[0]) for path in paths if "/" in path
    ]
    known = {picture.path for picture in listed}
    if strays := sum("/" not in path and above + path not in known for path in paths):
        notes.append(f"{below.where}: {strays:,} pictures that lie in no class folder")
    if empty := sorted(set(below.top_folders()) - {picture.wnid for picture in pictures}):
        more = f" and {len(empty) - 5:,} more" if len(empty) > 5 else ""
        notes.append(f"{below.where}: no picture is in {', '.join(empty[:5])}{more}, so they are no classes")
    return pictures


def with_held_out(pictures: Iterable[UnlabelledPicture], share: float, seed: int) -> list[UnlabelledPicture]:
    """The training pictures class by class, a random share (0 to 1) of each class in the split `val`, then the others."""
    classes: defaultdict[str, list[UnlabelledPicture]] = defaultdict(list)
    others: list[UnlabelledPicture] = []
    for picture in pictures:
        (classes[picture.wnid] if picture.split == "train" else others).append(picture)
    held_out = []
    for _, of_class in sorted(classes.items()):
        out = random_share((picture.path for picture in of_class), share, seed)
        held_out += [replace(picture, split="val") if picture.path in out else picture for picture in of_class]
    return held_out + others


def random_share(names: Iterable[str], share: float, seed: int) -> set[str]:
    """A random share (0 to 1) of the names, rounded to whole names: those with the lowest SHA-256 of seed and name."""
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    return set(ranked[: round(share * len(ranked))])


def contents(
    tree: Tree,
    pictures: Collection[UnlabelledPicture],
    words: Mapping[str, str],
    classes: Choice,
    notes: list[str],
    *,
    short_names: bool = False,
    remarks: Sequence[str] = (),
) -> Contents:
    """The contents of a data set with these pictures of a tree.

    A picture's name is its path without the extension or, with `short_names`, only the last part of that. `words`: WordNet
    id → words. `ValueError` if the class of a validation picture has no training picture.
    """
    trained = {picture.wnid for picture in pictures if picture.split == "train"}
    if untrained := [picture for picture in pictures if picture.split == "val" and picture.wnid not in trained]:
        first = untrained[0]
        raise ValueError(
            f"{tree.where}: {first.path} is of '{first.wnid}', of which there is no training picture. Add training pictures of "
            f"this class, or remove its validation pictures ({len(untrained):,} are of such classes)"
        )
    order = ("train", "val", "test")
    ordered = sorted(pictures, key=lambda picture: order.index(picture.split))
    names = _names([picture.path for picture in ordered], short_names)
    rows = (
        Picture.at(tree.files[each.path], name, each.split, each.wnid)
        for name, each in zip(names, ordered, strict=True)
    )
    return gather(rows, tree.archives, words, tree.where.root, classes, where=tree.where, notes=notes, remarks=remarks)


def _names(paths: list[str], short: bool) -> list[str]:
    """The pictures' names. Paths that differ only in their extension stay whole."""
    names = [str(PurePosixPath(path).with_suffix("")) for path in paths]
    names = [name.rpartition("/")[2] for name in names] if short else names
    counts = Counter(names)
    return [path if counts[name] > 1 else name for name, path in zip(names, paths, strict=True)]
