"""Limits on an archive's members: their sizes, names and kinds, so that 3 MB never unpack to 6 GB.

An archive unpacks to at most `FACTOR` times its own bytes plus `ALLOWANCE`. A member, picture or table, has at most `MEMBER`
bytes; a small text file at most `SMALL`. Members that are not plain files, or whose names lead out of the archive, are
refused.
"""

from __future__ import annotations

import re
import tarfile
from pathlib import PurePosixPath
from typing import IO, Any, NoReturn

from pipeline.runtime.paths import AnyPath

FACTOR, ALLOWANCE = 20, 2**28
"""Encoded pictures hardly compress; raw pixels compress by less than this factor."""

MEMBER = 2**29
"""Bytes of the largest picture that is accepted (`alexnet.limits.MAX_BYTES`)."""

SMALL = 2**26
"""Bytes of a list of labels or words, or of a ground truth; ImageNet's have less than 10 MB."""

HEADER = 2**20
"""Bytes of a name or other text in the header of a tar's member."""


def largest(packed: int) -> int:
    """The most bytes that an archive of `packed` bytes may unpack to."""
    return FACTOR * packed + ALLOWANCE


def check_name(name: str, where: object) -> None:
    """`ValueError` if a member's name leads out of its archive, here or on another system."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or re.search(r"[\0\\]|^[A-Za-z]:", name):
        raise ValueError(f"{where}: member {name!r} lies outside of the archive. Is this the archive it should be?")


def check_member(size: int, name: str, where: object, limit: int = 0) -> None:
    """`ValueError` if a member's `size` is negative or above `limit` bytes (0: `MEMBER`)."""
    limit = limit or MEMBER
    if not 0 <= size <= limit:
        raise ValueError(
            f"{where}: member {name!r} has {size:,} bytes, more than {limit:,}. Is this the right archive?"
        )


def check_total(size: int, packed: int, where: object) -> None:
    """`ValueError` if `size` bytes are more than an archive of `packed` bytes may unpack to."""
    if size > largest(packed):
        raise ValueError(
            f"{where}: more than {largest(packed):,} bytes come out of {packed:,}. Is this the archive it should be?"
        )


def read_small(file: AnyPath) -> bytes:
    """Reads a text file; `ValueError` if it has more than `SMALL` bytes."""
    with file.open("rb") as handle:
        data: bytes = handle.read(SMALL + 1)
    check_member(len(data), file.name, file, SMALL)
    return data


class LimitedStream:
    """A stream of unpacked bytes with a limit on their total."""

    def __init__(self, stream: IO[bytes], packed: int, where: object) -> None:
        self._stream, self._packed, self._where, self._seen = stream, packed, where, 0

    def read(self, size: int) -> bytes:
        """Reads at most `size` bytes; `ValueError` if the total so far is too large."""
        part = self._stream.read(size)
        self._seen += len(part)
        check_total(self._seen, self._packed, self._where)
        return part


class Member(tarfile.TarInfo):
    """A tar's member whose header cannot make tarfile allocate the memory that it claims."""

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        if self.type == tarfile.GNUTYPE_SPARSE:
            self._proc_gnusparse_10()
        if self.type in _WORDS and not 0 <= self.size <= HEADER:
            raise tarfile.ReadError(f"a header claims {self.size:,} bytes, more than {HEADER:,}")
        return super()._proc_member(tar)  # type: ignore[misc]

    def _proc_gnusparse_10(self, *_: object) -> NoReturn:
        raise tarfile.ReadError(f"member {self.name!r} is sparse")

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10


_WORDS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
