"""Duplicates: pictures outside the training split whose file has the same bytes as a training picture's, whatever their names.

A network that has learned a picture knows its label: duplicates make error rates too low. They are counted, and kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.runtime.paths import AnyPath
from pipeline.shards import tables
from pipeline.shards.tables import Shard

FILE = "duplicates.parquet"
"""Name of the list in the shards' folder: a table of `tables.REJECTED`, whose reason names the training picture."""


def candidates(rows: pa.Table) -> pa.Table:
    """The rows of an index whose size and CRC-32 are those of a training picture and of one of another split."""
    lengths, crcs = (rows[name].to_numpy().astype(np.uint64) for name in ("length", "crc32"))
    keys = crcs << np.uint64(32) | lengths & np.uint64(0xFFFFFFFF)
    trained = pc.equal(rows["split"], "train").to_numpy()
    both = np.intersect1d(keys[trained], keys[~trained])
    return rows.filter(pa.array(np.isin(keys, both))).select(tables.INDEX.names)


def in_index(rows: pa.Table) -> list[dict[str, Any]]:
    """The duplicates by size and CRC-32, before any file is decoded: rows of `tables.REJECTED`, sorted by id."""
    return _listed(candidates(rows).to_pylist(), lambda row: (row["crc32"], row["length"]))


def in_shards(rows: pa.Table, folder: AnyPath, shards: Iterable[Shard]) -> list[dict[str, Any]]:
    """The duplicates among the kept pictures, by the SHA-256 of their files: rows of `tables.REJECTED`, sorted by id.

    `rows`: the index. The shards are read only if it has candidates, and only their ids and digests.
    """
    possible = candidates(rows).to_pylist()
    wanted, digests = {row["id"] for row in possible}, dict[str, str]()
    for shard in shards if wanted else ():
        table = tables.read(folder / shard.file, ["id", "sha256"], "resize")
        columns = (table[name].to_pylist() for name in ("id", "sha256"))
        digests |= {name: digest for name, digest in zip(*columns, strict=True) if name in wanted}
    return _listed(possible, lambda row: digests.get(row["id"]))


def by_split(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Split → number of duplicates in it."""
    return dict(Counter(row["split"] for row in rows))


def words(counts: Mapping[str, int]) -> str:
    """The numbers of duplicates in words."""
    splits = ", ".join(f"{counts[split]:,} {split}" for split in tables.SPLITS if split in counts)
    return f"pictures with the same bytes as a training picture: {splits}"


def _listed(rows: list[dict[str, Any]], digest: Callable[[dict[str, Any]], Hashable]) -> list[dict[str, Any]]:
    """The rows outside the training split with a training row's digest; a row whose digest is None is like no other."""
    rows = sorted((row for row in rows if digest(row) is not None), key=lambda row: str(row["id"]))
    trained: dict[Hashable, str] = {}
    for row in rows:
        if row["split"] == "train":
            trained.setdefault(digest(row), row["id"])
    return [
        {**row, "reason": f"the same bytes as {trained[digest(row)]} in train"}
        for row in rows
        if row["split"] != "train" and digest(row) in trained
    ]
