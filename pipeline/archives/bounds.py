"""What may come out of an archive: limits of sizes, names and kinds of members, so that 3 MB never become 6 GB.

All that is unpacked has at most `TIMES` the bytes of the file it was in and `BESIDES`; one member, a picture or a table,
`MEMBER`; a small file of text, or of a devkit, `SMALL`. Whatever is no plain file below its archive is refused.
"""

from __future__ import annotations

import re
import tarfile
from pathlib import PurePosixPath
from typing import IO, Any, NoReturn

from pipeline.runtime.paths import AnyPath

TIMES, BESIDES = 20, 2**28
"""Pictures hardly compress; pixels by themselves do, by less than this."""

MEMBER = 2**29
"""As large as a picture may be (`alexnet.limits.MAX_BYTES`), so that it is refused by that and not here."""

SMALL = 2**26
"""Lists of labels and words, ground truth, what a server answers: ImageNet's are below 10 MB."""

HEADER = 2**20
"""Bytes of a name, or of other words, before a member of a tar."""


def largest(packed: int) -> int:
    """Bytes that may come out of an archive of so many."""
    return TIMES * packed + BESIDES


def check_name(name: str, where: object) -> None:
    """`ValueError` if a member's name leads out of its archive, or could elsewhere."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or re.search(r"[\0\\]|^[A-Za-z]:", name):
        raise ValueError(f"{where}: member {name!r} lies outside of the archive. Is this the archive it should be?")


def check_member(size: int, name: str, where: object, limit: int = 0) -> None:
    """`ValueError` if a member claims more bytes than are read at once."""
    limit = limit or MEMBER
    if not 0 <= size <= limit:
        raise ValueError(
            f"{where}: member {name!r} has {size:,} bytes, more than {limit:,}. Is this the right archive?"
        )


def check_total(size: int, packed: int, where: object) -> None:
    """`ValueError` if more came out of an archive than may."""
    if size > largest(packed):
        raise ValueError(
            f"{where}: more than {largest(packed):,} bytes come out of {packed:,}. Is this the archive it should be?"
        )


def small(file: AnyPath) -> bytes:
    """The bytes of a file of text; `ValueError` if it has more than `SMALL`."""
    with file.open("rb") as handle:
        data: bytes = handle.read(SMALL + 1)
    check_member(len(data), file.name, file, SMALL)
    return data


class Unpacked:
    """A stream that comes out of a packed file, read to a limit and no further."""

    def __init__(self, stream: IO[bytes], packed: int, where: object) -> None:
        self._stream, self._packed, self._where, self._seen = stream, packed, where, 0

    def read(self, size: int) -> bytes:
        """At most so many bytes; `ValueError` where all together are too many."""
        part = self._stream.read(size)
        self._seen += len(part)
        check_total(self._seen, self._packed, self._where)
        return part


class Member(tarfile.TarInfo):
    """A member of a tar, none of whose headers makes tarfile take memory as it claims."""

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
