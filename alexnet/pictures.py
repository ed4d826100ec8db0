"""Pictures: decoding a file's bytes to pixels, encoding pixels, and describing the kind of file.

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
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401 - else Pillow loads each of its plugins to find this one
)
from torch import Tensor

from alexnet import formats, limits
from alexnet.codec import decode_jpeg, encode_jpeg
from alexnet.limits import FRAMES, jpeg_segments

PPM = re.compile(rb"P6\n([1-9]\d{0,4}) ([1-9]\d{0,4})\n255\n")
"""The usual header of a binary PPM; its groups are width and height. The raw pixels follow it."""

FAST_PPM = (3, 2)
"""Memory for decoding such a PPM: bytes per pixel and per byte of the file, as in `limits.COST`."""

PNG = b"\x89PNG\r\n\x1a\n"
"""The first bytes of a PNG."""

USED = (b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT")
"""Ancillary chunks of a PNG that are read here: transparency, orientation, animation. Critical ones begin with a capital."""

EXIF = b"Exif\0\0"
"""The first bytes of an EXIF block."""

COMPONENTS = {1: "JPEG grey", 3: "JPEG colour", 4: "JPEG CMYK"}
"""Kinds of JPEG by their number of components."""

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
"""Pillow's modes in words, without a mode's suffix after `;`. A mode not listed keeps its own name."""


class Undecodable(ValueError):  # noqa: N818 - the name is the verdict on the bytes
    """The bytes cannot be decoded to a picture. The message is the reason; its part before the colon is the category."""


class TooManyPixels(Undecodable):
    """The picture has more pixels than the caller allows."""


def decode(data: bytes) -> Tensor:
    """Decodes a file in one of `formats.TAKEN` to uint8 3×H×W in red, green, blue.

    Decoding takes at most `limits.MEMORY` (1 GiB) and about ten seconds; a file whose header claims more is refused
    before it is decoded. EXIF rotation is not applied, but a TIFF's orientation tag is; colour profiles are ignored. Grey
    becomes three equal channels, transparency is dropped, samples of 12 and 16 bits keep their upper 8, and an animation gives
    its first frame. Raises `Undecodable` with the reason.
    """
    return decode_with_warning(data)[0]


def decode_with_warning(data: bytes, max_pixels: int | None = None) -> tuple[Tensor, str]:
    """Decodes like `decode`, and says what is damaged: `codec.decode_jpeg`'s warning about a grey or coloured JPEG, else "".

    A picture of more than `max_pixels` raises `TooManyPixels` before it is decoded; None: only memory is limited.
    """
    if not data:
        raise Undecodable("the file is empty")
    _refuse(limits.of_file(data))
    _refuse(formats.refused(data))
    pixels = PPM.match(data)
    if pixels is not None:
        width, height = int(pixels[1]), int(pixels[2])
        _refuse(limits.of_size(width, height, FAST_PPM, data))
        if len(data) == pixels.end() + 3 * width * height:
            _check_pixels(width, height, max_pixels)
            return _pixels(data, pixels.end(), height, width), ""
    jpeg = limits.jpeg(data)
    _refuse(jpeg.reason)
    if jpeg.components in (1, 3):
        _check_pixels(jpeg.width, jpeg.height, max_pixels)
        try:
            return decode_jpeg(data)
        except ValueError as error:
            # Pillow reads more kinds of JPEG, and says plainly what is wrong with the others, but takes more memory
            if reason := limits.of_size(jpeg.width, jpeg.height, limits.COST["JPEG"], data):
                raise Undecodable(f"{reason}; with less memory it does not decode: {error}") from None
    return _decode_with_pillow(data, max_pixels), ""


def _pixels(data: bytes, first: int, height: int, width: int) -> Tensor:
    rows = torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=first)
    return rows.reshape(height, width, 3).permute(2, 0, 1)


def _refuse(reason: str) -> None:
    if reason:
        raise Undecodable(reason)


def _check_pixels(width: int, height: int, max_pixels: int | None) -> None:
    if max_pixels is not None and width * height > max_pixels:
        raise TooManyPixels(f"too many pixels: {width} x {height}, more than {max_pixels:,}")


def _decode_with_pillow(data: bytes, max_pixels: int | None) -> Tensor:
    for check in (limits.of_ppm, limits.of_webp, limits.of_tiff):
        _refuse(check(data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata, which is not used here
        try:
            with _opened(data) as picture:
                _refuse(limits.of_size(*picture.size, limits.COST[str(picture.format)], data))
                _check_pixels(*picture.size, max_pixels)
                return torch.from_numpy(_rgb(picture)).permute(2, 0, 1)
        except Undecodable:
            raise
        except UnidentifiedImageError:
            raise Undecodable(
                f"no known format of pictures: {len(data)} bytes, the first are {data[:8].hex(' ')}"
            ) from None
        except Image.DecompressionBombError:
            raise Undecodable("too large: it claims more pixels than Pillow decodes") from None
        except Exception as error:  # a broken file can raise anything in Pillow's parsers
            raise Undecodable(f"damaged: {str(error) or type(error).__name__}") from None


def _opened(data: bytes) -> Image.Image:
    return Image.open(limits.Counted(_without_remarks(data)), formats=formats.TAKEN)


def _without_remarks(data: bytes) -> bytes:
    """A PNG without the chunks that do not change a pixel, such as texts and colour profiles; any other file as it is.

    Pillow refuses a picture for a text that unpacks to more than 1 MiB, or for a wrong checksum of such a chunk.
    """
    if not data.startswith(PNG):
        return data
    parts, offset = [PNG], len(PNG)
    for _ in range(limits.READS // 30):  # 100,000 chunks; a file with more goes to Pillow, which stops at the limit
        length, kind = int.from_bytes(data[offset : offset + 4], "big"), data[offset + 4 : offset + 8]
        end = offset + 12 + length
        if len(kind) < 4 or end > len(data):  # cut off: Pillow says what is missing
            return b"".join([*parts, data[offset:]])
        if kind in USED or kind[:1].isupper():
            parts.append(data[offset:end])
        offset = end
        if kind == b"IEND":
            return b"".join(parts)
    return data


def _rgb(picture: Image.Image) -> NDArray[np.uint8]:
    """The pixels, H×W×3, converted in strips of rows: each of Pillow's steps copies its whole input."""
    if picture.mode in ("I", "F"):
        raise Undecodable(f"pixels without a known range: of mode {picture.mode} (32 bits)")
    picture.load()
    width, height = picture.size
    bits = _bits(picture)
    rows = max(1, limits.STRIP // width)
    if rows >= height:
        return _converted(picture, bits)
    whole = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):
        whole[top : top + rows] = _converted(picture.crop((0, top, width, min(height, top + rows))), bits)
    return whole


