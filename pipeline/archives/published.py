"""Published archives: found in the data store or fetched to it, and compared with what was published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from pipeline.archives import repacked
from pipeline.archives.class_folders import Found
from pipeline.archives.contents import Archive
from pipeline.archives.repacked import Members
from pipeline.archives.store import StorePath
from pipeline.archives.tars import hashed
from pipeline.archives.tree import Tree
from pipeline.runtime.fetch import Remote, fetch

PART = "if a part of the set is what you want, set params.yaml: source.complete: false"
"""What to do if a part of the set is wanted."""


def opened(remote: Remote, folder: StorePath, complete: bool, unpack: Callable[[Path], Members]) -> Tree:
    """The files in an archive, which is fetched to the folder of the store if it is not there.

    Unless `complete`, it is not fetched, and may have another MD5.
    """
    file = folder / remote.name
    ensure(remote, file, complete)
    origin = hashed(file)
    if complete:
        check_md5(file, origin, remote.md5)
    return repacked.tree_of(file, origin, unpack)


def ensure(remote: Remote, file: StorePath, complete: bool) -> None:
    """Fetches the archive if it is not there; `FileNotFoundError` if it is not and the set need not be `complete`."""
    if file.path.is_file():
        return
    if not complete:
        raise FileNotFoundError(
            f"{file}: not there, and with source.complete: false nothing is fetched. If its folder lies elsewhere, link "
            f"it: ln -s /where/it/is {file.path.parent}"
        )
    fetch(remote, file.path)


def check_md5(file: StorePath, archive: Archive, md5: str | None) -> None:
    """`ValueError` if the archive's MD5 is not the published one; None: none was published."""
    if md5 is not None and archive.md5 != md5:
        raise ValueError(
            f"{file}: its MD5 is {archive.md5}, that of the published one {md5}. Fetch it again; or, {PART}"
        )


def check_complete(
    where: StorePath,
    found: Collection[Found],
    counts: Mapping[str, int],
    classes: int | Collection[str] | None = None,
    *,
    in_each: bool = False,
) -> None:
    """`ValueError` with what to do unless the pictures are all of the published set.

    `counts`: split → its number of pictures or, with `in_each`, that of each class. `classes`: their number, or their ids.
    """
    number = classes if isinstance(classes, int) or classes is None else len(classes)
    for split, count in counts.items():
        there = Counter(picture.wnid for picture in found if picture.split == split)
        whole = set(there.values()) == {count} if in_each else there.total() == count
        if number is not None:
            whole = whole and len(there) == number and (isinstance(classes, int) or there.keys() == set(classes or ()))
        if whole:
            continue
        of = "" if number is None else f" of {'each of ' * in_each}{number} classes"
        odd = min((wnid for wnid in there if there[wnid] != count), default="") if in_each else ""
        has = f"{there[odd]:,} of {odd}" if odd else f"{there.total():,} of {len(there)}"
        raise ValueError(
            f"{where}: {split} has to hold {count:,} pictures{of}, has {has}. Fetch or unpack it again; or, {PART}"
        )
