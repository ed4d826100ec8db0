"""Reading a tar's members and checksums in one pass; nothing is unpacked.

A picture in a tar is a range of the tar's bytes: `offset_data` and `size` of its member.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import PurePosixPath
from typing import IO, cast

from pipeline.archives.bounds import Member
from pipeline.archives.contents import Archive, ByteRange
from pipeline.archives.leftovers import is_leftover
from pipeline.archives.store import StorePath
from pipeline.runtime.progress import Progress

CHUNK = 2**20
"""Bytes read and hashed at a time."""

LONG = 2**28
"""Bytes from which on a file shows its progress: reading it takes more than a second."""


def members(hashed: HashedFile, start: int, length: int, where: str) -> Iterator[tarfile.TarInfo]:
    """Yields the members that are files of a tar in the given byte range; `offset_data` counts from `start`.

    `ValueError` if the tar is truncated or damaged, or has members of other kinds.
    """
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
    # tarfile stops silently at any block that is not a header; only a block of zeros is the end of a tar
    window.seek(end)
    if window.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise ValueError(f"{cut}it ends at byte {end} without the mark of a tar's end. Fetch it again")


def picture_members(hashed: HashedFile, start: int, length: int, where: str) -> Iterator[tarfile.TarInfo]:
    """`members` without those that a desktop left, such as macOS's `._n01440764_1.JPEG`, which are counted."""
    for member in members(hashed, start, length, where):
        if is_leftover(PurePosixPath(member.name).as_posix()):
            hashed.leftovers += 1
        else:
            yield member


def leftovers_note(hashed: HashedFile) -> list[str]:
    """At most one line that counts the members that `picture_members` left out."""
    left = hashed.leftovers
    return [f"{hashed.path}: {left:,} members that are hidden or the system's"] if left else []


@contextmanager
def open_hashed(file: StorePath) -> Iterator[HashedFile]:
    """Opens a file to be hashed while it is read from start to end; shows progress if the file is `LONG`."""
    with file.path.open("rb") as handle, ExitStack() as stack:
        size = handle.seek(0, os.SEEK_END)
        progress = (
            stack.enter_context(Progress(f"download: {file.path.name}", size >> 20, "MiB")) if size >= LONG else None
        )
        yield HashedFile(handle, file, progress)


def hash_file(file: StorePath) -> Archive:
    """Reads a file of the store, and returns its size and checksums."""
    with open_hashed(file) as whole:
        return whole.archive()


class HashedFile:
    """A file that is hashed while it is read from start to end; skipped bytes are hashed too, and no byte twice."""

    def __init__(self, file: IO[bytes], path: StorePath, progress: Progress | None = None) -> None:
        self.path, self.bytes = path, file.seek(0, os.SEEK_END)
        self._file = file
        self._progress = progress
        self._seen = 0
        self.leftovers = 0
        """Members that `picture_members` left out."""
        self._digests = (hashlib.md5(usedforsecurity=False), hashlib.sha256())

    def read(self, start: int, length: int) -> bytes:
        """Reads bytes `start` to `start + length`; fewer at the end of the file."""
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
        """The byte range of a member, with its checksum."""
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
    """A byte range as a file object with the methods that tarfile needs: read, seek and tell."""

    def __init__(self, hashed: HashedFile, start: int, length: int) -> None:
        self._hashed = hashed
        self._start = start
        self._length = length
        self._position = 0

    def read(self, length: int) -> bytes:
        """Reads at most `length` bytes from the current position on."""
        part = self._hashed.read(self._start + self._position, min(length, max(0, self._length - self._position)))
        self._position += len(part)
        return part

    def seek(self, position: int) -> None:
        """Sets the position, counted from the start of the range."""
        self._position = position

    def tell(self) -> int:
        """The position, counted from the start of the range."""
        return self._position
