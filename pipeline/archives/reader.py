"""Reading pictures by byte range, in archive order, with read-ahead in several threads."""

from __future__ import annotations

import threading
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from alexnet import limits
from pipeline.runtime import files
from pipeline.runtime.paths import AnyPath

AHEAD = 2**28
"""Bytes of pictures to read ahead, in addition to one piece."""

PIECE = 8
"""Pictures that a thread reads and hands over together; handing over single pictures costs 4 % of the stage's time."""


def in_archive_order(rows: list[dict[str, Any]], folder: AnyPath) -> Iterator[tuple[int, bytes]]:
    """Yields each row's index in `rows` and its picture's bytes, in the order of archive and offset."""
    order = sorted(range(len(rows)), key=lambda index: (rows[index]["archive"], rows[index]["offset"]))
    archives = Archives(folder)
    ahead: deque[tuple[list[int], Future[list[bytes]]]] = deque()
    threads, held = files.at_once(folder), 0
    with ThreadPoolExecutor(threads) as readers:
        try:
            for indices in pieces(order, rows):
                ahead.append((indices, readers.submit(archives.read_all, [rows[index] for index in indices])))
                held += _bytes(indices, rows)
                while len(ahead) > threads or held > AHEAD:
                    indices, pictures = ahead.popleft()
                    held -= _bytes(indices, rows)
                    yield from zip(indices, pictures.result(), strict=True)
            while ahead:
                indices, pictures = ahead.popleft()
                yield from zip(indices, pictures.result(), strict=True)
        finally:
            readers.shutdown(cancel_futures=True)
            archives.close()


def pieces(order: list[int], rows: list[dict[str, Any]]) -> Iterator[list[int]]:
    """Splits the order into pieces of `PIECE` pictures, or of fewer if the pictures are large."""
    piece: list[int] = []
    for index in order:
        if piece and (len(piece) == PIECE or _bytes([*piece, index], rows) > AHEAD // 4):
            yield piece
            piece = []
        piece.append(index)
    if piece:
        yield piece


def _bytes(indices: list[int], rows: list[dict[str, Any]]) -> int:
    return sum(min(rows[index]["length"], limits.MAX_BYTES) for index in indices)


class Archives:
    """The archives below a folder, for several threads; each thread keeps the archive open that it read last."""

    def __init__(self, folder: AnyPath) -> None:
        self._folder = folder
        self._open: dict[int, tuple[str, pa.NativeFile]] = {}

    def read_all(self, rows: list[dict[str, Any]]) -> list[bytes]:
        """The bytes of several pictures."""
        return [self.read(row) for row in rows]

    def read(self, row: dict[str, Any]) -> bytes:
        """The bytes of a picture; `ValueError` if the archive is missing or changed since `download` hashed it.

        A picture above `limits.MAX_BYTES` is cut one byte above it, for the decoder to refuse; its CRC-32 is not checked.
        """
        path, file = self._folder / row["archive"], self._file(row["archive"])
        if file.size() != row["archive_bytes"]:
            raise ValueError(
                f"{path}: has {file.size()} bytes, had {row['archive_bytes']} when it was indexed. "
                "Run: dvc repro --force download"
            )
        where = f"{path}: byte {row['offset']}: {row['id']}"
        try:
            data: bytes = file.read_at(min(row["length"], limits.MAX_BYTES + 1), row["offset"])
        except OSError as error:
            raise OSError(f"{where}: cannot be read: {error}. Mend the disk, or fetch the archive again") from None
        if len(data) <= limits.MAX_BYTES and (found := zlib.crc32(data)) != row["crc32"]:
            raise ValueError(
                f"{where}: other bytes than were indexed: their CRC-32 is {found:08x}, was {row['crc32']:08x}. "
                "Run: dvc repro --force download"
            )
        return data

    def _file(self, name: str) -> pa.NativeFile:
        thread = threading.get_ident()
        known, file = self._open.get(thread, ("", None))
        if known == name:
            return file
        try:
            opened = files.opened(self._folder / name)
        except FileNotFoundError:
            raise ValueError(f"{self._folder / name}: not there. Run: dvc repro --force download") from None
        if known:
            file.close()
        self._open[thread] = (name, opened)
        return opened

    def close(self) -> None:
        """Closes all archives; no thread may be reading."""
        for _, file in self._open.values():
            file.close()
        self._open.clear()
