"""The manifest of the shards: what they contain, and how their pictures were prepared. Its digest identifies the pictures."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from alexnet.preparation import MOST_PIXELS, Preparation
from pipeline.runtime import digests, documents
from pipeline.runtime.paths import AnyPath
from pipeline.shards.tables import SPLITS, Shard, Synset

MANIFEST = "manifest.json"

_NAME = re.compile(r"[\w-][\w.-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """`data/shards/manifest.json`, the contents of the shards. Its digest identifies the pictures in all later stages."""

    side: int
    """Side of the stored pictures, in pixels."""
    classes: tuple[Synset, ...]
    shards: dict[str, tuple[Shard, ...]]
    """Split → its shards, in order."""
    indexed: int
    """Pictures in the index."""
    rejected: int
    """Pictures of the index that were rejected."""
    drawn: bool
    """Whether the pictures were drawn by a program rather than photographed."""
    preparation: Preparation
    """How each picture was prepared, and how others are prepared that the same network is shown."""

    def rows(self, split: str) -> int:
        """Number of pictures in the split."""
        return sum(shard.rows for shard in self.shards[split])

    @property
    def digest(self) -> str:
        """sha256 that identifies the pictures, in hexadecimal."""
        # Without the preparation: the shards' own digests tell apart whatever it changes. Runs, folders and MLflow's models
        # from before it was in the manifest are named by this digest, and stay the same pictures'
        return hashlib.sha256(_text(self, "preparation").encode()).hexdigest()

    def to_json(self) -> str:
        """The manifest as JSON text; equal manifests give equal text."""
        return _text(self)

    @classmethod
    def read(cls, folder: AnyPath) -> Manifest:
        """Reads `folder/manifest.json`. `ValueError` or `OSError`, with the command to run, if it is not as `resize` wrote it."""
        file = folder / MANIFEST
        found = documents.parse(digests.read(file, "resize"), cls, file, "resize")
        if broken := next(found._broken(), ""):
            raise ValueError(f"{file}: {broken}. {digests.again('resize')}")
        return found

    def _broken(self) -> Iterator[str]:
        """Yields the promises that the manifest breaks."""
        shards = [shard for part in self.shards.values() for shard in part]
        wnids = [synset.wnid for synset in self.classes]
        if not 1 <= self.side <= MOST_PIXELS:
            yield f"side: has to be 1 to {MOST_PIXELS}, is {self.side}"
        if self.preparation.side != self.side:
            yield f"preparation: has the side {self.preparation.side}, the pictures have {self.side}"
        if not {"train", "val"} <= self.shards.keys() <= set(SPLITS):
            yield f"shards: has to have train and val, and may have test, has {', '.join(self.shards) or 'none'}"
        if wnids != sorted(set(wnids)):
            yield "classes: have to be in the order of their WordNet ids, each once"
        if len({shard.file for shard in shards}) < len(shards):
            yield "shards: names a file twice"
        for shard in shards:
            if not _NAME.fullmatch(shard.file):
                yield f"shards: '{shard.file}' is not a file name"
            if not _SHA256.fullmatch(shard.sha256):
                yield f"shards: {shard.file}: sha256: '{shard.sha256}' is not a sha256"
            if not 0 <= shard.rows < 2**63 or not 0 <= shard.bytes < 2**63:
                yield f"shards: {shard.file}: has {shard.rows} rows and {shard.bytes} bytes"
        rows = sum(shard.rows for shard in shards)
        if self.rejected < 0 or rows + self.rejected != self.indexed:
            yield f"indexed: {self.indexed}, but {rows} are in shards, and {self.rejected} rejected"


def _text(manifest: Manifest, *without: str) -> str:
    """A manifest as JSON text, without some of its keys."""
    fields = {name: value for name, value in dataclasses.asdict(manifest).items() if name not in without}
    return json.dumps(fields, indent=1, sort_keys=True) + "\n"
