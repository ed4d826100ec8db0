"""Files of tensors that end in a sha256 of their contents, so that damage is detected when they are read."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Set as AbstractSet
from typing import Any, BinaryIO

import torch

MARK = b"sha256 "
"""Stands before the digest."""

LENGTH = len(MARK) + 64
"""Bytes of mark and digest. torch's files are zip archives; mark and digest are the archive's comment, at its end."""

NO_COMMENT = b"PK\x05\x06"
"""The first bytes of the last 22 of a zip archive without a comment."""

PIECE = 2**20
"""Bytes that are hashed at a time."""


def write(handle: BinaryIO, contents: dict[str, Any]) -> None:
    """Writes contents and then their digest; equal contents give equal bytes."""
    # to memory first: given a path, torch would store the file's name inside, and a pipe cannot seek
    buffer = io.BytesIO()
    torch.save(contents, buffer)
    data = buffer.getbuffer()
    assert data[-22:-18] == NO_COMMENT, "torch's archives have no comment of their own"
    data[-2:] = LENGTH.to_bytes(2, "little")
    handle.write(data)
    handle.write(MARK + hashlib.sha256(data).hexdigest().encode())


def read(handle: BinaryIO, *unsealed: AbstractSet[str], name: str = "") -> dict[str, Any]:
    """Reads a file that `write` wrote, to the CPU; runs no code from the file. `ValueError` if any bit has changed.

    A file without a digest whose keys are exactly one of `unsealed` is from before files had digests: it is read, with a
    warning.
    """
    name = name or str(getattr(handle, "name", "the file"))
    sealed = _sealed(handle, name)
    try:
        contents = torch.load(handle, weights_only=True, map_location="cpu")
        if not isinstance(contents, dict) or not (sealed or contents.keys() in unsealed):
            raise TypeError("another kind of file")
    except Exception as error:  # torch's reader can raise anything on a damaged file, and its advice does not apply
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk failed; the file may be whole
        raise ValueError(f"{name}: damaged, or not a network saved here ({type(error).__name__})") from None
    if not sealed:
        logging.getLogger(__name__).warning("%s: written before files had a digest, so it is read unchecked", name)
    return contents


def _sealed(handle: BinaryIO, name: str) -> bool:
    """Whether the file has a digest, which is then checked; `ValueError` if it does not match."""
    size = handle.seek(0, io.SEEK_END)
    handle.seek(max(0, size - LENGTH))
    end = handle.read(LENGTH)
    handle.seek(0)
    if not end.startswith(MARK):
        if end[-22:-18] == NO_COMMENT:
            return False
        raise ValueError(f"{name}: damaged, or not a network saved here (its end is missing)")
    digest, left = hashlib.sha256(), size - LENGTH
    while left and (piece := handle.read(min(PIECE, left))):
        digest.update(piece)
        left -= len(piece)
    handle.seek(0)
    if MARK + digest.hexdigest().encode() != end:
        raise ValueError(f"{name}: damaged: its contents do not match its sha256")
    return True
