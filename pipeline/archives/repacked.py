"""Repacking of archives that cannot be read by byte range: once, into plain tars in the data store.

A picture in a zip or in a compressed tar is not a range of bytes. The repacked tar holds the same files under the same
names; its own name contains the checksum of the original archive.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, cast

from pipeline.archives import bounds
from pipeline.archives.contents import Archive
from pipeline.archives.store import StorePath
from pipeline.archives.tars import CHUNK
from pipeline.archives.tree import Tree, of_tar
from pipeline.runtime import files
from pipeline.runtime.paths import AnyPath

FOLDER = "repacked"
"""Folder in the data store. It may be removed at any time; a missing tar is made again."""

Members = Iterator[tuple[str, bytes]]
"""Name and bytes of each file in an archive."""


def tree_of(file: StorePath, origin: Archive, unpack: Callable[[Path], Members], variant: str = "") -> Tree:
    """The files of an archive, in its repacked tar, which is made first if it is missing or damaged.

    `origin`: the archive's checksums. `unpack` yields name and bytes of each file in the archive. `variant`: the end of the
    tar's name, where one archive can be unpacked in several ways.
    """
    tar = StorePath(file.root) / FOLDER / f"{file.path.name}-{origin.sha256[:16]}{variant}.tar"
    target = tar.path
    record = target.with_name(target.name + ".sha256")
    with files.locked(target):
        if target.exists() and record.exists():
            with suppress(ValueError):
                tree = of_tar(tar)
                if [archive.sha256 for archive in tree.tars] == record.read_text().split():
                    return dataclasses.replace(tree, origins=(origin,))
        made, packed = files.on_disk(target), files.on_disk(file.path)
        with files.atomic(made) as part:
            files.check_room(made, _at_least(packed))
            with part.open("wb") as out:
                _write(out, unpack(packed), packed, made)
        tree = of_tar(tar)
        with files.atomic(record) as part:
            part.write_text(f"{tree.tars[0].sha256}\n")
        return dataclasses.replace(tree, origins=(origin,))


def _at_least(origin: Path) -> int:
    """The number of unpacked bytes according to the archive, as a lower bound; 0 if unknown or if the archive is damaged."""
    with suppress(*_NOT_WHOLE):
        with origin.open("rb") as file:
            if file.read(2) == b"\x1f\x8b":
                file.seek(-4, os.SEEK_END)
                return int.from_bytes(file.read(), "little")  # modulo 4 GiB
        if zipfile.is_zipfile(origin):
            with zipfile.ZipFile(origin) as packed:
                return sum(member.file_size for member in packed.infolist())
    return 0


def _write(file: IO[bytes], found: Members, origin: Path, target: Path) -> None:
    """Writes a tar of the files; `ValueError` if their total is more than the archive may unpack to."""
    packed, total = origin.stat().st_size, 0
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in found:
            bounds.check_name(name, origin)
            total += len(data) + tarfile.BLOCKSIZE
            bounds.check_total(total, packed, origin)
            files.check_room(target, len(data))
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
            tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep all that it has written


def unzip(origin: Path) -> Members:
    """Yields name and bytes of each file in a zip, in the order of its directory; checksums are verified."""
    try:
        with zipfile.ZipFile(origin) as packed:
            found = [member for member in packed.infolist() if not member.is_dir()]
            bounds.check_total(sum(member.file_size for member in found), origin.stat().st_size, origin)
            for member in found:
                bounds.check_member(member.file_size, member.filename, origin)
                bounds.check_name(member.filename, origin)
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise NotImplementedError(f"member {member.filename!r} is neither stored nor deflated")
                if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
                    raise ValueError(
                        f"{origin}: member {member.filename!r} is no plain file. Is this the right archive?"
                    )
                yield member.filename, packed.read(member)
    except _NOT_WHOLE as error:
        raise ValueError(f"{origin}: not a whole zip ({str(error) or type(error).__name__}). Fetch it again") from None


def untar(origin: AnyPath) -> Members:
    """Yields name and bytes of each file in a .tar.gz, and reads the archive to its end, where the checksum is."""
    try:
        with origin.open("rb") as whole, gzip.open(whole) as packed:
            limited = bounds.LimitedStream(cast("IO[bytes]", packed), files.size(origin) or 0, origin)
            with tarfile.open(fileobj=cast("IO[bytes]", limited), mode="r|", tarinfo=bounds.Member) as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep all that it has seen
                    if member.isdir():
                        continue
                    if not member.isfile():
                        raise ValueError(
                            f"{origin}: member {member.name!r} is no plain file. Is this the archive it should be?"
                        )
                    bounds.check_name(member.name, origin)
                    bounds.check_member(member.size, member.name, origin)
                    yield member.name, cast("IO[bytes]", tar.extractfile(member)).read()
            while limited.read(CHUNK):
                pass
    except _NOT_WHOLE as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{origin}: not a whole .tar.gz ({reason}). Fetch it again") from None


_NOT_WHOLE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
    IndexError,
    UnicodeError,
)
"""The errors that zipfile, tarfile and gzip raise for damaged archives."""
