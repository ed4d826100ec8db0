"""Files of a few bytes that claim gigabytes or hours are refused; what is decoded stays below the limit that is said."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet import formats, limits
from alexnet.dataset import resize
from alexnet.pictures import Undecodable, decode, describe
from tests.alexnet.test_pictures import RGB, saved

ROOT = Path(__file__).parents[2]


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def noughts(count: int) -> bytes:
    packer = zlib.compressobj(9)
    parts = [packer.compress(bytes(min(2**20, count - done))) for done in range(0, count, 2**20)]
    return b"".join(parts) + packer.flush()


def png(width: int, height: int, bits: int = 8, kind: int = 2, between: bytes = b"") -> bytes:
    """A PNG of nothing but noughts."""
    channels = {0: 1, 2: 3, 6: 4}[kind]
    head = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    rows = noughts(height * (1 + (width * channels * bits + 7) // 8))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + between + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def tiff(*changes: tuple[int, int, int, int], body: bytes = bytes(192)) -> bytes:
    """A TIFF of 8 x 8 grey pixels whose tags (number, type, count, value) were changed; `body` lies from byte 8 on."""
    tags = {
        256: (3, 1, 8), 257: (3, 1, 8), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1),
        273: (4, 1, 8), 277: (3, 1, 1), 278: (4, 1, 8), 279: (4, 1, 64),
    } | {tag: rest for tag, *rest in changes}  # fmt: skip
    body += bytes(len(body) % 2)
    entries = b"".join(struct.pack("<HHLL", tag, *rest) for tag, rest in sorted(tags.items()))
    return b"II*\0" + struct.pack("<L", 8 + len(body)) + body + struct.pack("<H", len(tags)) + entries + bytes(4)


def with_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = saved(RGB, "JPEG", progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * count + data[-2:]


def bmp(width: int, height: int, runs: bytes) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(runs), 0, 0, 1078) + head + bytes(1024) + runs


def gif_with(extension: bytes) -> bytes:
    data = saved(RGB.convert("P"), "GIF")
    place = data.index(b",", 13 + 768)
    return data[:place] + extension + data[place:]


JPEG = saved(RGB, "JPEG")

REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "a line of a tall PNG is memory of its own": (
        lambda: png(1, 70_000, kind=0),
        "too many pixels: it claims 1 x 70000, a side of more than 65,535",
    ),
    "a wide PNG": (lambda: png(70_000, 1, kind=0), "too many pixels: it claims 70000 x 1"),
    "a wide PPM": (lambda: b"P6\n70000 1\n255\n" + bytes(210_000), "too many pixels: it claims 70000 x 1"),
    "a WEBP's decoder takes memory as it opens": (
        lambda: b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0" + b"\xe7\x1f\0" * 2,
        "too large: 8168 x 8168 in 30 bytes of this format take 1,601,189,436",
    ),
    "a JPEG of CMYK": (
        lambda: JPEG.replace(b"\xff\xc0\0\x11\x08\0\x3c\0\x51", b"\xff\xc0\0\x11\x08\x22\0\x22\0").replace(
            b"\xff\xda\0\x0c\x03", b"\xff\xda\0\x0c\x09"
        ),
        "too large: 8704 x 8704",
    ),
    "scans": (lambda: with_scans(20_000), "too many parts: more than 10,000"),
    "parts of a JPEG": (lambda: JPEG[:2] + b"\xff\xe5\0\2" * 20_000 + JPEG[2:], "too many parts: more than 10,000"),
    "arithmetic coding": (lambda: JPEG.replace(b"\xff\xc0", b"\xff\xc9"), "a JPEG in arithmetic coding"),
    "a tile larger than its picture": (
        lambda: tiff((322, 4, 1, 16_000), (323, 4, 1, 16_000), (324, 4, 1, 8), (325, 4, 1, 64)),
        "too many pixels: a tile has 256,000,000, more than 40,000,000",
    ),
    "strips": (
        lambda: tiff((273, 4, 300_000, 8), body=struct.pack("<L", 8) * 300_000),
        "too many parts: 300,000 numbers in a tag",
    ),
    "bits of each sample": (
        lambda: tiff((258, 3, 300_000, 8), body=bytes(600_000)),
        "too many parts: 300,000 numbers in a tag",
    ),
    "a dictionary": (lambda: tiff((259, 3, 1, 34925)), "a TIFF compressed by LZMA"),
    "pixels in words": (lambda: b"P3\n9 9\n255\n" + b"0 " * 24_000_001, "too many bytes: 48,000,013 of a PPM in words"),
    "remarks in words": (lambda: b"P2\n9 9\n255\n" + b"#\n" * 2000, "too many parts: more than 1,000 remarks"),
    "a program": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no known format"),
    "another program's format": (lambda: saved(RGB, "JPEG2000"), "no known format"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_claims_too_much_is_refused_before_it_is_unpacked(case: str) -> None:
    make, reason = REFUSED[case]
    data = make()
    start = time.process_time()
    with pytest.raises(Undecodable, match=f"^{reason}"):
        decode(data)
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: png(9, 9, between=chunk(b"prVt", b"") * 40_000),
        lambda: b"P6\n#" + b"x" * 200_000 + b"\n1 1\n255\nabc",
        lambda: b"P6\n300 300\n15\n" + bytes(270_000),
        lambda: bmp(999, 999, b"\1\0" * 99_000),
        lambda: gif_with(b"!\xfe" + b"\1x" * 50_000 + b"\0"),
        lambda: JPEG.replace(b"\xff\xc0", b"\xff\xff" * 100_000 + b"\xff\xc3"),
    ],
    ids=["chunks", "a remark", "levels", "runs", "a comment", "fill between parts"],
)
def test_what_is_read_in_python_is_read_so_often_and_no_more(
    make: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "READS", 50_000)
    with pytest.raises(Undecodable, match="too many parts: they take more than 50,000 reads"):
        decode(make())


def test_a_file_longer_than_any_picture_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_BYTES", 1000)
    with pytest.raises(Undecodable, match=r"too many bytes: 1,\d{3}, more than 1,000"):
        decode(JPEG)


def test_no_other_plugin_of_pillow_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """EPS would start Ghostscript; what is not in the list is not even loaded."""
    for name in set(Image.OPEN) - {*formats.TAKEN, "MPO"}:
        monkeypatch.delitem(Image.OPEN, name)
    monkeypatch.setattr(Image, "init", lambda: pytest.fail("all plugins were loaded"))
    for kind in formats.TAKEN:
        assert decode(saved(RGB, kind)).shape == (3, 60, 81)
        assert describe(saved(RGB, kind))[0].startswith(kind)
    with pytest.raises(Undecodable, match="no known format"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0")


def test_a_second_picture_that_is_damaged_does_not_matter() -> None:
    first = saved(RGB.convert("P"), "GIF")
    for end in (b"!\xfe\x05", b",\0", b"!", b"!\xf9\x04\0"):
        damaged = first[:-1] + end
        assert torch.equal(decode(damaged), decode(first))
        assert describe(damaged) == ("GIF palette", 1)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "RGBA", "1", "I;16"])
def test_a_picture_converted_by_strips_is_the_same(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = Image.fromarray((np.arange(4860, dtype=np.uint16) * 13).reshape(60, 81))
    data = saved(deep if mode == "I;16" else RGB.convert(mode), "TIFF")
    whole = decode(data)
    monkeypatch.setattr("alexnet.limits.STRIP", 500)
    assert torch.equal(decode(data), whole)


def test_areas_added_up_by_strips_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    picture_CHW = decode(JPEG)
    whole = resize(picture_CHW, 7, "area")
    monkeypatch.setattr("alexnet.limits.STRIP", 500)
    assert torch.equal(resize(picture_CHW, 7, "area"), whole)


def test_ordinary_oddities_are_still_read() -> None:
    """Fill between a JPEG's parts, its scans, a tile, remarks."""
    assert torch.equal(decode(JPEG[:2] + b"\xff" * 99 + JPEG[2:]), decode(JPEG))
    assert decode(with_scans(20)).shape == (3, 60, 81)
    tiled = tiff((322, 4, 1, 16), (323, 4, 1, 16), (324, 4, 1, 8), (325, 4, 1, 256), body=bytes(range(256)))
    assert decode(tiled).shape == (3, 8, 8)
    assert decode(b"P3\n# by hand\n1 1\n255\n1 2 3\n").flatten().tolist() == [1, 2, 3]


