"""Published archives: fetching them to the data store, and checking them against published checksums and counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from pipeline.archives import repacked
from pipeline.archives.class_folders import UnlabelledPicture
from pipeline.archives.contents import Archive
from pipeline.archives.repacked import Members
from pipeline.archives.store import StorePath
from pipeline.archives.tars import hash_file
from pipeline.archives.tree import Tree
from pipeline.runtime.fetch import Remote, fetch

PART = "if a part of the set is what you want, set params.yaml: source.complete: false"
"""The end of error messages on an incomplete set."""


def open_archive(remote: Remote, folder: StorePath, complete: bool, unpack: Callable[[Path], Members]) -> Tree:
    """The files of an archive in a folder of the store; with `complete`, it is fetched if missing and its MD5 checked.

    `unpack` yields name and bytes of each file in the archive.
    """
    file = folder / remote.name
    ensure(remote, file, complete)
    origin = hash_file(file)
    if complete:
        check_md5(file, origin, remote.md5)
    return repacked.tree_of(file, origin, unpack)


def ensure(remote: Remote, file: StorePath, complete: bool) -> None:
    """Fetches the archive if it is missing and the set has to be `complete`; else `FileNotFoundError` if it is missing."""
    if file.path.is_file():
        return
    if not complete:
        raise FileNotFoundError(
            f"{file}: not there, and with source.complete: false nothing is fetched. If its folder lies elsewhere, link "
            f"it: ln -s /where/it/is {file.path.parent}"
        )
    fetch(remote, file.path)


def check_md5(file: StorePath, archive: Archive, md5: str | None) -> None:
    """`ValueError` if the archive's MD5 differs from the published one; `md5` is None where none was published."""
    if md5 is not None and archive.md5 != md5:
        raise ValueError(
            f"{file}: its MD5 is {archive.md5}, that of the published one {md5}. Fetch it again; or, {PART}"
        )


def check_complete(
    where: StorePath,
    pictures: Collection[UnlabelledPicture],
    counts: Mapping[str, int],
    classes: int | Collection[str] | None = None,
    *,
    in_each: bool = False,
) -> None:
    """`ValueError` unless the pictures are the whole published set.

    `counts`: split → number of pictures or, with `in_each`, of pictures in each class. `classes`: their number, or their ids.
    """
    number = classes if isinstance(classes, int) or classes is None else len(classes)
    for split, count in counts.items():
        counted = Counter(picture.wnid for picture in pictures if picture.split == split)
        whole = set(counted.values()) == {count} if in_each else counted.total() == count
        if number is not None:
            whole = (
                whole and len(counted) == number and (isinstance(classes, int) or counted.keys() == set(classes or ()))
            )
        if whole:
            continue
        of = "" if number is None else f" of {'each of ' * in_each}{number} classes"
        odd = min((wnid for wnid in counted if counted[wnid] != count), default="") if in_each else ""
        has = f"{counted[odd]:,} of {odd}" if odd else f"{counted.total():,} of {len(counted)}"
        raise ValueError(
            f"{where}: {split} has to hold {count:,} pictures{of}, has {has}. Fetch or unpack it again; or, {PART}"
        )
