"""What the pictures were as they came: their formats, sizes and turns, and why some were left out."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from pipeline.runtime import digests, documents
from pipeline.runtime.paths import AnyPath


@dataclass(kw_only=True, slots=True)
class Census:
    """Counts over pictures: `data/shards/pictures.json`. Each picture is in `formats` or in `rejected`."""

    formats: dict[str, int] = field(default_factory=dict)
    """Kept pictures, by the kind of their file."""
    rejected: dict[str, int] = field(default_factory=dict)
    """Rejected pictures, by the kind of the reason."""
    orientations: dict[str, int] = field(default_factory=dict)
    """Kept pictures whose EXIF tag asks for a turn or a reflection, by its number. It is not applied."""
    smaller: int = 0
    """Kept pictures whose shorter side has fewer pixels than is stored: enlarged."""
    file_bytes: int = 0
    """Bytes of the kept pictures as they came."""
    pixels: int = 0
    """Pixels of the kept pictures as they came."""

    def keep(self, kind: str, orientation: int, file_bytes: int, width: int, height: int, side: int) -> None:
        """Counts a picture that was decoded, and is stored with `side` pixels; see `alexnet.pictures.describe`."""
        _count(self.formats, kind)
        if orientation != 1:
            _count(self.orientations, str(orientation))
        self.smaller += min(width, height) < side
        self.file_bytes += file_bytes
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
        """Reads `pictures.json`; if it is not as `resize` wrote it, an `OSError` or `ValueError` says what to run."""
        return cls.parse(digests.read(file, "resize"), file)

    @classmethod
    def parse(cls, text: bytes | str, file: AnyPath) -> Self:
        """The counts in a text that was read from `file`; `ValueError` if they are none."""
        found = documents.parse(text, cls, file, "resize")
        for name in ("formats", "rejected", "orientations"):
            for kind, count in getattr(found, name).items():
                if count < 1:
                    raise ValueError(
                        f"{file}: {name}.{kind}: has to be 1 or more, is {count}. {digests.again('resize')}"
                    )
        for name in ("smaller", "file_bytes", "pixels"):
            if (count := getattr(found, name)) < 0:
                raise ValueError(f"{file}: {name}: has to be 0 or more, is {count}. {digests.again('resize')}")
        return found


def ranked(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """What there is most of first; by name where they are equal, so that nothing depends on who counted first."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in ranked(counts))


def _count(counts: dict[str, int], kind: str) -> None:
    counts[kind] = counts.get(kind, 0) + 1
