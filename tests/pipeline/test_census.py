"""What each kind of file is called, and the counts: every picture once, the same in whatever order."""

from __future__ import annotations

import io
import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from alexnet.dataset import decode
from pipeline.census import Census, look

RGB = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
DEEP = Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100)


def saved(picture: Image.Image, kind: str, **how: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **how)
    return file.getvalue()


def turned(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def deep_colour() -> bytes:
    """A PNG of 16 bits for each of red, green and blue, which Pillow reads and does not write: from one of 8 bits, whose
    pixels are all nought.
    """
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = zlib.compress(bytes(4 * (1 + 5 * 6)))
    head = struct.pack(">IIBBBBB", 5, 4, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


KINDS = {
    "JPEG colour": [
        saved(RGB, "JPEG"),
        saved(RGB, "JPEG", progressive=True, subsampling=0),
        saved(RGB, "JPEG", exif=turned(1), icc_profile=b"x" * 70_000, comment=b"of no matter"),
        saved(RGB, "MPO"),
    ],
    "JPEG grey": [saved(RGB.convert("L"), "JPEG")],
    "JPEG CMYK": [saved(RGB.convert("CMYK"), "JPEG")],
    "PNG colour": [saved(RGB, "PNG")],
    "PNG colour with transparency": [saved(RGB.convert("RGBA"), "PNG")],
    "PNG colour of 16 bits": [deep_colour()],
    "PNG grey": [saved(RGB.convert("L"), "PNG")],
    "PNG grey of 16 bits": [saved(DEEP, "PNG")],
    "PNG grey with transparency": [saved(RGB.convert("LA"), "PNG")],
    "PNG palette": [saved(RGB.convert("P"), "PNG")],
    "PNG black and white": [saved(RGB.convert("1"), "PNG")],
    "GIF palette": [saved(RGB.convert("P"), "GIF")],
    "GIF palette, animated": [
        saved(RGB.convert("P"), "GIF", save_all=True, append_images=[RGB.rotate(180).convert("P")])
    ],
    "BMP colour": [saved(RGB, "BMP")],
    "PPM colour": [saved(RGB, "PPM")],
    "TIFF CMYK": [saved(RGB.convert("CMYK"), "TIFF")],
    "WEBP colour": [saved(RGB, "WEBP")],
}


@pytest.mark.parametrize(
    ("kind", "data"), [(kind, data) for kind, all_of_it in KINDS.items() for data in all_of_it], ids=str
)
def test_every_kind_of_file_has_its_name(kind: str, data: bytes) -> None:
    assert look(data) == (kind, 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("number", range(1, 9))
def test_an_orientation_is_seen_and_not_applied(kind: str, number: int) -> None:
    data = saved(RGB, kind, exif=turned(number))
    assert look(data) == (f"{kind} colour", number)
    assert (decode(data) == decode(saved(RGB, kind))).all()


@pytest.mark.parametrize("number", [0, 9, 65535])
def test_an_orientation_that_exif_does_not_know_is_none(number: int) -> None:
    assert look(saved(RGB, "JPEG", exif=turned(number)))[1] == 1


def test_metadata_that_is_broken_is_nobody_s_loss() -> None:
    """Whatever five of its bytes are: no error, and no other format."""
    random = np.random.default_rng(1)
    whole = saved(RGB, "JPEG", exif=turned(6))
    first = whole.index(b"Exif")
    for _ in range(300):
        data = bytearray(whole)
        for place in random.integers(first, first + 32, 5):
            data[place] = random.integers(256)
        kind, orientation = look(bytes(data))
        assert kind == "JPEG colour"
        assert 1 <= orientation <= 8


def counted(pictures: list[bytes], side: int = 25) -> Census:
    census = Census()
    for data in pictures:
        height, width = decode(data).shape[1:]
        census.keep(data, width, height, side)
    return census


def test_counts_are_the_same_in_any_order_and_parting() -> None:
    parts = [counted([data]) for all_of_it in KINDS.values() for data in all_of_it]
    lost = Census()
    for reason in ("the file is empty", "damaged: image file is truncated (3 bytes not processed)", "damaged: other"):
        lost.reject(reason)
    forwards, backwards = (sum(order, Census()) for order in ([*parts, lost], [lost, *parts[::-1]]))
    assert forwards == backwards
    assert forwards.to_json() == backwards.to_json()
    assert forwards.lines() == backwards.lines()
    assert forwards.formats == {kind: len(all_of_it) for kind, all_of_it in KINDS.items()}
    assert forwards.rejected == {"the file is empty": 1, "damaged": 2}
    assert (forwards.kept, forwards.indexed) == (len(parts), len(parts) + 3)


@pytest.mark.parametrize(("side", "smaller"), [(19, 0), (20, 0), (21, 3)])
def test_the_shorter_side_says_what_was_enlarged(side: int, smaller: int) -> None:
    pictures = [saved(picture, "PNG") for picture in (RGB, RGB.rotate(90, expand=True), RGB.resize((20, 20)))]
    census = counted(pictures, side)
    assert census.smaller == smaller
    assert census.pixels == 20 * 30 * 2 + 20 * 20
    assert census.file_bytes == sum(map(len, pictures))


def test_the_lines_say_the_counts() -> None:
    census = Census(
        formats={"JPEG grey": 5, "JPEG colour": 2000, "GIF palette": 5},
        rejected={"damaged": 1},
        orientations={"6": 2, "8": 1},
        smaller=7,
        file_bytes=2010 * 110_000,
        pixels=2010 * 190_000,
    )
    assert census.lines() == [
        "2,011 pictures: 2,000 JPEG colour, 5 GIF palette, 5 JPEG grey",
        "rejected: 1 damaged",
        "as they came, 110 kB and 0.19 megapixels on average",
        "7 are smaller than what is stored, and were enlarged",
        "3 have an EXIF orientation, which is not applied",
    ]
    assert Census().lines() == ["0 pictures: none kept"]


def test_what_was_written_is_read_and_what_is_not_ours_is_named(tmp_path: Path) -> None:
    census = counted(list(itertools.chain(*KINDS.values())))
    file = tmp_path / "pictures.json"
    with pytest.raises(FileNotFoundError, match=r"pictures\.json: not there\. Run: dvc repro --force resize"):
        Census.read(file)
    file.write_text(census.to_json())
    assert Census.read(file) == census
    for text in ("", "[]", '{"formats": {}, "colour": 3}'):
        file.write_text(text)
        with pytest.raises(ValueError, match=rf"^{re.escape(str(file))}: no counts of ours .*Run: dvc repro"):
            Census.read(file)
