"""Files of tensors that tell when they are damaged: the last thing in one is a digest of all before it."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Set as AbstractSet
from typing import Any, BinaryIO

import torch

MARK = b"sha256 "

LENGTH = len(MARK) + 64
"""Bytes of mark and digest: torch's files are zip archives, and this is the comment at the end of one."""

NO_COMMENT = b"PK\x05\x06"
"""How the last 22 bytes of an archive without a comment begin."""

PIECE = 2**20


def write(handle: BinaryIO, contents: dict[str, Any]) -> None:
    """Writes contents and the digest of the file; equal bytes for equal contents."""
    # to memory first: given a path, torch would store its stem inside, and a pipe cannot be sought
    buffer = io.BytesIO()
    torch.save(contents, buffer)
    data = buffer.getbuffer()
    assert data[-22:-18] == NO_COMMENT, "torch's archives have no comment of their own"
    data[-2:] = LENGTH.to_bytes(2, "little")
    handle.write(data)
    handle.write(MARK + hashlib.sha256(data).hexdigest().encode())


def read(handle: BinaryIO, *unsealed: AbstractSet[str], name: str = "") -> dict[str, Any]:
    """Reads what `write` wrote, to the CPU; runs no code of the file. `ValueError` if a bit of it was changed.

    A file with exactly the keys of one of `unsealed` was written before there were digests: it is read, and that is said.
    """
    name = name or str(getattr(handle, "name", "the file"))
    sealed = _sealed(handle, name)
    try:
        contents = torch.load(handle, weights_only=True, map_location="cpu")
        if not isinstance(contents, dict) or not (sealed or contents.keys() in unsealed):
            raise TypeError("another kind of file")
    except Exception as error:  # a file of anything can raise anything in torch's reader, whose words are not for here
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk, not of the file
        raise ValueError(f"{name}: damaged, or no network of ours ({type(error).__name__})") from None
    if not sealed:
        logging.getLogger(__name__).warning("%s: written before files had a digest, so it is read unchecked", name)
    return contents


def _sealed(handle: BinaryIO, name: str) -> bool:
    """Whether the file has a digest, which is checked; `ValueError` if the file is another than was written."""
    size = handle.seek(0, io.SEEK_END)
    handle.seek(max(0, size - LENGTH))
    end = handle.read(LENGTH)
    handle.seek(0)
    if not end.startswith(MARK):
        if end[-22:-18] == NO_COMMENT:
            return False
        raise ValueError(f"{name}: damaged, or no network of ours (its end is missing)")
    digest, left = hashlib.sha256(), size - LENGTH
    while left and (piece := handle.read(min(PIECE, left))):
        digest.update(piece)
        left -= len(piece)
    handle.seek(0)
    if MARK + digest.hexdigest().encode() != end:
        raise ValueError(f"{name}: damaged: it is not the file that its digest was made of")
    return True
