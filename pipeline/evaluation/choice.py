"""A random choice of rows from a table, by seed; it does not depend on the table's order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.shards import tables


def random_rows(file: Path, number: int, seed: int, use: int) -> pa.Table:
    """Up to `number` random rows of a Parquet table with a column `id`, in random order.

    The rows depend on the set of ids, `seed` and `use`. The table is read by row groups, so it may exceed the memory.
    """
    ids = sorted(tables.read(file, ["id"])["id"].to_pylist())
    chosen = pa.array([ids[index] for index in random_indices(len(ids), number, seed, use)], pa.string())
    rows = pa.concat_tables(group.filter(pc.is_in(group["id"], chosen)) for group in tables.groups(file))
    return rows.take(pc.index_in(chosen, value_set=rows["id"]))


def random_indices(count: int, number: int, seed: int, use: int) -> list[int]:
    """Up to `number` distinct indices below `count`, in random order. Choices with different `use` are independent."""
    # Philox's raw numbers are the same in every version of numpy
    keys = np.random.Philox(key=np.array([seed, use], np.uint64)).random_raw(count)
    return [int(row) for row in np.argsort(keys, kind="stable")[:number]]
