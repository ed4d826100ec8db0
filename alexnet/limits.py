"""What a picture may cost before it is decoded: a file of a few kilobytes can claim gigabytes, or hours.

A picture takes at most `MEMORY`, its file among it, and some ten seconds of a core. What may take more is refused by
what it claims, before it is unpacked; each function here says the reason, or "" where there is none.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

MAX_PIXELS = 80_000_000
"""A picture that claims more is refused before it is unpacked. The largest of ILSVRC-2012 have some 60 million."""

MAX_SIDE = 65_535
"""Pixels of a side, as many as a JPEG can have: what is a line of memory for each row takes gigabytes of 80 million."""

MEMORY = 2**30
"""Bytes that one picture may take until it is a tensor: its file, what the decoder holds, and the tensor."""

STRIP = 2**20
"""Pixels that are converted at a time."""

MAX_BYTES = 2**29
"""Bytes of a file: 80 million pixels have 480 million where each colour has 16 bits and nothing is compressed."""

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Those that Pillow may open, by its names. None of them starts a program (EPS would) or follows a path."""

FAST_JPEG = (10, 2)
"""What a JPEG takes that torchvision's codec decodes, as in `COST`."""

COST = {
    "BMP": (8, 1),
    "GIF": (8, 1),
    "JPEG": (16, 2),
    "MPO": (16, 2),
    "PNG": (8, 1),
    "PPM": (16, 1),
    "TIFF": (16, 2),
    "WEBP": (24, 2),
}
"""Bytes that Pillow and what is made of its picture take for each pixel, and for each byte of the file: measured."""

READS = 3_000_000
"""Times that Pillow may read from a file: it goes from part to part in Python, a microsecond each."""

PARTS = 10_000
"""Parts of a JPEG that are looked at; a photograph has some 20."""

SCANS = 100 * MAX_PIXELS
"""Pixels that the scans of a JPEG may go over together. A progressive one has some 10 scans, each over all of them."""

TEXT_PIXELS, TEXT_REMARKS = 4_000_000, 1000
"""Pixels and remarks of a PPM in words, which is read in Python; each remark (#) costs a copy of a megabyte."""

TAG_VALUES = 2**18
"""Numbers in one tag of a TIFF, each an object in Python; three planes of 65,535 rows, each by itself, have 196,605."""

TILE = MAX_PIXELS // 2
"""Pixels in a tile of a TIFF, which may be larger than the picture, with up to 12 bytes each."""

MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")
"""Where a part of a JPEG begins. In between may be anything else; in a scan 0xFF is followed by 0, or it restarts."""

FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of a JPEG's frame header: depth, height, width, components. The three left out define tables."""

ARITHMETIC = frozenset(range(0xC9, 0xD0)) - {0xCC}
"""Those of a JPEG in arithmetic coding, which nobody writes, and which takes ten times as long."""

SCAN, END = 0xDA, 0xD9


