"""A tar's members and its checksums in one pass from front to back; nothing is unpacked.

A picture in a tar is a range of its bytes: `offset_data` and `size` of its member.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, cast

from pipeline.archives.bounds import Member
from pipeline.archives.contents import Archive, ByteRange
from pipeline.archives.store import StorePath
from pipeline.runtime.progress import Progress

CHUNK = 2**20
"""Bytes read and hashed at a time: a training archive has 150 GB, a picture some 100 kB."""

LONG = 2**28
"""Bytes of a file that takes more than a second to read, and so shows its progress."""


def members(hashed: Hashed, start: int, length: int, where: str) -> Iterator[tarfile.TarInfo]:
    """Yields the files of the tar in a range of bytes; `offset_data` counts from the start of the range."""
    window = Window(hashed, start, length)
    cut = f"{where}: cut short or damaged: "
    try:
        with tarfile.open(fileobj=cast("IO[bytes]", window), mode="r:", tarinfo=Member) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep all that it has seen
                if member.isdir():
                    continue
                if not member.isfile() or member.issparse():
                    raise ValueError(
                        f"{where}: member {member.name!r} is no plain file. Is this the archive it should be?"
                    )
                if member.offset_data + member.size > length:
                    raise ValueError(f"{cut}it ends inside member {member.name}. Fetch it again")
                yield member
            end = tar.offset
    except (tarfile.TarError, RecursionError, UnicodeError) as error:
        raise ValueError(f"{cut}{error}. Fetch it again") from None
    # a block that is no header ends tarfile's loop without a word; only one of zeros is the end of a tar
    window.seek(end)
    if window.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise ValueError(f"{cut}it ends at byte {end} without the mark of a tar's end. Fetch it again")


@contextmanager
def reading(file: StorePath) -> Iterator[Hashed]:
    """The file, to be read from start to end; shows its progress if it is `LONG`."""
    with file.path.open("rb") as handle, ExitStack() as stack:
        size = handle.seek(0, os.SEEK_END)
        progress = (
            stack.enter_context(Progress(f"download: {file.path.name}", size >> 20, "MiB")) if size >= LONG else None
        )
        yield Hashed(handle, file, progress)


def hashed(file: StorePath) -> Archive:
    """A file of the store with its checksums."""
    with reading(file) as whole:
        return whole.archive()


class Hashed:
    """A file that is hashed while it is read from start to end: bytes that are skipped too, and each byte once."""

    def __init__(self, file: IO[bytes], path: StorePath, progress: Progress | None = None) -> None:
        self.path, self.bytes = path, file.seek(0, os.SEEK_END)
        self._file = file
        self._progress = progress
        self._seen = 0
        self._digests = (hashlib.md5(usedforsecurity=False), hashlib.sha256())

    def read(self, start: int, length: int) -> bytes:
        """Bytes `start` to `start + length`, fewer at the file's end."""
        self._advance(start)
        self._file.seek(start)
        part = self._file.read(length)
        self._see(part[max(0, self._seen - start) :])
        return part

    def crc32(self, start: int, length: int) -> int:
        """CRC-32 of a range of bytes."""
        end, crc32 = start + length, 0
        while start < end and (part := self.read(start, min(CHUNK, end - start))):
            crc32 = zlib.crc32(part, crc32)
            start += len(part)
        return crc32

    def range(self, start: int, length: int) -> ByteRange:
        """The byte range of one member, with its checksum."""
        return ByteRange(archive=self.path.inside, offset=start, length=length, crc32=self.crc32(start, length))

    def archive(self) -> Archive:
        """Reads the rest of the file, and returns its size and checksums."""
        self._advance(self.bytes)
        md5, sha256 = (digest.hexdigest() for digest in self._digests)
        return Archive(name=self.path.inside, bytes=self._seen, md5=md5, sha256=sha256)

    def _advance(self, end: int) -> None:
        self._file.seek(self._seen)
        while self._seen < end:
            part = self._file.read(min(CHUNK, end - self._seen))
            if not part:
                return
            self._see(part)

    def _see(self, part: bytes) -> None:
        if self._progress:
            self._progress.add(((self._seen + len(part)) >> 20) - (self._seen >> 20))
        self._seen += len(part)
        for digest in self._digests:
            digest.update(part)


class Window:
    """A byte range as a file with the methods that tarfile needs: read, seek and tell."""

    def __init__(self, hashed: Hashed, start: int, length: int) -> None:
        self._hashed = hashed
        self._start = start
        self._length = length
        self._position = 0

    def read(self, length: int) -> bytes:
        """At most `length` bytes from the current position on."""
        part = self._hashed.read(self._start + self._position, min(length, max(0, self._length - self._position)))
        self._position += len(part)
        return part

    def seek(self, position: int) -> None:
        """Sets the position, counted from the start of the range."""
        self._position = position

    def tell(self) -> int:
        """The position, counted from the start of the range."""
        return self._position
