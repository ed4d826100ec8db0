"""A file or folder of the data store: it knows the store that it is in, so the index can name it by its path from there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pipeline.runtime import paths
from pipeline.runtime.paths import AnyPath


@dataclass(frozen=True, slots=True)
class StorePath:
    """One value for what would be two everywhere: the path, and the root of the store."""

    root: AnyPath
    inside: str = ""
    """Path from the root, with slashes, as the index has it; empty for the root itself."""

    @property
    def path(self) -> AnyPath:
        """Where it lies."""
        return self.root / self.inside if self.inside else self.root

    def __truediv__(self, below: str) -> StorePath:
        return replace(self, inside=f"{self.inside}/{below}" if self.inside else below)

    def __str__(self) -> str:
        return str(self.path)

    def files(self, pattern: str) -> Iterator[StorePath]:
        """The files below this folder, at any depth, whose names fit the pattern."""
        return (self / paths.below(self.path, file) for file in self.path.rglob(pattern))
