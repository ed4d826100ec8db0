"""Rows of a table, chosen by lot: the same ones in whatever order they lie."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from pipeline.shards import tables


def picked(file: Path, number: int, seed: int, use: int) -> pa.Table:
    """Rows of a table, chosen by lot among all ids, in the order of the lot; the table may be larger than the memory."""
    import pyarrow.compute as pc

    ids = sorted(tables.read(file, ["id"])["id"].to_pylist())
    wanted = pa.array([ids[place] for place in choose(len(ids), number, seed, use)], pa.string())
    found = pa.concat_tables(group.filter(pc.is_in(group["id"], wanted)) for group in tables.groups(file))
    return found.take(pc.index_in(wanted, value_set=found["id"]))


def choose(count: int, number: int, seed: int, use: int) -> list[int]:
    """Up to `number` of `count` rows, by lot, in the order of the lot; `use` keeps two choices of one seed apart."""
    import numpy as np

    # Philox's raw numbers are the same in every version of numpy
    lots = np.random.Philox(key=np.array([seed, use], np.uint64)).random_raw(count)
    return [int(row) for row in np.argsort(lots, kind="stable")[:number]]
