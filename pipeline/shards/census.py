"""Counts over the source's picture files: formats, sizes, orientations, damage, duplicates, and reasons of rejection."""

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
from pipeline.shards import duplicates


@dataclass(kw_only=True, slots=True)
class Census:
    """The contents of `data/shards/pictures.json`. Each picture is counted in `formats` or in `rejected`."""

    formats: dict[str, int] = field(default_factory=dict)
    """Kept pictures by the kind of file."""
    rejected: dict[str, int] = field(default_factory=dict)
    """Rejected pictures by the category of the reason."""
    orientations: dict[str, int] = field(default_factory=dict)
    """Kept pictures with an EXIF orientation other than 1, by that number. Orientations are not applied."""
    smaller: int = 0
    """Kept pictures whose shorter side is less than the stored side, so that they were enlarged."""
    damaged: int = 0
    """Kept pictures about whose coded data the JPEG decoder warned."""
    duplicates: dict[str, int] = field(default_factory=dict)
    """Kept pictures of val or test whose file has the same bytes as a training picture's, by split."""
    file_bytes: int = 0
    """Total size of the kept pictures' original files."""
    pixels: int = 0
    """Total pixels of the kept pictures' originals."""

    def keep(
        self, kind: str, orientation: int, file_bytes: int, width: int, height: int, side: int, *, damaged: bool = False
    ) -> None:
        """Counts a kept picture, stored with `side` pixels; `kind` and `orientation` are from `pictures.describe`."""
        _count(self.formats, kind)
        if orientation != 1:
            _count(self.orientations, str(orientation))
        self.smaller += min(width, height) < side
        self.damaged += damaged
        self.file_bytes += file_bytes
        self.pixels += width * height

    def reject(self, reason: str) -> None:
        """Counts a rejected picture by its reason's part before the colon."""
        _count(self.rejected, reason.partition(":")[0])

    def __add__(self, other: Census) -> Census:
        return Census(
            formats=dict(Counter(self.formats) + Counter(other.formats)),
            rejected=dict(Counter(self.rejected) + Counter(other.rejected)),
            orientations=dict(Counter(self.orientations) + Counter(other.orientations)),
            smaller=self.smaller + other.smaller,
            damaged=self.damaged + other.damaged,
            duplicates=dict(Counter(self.duplicates) + Counter(other.duplicates)),
            file_bytes=self.file_bytes + other.file_bytes,
            pixels=self.pixels + other.pixels,
        )

    @property
    def kept(self) -> int:
        """Number of pictures kept."""
        return sum(self.formats.values())

    @property
    def indexed(self) -> int:
        """Number of pictures in the index."""
        return self.kept + sum(self.rejected.values())

    def lines(self) -> list[str]:
        """The counts as lines of text."""
        said = [f"{self.indexed:,} pictures: {_words(self.formats) or 'none kept'}"]
        if self.rejected:
            said.append(f"rejected: {_words(self.rejected)}")
        if self.kept:
            size, pixels = self.file_bytes / self.kept / 1000, self.pixels / self.kept / 1e6
            said.append(f"originals have {size:,.0f} kB and {pixels:.2f} megapixels on average")
        if self.smaller:
            said.append(f"{self.smaller:,} are smaller than the stored size, and were enlarged")
        if self.orientations:
            said.append(f"{sum(self.orientations.values()):,} have an EXIF orientation, which is not applied")
        if self.damaged:
            said.append(f"damaged, kept: {self.damaged:,}; damaged.parquet lists them")
        if self.duplicates:
            said.append(f"{duplicates.words(self.duplicates)}; {duplicates.FILE} lists them")
        return said

    def to_json(self) -> str:
        """The counts as JSON text; equal counts give equal text."""
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def read(cls, file: Path) -> Self:
        """Reads `pictures.json`. `OSError` or `ValueError`, with the command to run, if it is not as `resize` wrote it."""
        return cls.parse(digests.read(file, "resize"), file)

    @classmethod
    def parse(cls, text: bytes | str, file: AnyPath) -> Self:
        """Parses the text of `file`; `ValueError` if it is not a census."""
        found = documents.parse(text, cls, file, "resize")
        for name in ("formats", "rejected", "orientations", "duplicates"):
            for kind, count in getattr(found, name).items():
                if count < 1:
                    raise ValueError(
                        f"{file}: {name}.{kind}: has to be 1 or more, is {count}. {digests.again('resize')}"
                    )
        for name in ("smaller", "damaged", "file_bytes", "pixels"):
            if (count := getattr(found, name)) < 0:
                raise ValueError(f"{file}: {name}: has to be 0 or more, is {count}. {digests.again('resize')}")
        return found


def ranked(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Counts in descending order; ties by name, so that the order does not depend on the order of counting."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in ranked(counts))


def _count(counts: dict[str, int], kind: str) -> None:
    counts[kind] = counts.get(kind, 0) + 1