class Counted(io.BytesIO):
    """A file's bytes; who reads them in too many pieces is stopped."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._left = READS

    def read(self, size: int | None = -1) -> bytes:
        """As of any file; `ValueError` after `READS` of these."""
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"it has too many parts: they take more than {READS:,} reads")
        return super().read(size)


def of_file(data: bytes) -> str:
    """Why a file is too much, whatever is in it; empty if it is not."""
    if len(data) > MAX_BYTES:
        return f"too many bytes: {len(data):,}, more than {MAX_BYTES:,}"
    return ""


def of_size(width: int, height: int, cost: tuple[int, int], data: bytes) -> str:
    """Why a picture of so many pixels is too much; empty if it is not. `cost`: bytes for each pixel and for each byte."""
    if width * height > MAX_PIXELS:
        return f"too many pixels: it claims {width} x {height}, more than {MAX_PIXELS:,}"
    if max(width, height) > MAX_SIDE:
        return f"too many pixels: it claims {width} x {height}, a side of more than {MAX_SIDE:,}"
    a_pixel, a_byte = cost
    memory = width * height * a_pixel + len(data) * a_byte
    if memory > MEMORY:
        return (
            f"too large: {width} x {height} in {len(data):,} bytes of this format take {memory:,}, more than {MEMORY:,}"
        )
    return ""


@dataclass(frozen=True, slots=True)
class Jpeg:
    """What the head of a JPEG says; all nought of another file."""

    components: int = 0
    height: int = 0
    width: int = 0
    reason: str = ""
    """Why it may take too much; empty if it may not."""


def jpeg(data: bytes) -> Jpeg:
    """The claims of a JPEG, and why they are too much: a hundred bytes of a scan are one more pass over all pixels."""
    found, sequential, parts = Jpeg(), False, 0
    for marker, start, end in jpeg_segments(data):
        parts += 1
        if marker in ARITHMETIC:
            return Jpeg(reason="a JPEG in arithmetic coding, which is not read")
        if marker in FRAMES and end - start >= 6:
            height, width = (int.from_bytes(data[start + at : start + at + 2]) for at in (1, 3))
            found = Jpeg(data[start + 5], height, width, of_size(width, height, FAST_JPEG, data))
            sequential = marker <= 0xC1
        elif marker == SCAN and found.components and not found.reason:
            in_scan = int.from_bytes(data[start : start + 1])
            alone = sequential and in_scan >= found.components  # the decoder stops behind this scan
            return found if alone else replace(found, reason=_scans(data, end, found.height * found.width))
    return found if parts < PARTS else Jpeg(reason=f"too many parts: more than {PARTS:,}")


def _scans(data: bytes, first: int, pixels: int) -> str:
    allowed = min(PARTS, SCANS // max(1, pixels))
    scans, place = 1, first
    for _ in range(PARTS):
        found = MARKER.search(data, place)
        if found is None or data[found.end() - 1] == END:
            return "" if scans <= allowed else f"too many scans: {scans:,} of {pixels:,} pixels, more than {allowed:,}"
        scans += data[found.end() - 1] == SCAN
        place = found.end() + int.from_bytes(data[found.end() : found.end() + 2])
    return f"too many parts: more than {PARTS:,}"


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of the parts of a JPEG up to the head of its first scan, without their length.

    Of another file there are none; of one with more than `PARTS` the rest is not looked at.
    """
    if not data.startswith(b"\xff\xd8\xff"):
        return
    place = 2
    for _ in range(PARTS):
        found = MARKER.search(data, place)
        if found is None or data[found.end() - 1] == END:
            return
        marker, start = data[found.end() - 1], found.end() + 2
        place = max(start, found.end() + int.from_bytes(data[found.end() : start]))
        yield marker, start, min(place, len(data))
        if marker == SCAN:
            return


def of_ppm(data: bytes) -> str:
    """Why a PPM whose pixels are written in words is too much; empty if it is not, and for any other file."""
    if not data.startswith((b"P1", b"P2", b"P3")):
        return ""
    if data.count(b"#") > TEXT_REMARKS:
        return f"too many parts: more than {TEXT_REMARKS:,} remarks"
    return "" if len(data) <= 12 * TEXT_PIXELS else f"too many bytes: {len(data):,} of a PPM in words"


def of_webp(data: bytes) -> str:
    """The same for a WEBP, whose decoder takes the memory for all pixels as soon as it opens the file."""
    if not (data.startswith(b"RIFF") and data[8:12] == b"WEBP"):
        return ""
    head = data[20:30]
    match data[12:16]:
        case b"VP8X":
            width, height = (int.from_bytes(head[at : at + 3], "little") + 1 for at in (4, 7))
        case b"VP8L":
            bits = int.from_bytes(head[1:5], "little")
            width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8 ":
            width, height = (int.from_bytes(head[at : at + 2], "little") & 0x3FFF for at in (6, 8))
        case _:
            return ""  # libwebp knows no other beginning
    return of_size(width, height, COST["WEBP"], data)


def of_tiff(data: bytes) -> str:
    """The same for the first directory of a TIFF: tags of many numbers, tiles larger than the picture, LZMA's dictionary."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2], "")
    if not order or len(data) < 16:
        return ""
    big = data[2:4] in (b"\x2b\0", b"\0\x2b")
    head, entry, value, first = ("Q", "HHQ", "Q", data[8:16]) if big else ("H", "HHL", "L", data[4:8])
    number = struct.Struct(order + value)
    place = number.unpack(first)[0]
    try:
        (entries,) = struct.unpack_from(order + head, data, place)
        place += struct.calcsize(order + head)
        tile = 1
        for _ in range(min(entries, 2**16)):
            tag, kind, count = struct.unpack_from(order + entry, data, place)
            at = place + struct.calcsize(order + entry)
            single = struct.unpack_from(order + ("H" if kind == 3 else value), data, at)[0]
            if kind not in (1, 2, 7) and count > TAG_VALUES:
                return f"too many parts: {count:,} numbers in a tag, more than {TAG_VALUES:,}"
            if tag in (322, 323):
                tile *= single
            if tag == 259 and single == 34925:
                return "a TIFF compressed by LZMA, which is not read"
            place = at + number.size
    except struct.error:
        return ""  # cut short, which Pillow will say
    return f"too many pixels: a tile has {tile:,}, more than {TILE:,}" if tile > TILE else ""
