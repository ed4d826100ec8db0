"""Archives that are published with their checksum: found in the data store, and what they should be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.sources import repacked
from pipeline.sources.contents import Archive
from pipeline.sources.repacked import Files
from pipeline.sources.tars import hashed
from pipeline.sources.tree import Tree


@dataclass(frozen=True, slots=True)
class Published:
    """An archive as its makers offer it."""

    name: str
    url: str
    md5: str


def opened(archive: Published, folder: Path, store: Path, complete: bool, unpack: Callable[[Path], Files]) -> Tree:
    """The files of the archive in a folder of the store; unless `complete`, it may have another MD5."""
    file = folder / archive.name
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: not there. Fetch it from {archive.url}, or link its folder: ln -s ... {folder}"
        )
    origin = hashed(file, store)
    if complete:
        check(origin, archive.md5, store)
    return repacked.tree_of(origin, store, unpack)


def check(archive: Archive, md5: str | None, store: Path) -> None:
    """`ValueError` if the archive has another MD5 than it was published with, if it was with one."""
    if md5 is not None and archive.md5 != md5:
        raise ValueError(
            f"{store / archive.name}: its MD5 is {archive.md5}, that of the published one {md5}. Fetch it again; or, if "
            "it is a part of that, set params.yaml: source.complete: false"
        )