def largest() -> Iterator[tuple[str, bytes]]:
    """What takes most of all that is taken."""
    side = 11_570
    yield "PNG, 16 bits", png(side, side, 16, 6)
    yield "PNG, black and white", png(side, side, 1, 0)
    for wide, how in ((16_200, {}), (16_200, {"subsampling": 0}), (12_300, {"progressive": True})):
        yield f"JPEG, {how}", saved(Image.new("RGB", (wide, wide)), "JPEG", **how)
    yield "JPEG, grey", saved(Image.new("L", (16_200, 16_200)), "JPEG")
    yield "JPEG, progressive", saved(Image.new("RGB", (10_300, 10_300)), "JPEG", progressive=True, subsampling=0)
    yield "JPEG, CMYK", saved(Image.new("CMYK", (8000, 8000)), "JPEG", progressive=True)
    yield "GIF", saved(Image.new("P", (side, side)), "GIF")
    yield "WEBP", saved(Image.new("RGBA", (6500, 6500)), "WEBP", lossless=True, method=0)
    deep = noughts(8100 * 8100 * 8)
    size = (256, 3, 1, 8100), (257, 3, 1, 8100), (278, 4, 1, 8100), (274, 3, 1, 6)
    rgba = (258, 3, 4, 8), (259, 3, 1, 8), (262, 3, 1, 2), (277, 3, 1, 4), (338, 3, 1, 2)
    place = (273, 4, 1, 16), (279, 4, 1, len(deep))
    yield "TIFF, 16 bits, turned", tiff(*size, *rgba, *place, body=struct.pack("<4H", 16, 16, 16, 16) + deep)


MEASURE = """
import json, sys, time
import torch
from alexnet import dataset, pictures
torch.set_num_threads(1)
data = sys.stdin.buffer.read()
def peak():  # not ru_maxrss, which begins with the peak of the process that started this one
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
before, start = peak() - len(data), time.process_time()
picture_CHW = pictures.decode(data)
pictures.describe(data)
for how in ("bilinear", "area"): dataset.resize(picture_CHW, 256, how)
print(json.dumps([peak() - before, time.process_time() - start]))
"""


@pytest.mark.faults
def test_no_picture_takes_more_memory_or_time_than_is_said() -> None:
    for name, data in largest():
        program = [sys.executable, "-W", "ignore", "-c", MEASURE]
        done = subprocess.run(program, input=data, capture_output=True, check=True, cwd=ROOT, timeout=200)
        memory, seconds = json.loads(done.stdout)
        assert limits.MEMORY / 4 < memory < limits.MEMORY, (name, memory)
        assert seconds < 30, (name, seconds)  # ten where nothing else runs


def test_counted_bytes_are_bytes_like_any() -> None:
    file = limits.Counted(b"abc")
    assert (file.read(1), file.read(), file.getvalue()) == (b"a", b"bc", b"abc")
    assert isinstance(file, io.BytesIO)
