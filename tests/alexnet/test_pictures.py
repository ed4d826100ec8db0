"""Pictures of every kind, decoded and encoded, against Pillow and against the definition."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from alexnet import limits
from alexnet.pictures import TooManyPixels, Undecodable, decode, decode_with_warning, describe, encode


def scene(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """H x W x 3 with soft shades, hard edges and some noise: what a photograph has."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    picture = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int64)
    picture[height // 4 : height // 2, width // 3 : width // 2] = (230, 40, 90)
    noisy: NDArray[np.int64] = picture + random.integers(-8, 9, picture.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def saved(picture: Image.Image, kind: str, **how: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **how)
    return file.getvalue()


def by_pillow(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).transpose(2, 0, 1)


RGB = Image.fromarray(scene(60, 81))


AS_PILLOW = {
    "4:2:0": saved(RGB, "JPEG", quality=90, subsampling=2),
    "4:4:4": saved(RGB, "JPEG", quality=90, subsampling=0),
    "progressive": saved(RGB, "JPEG", quality=90, progressive=True),
    "grey": saved(RGB.convert("L"), "JPEG", quality=90),
    "comment before the frame": saved(RGB, "JPEG", comment=b"\xff\xd8\xff" * 99),
    "one pixel": saved(RGB.crop((0, 0, 1, 1)), "JPEG"),
    "PNG": saved(RGB, "PNG"),
    "PNG, palette": saved(RGB.quantize(16), "PNG", transparency=3),
    "PNG, black and white": saved(RGB.convert("1"), "PNG"),
    "GIF": saved(RGB, "GIF"),
    "BMP": saved(RGB, "BMP"),
    "TIFF, CMYK": saved(RGB.convert("CMYK"), "TIFF"),
}


@pytest.mark.parametrize("data", AS_PILLOW.values(), ids=AS_PILLOW.keys())
def test_decodes_as_pillow_does(data: bytes) -> None:
    picture_CHW = decode(data)
    assert picture_CHW.dtype == torch.uint8
    np.testing.assert_array_equal(picture_CHW.numpy(), by_pillow(data))


def test_transparency_is_dropped() -> None:
    seen = np.dstack([scene(20, 30), np.random.default_rng(1).integers(0, 256, (20, 30), dtype=np.uint8)])
    np.testing.assert_array_equal(decode(saved(Image.fromarray(seen), "PNG")).permute(1, 2, 0), seen[:, :, :3])


def test_16_bits_keep_the_upper_8() -> None:
    grey = np.arange(0, 65536, 13, dtype=np.uint16)[:5000].reshape(50, 100)
    picture_CHW = decode(saved(Image.fromarray(grey), "PNG"))
    np.testing.assert_array_equal(picture_CHW, np.broadcast_to(grey // 256, (3, 50, 100)))


def twelve_bits(values: np.ndarray) -> bytes:
    """A grey TIFF of 12 bits a sample, two samples in three bytes, as scanners and cameras write it."""
    height, width = values.shape
    left, right = values[:, 0::2].astype(np.uint16), values[:, 1::2].astype(np.uint16)
    packed = np.stack([left >> 4, (left & 15) << 4 | right >> 8, right & 255], axis=-1).astype(np.uint8).tobytes()
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 1, 12), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 0),
            (277, 3, 1, 1), (278, 3, 1, height), (279, 4, 1, len(packed))]  # fmt: skip
    first = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHLL", tag, kind, count, value or first) for tag, kind, count, value in tags)
    return b"II*\0" + struct.pack("<LH", 8, len(tags)) + entries + bytes(4) + packed


def test_12_bits_keep_the_upper_8() -> None:
    values = np.arange(4096, dtype=np.uint16)[:4000].reshape(40, 100)
    picture_CHW = decode(twelve_bits(values))
    np.testing.assert_array_equal(picture_CHW, np.broadcast_to(values // 16, (3, 40, 100)))
    assert describe(twelve_bits(values)) == ("TIFF grey of 12 bits", 1)


def with_chunks(data: bytes, *chunks: tuple[bytes, bytes], spoil: bool = False) -> bytes:
    """A PNG with further chunks behind its header, maybe with wrong checksums."""
    made = b"".join(
        struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body) ^ spoil)
        for kind, body in chunks
    )
    return data[:33] + made + data[33:]


LONG = zlib.compress(b"x" * 5_000_000)


@pytest.mark.parametrize(
    "chunks",
    [
        [(b"zTXt", b"Comment\0\0" + LONG)],
        [(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LONG)],
        [(b"tEXt", b"Comment\0" + b"x" * 2_000_000)],
        [(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 900_000))] * 90,
        [(b"iCCP", b"profile\0\0" + LONG)],
        [(b"zTXt", b"Comment\0\0no zlib")],
        [(b"pHYs", b"short")],
        [(b"prVt", b"of some program")],
    ],
    ids=["packed text", "unicode", "plain", "many", "profile", "broken text", "broken size", "unknown"],
)
@pytest.mark.parametrize("spoil", [False, True], ids=["", "wrong checksum"])
@pytest.mark.parametrize(
    "seen", [RGB, RGB.convert("RGBA"), RGB.convert("P"), RGB.convert("L")], ids=lambda seen: seen.mode
)
def test_no_metadata_of_a_png_is_a_reason_to_refuse_it(
    chunks: list[tuple[bytes, bytes]], spoil: bool, seen: Image.Image
) -> None:
    plain = saved(seen, "PNG")
    assert torch.equal(decode(with_chunks(plain, *chunks, spoil=spoil)), decode(plain))
    assert describe(with_chunks(plain, *chunks, spoil=spoil)) == describe(plain)


