"""A format is recognized by a file's first bytes: whatever is decoded, and no text that begins with the same letters."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from PIL import Image

from alexnet import formats
from alexnet.pictures import Undecodable, decode
from tests.alexnet.test_pictures import AS_PILLOW, RGB, saved

BY_HAND = {
    "PGM": b"P5\n# a remark\n2 1\n255\nab",
    "PPM in words": b"P3 1 1 255 1 2 3",
    "PBM": b"P4\n8 1\n\xff",
    "TIFF, big-endian": saved(Image.new("I;16B", (2, 2)), "TIFF"),
    "BMP of OS/2": b"BM" + struct.pack("<LHHL", 32, 0, 0, 26) + struct.pack("<LHHHH", 12, 1, 1, 1, 24) + bytes(4),
}  # fmt: skip


@pytest.mark.parametrize("kind", formats.TAKEN)
def test_what_pillow_writes_is_recognized(kind: str) -> None:
    assert formats.recognized(saved(RGB, kind)) == kind


@pytest.mark.parametrize("data", [*AS_PILLOW.values(), *BY_HAND.values()], ids=[*AS_PILLOW, *BY_HAND])
def test_what_is_decoded_is_recognized(data: bytes) -> None:
    decode(data)
    assert formats.recognized(data[: formats.HEAD]) in formats.TAKEN


@pytest.mark.parametrize(
    "head",
    [b"", b"BMW, Bayerische", b"P1 is the first patient", b"P5\n# only a remark", b"GIF", b"II", b"RIFF0000WAVE", b"\xff\xd8",
     b"<html>404</html>", b"%!PS-Adobe-3.0 EPSF-3.0", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", b"\0\0\0\x18ftypmp42"],
)  # fmt: skip
def test_other_files_are_not(head: bytes) -> None:
    assert formats.recognized(head) == ""


@pytest.mark.parametrize("brands", [b"avif\0\0\0\0avifmif1miaf", b"avis\0\0\0\0avis", b"mif1\0\0\0\0mif1avif"])
def test_an_avif_is_a_picture_that_is_not_read_and_says_so(brands: bytes) -> None:
    data = struct.pack(">L", 8 + len(brands)) + b"ftyp" + brands
    assert formats.recognized(data) == "AVIF"
    with pytest.raises(Undecodable, match=r"^a format that is not read: AVIF, .*Convert it"):
        decode(data)


def test_an_avif_s_header_does_not_bound_its_decoder(tmp_path: Path) -> None:
    """Why no AVIF is read: the header of this one claims 64 x 64, and the decoder returns that from a frame of 2000 x 2000."""
    data = saved(Image.new("RGB", (2000, 2000)), "AVIF", speed=10)
    size = data.index(b"ispe") + 8
    claimed = data[:size] + struct.pack(">LL", 64, 64) + data[size + 8 :]
    assert len(claimed) < 1000
    file = tmp_path / "a.avif"
    file.write_bytes(claimed)
    with Image.open(file) as picture:
        assert picture.size == (64, 64)
        picture.load()  # no error: libavif decodes the frame whole, whatever its size
