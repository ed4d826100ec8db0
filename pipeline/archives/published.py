"""Archives that are published with their checksum: found in the data store or fetched to it, and what they should be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.archives import repacked
from pipeline.archives.contents import Archive
from pipeline.archives.repacked import Members
from pipeline.archives.tars import hashed
from pipeline.archives.tree import Tree
from pipeline.runtime.fetch import Remote, fetch
from pipeline.runtime.paths import AnyPath


def opened(remote: Remote, folder: AnyPath, store: AnyPath, complete: bool, unpack: Callable[[Path], Members]) -> Tree:
    """The files of the archive in a folder of the store, fetched if it is not there.

    Unless `complete`, it is not fetched, and may have another MD5.
    """
    file = folder / remote.name
    there(remote, file, complete)
    origin = hashed(file, store)
    if complete:
        check(origin, remote.md5, store)
    return repacked.tree_of(origin, store, unpack)


def there(remote: Remote, file: AnyPath, complete: bool) -> None:
    """Sees that the archive is there, or `FileNotFoundError`."""
    if file.is_file():
        return
    if not complete:
        raise FileNotFoundError(
            f"{file}: not there, and with source.complete: false nothing is fetched. If its folder lies elsewhere, link "
            f"it: ln -s /where/it/is {file.parent}"
        )
    fetch(remote, file)


def check(archive: Archive, md5: str | None, store: AnyPath) -> None:
    """`ValueError` if the archive has another MD5 than it was published with, if it was with one."""
    if md5 is not None and archive.md5 != md5:
        raise ValueError(
            f"{store / archive.name}: its MD5 is {archive.md5}, that of the published one {md5}. Fetch it again; or, if "
            "it is a part of that, set params.yaml: source.complete: false"
        )
