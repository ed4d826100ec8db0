"""Parquet tables of vectors, such as probabilities and features: a matrix is a column of fixed-size lists."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.runtime.progress import Progress
from pipeline.shards import tables

BLOCK = 4096
"""Rows of features per block. Rows are shuffled within a block when codes are trained, so this decides the codes' bits."""


def to_matrix(column: pa.ChunkedArray) -> Tensor:
    """A column of N lists of one length → a tensor N×length."""
    chunks = [chunk for chunk in column.chunks if len(chunk)]
    return torch.from_numpy(np.concatenate([chunk.flatten().to_numpy().reshape(len(chunk), -1) for chunk in chunks]))


def to_column(values_BN: Tensor, kind: str) -> pa.Array:
    """A tensor B×N → a column of B lists of N numbers of numpy's type `kind`."""
    flat = pa.array(values_BN.numpy().astype(kind).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values_BN.shape[1])


def concatenate(parts: Iterable[Path], columns: list[str], file: Path, add: Any = lambda _: None) -> int:
    """Concatenates columns of Parquet files in one file, by row groups, and calls `add` with each; returns the rows."""
    opened, rows = None, 0
    for part in parts:
        for group in tables.groups(part, columns):
            opened = opened or writer(file, group.schema)
            opened.write_table(group)
            add(group)
            rows += group.num_rows
    assert opened is not None, "at least one part has a row"
    opened.close()
    return rows


def writer(file: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A writer for a table that is written by row groups; only `label` has a dictionary, since floats rarely repeat."""
    return pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=["label"], write_page_checksum=True)


def blocks(file: Path, progress: Progress | None = None) -> Iterator[NDArray[np.floating[Any]]]:
    """Yields the features of a table in order, in blocks N×F of whole row groups with at least `BLOCK` rows in all."""
    kept: list[NDArray[np.floating[Any]]] = []
    for group in tables.groups(file, ["features"]):
        kept.append(to_matrix(group["features"]).numpy())
        if sum(map(len, kept)) >= BLOCK:
            yield np.concatenate(kept)
            kept = []
        if progress:
            progress.add(group.num_rows)
    if kept:
        yield np.concatenate(kept)
