"""Sequential reading of a file on an object store, with the next blocks requested ahead."""

from __future__ import annotations

import io
import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pyarrow as pa

BLOCK, AHEAD = 8 * 2**20, 4
"""Bytes of a block, which is one request; and the number of blocks that are requested ahead."""


def stream(file: pa.NativeFile) -> io.BufferedReader:
    """Wraps an open Arrow file in a seekable Python file; closing that closes the Arrow file too."""
    return io.BufferedReader(_ReadAhead(file))


class _ReadAhead(io.RawIOBase):
    def __init__(self, file: pa.NativeFile) -> None:
        self._file = file
        self._size: int = file.size()
        self._offset = 0
        self._readers = ThreadPoolExecutor(AHEAD + 1)
        self._blocks: dict[int, Future[bytes]] = {}

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._offset = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._offset, os.SEEK_END: self._size}[whence]
        return self._offset

    def readinto(self, buffer: Any) -> int:
        if self._offset >= self._size:
            return 0
        number, start = divmod(self._offset, BLOCK)
        into = memoryview(buffer).cast("B")
        part = self._block(number)[start : start + len(into)]
        into[: len(part)] = part
        self._offset += len(part)
        return len(part)

    def _block(self, number: int) -> bytes:
        # the previous block is kept: tarfile seeks back by a header
        for other in [other for other in self._blocks if not number - 1 <= other <= number + AHEAD]:
            self._blocks.pop(other).cancel()
        for near in range(number, min(number + AHEAD + 1, -(-self._size // BLOCK))):
            if near not in self._blocks:
                length = min(BLOCK, self._size - near * BLOCK)
                self._blocks[near] = self._readers.submit(self._file.read_at, length, near * BLOCK)
        return self._blocks[number].result()

    def close(self) -> None:
        if not self.closed:
            self._readers.shutdown(cancel_futures=True)
            self._file.close()
        super().close()
