"""Pictures: a file's bytes to pixels and back, and what kind of file it is.

Names of arrays end in their axes: C channels (red, green, blue), H rows, W columns.
"""

from __future__ import annotations

import re
import warnings
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import (
    Image,
    TiffImagePlugin,  # noqa: F401 - else Pillow loads each of its plugins to find this one
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)
from torch import Tensor

from alexnet import limits
from alexnet.codec import decode_jpeg, encode_jpeg
from alexnet.limits import FRAMES, jpeg_segments

PPM = re.compile(rb"P6\n([1-9]\d{0,4}) ([1-9]\d{0,4})\n255\n")
"""The head of a PPM as it is usually written; width, height. The pixels follow as they are."""

FAST_PPM = (3, 2)
"""What such a PPM takes: bytes for each pixel and for each byte of the file, as in `limits.COST`."""

EXIF = b"Exif\0\0"
"""How the EXIF block of a file begins."""

COMPONENTS = {1: "JPEG grey", 3: "JPEG colour", 4: "JPEG CMYK"}

COLOURS = {
    "1": "black and white",
    "L": "grey",
    "LA": "grey with transparency",
    "P": "palette",
    "PA": "palette with transparency",
    "I": "grey",
    "RGB": "colour",
    "RGBA": "colour with transparency",
    "YCbCr": "colour",
}
"""Pillow's modes in words, without what stands behind a semicolon; the others by their own name."""


class Undecodable(ValueError):  # noqa: N818 - a verdict on the bytes, said as one
    """The bytes are no picture that can be shown; the message is the reason, its kind before the colon."""


def decode(data: bytes) -> Tensor:
    """The picture in `data`, a file of one of `limits.FORMATS`, as uint8 3 x H x W in red, green, blue.

    It takes at most `limits.MEMORY`, 1 GiB, and some ten seconds: what may take more is refused by what it claims.
    The picture is taken as it lies in the file: an EXIF rotation is not applied (but a TIFF's tag, which says how its
    rows lie) and a colour profile is ignored, grey becomes three equal channels, transparency is dropped, 16 bits keep
    their upper 8, an animation gives its first picture. Raises `Undecodable` with the reason.
    """
    if not data:
        raise Undecodable("the file is empty")
    _refuse(limits.of_file(data))
    pixels = PPM.match(data)
    if pixels is not None:
        width, height = int(pixels[1]), int(pixels[2])
        _refuse(limits.of_size(width, height, FAST_PPM, data))
        if len(data) == pixels.end() + 3 * width * height:
            return _pixels(data, pixels.end(), height, width)
    jpeg = limits.jpeg(data)
    _refuse(jpeg.reason)
    if jpeg.components in (1, 3):
        try:
            return decode_jpeg(data)
        except RuntimeError:
            pass  # Pillow decides: it reads more kinds of JPEG, and says plainly what is wrong with the others
    return _decode_with_pillow(data)


def _pixels(data: bytes, first: int, height: int, width: int) -> Tensor:
    rows = torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=first)
    return rows.reshape(height, width, 3).permute(2, 0, 1)


def _refuse(reason: str) -> None:
    if reason:
        raise Undecodable(reason)


def _decode_with_pillow(data: bytes) -> Tensor:
    for check in (limits.of_ppm, limits.of_webp, limits.of_tiff):
        _refuse(check(data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata that nobody here reads
        try:
            with _opened(data) as picture:
                _refuse(limits.of_size(*picture.size, limits.COST[str(picture.format)], data))
                return torch.from_numpy(_rgb(picture)).permute(2, 0, 1)
        except Undecodable:
            raise
        except UnidentifiedImageError:
            raise Undecodable(
                f"no known format of pictures: {len(data)} bytes, the first are {data[:8].hex(' ')}"
            ) from None
        except Image.DecompressionBombError:
            raise Undecodable(f"too many pixels: it claims more than {limits.MAX_PIXELS:,}") from None
        except Exception as error:  # a broken file can raise anything in Pillow's parsers
            raise Undecodable(f"damaged: {str(error) or type(error).__name__}") from None


def _opened(data: bytes) -> Image.Image:
    return Image.open(limits.Counted(data), formats=limits.FORMATS)


def _rgb(picture: Image.Image) -> NDArray[np.uint8]:
    """H x W x 3, some rows at a time: each step of Pillow copies all it is given."""
    if picture.mode in ("I", "F"):
        raise Undecodable(f"pixels without a known range: of mode {picture.mode} (32 bits)")
    picture.load()
    width, height = picture.size
    rows = max(1, limits.STRIP // width)
    if rows >= height:
        return _converted(picture)
    whole = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):
        whole[top : top + rows] = _converted(picture.crop((0, top, width, min(height, top + rows))))
    return whole


def _converted(picture: Image.Image) -> NDArray[np.uint8]:
    """H x W x 3. Pillow undoes Adobe's inverted CMYK when it reads the file."""
    if picture.mode.startswith("I;16"):
        grey = (np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8)  # Pillow's own conversion clips at 255
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.array(picture.convert("RGB"))


def describe(data: bytes) -> tuple[str, int]:
    """The kind of file that a picture is, in words, and the orientation that its EXIF tag asks for. It has to decode.

    The orientation is EXIF's number, 1 to 8; 1, which is as the picture lies, also where there is no tag.
    """
    components, exif = 0, b""
    for marker, start, end in jpeg_segments(data):
        if marker in FRAMES and end - start >= 6:
            components = data[start + 5]
        elif marker == 0xE1 and data.startswith(EXIF, start):
            exif = data[start:end]
    if components in COMPONENTS:
        return COMPONENTS[components], _orientation(exif)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata, as when it was decoded
        with _opened(data) as picture:
            mode, *bits = picture.mode.split(";")
            deep = bits or ";16" in str(getattr(picture, "tile", ""))
            kind = f"{picture.format} {COLOURS.get(mode, mode)}{' of 16 bits' if deep else ''}"
            if _animated(picture):
                kind += ", animated"
            return kind, _orientation(picture.info.get("exif", b""))


def _animated(picture: Image.Image) -> bool:
    try:
        return bool(getattr(picture, "is_animated", False))
    except Exception:  # of a GIF Pillow looks for the second picture, which may be damaged
        return False


def _orientation(exif: bytes) -> int:
    """By the tag 0x0112 in the first directory of the block, which is a little TIFF; 1 if anything is wrong with it."""
    block = exif.removeprefix(EXIF)
    order: Literal["little", "big"] = "little" if block.startswith(b"II") else "big"

    def number(place: int, length: int) -> int:
        return int.from_bytes(block[place : place + length], order)

    first = number(4, 4)
    for entry in range(first + 2, first + 2 + 12 * number(first, 2), 12):
        if number(entry, 2) == 0x0112:
            value = number(entry + 8, 2)
            return value if 1 <= value <= 8 else 1
    return 1


def encode(picture_CHW: Tensor, quality: int | Literal["raw"]) -> bytes:
    """A file of a uint8 picture, 3 x H x W, without metadata, which `decode` and all the world read.

    A JPEG of a quality from 1 to 100, its colours at half the resolution (4:2:0); or raw, a PPM: a line of text, and the
    pixels. Of the formats that keep every pixel it is the fastest to read: a copy, where PNG has checksums and BMP its
    colours and rows the other way round.
    """
    if quality == "raw":
        _, height, width = picture_CHW.shape
        return b"P6\n%d %d\n255\n" % (width, height) + picture_CHW.permute(1, 2, 0).contiguous().numpy().tobytes()
    return encode_jpeg(picture_CHW, quality)
