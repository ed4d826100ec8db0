"""The files of a data set by path, in a folder or in a tar."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import zlib
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from alexnet import formats
from pipeline.archives import bounds
from pipeline.archives.contents import Archive, ByteRange
from pipeline.archives.leftovers import is_leftover
from pipeline.archives.store import StorePath
from pipeline.archives.tars import CHUNK, members, open_hashed
from pipeline.runtime import files
from pipeline.runtime.progress import Progress

ENDINGS = frozenset(
    ".avif .bmp .gif .jfif .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()  # noqa: SIM905
)
"""Extensions, in any case, of files that are indexed as pictures. Whether a file can be decoded, `resize` finds out. Of a
file with any other name, the first bytes decide whether it is a picture: reading them takes time."""

RAW = frozenset((".arw", ".cr2", ".dng", ".nef", ".nrw", ".orf", ".pef", ".rw2", ".sr2", ".srw"))
"""Extensions of raw photographs. Their first bytes are a TIFF's, but what that TIFF holds is a thumbnail."""

READERS = 8
"""Threads that read files; they mostly wait for the disk or the network."""

MANY = 10_000
"""Files from which on reading their first bytes shows its progress: it takes more than a second."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tree:
    """Files of a folder or of tars."""

    where: StorePath
    """The folder, or the tar."""
    files: dict[str, ByteRange]
    """Path with slashes → byte range, sorted by path."""
    tars: tuple[Archive, ...] = ()
    """The tars that hold the files; empty if each file is an archive by itself."""
    origins: tuple[Archive, ...] = ()
    """The original archives that the tars were repacked from."""
    _formats: dict[ByteRange, str] = field(default_factory=dict, compare=False, repr=False)
    """The formats by first bytes, of those files that were looked at; a folder's tree shares them with the whole tree."""

    def read(self, path: str) -> bytes:
        """Reads a small file; `ValueError` if it has more than `bounds.SMALL` bytes."""
        part = self.files[path]
        bounds.check_member(part.length, path, self.where, bounds.SMALL)
        with files.opened(self.where.root / part.archive) as file:
            return bytes(file.read_at(part.length, part.offset))

    def under(self, top: str) -> Tree:
        """The files below a folder, with paths relative to that folder."""
        files = {path.removeprefix(f"{top}/"): part for path, part in self.files.items() if path.startswith(f"{top}/")}
        return dataclasses.replace(self, where=self.where / top, files=files)

    def top_folders(self) -> tuple[str, ...]:
        """The names of the top-level folders, without hidden and system folders."""
        return tuple(
            dict.fromkeys(path.partition("/")[0] for path in self.files if "/" in path and not is_leftover(path))
        )

    def pictures(self) -> tuple[list[str], list[str]]:
        """The paths of the pictures, without hidden and system files and folders, and at most one line that counts the rest.

        A picture is what is called one (`ENDINGS`), or begins as one.
        """
        kept, others = [], Counter[str]()
        self._look(path for path in self.files if not is_leftover(path) and _ending(path).lower() not in ENDINGS | RAW)
        for path, part in self.files.items():
            if is_leftover(path):
                others["hidden or the system's"] += 1
            elif (ending := _ending(path)).lower() in ENDINGS or self._formats.get(part):
                kept.append(path)
            else:
                others[ending or "no ending"] += 1
        if not others:
            return kept, []
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in others.most_common(5))
        return kept, [f"{self.where}: {others.total():,} files that are no pictures ({kinds})"]

    def _look(self, paths: Iterable[str]) -> None:
        """Reads the first bytes of the files that were not looked at yet."""
        parts = [part for part in map(self.files.__getitem__, paths) if part not in self._formats]
        with ExitStack() as stack:
            readers = stack.enter_context(ThreadPoolExecutor(READERS))
            progress = Progress("download: first bytes", len(parts), "files")
            if len(parts) >= MANY:
                stack.enter_context(progress)
            for part, format_ in zip(parts, readers.map(self._format, parts), strict=True):
                self._formats[part] = format_
                progress.add(1)

    def _format(self, part: ByteRange) -> str:
        if not part.length:
            return ""
        with files.opened(self.where.root / part.archive) as file:
            return formats.recognized(file.read_at(min(part.length, formats.HEAD), part.offset))

    def archives(self, names: list[str]) -> list[Archive]:
        """The archives with these names, with their checksums: the tars, or single files, which are read for that."""
        if self.tars:
            return [*self.origins, *(tar for tar in self.tars if tar.name in names)]
        with ThreadPoolExecutor(READERS) as readers, Progress("download: checksums", len(names), "files") as progress:
            found = []
            for archive in readers.map(self._hashed, names):
                found.append(archive)
                progress.add(1)
            return found

    def _hashed(self, name: str) -> Archive:
        sha256, crc32, length = hashlib.sha256(), 0, 0
        with (self.where.root / name).open("rb") as file:
            while part := file.read(CHUNK):
                sha256.update(part)
                crc32 = zlib.crc32(part, crc32)
                length += len(part)
        return Archive(name=name, bytes=length, sha256=sha256.hexdigest(), md5=None, crc32=crc32)


def _ending(path: str) -> str:
    return PurePosixPath(path.rpartition("/")[2]).suffix


def of_folder(folder: StorePath) -> Tree:
    """The files below a folder of the store; links are followed. `FileNotFoundError` if there is no such folder."""
    check_folder(folder)
    ranges = {
        path: ByteRange(archive=(folder / path).inside, offset=0, length=length)
        for path, length in files.listed(folder.path)
    }
    for path in ranges:
        try:
            path.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{folder}: the name {os.fsencode(path)!r} is not UTF-8. Rename the file") from None
    return Tree(where=folder, files=ranges)


def check_folder(folder: StorePath) -> None:
    """`FileNotFoundError` if a folder is not in the store, is a file, or a link to what is not there."""
    if folder.path.is_dir():
        return
    if folder.path.exists():
        said = "is a file. A source needs a folder of class folders, or of archives: unpack it, or name its folder"
    elif isinstance(folder.path, Path) and folder.path.is_symlink():
        said = f"is a link to {folder.path.readlink()}, which is not there. Link it anew: ln -sfn /where/it/is {folder}"
    else:
        said = f"no such folder in the data store. If it lies elsewhere, link it: ln -s /where/it/is {folder}"
    raise FileNotFoundError(f"{folder}: {said}")


def of_tar(file: StorePath) -> Tree:
    """The files in a tar of the store, which is read once from start to end."""
    ranges: dict[str, ByteRange] = {}
    with open_hashed(file) as whole:
        for member in members(whole, 0, whole.bytes, str(file)):
            path = PurePosixPath(member.name).as_posix()
            bounds.check_name(member.name, file)
            if path in ranges:
                raise ValueError(f"{file}: member {path} is there twice. Fetch the archive again")
            ranges[path] = whole.range(member.offset_data, member.size)
        archive = whole.archive()
    return Tree(where=file, files=dict(sorted(ranges.items())), tars=(archive,))