def test_what_changes_pixels_or_the_description_of_a_png_is_kept() -> None:
    clear = saved(RGB.convert("P"), "PNG", transparency=3)
    turned_png = saved(RGB, "PNG", exif=b"Exif\0\0" + Image.Exif().tobytes()[6:])
    moving = saved(RGB, "PNG", save_all=True, append_images=[RGB.rotate(90)])
    for data in (clear, turned_png, moving):
        assert torch.equal(decode(with_chunks(data, (b"tEXt", b"a\0b"))), decode(data))
        assert describe(with_chunks(data, (b"tEXt", b"a\0b"))) == describe(data)
    assert describe(clear)[0] == "PNG palette"
    assert describe(moving)[0] == "PNG colour, animated"


def test_a_png_that_is_cut_off_is_refused_as_before() -> None:
    data = saved(RGB, "PNG")
    for length in (20, 40, len(data) // 2, len(data) - 20):
        with pytest.raises(Undecodable, match=r"damaged|no known format"):
            decode(with_chunks(data, (b"tEXt", b"a\0b"))[:length])


def test_inks_multiply() -> None:
    """CMYK: light is what cyan, magenta or yellow lets through, times what black lets through."""
    inks = np.broadcast_to(np.array([200, 40, 90, 60], np.uint8), (16, 16, 4))
    picture_CHW = decode(saved(Image.fromarray(inks, "CMYK"), "JPEG", quality=100, subsampling=0))
    expected = (255 - np.array([200, 40, 90])) * (255 - 60) / 255
    np.testing.assert_allclose(picture_CHW[:, 8, 8].numpy(), expected, atol=2)


def test_inks_as_luma_and_chroma() -> None:
    """YCCK: a CMYK file whose Adobe mark says that its first three channels are luma and chroma."""
    y, cb, cr, k = 140, 100, 180, 220  # as they lie in the file, where Adobe stores 255 - ink
    inks = np.broadcast_to(255 - np.array([y, cb, cr, k], np.uint8), (16, 16, 4))
    data = bytearray(saved(Image.fromarray(inks, "CMYK"), "JPEG", quality=100, subsampling=0))
    data[data.index(b"Adobe") + 11] = 2
    colour = np.array(
        [y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128)]
    )
    np.testing.assert_allclose(decode(bytes(data))[:, 8, 8].numpy(), (255 - colour) * k / 255, atol=3)


def test_exif_does_not_rotate() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees"
    turned = decode(saved(RGB, "JPEG", quality=90, exif=exif))
    assert torch.equal(turned, decode(saved(RGB, "JPEG", quality=90)))


def png_claiming(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">IIII", zlib.crc32(chunk), 0, 0x49444154, 0)
    )


