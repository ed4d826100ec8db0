"""Tables of vectors, such as probabilities and features: a column of lists of one length is a matrix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.runtime.progress import Progress
from pipeline.shards import tables

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

BLOCK = 4096
"""Rows of features in memory at once. Learning the codes shuffles within a block, so it decides their bits."""


def matrix(column: pa.ChunkedArray) -> Tensor:
    """A column of lists of one length as a matrix."""
    import numpy as np
    import torch

    chunks = [chunk for chunk in column.chunks if len(chunk)]
    return torch.from_numpy(np.concatenate([chunk.flatten().to_numpy().reshape(len(chunk), -1) for chunk in chunks]))


def lists(values_BN: Tensor, kind: str) -> pa.Array:
    """Rows of numbers as a column of lists of one length."""
    flat = pa.array(values_BN.numpy().astype(kind).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values_BN.shape[1])


def join(parts: Iterable[Path], columns: list[str], file: Path, add: Any = lambda _: None) -> int:
    """Joins the parts' columns in one file, a row group at a time, shows each to `add`; returns the number of rows."""
    opened, rows = None, 0
    for part in parts:
        for group in tables.groups(part, columns):
            opened = opened or writer(file, group.schema)
            opened.write_table(group)
            add(group)
            rows += group.num_rows
    assert opened is not None, "there is at least one part, and it has a picture"
    opened.close()
    return rows


def writer(file: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """The writer of a table that comes in row groups; without dictionaries, since no two floats are the same."""
    return pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=["label"], write_page_checksum=True)


def blocks(file: Path, progress: Progress | None = None) -> Iterator[NDArray[np.floating[Any]]]:
    """The features of a table in its order, N x F: so many row groups at a time that they have `BLOCK` rows."""
    import numpy as np

    kept: list[NDArray[np.floating[Any]]] = []
    for group in tables.groups(file, ["features"]):
        kept.append(matrix(group["features"]).numpy())
        if sum(map(len, kept)) >= BLOCK:
            yield np.concatenate(kept)
            kept = []
        if progress:
            progress.add(group.num_rows)
    if kept:
        yield np.concatenate(kept)
