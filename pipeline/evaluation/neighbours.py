"""The training pictures nearest to some of the tested pictures, by their features and by short codes (§6.1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from alexnet import codes, features
from alexnet.codes import Encoder
from pipeline.evaluation import choice, vectors
from pipeline.evaluation.results import Results
from pipeline.runtime import digests
from pipeline.runtime.progress import Progress
from pipeline.shards import tables

QUERIES = 2
"""The `use` of `choice.random_rows` for the queries: the report makes two other choices, maybe with the same seed."""


def write(folder: Path, section: Results) -> dict[str, float]:
    """Writes neighbours.parquet: for random tested pictures, the nearest training pictures by features, nearest first.

    With `code_bits`, also by codes, and encoder.npz and codes-*.parquet. Returns the section `neighbours` of metrics.json.
    The training set's features are read in blocks, so they may exceed the memory.
    """
    trained, tested = (folder / f"features-{split}.parquet" for split in ("train", section.split))
    written = {file: digests.of(file) for file in (trained, tested)}
    queries, base = (
        choice.random_rows(tested, section.queries, section.seed, QUERIES),
        tables.read(trained, ["id", "label"]),
    )
    features_QF = vectors.to_matrix(queries["features"]).numpy()
    passes = 3 + section.code_epochs if section.code_bits else 1
    with Progress("evaluate: neighbours", passes * base.num_rows, "rows") as progress:
        rows_QK, distances_QK = features.nearest(features_QF, vectors.blocks(trained, progress), section.neighbours)
        table = {"id": queries["id"]} | _columns(base["id"], rows_QK, distances_QK, ("nearest", "distance"))
        summary = {"queries": queries.num_rows, "same_class": _same_class(queries, base, rows_QK)}
        if section.code_bits:
            encoder, error = learn_codes(trained, section, folder / "encoder.npz", progress)
            write_codes(encoder, tested, folder / f"codes-{section.split}.parquet")
            codes_NY = write_codes(encoder, trained, folder / "codes-train.parquet", progress)
            parts = (codes_NY[start : start + vectors.BLOCK] for start in range(0, len(codes_NY), vectors.BLOCK))
            by_code_QK, bits_QK = codes.nearest(encoder.encode(features_QF), parts, section.neighbours)
            table |= _columns(base["id"], by_code_QK, bits_QK, ("nearest_by_code", "bits_apart"))
            both = [set(near) & set(coded) - {-1} for near, coded in zip(rows_QK, by_code_QK, strict=True)]
            summary |= {
                "same_class_by_code": _same_class(queries, base, by_code_QK),
                "found_by_code": sum(map(len, both)) / max(1, int((rows_QK >= 0).sum())),
                "code_error": error,
            }
    for file, digest in written.items():  # they were read for minutes or hours, in part many times
        digests.compare(file, digest, "evaluate")
    tables.write(pa.table(table), pa.table(table).schema, folder / "neighbours.parquet")
    return summary


def learn_codes(trained: Path, section: Results, file: Path, progress: Progress) -> tuple[Encoder, float]:
    """Trains the encoder on a table's features and writes it to `file`; returns it and the last epoch's error."""
    encoder, errors = codes.train(
        lambda: vectors.blocks(trained, progress),
        bits=section.code_bits,
        hidden=section.code_hidden,
        epochs=section.code_epochs,
        batch_size=section.code_batch_size,
        rate=section.code_rate,
        seed=section.seed,
    )
    with file.open("wb") as handle:
        encoder.save(handle)
    return encoder, errors[-1]


def write_codes(encoder: Encoder, source: Path, file: Path, progress: Progress | None = None) -> NDArray[np.uint8]:
    """Writes the code of each row of a table of features, in the same order; returns the codes, N × bytes."""
    codes_NY = np.concatenate([encoder.encode(block) for block in vectors.blocks(source, progress)])
    packed = pa.py_buffer(codes_NY.tobytes())
    column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(codes_NY.shape[1]), len(codes_NY), [None, packed])
    table = tables.read(source, ["id", "label"]).append_column("code", column)
    tables.write(table, table.schema, file, vectors.BLOCK)
    return codes_NY


def _columns(
    ids: pa.ChunkedArray, rows_QK: NDArray[np.int64], distances_QK: NDArray[Any], names: tuple[str, str]
) -> dict[str, pa.Array]:
    """Two columns of lists, named `names`: per query, the ids of its nearest rows and their distances (rows of -1 omitted)."""
    exists_QK = rows_QK >= 0
    ends = pa.array(np.concatenate([[0], exists_QK.sum(axis=1).cumsum()]), pa.int32())
    near = ids.take(pa.array(rows_QK[exists_QK])).combine_chunks()
    return {
        name: pa.ListArray.from_arrays(ends, values)
        for name, values in zip(names, (near, pa.array(distances_QK[exists_QK])), strict=True)
    }


def _same_class(queries: pa.Table, base: pa.Table, rows_QK: NDArray[np.int64]) -> float:
    """The fraction of the nearest rows that have their query's class."""
    same_QK = base["label"].to_numpy()[rows_QK] == queries["label"].to_numpy()[:, None]
    exists_QK = rows_QK >= 0
    return float((same_QK & exists_QK).sum() / max(1, exists_QK.sum()))