def _bits(picture: Image.Image) -> int:
    """Bits of a sample of 16-bit grey. A TIFF may use only 12 of them, which Pillow leaves at the lower end."""
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        return int(picture.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0])
    return 16


def _converted(picture: Image.Image, bits: int) -> NDArray[np.uint8]:
    """The pixels, H×W×3. Pillow has undone Adobe's inverted CMYK when it read the file."""
    if picture.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255
        grey = (np.asarray(picture).astype(np.uint16) >> (bits - 8)).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.array(picture.convert("RGB"))


def describe(data: bytes) -> tuple[str, int]:
    """The kind of a picture file in words, and its EXIF orientation, 1 to 8. The file must be one that `decode` reads.

    Orientation 1 means upright; it is also given where there is no tag.
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
        warnings.simplefilter("ignore")  # about metadata, as in decoding
        with _opened(data) as picture:
            mode, *bits = picture.mode.split(";")
            deep = bits or ";16" in str(getattr(picture, "tile", ""))
            kind = f"{picture.format} {COLOURS.get(mode, mode)}{f' of {_bits(picture)} bits' if deep else ''}"
            if _animated(picture):
                kind += ", animated"
            return kind, _orientation(picture.info.get("exif", b""))


def _animated(picture: Image.Image) -> bool:
    try:
        return bool(getattr(picture, "is_animated", False))
    except Exception:  # to answer, Pillow seeks a GIF's second frame, which may be damaged
        return False


def _orientation(exif: bytes) -> int:
    """The value of tag 0x0112 in the block's first directory (an EXIF block is a small TIFF); 1 if it cannot be read."""
    block = exif.removeprefix(EXIF)
    order: Literal["little", "big"] = "little" if block.startswith(b"II") else "big"

    def number(offset: int, length: int) -> int:
        return int.from_bytes(block[offset : offset + length], order)

    first = number(4, 4)
    for entry in range(first + 2, first + 2 + 12 * number(first, 2), 12):
        if number(entry, 2) == 0x0112:
            value = number(entry + 8, 2)
            return value if 1 <= value <= 8 else 1
    return 1


def encode(picture_CHW: Tensor, quality: int | Literal["raw"]) -> bytes:
    """Encodes a uint8 picture, 3×H×W, as a file without metadata.

    An integer `quality`, 1 to 100, gives a JPEG with 4:2:0 chroma subsampling; "raw" gives a binary PPM: a short text
    header, then the pixels. A PPM is the fastest lossless format to read: one copy, where PNG has checksums and BMP
    reverses rows and channels.
    """
    if quality == "raw":
        _, height, width = picture_CHW.shape
        return b"P6\n%d %d\n255\n" % (width, height) + picture_CHW.permute(1, 2, 0).contiguous().numpy().tobytes()
    return encode_jpeg(picture_CHW, quality)
