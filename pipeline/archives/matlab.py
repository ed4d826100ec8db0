"""A reader of MATLAB 5 files, as far as a devkit's `meta.mat` needs it: arrays of structs, cells, text and numbers.

SciPy's reader can crash the process on a damaged file. This one allocates nothing for a claimed length: each part is a slice
of the file, and the parts unpack to at most `bounds.SMALL` bytes altogether.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from pipeline.archives import bounds

MATRIX, COMPRESSED = 14, 15

NUMBERS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q"}
"""Type of a part that holds numbers → format character of `struct`."""

WORDS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
"""Type of a part that holds text → encoding."""

DEPTH = 8
"""The most levels of nested matrices."""


def read(data: bytes) -> dict[str, Any]:
    """The variables by name: an array of structs as a list of dicts, text as str, numbers as a list.

    `ValueError` if `data` is not a MATLAB 5 file, or is damaged.
    """
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None or data[124:126] not in (b"\0\1", b"\1\0"):
        raise ValueError("no MATLAB file of version 5")
    variables, room = {}, bounds.SMALL
    for kind, part in _parts(data[128:], order, padded=False):
        if kind == COMPRESSED:
            try:
                unpacked = zlib.decompressobj().decompress(part, room + 1)
            except zlib.error as error:
                raise ValueError(f"damaged: {error}") from None
            room -= len(unpacked)
            if room < 0:
                raise ValueError(f"more than {bounds.SMALL:,} bytes come out of {len(data):,}")
            kind, part = next(_parts(unpacked, order), (0, b""))
        if kind == MATRIX:
            name, value = _matrix(part, order, 0)
            variables[name] = value
    return variables


def _parts(data: bytes, order: str, *, padded: bool = True) -> Iterator[tuple[int, bytes]]:
    """Yields kind and bytes of each part. A part of at most 4 bytes has its length in the upper half of its kind."""
    offset = 0
    while offset + 8 <= len(data):
        kind, length = struct.unpack_from(order + "II", data, offset)
        small, start = kind >> 16, offset + 8
        if small:
            kind, length, start = kind & 0xFFFF, small, offset + 4
        end = start + length
        if end > len(data) or (small and small > 4):
            raise ValueError(f"damaged: a part of {length:,} bytes, of which {len(data) - start:,} are there")
        yield kind, data[start:end]
        offset = offset + 8 if small else end + (-end % 8 if padded else 0)


def _matrix(data: bytes, order: str, depth: int) -> tuple[str, Any]:
    """Name and value of a matrix."""
    if depth > DEPTH:
        raise ValueError(f"damaged: more than {DEPTH} matrices in each other")
    parts = _parts(data, order)
    head = [part for _, part in _take(parts, 3)] if data else []
    if not head:
        return "", []
    flags, sizes, name = head
    if len(flags) < 4:
        raise ValueError("damaged: a matrix without its class")
    (kind,) = struct.unpack_from(order + "I", flags)
    count = math.prod(struct.unpack(f"{order}{len(sizes) // 4}i", sizes[: len(sizes) // 4 * 4]))
    match kind & 0xFF:
        case 1:  # cells
            value: Any = [_inner(part, order, depth) for part in parts]
        case 2:  # structs
            value = _structs(parts, order, count, depth)
        case 4:  # text
            value = "".join(_text(kind, part, order) for kind, part in parts)
        case number if 6 <= number <= 15:
            value = [each for kind, part in _take(parts, 1) for each in _numbers(kind, part, order)]
        case other:
            raise ValueError(f"a matrix of class {other}, which is not read")
    return name.decode("latin-1"), value


def _structs(parts: Iterator[tuple[int, bytes]], order: str, count: int, depth: int) -> list[dict[str, Any]]:
    (kind, length), (_, names) = _take(parts, 2)
    each = next(iter(_numbers(kind, length, order)), 0)
    if not 0 < each <= 64 or len(names) % each:
        raise ValueError("damaged: a struct without names")
    fields = [names[at : at + each].split(b"\0")[0].decode("latin-1") for at in range(0, len(names), each)]
    values = [_inner(part, order, depth) for part in parts]
    if len(values) != count * len(fields):
        raise ValueError(f"damaged: {count} structs of {len(fields)} fields have {len(values)} values")
    return [dict(zip(fields, values[at : at + len(fields)], strict=True)) for at in range(0, len(values), len(fields))]


def _inner(part: tuple[int, bytes], order: str, depth: int) -> Any:
    kind, data = part
    if kind != MATRIX:
        raise ValueError(f"damaged: a part of kind {kind} where a matrix should be")
    return _matrix(data, order, depth + 1)[1]


def _take(parts: Iterator[tuple[int, bytes]], count: int) -> list[tuple[int, bytes]]:
    found = [part for _, part in zip(range(count), parts, strict=False)]
    if len(found) < count:
        raise ValueError("damaged: it ends inside a matrix")
    return found


def _text(kind: int, data: bytes, order: str) -> str:
    if kind not in WORDS:
        raise ValueError(f"damaged: text of kind {kind}")
    words = WORDS[kind]
    return data.decode(words if "-8" in words or "latin" in words else f"{words}-{'le' if order == '<' else 'be'}")


def _numbers(kind: int, data: bytes, order: str) -> tuple[Any, ...]:
    if kind not in NUMBERS:
        raise ValueError(f"damaged: numbers of kind {kind}")
    size = struct.calcsize(f"{order}{NUMBERS[kind]}")
    return struct.unpack(f"{order}{len(data) // size}{NUMBERS[kind]}", data[: len(data) // size * size])
