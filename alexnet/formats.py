"""The formats of pictures, recognized by the first bytes of a file. A file's name says nothing about its format."""

from __future__ import annotations

import re

HEAD = 512
"""Bytes of a file that `recognized` needs; only a PPM with a long comment before its size needs more than 30."""

TAKEN = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are decoded, by Pillow's names. None of them starts a program (as EPS does) or follows a path."""

PATTERNS = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "GIF": rb"GIF8[79]a",
    "WEBP": rb"RIFF.{4}WEBP",
    "TIFF": rb"II[*+]\0|MM\0[*+]|II\0\*|MM\*\0",
    "BMP": rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "PPM": rb"P[1-6]\s(?:\s|#[^\r\n]*[\r\n])*[0-9]",
    "AVIF": rb".{4}ftyp(?:avi[fs]|(?:mif1|msf1).{4}(?:.{4})*?avi[fs])",
}
"""Format → pattern of the first bytes. BM and P5 alone also begin ordinary texts: a BMP's header has a known length, and
a PPM's (or PGM's, PBM's) first word is followed by a number."""

_COMPILED = {name: re.compile(pattern, re.DOTALL) for name, pattern in PATTERNS.items()}


def recognized(head: bytes) -> str:
    """The format of a file with these first bytes (`HEAD` of them, or the whole file): one of `PATTERNS`, or ""."""
    return next((name for name, pattern in _COMPILED.items() if pattern.match(head[:HEAD])), "")


def refused(data: bytes) -> str:
    """The reason to refuse a picture of a format that is recognized, but not decoded; "" for any other file.

    An AVIF's header does not bound its decoder: a file of 3 kB that claims 64 × 64 pixels took 520 MB, because the coded frame
    inside had 16,000 × 16,000 (seen once, by hand). A frame of 12 bits may take four times as much, and eight frames may be kept.
    """
    if recognized(data) == "AVIF":
        return "a format that is not read: AVIF, whose header does not limit the memory to decode it. Convert it to PNG"
    return ""