def jpeg_claiming(width: int, height: int, of: bytes = AS_PILLOW["4:2:0"]) -> bytes:
    data = bytearray(of)
    frame = data.index(b"\xff\xc2" if b"\xff\xc2" in data else b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<html>not found</html>", "no known format.*22 bytes, the first are 3c 68"),
        (b"\xff\xd8\xff", "no known format"),
        (png_claiming(12_000, 12_000), "too large: 12000 x 12000 in 45 bytes of this format take 1,152,000,045"),
        (png_claiming(100_000, 100_000), "too large: it claims more pixels than Pillow decodes"),
        (jpeg_claiming(65000, 65000), "too large: 65000 x 65000 in "),
        (saved(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "pixels without a known range: of mode F"),
        (AS_PILLOW["4:2:0"][:-700], "damaged: .*truncated"),
        (AS_PILLOW["PNG"][:-700], "damaged: .*truncated"),
    ],
)
def test_refuses_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(Undecodable, match=reason):
        decode(data)


@pytest.mark.parametrize(
    ("width", "height", "how", "taken"),
    [
        (9331, 6530, {"progressive": True, "subsampling": 0}, True),  # the largest of ILSVRC-2012 has so many pixels
        (12_000, 9_000, {}, True),  # a telephone's
        (12_000, 9_000, {"progressive": True}, True),
        (12_000, 9_000, {"progressive": True, "subsampling": 0}, False),
        (16_320, 12_240, {}, True),
        (16_320, 12_240, {"progressive": True}, False),
        (18_000, 15_000, {}, False),
    ],
)
def test_a_jpeg_has_as_many_pixels_as_its_decoder_has_memory_for(
    width: int, height: int, how: dict[str, Any], taken: bool
) -> None:
    data = jpeg_claiming(width, height, saved(RGB, "JPEG", **how))
    reason = limits.jpeg(data).reason
    assert reason == "" if taken else reason.startswith(f"too large: {width} x {height} in ")


@pytest.mark.slow
def test_a_photograph_of_108_megapixels_is_decoded_unless_fewer_are_allowed() -> None:
    data = saved(Image.new("RGB", (12_000, 9_000), (9, 200, 90)), "JPEG")
    picture_CHW = decode(data)
    assert picture_CHW.shape == (3, 9_000, 12_000)
    np.testing.assert_array_equal(picture_CHW[:, :8, :8], decode(saved(Image.new("RGB", (8, 8), (9, 200, 90)), "JPEG")))
    with pytest.raises(TooManyPixels, match=r"^too many pixels: 12000 x 9000, more than 107,999,999$"):
        decode_with_warning(data, 107_999_999)
    with pytest.raises(
        Undecodable, match=r"^too large: .*; with less memory it does not decode: Premature end of JPEG"
    ):
        decode(data[:-700])


def test_every_cut_and_every_scratch_is_a_reason_or_a_picture() -> None:
    random = np.random.default_rng(2)
    small = Image.fromarray(scene(24, 24))
    for data in (saved(small, "JPEG"), saved(small, "PNG"), saved(small.convert("CMYK"), "JPEG")):
        for end in random.integers(0, len(data), 60):
            try:
                picture_CHW = decode(data[:end])
            except Undecodable:
                continue
            assert end > len(data) - 20  # only the mark of the end is missing
            assert torch.equal(picture_CHW, decode(data))
        for _ in range(100):
            scratched = bytearray(data)
            for place in random.integers(0, len(data), 5):
                scratched[place] = random.integers(256)
            try:
                picture_CHW = decode(bytes(scratched))
            except Undecodable:
                continue
            assert picture_CHW.ndim == 3
            assert len(picture_CHW) == 3


DEEP = Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100)


