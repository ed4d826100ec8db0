"""From the bytes of a picture to 3 x 256 x 256, the mean image, and the colours' covariance (§2, §4.1).

Names of arrays end in their axes: B images, C channels (red, green, blue), H rows, W columns.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO, Literal

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
from torch.nn import functional

from alexnet import limits
from alexnet.limits import FRAMES, jpeg_segments

Filter = Literal["bilinear", "bicubic", "area"]

Fit = Literal["crop", "warp"]

PPM = re.compile(rb"P6\n([1-9]\d{0,4}) ([1-9]\d{0,4})\n255\n")
"""The head of a PPM as it is usually written; width, height. The pixels follow as they are."""

FAST_PPM = (3, 2)
"""What such a PPM takes: bytes for each pixel and for each byte of the file, as in `limits.COST`."""

STRIP = 2**20
"""Pixels that are converted at a time."""

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

RGB = 3
"""torchvision's word for three channels, whatever the file has (`torchvision.io.ImageReadMode.RGB`)."""


def _load_codec() -> None:
    """The JPEG codec of torchvision as operators of torch.

    Without `import torchvision`, which brings all its models and half a compiler along: two seconds of every process
    that looks at a picture. And without torchvision's functions for it, which warn at every call that TorchCodec will
    replace them.
    """
    spec = find_spec("torchvision")
    folder = Path(spec.origin).parent if spec and spec.origin else Path("torchvision")
    libraries = sorted(folder.glob("image*.so"))
    if not libraries:
        raise ImportError(f"{folder}: no image*.so; torchvision is not installed, or was built without its JPEG codec")
    torch.ops.load_library(libraries[0])  # type: ignore[no-untyped-call]


_load_codec()


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
            return _decode_jpeg(data)
        except RuntimeError:
            pass  # Pillow decides: it reads more kinds of JPEG, and says plainly what is wrong with the others
    return _decode_with_pillow(data)


def _pixels(data: bytes, first: int, height: int, width: int) -> Tensor:
    rows = torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=first)
    return rows.reshape(height, width, 3).permute(2, 0, 1)


