"""What cannot be read by byte range is repacked into a tar that can: once, in the data store, whole or not at all.

Members of a zip and of a compressed tar are packed together or one by one, so a picture in them is no range of bytes. The
tar beside them holds the same files with the same names; its own name is the checksum of what it was made from.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from pipeline import paths
from pipeline.paths import AnyPath
from pipeline.sources.contents import Archive
from pipeline.sources.tars import CHUNK
from pipeline.sources.tree import Tree, of_tar

FOLDER = "repacked"
"""In the data store. It may be removed at any time: what is needed of it is made again."""

Files = Iterator[tuple[str, bytes]]


def tree_of(origin: Archive, store: AnyPath, unpack: Callable[[Path], Files]) -> Tree:
    """What `unpack` finds in a file of the store, from the tar that is made of it unless it is there and whole."""
    file = store / origin.name
    target = store / FOLDER / f"{file.name}-{origin.sha256[:16]}.tar"
    record = target.with_name(target.name + ".sha256")
    with paths.locked(target):
        if target.exists() and record.exists():
            with suppress(ValueError):
                tree = of_tar(target, store)
                if [archive.sha256 for archive in tree.tars] == record.read_text().split():
                    return dataclasses.replace(tree, origins=(origin,))
        part = paths.on_disk(target).with_name(target.name + ".part")
        with part.open("wb") as out:
            _write(out, unpack(paths.on_disk(file)))
            out.flush()
            os.fsync(out.fileno())
        part.replace(paths.on_disk(target))
        tree = of_tar(target, store)
        part.write_text(f"{tree.tars[0].sha256}\n")
        part.replace(paths.on_disk(record))
        return dataclasses.replace(tree, origins=(origin,))


def _write(file: IO[bytes], files: Files) -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def unzipped(origin: Path) -> Files:
    """The files in a zip, in the order of its directory, their checksums verified."""
    try:
        with zipfile.ZipFile(origin) as packed:
            for member in packed.infolist():
                if not member.is_dir():
                    yield member.filename, packed.read(member)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{origin}: not a whole zip ({error}). Fetch it again") from None


def untarred(origin: Path) -> Files:
    """The files in a .tar.gz, in its order; read to its end, where its checksum is."""
    try:
        with gzip.open(origin) as packed:
            with tarfile.open(fileobj=packed, mode="r|") as tar:
                for member in tar:
                    file = tar.extractfile(member)
                    if file is not None:
                        yield member.name, file.read()
            while packed.read(CHUNK):
                pass
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"{origin}: not a whole .tar.gz ({error}). Fetch it again") from None
