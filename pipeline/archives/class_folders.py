"""Pictures in one folder for each class: found, named, and a share of them held out."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipeline.archives.contents import Choice, Contents, Picture, gathered
from pipeline.archives.tree import Tree


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A picture, before its label is known."""

    path: str
    """Path in the tree."""
    split: str
    wnid: str


def found(tree: Tree, top: str, split: str, notes: list[str], besides: Collection[Found] = ()) -> list[Found]:
    """The pictures below `top`, a folder of the tree or "" for its root; the first folder below `top` names the class.

    Pictures outside of class folders are left out, with a line in `notes` unless they are among `besides`. `ValueError`
    for a class folder without a picture.
    """
    below = tree.under(top) if top else tree
    paths, others = below.pictures()
    notes += others
    above = f"{top}/" if top else ""
    pictures = [Found(path=above + path, split=split, wnid=path.partition("/")[0]) for path in paths if "/" in path]
    known = {picture.path for picture in besides}
    if strays := sum("/" not in path and above + path not in known for path in paths):
        notes.append(f"{below.where}: {strays:,} pictures that lie in no class folder")
    if empty := set(below.tops()) - {picture.wnid for picture in pictures}:
        raise ValueError(f"{below.where / min(empty)}: a class folder without a picture. Was it unpacked whole?")
    return pictures


def held_out(found: Iterable[Found], share: float, seed: int) -> Iterator[Found]:
    """The training pictures, with a share of each class moved to `val`."""
    classes = defaultdict(list)
    for picture in found:
        classes[picture.wnid].append(picture)
    for wnid in sorted(classes):
        out = drawn((picture.path for picture in classes[wnid]), share, seed)
        for picture in classes[wnid]:
            yield Found(path=picture.path, split="val" if picture.path in out else "train", wnid=wnid)


def drawn(names: Iterable[str], share: float, seed: int) -> set[str]:
    """A share of the names, rounded to whole pictures: those with the lowest hash of seed and name."""
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    return set(ranked[: round(share * len(ranked))])


def contents(
    tree: Tree,
    found: Collection[Found],
    words: Mapping[str, str],
    classes: Choice,
    notes: list[str],
    *,
    short_names: bool = False,
) -> Contents:
    """The contents of a data set whose pictures were found in a tree.

    A picture's name is its path without the ending or, with `short_names`, the last part of that. `ValueError` if a
    validation picture's class has no training picture.
    """
    trained = {picture.wnid for picture in found if picture.split == "train"}
    if untrained := [picture for picture in found if picture.split == "val" and picture.wnid not in trained]:
        first = untrained[0]
        raise ValueError(f"{tree.where}: {first.path} is of '{first.wnid}', of which there is no training picture")
    order = ("train", "val", "test")
    ordered = sorted(found, key=lambda picture: order.index(picture.split))
    names = _names([picture.path for picture in ordered], short_names)
    pictures = (
        Picture.at(tree.files[each.path], name, each.split, each.wnid)
        for name, each in zip(names, ordered, strict=True)
    )
    return gathered(pictures, tree.archives, words, tree.where.root, classes, notes=notes)


def _names(paths: list[str], short: bool) -> list[str]:
    """The names of pictures. Those that differ only in their endings keep the ending."""
    names = [str(PurePosixPath(path).with_suffix("")) for path in paths]
    names = [name.rpartition("/")[2] for name in names] if short else names
    counts = Counter(names)
    return [path if counts[name] > 1 else name for name, path in zip(names, paths, strict=True)]