def _decode_jpeg(data: bytes) -> Tensor:
    file = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    picture_CHW: Tensor = torch.ops.image.decode_jpeg(file, RGB)
    return picture_CHW


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
    rows = max(1, STRIP // width)
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


def look(data: bytes) -> tuple[str, int]:
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


def resize(picture_CHW: Tensor, side: int, how: Filter, fit: Fit = "crop") -> Tensor:
    """Rescales so that the shorter side is `side` and takes the central patch (§2): uint8 3 x H x W -> 3 x side x side.

    bilinear and bicubic widen with the reduction (antialiasing), as Pillow's do, to within rounding. area is what the
    authors' later program does (cuda-convnet2, make-data): the mean of the pixels covered where the picture shrinks,
    bicubic interpolation where it grows. To warp is to make both sides `side`, whatever the shape; `area` cannot.
    """
    if fit == "warp":
        assert how != "area", "area keeps the shape"
        height = width = side
    else:
        picture_CHW = _without_far_ends(picture_CHW)
        _, height, width = picture_CHW.shape
    if how == "area":
        if min(height, width) > side:
            return _area(picture_CHW, side)
        if min(height, width) == side:
            return _centre(picture_CHW, side)
    size = (side, side * width // height) if height <= width else (side * height // width, side)
    mode, antialias = ("bicubic", False) if how == "area" else (how, True)
    # Said to lie as rows of pixels, which it does, the picture is not copied to planes and back: a quarter of the time
    picture_BCHW = picture_CHW.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    resized_BCHW = functional.interpolate(picture_BCHW, size=size, mode=mode, antialias=antialias)
    return _centre(resized_BCHW[0], side)


def _without_far_ends(picture_CHW: Tensor) -> Tensor:
    """Cuts whole squares off both ends of a picture five times as long as wide or more; none comes into the patch.

    For memory: a strip of 2 x 20,000 pixels would else be resized to 256 x 2,560,000.
    """
    height, width = picture_CHW.shape[1:]
    shorter = min(height, width)
    top, left = (shorter * max(0, (length // shorter - 3) // 2) for length in (height, width))
    return picture_CHW[:, top : height - top, left : width - left]


def _centre(picture_CHW: Tensor, side: int) -> Tensor:
    top, left = (round((length - side) / 2) for length in picture_CHW.shape[1:])
    return picture_CHW[:, top : top + side, left : left + side]


def _area(picture_CHW: Tensor, side: int) -> Tensor:
    """Means over the cells of a grid of side x side laid over the central square, in exact integers."""
    square = min(picture_CHW.shape[1:])
    whole = (2 * square) ** 2  # a cell is square / side pixels long, and counted in units of 1 / (2 side)
    means = []
    rows = max(1, STRIP // picture_CHW.shape[2])  # at a time: in int64 a large picture takes gigabytes
    for channel_HW in picture_CHW.numpy():
        bands = (channel_HW[top : top + rows].astype(np.int64) for top in range(0, len(channel_HW), rows))
        sums_HW = np.concatenate([_sums_between(band_HW, square, side, axis=1) for band_HW in bands])
        sums_HW = _sums_between(sums_HW, square, side, axis=0)
        means.append(((2 * sums_HW + whole) // (2 * whole)).astype(np.uint8))
    return torch.from_numpy(np.stack(means))


def _sums_between(values: NDArray[np.int64], square: int, side: int, axis: int) -> NDArray[np.int64]:
    """Sums of `values` along `axis` over `side` equal cells that part its central `square`, times 2 * side."""
    length = values.shape[axis]
    before = np.zeros_like(values, shape=[1 if a == axis else n for a, n in enumerate(values.shape)])
    running = np.concatenate([before, values.cumsum(axis)], axis)
    # Edges of the cells in units of 1 / (2 side) of a pixel: half pixels where an odd number is cut off
    edges = (length - square) * side + 2 * square * np.arange(side + 1)
    pixel, part = np.divmod(edges, 2 * side)
    shape = [-1 if a == axis else 1 for a in range(values.ndim)]
    inside = np.take(values, np.minimum(pixel, length - 1), axis) * part.reshape(shape)
    below: NDArray[np.int64] = np.take(running, pixel, axis) * (2 * side) + inside
    return np.diff(below, axis=axis)


def encode(picture_CHW: Tensor, quality: int | Literal["raw"]) -> bytes:
    """A file of a uint8 picture, 3 x H x W, without metadata, which `decode` and all the world read.

    A JPEG of a quality from 1 to 100, its colours at half the resolution (4:2:0); or raw, a PPM: a line of text, and the
    pixels. Of the formats that keep every pixel it is the fastest to read: a copy, where PNG has checksums and BMP its
    colours and rows the other way round.
    """
    if quality == "raw":
        _, height, width = picture_CHW.shape
        return b"P6\n%d %d\n255\n" % (width, height) + picture_CHW.permute(1, 2, 0).contiguous().numpy().tobytes()
    data: Tensor = torch.ops.image.encode_jpeg(picture_CHW, quality)
    return data.numpy().tobytes()


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over pictures in whole numbers: exact, so that any parting of the pictures gives the same."""

    images: int
    pixels_CHW: NDArray[np.int64]
    """Sum of the pictures."""
    products_CC: NDArray[np.int64]
    """Sum over pictures and places of one channel times another."""

    @classmethod
    def none(cls, side: int) -> Sums:
        """The sums over no picture."""
        return cls(0, np.zeros((3, side, side), np.int64), np.zeros((3, 3), np.int64))

    def add(self, images_BCHW: NDArray[np.uint8]) -> Sums:
        """The sums with further pictures, uint8 B x 3 x side x side."""
        assert images_BCHW.dtype == np.uint8, images_BCHW.dtype
        products = np.zeros((3, 3), np.int64)
        for picture_CHW in images_BCHW:
            flat = picture_CHW.reshape(3, -1).astype(np.float64)
            products += (flat @ flat.T).astype(np.int64)  # whole numbers far below 2^53, so exact
        return self.merge(Sums(len(images_BCHW), images_BCHW.sum(axis=0, dtype=np.int64), products))

    def merge(self, other: Sums) -> Sums:
        """The sums over the pictures of both."""
        return Sums(
            self.images + other.images, self.pixels_CHW + other.pixels_CHW, self.products_CC + other.products_CC
        )


@dataclass(frozen=True, slots=True)
class Mean:
    """What the training pictures have in common: the mean image (§2) and how their colours vary (§4.1); 0 to 255."""

    image_CHW: NDArray[np.float32]
    covariance_CC: NDArray[np.float64]
    """Covariance of red, green and blue over all pixels, about their mean over all places."""
    eigenvalues_C: NDArray[np.float64]
    """Eigenvalues of the covariance, the largest first."""
    eigenvectors_CC: NDArray[np.float64]
    """In columns, in the order of the eigenvalues; the largest entry of each is positive."""
    images: int

    @classmethod
    def of(cls, sums: Sums) -> Mean:
        """From the sums over the training pictures; `ValueError` if there are none."""
        if sums.images == 0:
            raise ValueError("the mean of no pictures")
        covariance_CC = _covariance(sums)
        values, vectors = eigen(covariance_CC)
        largest = vectors[np.abs(vectors).argmax(axis=0), range(3)]
        return cls(
            image_CHW=(sums.pixels_CHW / sums.images).astype(np.float32),
            covariance_CC=covariance_CC,
            eigenvalues_C=np.maximum(values, 0.0),  # rounding makes a zero negative, and roots are drawn of these
            eigenvectors_CC=vectors * np.sign(largest),
            images=sums.images,
        )

    def save(self, file: Path | BinaryIO) -> None:
        """Writes an .npz, the same bytes for the same numbers."""
        np.savez(
            file,
            mean=self.image_CHW,
            covariance=self.covariance_CC,
            eigenvalues=self.eigenvalues_C,
            eigenvectors=self.eigenvectors_CC,
            images=np.int64(self.images),
        )

    @classmethod
    def load(cls, file: Path) -> Mean:
        """Reads what `save` wrote; `ValueError` if a byte is another: equal numbers have equal bytes."""
        data, again = file.read_bytes(), io.BytesIO()
        try:
            with np.load(io.BytesIO(data)) as arrays:
                mean = cls(
                    image_CHW=arrays["mean"],
                    covariance_CC=arrays["covariance"],
                    eigenvalues_C=arrays["eigenvalues"],
                    eigenvectors_CC=arrays["eigenvectors"],
                    images=int(arrays["images"]),
                )
            mean.save(again)
        except Exception as error:  # a broken zip can raise anything
            raise ValueError(f"{file}: damaged, or no mean of ours: {error}") from None
        if again.getvalue() != data:
            raise ValueError(f"{file}: damaged, or written by another version of numpy")
        return mean


def _covariance(sums: Sums) -> NDArray[np.float64]:
    """In fractions, since E[xy] - E[x]E[y] in floating point loses the digits that matter."""
    count = sums.images * sums.pixels_CHW[0].size
    totals = [int(total) for total in sums.pixels_CHW.sum(axis=(1, 2))]
    rows = [
        [float(Fraction(count * int(sums.products_CC[i, j]) - totals[i] * totals[j], count**2)) for j in range(3)]
        for i in range(3)
    ]
    return np.array(rows)


def eigen(symmetric: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Eigenvalues of a small symmetric matrix, falling, and its eigenvectors in columns: Jacobi's rotations (1846).

    In Python's own arithmetic, the same to the last bit on every machine. LAPACK's is not: its last bits differ between
    processors, and with them went the hash of data/mean.npz and all that is made of it.
    """
    size = len(symmetric)
    a = [[float(value) for value in row] for row in symmetric]
    vectors = [[float(i == j) for j in range(size)] for i in range(size)]
    pairs = [(p, q) for p in range(size) for q in range(p + 1, size)]
    scale = max(abs(value) for row in a for value in row)
    while max(abs(a[p][q]) for p, q in pairs) > scale * 1e-18:
        for p, q in pairs:
            if a[p][q] == 0:
                continue
            half = (a[q][q] - a[p][p]) / (2 * a[p][q])
            tangent = (1 if half >= 0 else -1) / (abs(half) + math.sqrt(half * half + 1))
            cosine = 1 / math.sqrt(tangent * tangent + 1)
            sine = tangent * cosine
            for rows, columns in ((a, False), (a, True), (vectors, False)):
                for k in range(size):
                    (i, j), (m, n) = ((p, k), (q, k)) if columns else ((k, p), (k, q))
                    one, other = rows[i][j], rows[m][n]
                    rows[i][j], rows[m][n] = cosine * one - sine * other, sine * one + cosine * other
            a[p][q] = a[q][p] = 0.0  # which it is but for rounding
    order = sorted(range(size), key=lambda place: -a[place][place])
    return np.array([a[place][place] for place in order]), np.array(vectors)[:, order]
