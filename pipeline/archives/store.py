"""Paths in the data store, which know the store's root: the index names archives relative to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pipeline.runtime import paths
from pipeline.runtime.paths import AnyPath


@dataclass(frozen=True, slots=True)
class StorePath:
    """A file or folder in the data store. `str()` gives the full path."""

    root: AnyPath
    inside: str = ""
    """Path relative to the root, with slashes, as in the index; empty for the root itself."""

    @property
    def path(self) -> AnyPath:
        """The full path."""
        return self.root / self.inside if self.inside else self.root

    def __truediv__(self, below: str) -> StorePath:
        return replace(self, inside=f"{self.inside}/{below}" if self.inside else below)

    def __str__(self) -> str:
        return str(self.path)

    def files(self, pattern: str) -> Iterator[StorePath]:
        """Yields the files below this folder, at any depth, whose names match the pattern."""
        return (self / paths.below(self.path, file) for file in self.path.rglob(pattern))
