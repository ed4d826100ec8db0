"""Limits on decoding: a picture file of a few kilobytes can claim gigabytes of memory, or hours of time.

Decoding a picture takes at most `MEMORY`, including the file itself, and about ten seconds of one core. A file whose
header claims more is refused before it is decoded: each function here returns the reason, or "" to accept the file.
What counts is the memory that the file's format takes for so many pixels, not their number: a photograph of 108 megapixels
is accepted as a JPEG, which is decoded row by row, and refused as a WEBP, which is unpacked whole.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

MAX_SIDE = 65_535
"""Most pixels along a side, JPEG's own limit. A picture of 80 million rows of one pixel would take gigabytes for its rows
alone."""

MEMORY = 2**30
"""Bytes that decoding one picture may take: the file, the decoder's buffers and the tensor."""

STRIP = 2**20
"""Pixels that are converted at a time."""

MAX_BYTES = 2**29
"""Most bytes of a file: 89 million uncompressed pixels of 3 × 16 bits have as many."""

FAST_JPEG = (4, 2)
"""Memory for a JPEG of one scan that `codec` decodes, measured, as in `COST`; one of several scans takes its coefficients
besides."""

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
"""Peak memory of decoding with Pillow and of the conversion to a tensor, measured: bytes per pixel, and bytes per byte of
the file."""

READS = 3_000_000
"""Most reads by Pillow from one file: it walks through a file's parts in Python, about a microsecond each."""

PARTS = 10_000
"""Most segments of a JPEG; a photograph has some 20."""

SCANS = 8_000_000_000
"""Most pixels in all scans of a JPEG together. A progressive one has some 10 scans, each over all pixels."""

TEXT_PIXELS, TEXT_REMARKS = 4_000_000, 1000
"""Most pixels and comments of a plain-text PPM, which Pillow reads in Python; each comment (#) costs a copy of a
megabyte."""

TAG_VALUES = 2**18
"""Most numbers in one tag of a TIFF, each a Python object. Three separate planes of 65,535 rows have 196,605."""

TILE = 40_000_000
"""Most pixels in a tile of a TIFF, which may be larger than the picture and take up to 12 bytes a pixel."""

MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")
"""The beginning of a JPEG segment. Between segments anything else may stand; inside a scan 0xFF is followed by 0 or by a
restart marker, which this does not match."""

FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of a JPEG frame header (depth, height, width, components). The three removed ones define tables."""

ARITHMETIC = frozenset(range(0xC9, 0xD0)) - {0xCC}
"""Frame markers of arithmetic coding, which nobody writes and which takes ten times as long to decode."""

SCAN, END = 0xDA, 0xD9
"""Markers of the start of a scan and of the end of the image."""


class Counted(io.BytesIO):
    """A file's bytes, which can be read `READS` times."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._left = READS

    def read(self, size: int | None = -1) -> bytes:
        """Reads as from any file; `ValueError` after `READS` calls."""
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"it has too many parts: they take more than {READS:,} reads")
        return super().read(size)


def of_file(data: bytes) -> str:
    """The reason to refuse a file by its size alone; "" if there is none."""
    if len(data) > MAX_BYTES:
        return f"too many bytes: {len(data):,}, more than {MAX_BYTES:,}"
    return ""


def of_size(width: int, height: int, cost: tuple[int, int], data: bytes) -> str:
    """The reason to refuse a picture of width × height pixels; "" if there is none.

    `cost`: bytes of memory per pixel, and per byte of `data`, the file.
    """
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
    """The header of a JPEG; all zero for another kind of file."""

    components: int = 0
    height: int = 0
    width: int = 0
    reason: str = ""
    """The reason to refuse the file; "" if there is none."""


def jpeg(data: bytes) -> Jpeg:
    """Reads a JPEG's header and counts its scans: a scan of a hundred bytes costs a pass over all pixels."""
    header, sequential, all_scans, parts = Jpeg(), False, "", 0
    for marker, start, end in jpeg_segments(data):
        parts += 1
        if marker in ARITHMETIC:
            return Jpeg(reason="a JPEG in arithmetic coding, which is not read")
        if marker in FRAMES and end - start >= 6:
            height, width = (int.from_bytes(data[start + at : start + at + 2]) for at in (1, 3))
            header = Jpeg(data[start + 5], height, width, of_size(width, height, FAST_JPEG, data))
            a_pixel, a_byte = FAST_JPEG[0] + _coefficients(data[start:end]), FAST_JPEG[1]
            sequential, all_scans = marker <= 0xC1, of_size(width, height, (a_pixel, a_byte), data)
        elif marker == SCAN and header.components and not header.reason:
            in_scan = int.from_bytes(data[start : start + 1])
            if sequential and in_scan >= header.components:
                return header  # the decoder stops after this scan
            return replace(header, reason=all_scans or _scans(data, end, header.height * header.width))
    return header if parts < PARTS else Jpeg(reason=f"too many parts: more than {PARTS:,}")


