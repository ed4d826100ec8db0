"""What the pictures were as they came: their formats, sizes and turns, and why some were left out."""

from __future__ import annotations

import dataclasses
import io
import json
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

EXIF = b"Exif\0\0"

COLOURS = {
    "1": "black and white",
    "L": "grey",
    "LA": "grey with transparency",
    "P": "palette",
    "PA": "palette with transparency",
    "RGB": "colour",
    "RGBA": "colour with transparency",
    "YCbCr": "colour",
}
"""Pillow's modes in words; the others by their own name."""

COMPONENTS = {1: "grey", 3: "colour", 4: "CMYK"}
"""Of a JPEG, in words."""


@dataclass(kw_only=True, slots=True)
class Census:
    """Counts over pictures: `data/shards/pictures.json`. Each picture is in `formats` or in `rejected`."""

    formats: dict[str, int] = field(default_factory=dict)
    """Of the pictures that were kept."""
    rejected: dict[str, int] = field(default_factory=dict)
    """By the kind of the reason."""
    orientations: dict[str, int] = field(default_factory=dict)
    """Of the kept ones, those whose EXIF tag asks for a turn or a reflection, by its number. It is not applied."""
    smaller: int = 0
    """Of the kept ones, those whose shorter side has fewer pixels than is stored: enlarged."""
    file_bytes: int = 0
    """Of the kept ones as they came."""
    pixels: int = 0
    """Of the kept ones as they came."""

    def keep(self, data: bytes, width: int, height: int, side: int) -> None:
        """Counts a picture that was decoded, and is stored with `side` pixels."""
        kind, orientation = look(data)
        _count(self.formats, kind)
        if orientation != 1:
            _count(self.orientations, str(orientation))
        self.smaller += min(width, height) < side
        self.file_bytes += len(data)
        self.pixels += width * height

    def reject(self, reason: str) -> None:
        """Counts a picture that was not; what stands behind the colon is its own."""
        _count(self.rejected, reason.partition(":")[0])

    def __add__(self, other: Census) -> Census:
        return Census(
            formats=dict(Counter(self.formats) + Counter(other.formats)),
            rejected=dict(Counter(self.rejected) + Counter(other.rejected)),
            orientations=dict(Counter(self.orientations) + Counter(other.orientations)),
            smaller=self.smaller + other.smaller,
            file_bytes=self.file_bytes + other.file_bytes,
            pixels=self.pixels + other.pixels,
        )

    @property
    def kept(self) -> int:
        """How many pictures were kept."""
        return sum(self.formats.values())

    @property
    def indexed(self) -> int:
        """How many pictures there were."""
        return self.kept + sum(self.rejected.values())

    def lines(self) -> list[str]:
        """The counts as sentences."""
        said = [f"{self.indexed:,} pictures: {_words(self.formats) or 'none kept'}"]
        if self.rejected:
            said.append(f"rejected: {_words(self.rejected)}")
        if self.kept:
            size, pixels = self.file_bytes / self.kept / 1000, self.pixels / self.kept / 1e6
            said.append(f"as they came, {size:,.0f} kB and {pixels:.2f} megapixels on average")
        if self.smaller:
            said.append(f"{self.smaller:,} are smaller than what is stored, and were enlarged")
        if self.orientations:
            said.append(f"{sum(self.orientations.values()):,} have an EXIF orientation, which is not applied")
        return said

    def to_json(self) -> str:
        """The counts as text, the same for equal counts."""
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def read(cls, file: Path) -> Self:
        """Reads what was written; if it is not to be read, an `OSError` or `ValueError` says what to run."""
        try:
            return cls(**json.loads(file.read_text()))
        except FileNotFoundError:
            raise FileNotFoundError(f"{file}: not there. Run: dvc repro --force resize") from None
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file}: no counts of ours ({error}). Run: dvc repro --force resize") from None


def ranked(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """What there is most of first; by name where they are equal, so that nothing depends on who counted first."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in ranked(counts))


def _count(counts: dict[str, int], kind: str) -> None:
    counts[kind] = counts.get(kind, 0) + 1


def look(data: bytes) -> tuple[str, int]:
    """The format of a picture that decodes, in words, and the orientation that its EXIF tag asks for (1: as it is).

    Of a JPEG its head is read, which takes microseconds; of anything else Pillow is asked.
    """
    from PIL import Image

    from alexnet.dataset import FRAMES, jpeg_segments

    components, exif = 0, b""
    for marker, start, end in jpeg_segments(data):
        if marker in FRAMES and end - start >= 6:
            components = data[start + 5]
        elif marker == 0xE1 and data.startswith(EXIF, start):
            exif = data[start:end]
    if components in COMPONENTS:
        return f"JPEG {COMPONENTS[components]}", _orientation(exif)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata, as when it was decoded
        with Image.open(io.BytesIO(data)) as picture:
            deep = picture.mode.startswith("I;16") or ";16" in str(getattr(picture, "tile", ""))
            colours = "grey" if picture.mode.startswith("I;16") else COLOURS.get(picture.mode, picture.mode)
            kind = f"{picture.format} {colours}{' of 16 bits' if deep else ''}"
            if getattr(picture, "is_animated", False):
                kind += ", animated"
            return kind, _orientation(picture.info.get("exif", b""))


def _orientation(exif: bytes) -> int:
    if not exif:
        return 1
    from PIL import ExifTags, Image

    tags = Image.Exif()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tags.load(exif)
            value = tags.get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken metadata can raise anything in Pillow's parsers, and is nobody's loss
        return 1
    return value if isinstance(value, int) and 2 <= value <= 8 else 1