def turned(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def deep_colour() -> bytes:
    """A PNG of 16 bits for each of red, green and blue, which Pillow reads and does not write: from one of 8 bits, whose
    pixels are all nought.
    """

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
    assert describe(data) == (kind, 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("number", range(1, 9))
def test_an_orientation_is_seen_and_not_applied(kind: str, number: int) -> None:
    data = saved(RGB, kind, exif=turned(number))
    assert describe(data) == (f"{kind} colour", number)
    assert (decode(data) == decode(saved(RGB, kind))).all()


@pytest.mark.parametrize(("order", "sign"), [(">", b"MM"), ("<", b"II")])
def test_an_orientation_is_found_in_either_order_of_bytes_behind_other_tags(order: str, sign: bytes) -> None:
    """A block by the definition: its head, some bytes of no matter, a directory of three tags."""
    tags = [(0x010F, 2, 4, b"abc\0"), (0x0112, 3, 1, struct.pack(order + "HH", 8, 0)), (0x0128, 3, 1, bytes(4))]
    directory = struct.pack(order + "H", 3) + b"".join(
        struct.pack(order + "HHI", tag, kind, count) + value for tag, kind, count, value in tags
    )
    block = b"Exif\0\0" + sign + struct.pack(order + "HI", 42, 20) + bytes(12) + directory + bytes(4)
    assert describe(saved(RGB, "JPEG", exif=block)) == ("JPEG colour", 8)


@pytest.mark.parametrize("number", [0, 9, 65535])
def test_an_orientation_that_exif_does_not_know_is_none(number: int) -> None:
    assert describe(saved(RGB, "JPEG", exif=turned(number)))[1] == 1


def test_metadata_that_is_broken_is_nobody_s_loss() -> None:
    """Whatever five of its bytes are: no error, and no other format."""
    random = np.random.default_rng(1)
    whole = saved(RGB, "JPEG", exif=turned(6))
    first = whole.index(b"Exif")
    assert describe(whole)[1] == 6
    for _ in range(300):
        data = bytearray(whole)
        for place in random.integers(first, first + 32, 5):
            data[place] = random.integers(256)
        kind, orientation = describe(bytes(data))
        assert kind == "JPEG colour"
        assert 1 <= orientation <= 8


def tensor(picture: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1)


def psnr(one: Any, other: Any) -> float:
    error = np.mean((np.asarray(one, np.float64) - np.asarray(other, np.float64)) ** 2)
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


def test_encodes_what_it_was_given() -> None:
    picture = scene(64, 64)
    data = encode(tensor(picture), 95)
    assert (
        psnr(decode(data), picture.transpose(2, 0, 1))
        > psnr(decode(saved(Image.fromarray(picture), "JPEG", quality=90)), picture.transpose(2, 0, 1))
        > 25
    )
    assert len(encode(tensor(picture), 30)) < len(data)
    assert Image.open(io.BytesIO(data)).format == "JPEG"


@pytest.mark.parametrize(("height", "width"), [(1, 1), (64, 48), (3, 1000)])
def test_raw_is_every_pixel_to_us_and_to_pillow(height: int, width: int) -> None:
    picture = scene(max(height, 4), max(width, 4))[:height, :width]
    data = encode(tensor(picture), "raw")
    assert len(data) == picture.size + len(f"P6 {width} {height} 255 ")
    assert Image.open(io.BytesIO(data)).format == "PPM"
    np.testing.assert_array_equal(by_pillow(data), picture.transpose(2, 0, 1))
    assert torch.equal(decode(data), tensor(picture))
    decode(data).zero_()  # a tensor of its own
    assert torch.equal(decode(data), tensor(picture))


def test_raw_pixels_that_were_cut_are_refused() -> None:
    data = encode(tensor(scene(24, 24)), "raw")
    for end in (len(data) - 1, len(data) // 2, 13):
        with pytest.raises(Undecodable, match="damaged"):
            decode(data[:end])
    assert torch.equal(decode(data + b"\n"), decode(data)), "what comes behind the pixels is not looked at"


def test_other_writers_heads_are_read_too() -> None:
    """With a remark, on one line, or of fewer levels, which Pillow spreads to 256."""
    pixels = scene(2, 3).tobytes()
    expected = torch.from_numpy(scene(2, 3)).permute(2, 0, 1)
    for head in (b"P6 3 2 255\n", b"P6\n# made by hand\n3 2\n255\n", b"P6\n3 2\n255 "):
        assert torch.equal(decode(head + pixels), expected)
    assert decode(b"P6\n1 1\n15\n\x0f\x00\x0f").flatten().tolist() == [255, 0, 255]