def _coefficients(frame: bytes) -> int:
    """Bytes per pixel of the coefficients, two bytes each, which a decoder keeps until the last scan. `frame`: its header."""
    components = frame[5]
    factors = [(each >> 4, each & 15) for each in frame[7 : 6 + 3 * components : 3]]
    if len(factors) < components or not all(across and down for across, down in factors):
        return 2 * components  # no decoder takes it; this is the most that there could be
    whole = max(across for across, _ in factors) * max(down for _, down in factors)
    return -(-2 * sum(across * down for across, down in factors) // whole)


def _scans(data: bytes, first: int, pixels: int) -> str:
    allowed = min(PARTS, SCANS // max(1, pixels))
    scans, offset = 1, first
    for _ in range(PARTS):
        match = MARKER.search(data, offset)
        if match is None or data[match.end() - 1] == END:
            return "" if scans <= allowed else f"too many scans: {scans:,} of {pixels:,} pixels, more than {allowed:,}"
        scans += data[match.end() - 1] == SCAN
        offset = match.end() + int.from_bytes(data[match.end() : match.end() + 2])
    return f"too many parts: more than {PARTS:,}"


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields (marker, start, end) of a JPEG's segments up to and including the header of its first scan.

    `start` is after the segment's length field. Another kind of file yields nothing; at most `PARTS` segments are read.
    """
    if not data.startswith(b"\xff\xd8\xff"):
        return
    offset = 2
    for _ in range(PARTS):
        match = MARKER.search(data, offset)
        if match is None or data[match.end() - 1] == END:
            return
        marker, start = data[match.end() - 1], match.end() + 2
        offset = max(start, match.end() + int.from_bytes(data[match.end() : start]))
        yield marker, start, min(offset, len(data))
        if marker == SCAN:
            return


def of_ppm(data: bytes) -> str:
    """The reason to refuse a plain-text PPM; "" if there is none, and for any other file."""
    if not data.startswith((b"P1", b"P2", b"P3")):
        return ""
    if data.count(b"#") > TEXT_REMARKS:
        return f"too many parts: more than {TEXT_REMARKS:,} remarks"
    return "" if len(data) <= 12 * TEXT_PIXELS else f"too many bytes: {len(data):,} of a PPM in words"


def of_webp(data: bytes) -> str:
    """The reason to refuse a WEBP, whose decoder allocates all pixels as soon as it opens the file; else ""."""
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
            return ""  # libwebp reads no other first chunk
    return of_size(width, height, COST["WEBP"], data)


def of_tiff(data: bytes) -> str:
    """The reason to refuse a TIFF; else "". Its first directory may have tags of many numbers, huge tiles, or LZMA."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2], "")
    if not order or len(data) < 16:
        return ""
    big = data[2:4] in (b"\x2b\0", b"\0\x2b")
    head, entry, value, first = ("Q", "HHQ", "Q", data[8:16]) if big else ("H", "HHL", "L", data[4:8])
    number = struct.Struct(order + value)
    offset = number.unpack(first)[0]
    try:
        (entries,) = struct.unpack_from(order + head, data, offset)
        offset += struct.calcsize(order + head)
        tile = 1
        for _ in range(min(entries, 2**16)):
            tag, kind, count = struct.unpack_from(order + entry, data, offset)
            at = offset + struct.calcsize(order + entry)
            single = struct.unpack_from(order + ("H" if kind == 3 else value), data, at)[0]
            if kind not in (1, 2, 7) and count > TAG_VALUES:
                return f"too many parts: {count:,} numbers in a tag, more than {TAG_VALUES:,}"
            if tag in (322, 323):
                tile *= single
            if tag == 259 and single == 34925:
                return "a TIFF compressed by LZMA, which is not read"
            offset = at + number.size
    except struct.error:
        return ""  # truncated, which Pillow will report
    return f"too many pixels: a tile has {tile:,}, more than {TILE:,}" if tile > TILE else ""
