"""Single pictures of the shards, looked up by their ids, after the digest of their shard was compared."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from pipeline.runtime import digests
from pipeline.runtime.paths import AnyPath
from pipeline.shards import tables
from pipeline.shards.manifest import Manifest

JPEG = b"\xff\xd8\xff"
"""The first bytes of every JPEG."""


def fetch(
    ids: Iterable[str], split: str, manifest: Manifest, folder: AnyPath
) -> dict[str, tuple[NDArray[np.uint8], int]]:
    """Pictures, uint8 H×W×3, and their labels, by id; `ValueError` if an id is not in the shards."""
    from alexnet.pictures import decode

    found = encoded(ids, split, manifest, folder)
    return {name: (decode(data).permute(1, 2, 0).numpy(), label) for name, (data, label) in found.items()}


def encoded(ids: Iterable[str], split: str, manifest: Manifest, folder: AnyPath) -> dict[str, tuple[bytes, int]]:
    """The stored bytes of pictures, and their labels, by id; `ValueError` if an id is not in the shards."""
    wanted, pictures = set(ids), dict[str, tuple[bytes, int]]()
    for shard in manifest.shards[split]:
        file, first = folder / shard.file, 0
        # ids first, for all row groups: pictures are most of the bytes, and few of them are wanted
        shard_ids = tables.read(file, ["id"], "resize")["id"].to_pylist()
        row_of = {name: row for row, name in enumerate(shard_ids) if name in wanted}
        if not row_of:
            continue
        digests.compare(file, shard.sha256, "resize")
        for group in tables.groups(file, ["image", "label"], "resize"):
            for name, row in row_of.items():
                if first <= row < first + group.num_rows:
                    picture = group["image"][row - first].as_py()["bytes"]
                    pictures[name] = (picture, group["label"][row - first].as_py())
            first += group.num_rows
    if wanted - pictures.keys():
        raise ValueError(
            f"{folder}: no picture {min(wanted - pictures.keys())} in {split}, but data/evaluation names it. "
            "Run: dvc repro --force --single-item evaluate"
        )
    return pictures


def as_jpeg(data: bytes) -> bytes:
    """The stored bytes, or a JPEG of pictures that are stored in another format, such as PNG."""
    if data.startswith(JPEG):
        return data
    from alexnet.pictures import decode, encode

    return encode(decode(data), 95)
