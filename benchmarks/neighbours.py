"""Time and memory of the search for nearest pictures at ImageNet's size, on made-up features.

Run:    python benchmarks/neighbours.py --rows 1281167 --folder /somewhere/with/12/GB
Writes: a table of features as `evaluate` writes it, in a temporary folder that is removed at the end
Prints: bytes, rows per second, minutes and peak memory; and whether some answers equal those of a plain search

The search is the code of `evaluate`. The features are random, rectified and float16: as in a network, half of them are 0, and
most pictures are about equally far apart, which is hard for the search. With --code-bits the search is repeated with short
codes: one epoch of training, the codes of all rows, and the search by codes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

if __name__ == "__main__":  # before the slow imports
    from pipeline.runtime import usage

    parser = usage.parser_at(__file__, "python benchmarks/neighbours.py")
    parser.add_argument("--rows", type=int, default=20_000, help="training pictures; ILSVRC-2012 has 1,281,167")
    parser.add_argument("--queries", type=int, default=128)
    parser.add_argument("--neighbours", type=int, default=6)
    parser.add_argument("--checked", type=int, default=2, help="queries that are checked by a plain search")
    parser.add_argument("--code-bits", type=int, default=0, help="bits of the short codes; 0: no codes")
    parser.add_argument("--folder", type=usage.existing_path, default=None, help="a folder with 8 kB of space per row")
    parser.parse_args()

import dataclasses
import resource
import tempfile
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline.evaluation import neighbours, vectors
from pipeline.evaluation.results import Results
from pipeline.runtime.progress import Progress
from pipeline.shards import tables

FEATURES = 4096
GROUP = 128
"""Rows per row group, as in the tables of `evaluate.classify`."""


def main(arguments: argparse.Namespace) -> None:
    """Writes the features, searches, and checks some of the answers."""
    section = Results(
        split="val",
        neighbours=arguments.neighbours,
        queries=arguments.queries,
        seed=0,
        code_bits=0,
        code_hidden=512,
        code_epochs=1,
        code_batch_size=128,
        code_rate=0.001,
    )
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        write(folder / "features-val.parquet", arguments.queries, "float32", seed=1)
        write(folder / "features-train.parquet", arguments.rows, "float16", seed=2)
        size = (folder / "features-train.parquet").stat().st_size
        print(f"{arguments.rows:,} rows of {FEATURES} features in {size / 2**30:.2f} GiB; {memory()}", flush=True)
        measured(folder, section, arguments.rows)
        wrong, far = checked(folder, arguments.checked)
        print(
            f"plain search in float64 for {arguments.checked} of the queries: {wrong} neighbours differ, distances by at "
            f"most {far:.1e} of themselves",
            flush=True,
        )
        if arguments.code_bits:
            measured(folder, dataclasses.replace(section, code_bits=arguments.code_bits), arguments.rows)
    raise SystemExit(int(wrong > 0 or far > 1e-9))


def measured(folder: Path, section: Results, rows: int) -> None:
    """Searches, and prints time and memory."""
    begun, used = time.perf_counter(), time.process_time()
    summary = neighbours.write(folder, section)
    seconds, cores = time.perf_counter() - begun, time.process_time() - used
    what = f"with codes of {section.code_bits} bits" if section.code_bits else "neighbours"
    print(
        f"{what}: {rows / seconds:,.0f} rows/s, {seconds / 60:.1f} minutes, {cores / 60:.1f} of a core; {memory()}; {summary}",
        flush=True,
    )


def write(file: Path, rows: int, kind: str, seed: int) -> None:
    """Writes a table of random features like the one that `vectors.concatenate` writes."""
    generator = np.random.default_rng(seed)
    ids, writer = (f"n{row:08}" for row in range(rows)), None
    with Progress(f"making {file.name}", rows, "rows") as progress:
        for start in range(0, rows, GROUP):
            number = min(GROUP, rows - start)
            values = np.maximum(generator.standard_normal((number, FEATURES), np.float32), 0)
            columns: dict[str, Any] = {
                "id": pa.array([next(ids) for _ in range(number)]),
                "label": pa.array(generator.integers(1000, size=number)),
                "features": vectors.to_column(torch.from_numpy(values), kind),
            }
            table = pa.table(columns)
            writer = writer or vectors.writer(file, table.schema)
            writer.write_table(table)
            progress.add(number)
    assert writer is not None
    writer.close()


def checked(folder: Path, number: int) -> tuple[int, float]:
    """How many neighbours of the first queries differ from a plain search's, and the largest relative error of a distance."""
    answers = pq.read_table(folder / "neighbours.parquet").slice(0, number).to_pylist()
    tested = {row["id"]: row["features"] for row in tables.read(folder / "features-val.parquet").to_pylist()}
    ids = tables.read(folder / "features-train.parquet", ["id"])["id"].to_pylist()
    squares: list[list[np.ndarray]] = [[] for _ in answers]
    for group in tables.groups(folder / "features-train.parquet", ["features"]):
        rows = vectors.to_matrix(group["features"]).numpy().astype(np.float64)
        for row, parts in zip(answers, squares, strict=True):
            parts.append(((rows - np.array(tested[row["id"]])) ** 2).sum(axis=1))
    wrong, far = 0, 0.0
    for row, parts in zip(answers, squares, strict=True):
        distances = np.sqrt(np.concatenate(parts))
        order = np.argsort(distances, kind="stable")[: len(row["nearest"])]
        wrong += sum(ids[index] != name for index, name in zip(order, row["nearest"], strict=True))
        far = max(far, float(np.max(np.abs(distances[order] / np.array(row["distance"]) - 1))))
    return wrong, far


def memory() -> str:
    """The peak memory of this process, in words."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "linux" else 2**30)
    return f"memory {most:.2f} GiB at most"


if __name__ == "__main__":
    main(parser.parse_args())
