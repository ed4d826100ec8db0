"""The training pictures nearest to some of the tested ones, by their features and by short codes of them (§6.1)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.evaluation import choice, vectors
from pipeline.evaluation.results import Results
from pipeline.runtime import digests
from pipeline.runtime.progress import Progress
from pipeline.shards import tables

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from alexnet.codes import Encoder

QUERIES = 2
"""Keeps the choice of the queries apart from the report's two, which may have the same seed."""


def write(folder: Path, section: Results) -> dict[str, float]:
    """For some tested pictures the training pictures nearest by their features, nearest first, and by codes if wanted.

    Returns what metrics.json says of them. The features of the training set are read block by block: they may be larger
    than the memory.
    """
    from alexnet import codes, features

    trained, tested = (folder / f"features-{split}.parquet" for split in ("train", section.split))
    written = {file: digests.of(file) for file in (trained, tested)}
    queries, base = choice.picked(tested, section.queries, section.seed, QUERIES), tables.read(trained, ["id", "label"])
    features_QF = vectors.matrix(queries["features"]).numpy()
    passes = 3 + section.code_epochs if section.code_bits else 1
    with Progress("evaluate: neighbours", passes * base.num_rows, "rows") as progress:
        rows_QK, distances_QK = features.nearest(features_QF, vectors.blocks(trained, progress), section.neighbours)
        table = {"id": queries["id"]} | _found(base["id"], rows_QK, distances_QK, ("nearest", "distance"))
        summary = {"queries": queries.num_rows, "same_class": _same_class(queries, base, rows_QK)}
        if section.code_bits:
            encoder, error = learn_codes(trained, section, folder / "encoder.npz", progress)
            write_codes(encoder, tested, folder / f"codes-{section.split}.parquet")
            codes_NY = write_codes(encoder, trained, folder / "codes-train.parquet", progress)
            parts = (codes_NY[start : start + vectors.BLOCK] for start in range(0, len(codes_NY), vectors.BLOCK))
            by_code_QK, bits_QK = codes.nearest(encoder.encode(features_QF), parts, section.neighbours)
            table |= _found(base["id"], by_code_QK, bits_QK, ("nearest_by_code", "bits_apart"))
            both = [set(near) & set(coded) - {-1} for near, coded in zip(rows_QK, by_code_QK, strict=True)]
            summary |= {
                "same_class_by_code": _same_class(queries, base, by_code_QK),
                "found_by_code": sum(map(len, both)) / max(1, int((rows_QK >= 0).sum())),
                "code_error": error,
            }
    for file, digest in written.items():  # they were read for minutes or hours, some parts of them many times
        digests.compare(file, digest, "evaluate")
    tables.write(pa.table(table), pa.table(table).schema, folder / "neighbours.parquet")
    return summary


def learn_codes(trained: Path, section: Results, file: Path, progress: Progress) -> tuple[Encoder, float]:
    """Learns the codes of a table's features and writes their encoder; gives it and the error of the last epoch."""
    from alexnet import codes

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
    """Writes the code of each row of a table of features, in its order, and returns them, N x bytes."""
    import numpy as np

    codes_NY = np.concatenate([encoder.encode(block) for block in vectors.blocks(source, progress)])
    packed = pa.py_buffer(codes_NY.tobytes())
    column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(codes_NY.shape[1]), len(codes_NY), [None, packed])
    table = tables.read(source, ["id", "label"]).append_column("code", column)
    tables.write(table, table.schema, file, vectors.BLOCK)
    return codes_NY


def _found(
    ids: pa.ChunkedArray, rows_QK: NDArray[np.int64], distances_QK: NDArray[Any], names: tuple[str, str]
) -> dict[str, pa.Array]:
    """Two columns of lists: the ids of the rows found for each query, and how far they are."""
    import numpy as np

    found_QK = rows_QK >= 0
    ends = pa.array(np.concatenate([[0], found_QK.sum(axis=1).cumsum()]), pa.int32())
    near = ids.take(pa.array(rows_QK[found_QK])).combine_chunks()
    return {
        name: pa.ListArray.from_arrays(ends, values)
        for name, values in zip(names, (near, pa.array(distances_QK[found_QK])), strict=True)
    }


def _same_class(queries: pa.Table, base: pa.Table, rows_QK: NDArray[np.int64]) -> float:
    """The share of the rows found that are of their query's class."""
    same_QK = base["label"].to_numpy()[rows_QK] == queries["label"].to_numpy()[:, None]
    found_QK = rows_QK >= 0
    return float((same_QK & found_QK).sum() / max(1, found_QK.sum()))
