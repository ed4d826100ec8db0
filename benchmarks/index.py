"""Cost of a large index in `resize`, apart from its pictures: time and memory of the driver, memory of a worker.

Run:    python benchmarks/index.py
Writes: made-up indexes, and archives that repeat one drawn picture, in a temporary folder that is removed at the end
Prints: what the driver needs for 1.3 million rows in addition to what it needs for 1,000, with the pictures in archives and
        with each picture in its own file; and a worker's peak memory with a small and with a large archive

The driver reads the index, compares it with the store, plans, and sends every task to Ray's workers, which return at once. A
worker writes all shards of an archive, one after the other. Each measurement has its own process.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

if __name__ == "__main__":  # before the slow imports
    from pipeline.runtime import usage

    parser = usage.parser_at(__file__, "python benchmarks/index.py")
    parser.add_argument("--rows", type=int, default=1_300_000)
    parser.add_argument("--pictures", type=int, default=8000, help="pictures in the large archive")
    parser.add_argument("--small", type=int, default=1000, help="rows and pictures of the small ones")
    parser.add_argument(
        "--layout",
        choices=("in two archives", "a file each"),
        action="append",
        help="where the pictures of the rows are; default: both",
    )
    parser.add_argument("--images-per-shard", type=int, default=1000)
    parser.add_argument(
        "--folder", type=usage.existing_path, default=None, help="a folder with 150 kB of space per picture"
    )
    parser.add_argument("--measure", choices=("driver", "worker"), help=argparse.SUPPRESS)
    parser.parse_args()

import contextlib
import dataclasses
import io
import json
import os
import resource
import subprocess
import tempfile
import time
import zlib

import numpy as np
import pyarrow as pa
from PIL import Image
from ruamel.yaml import YAML

from pipeline import resize
from pipeline.resize import FinishedShard, Resize, Task
from pipeline.runtime import cluster, digests, params
from pipeline.runtime.machines import Machine
from pipeline.shards import tables
from pipeline.shards.index import LOOKED_AT
from pipeline.shards.tables import Shard, Synset

ROOT = Path(__file__).resolve().parents[1]

SECTION = Resize(
    side=256,
    fit="crop",
    filter="bilinear",
    quality=95,
    shuffle_seed=0,
    images_per_shard=1000,
    max_rejected=0.0,
    max_megapixels=200.0,
    damaged="keep",
)
CLASSES = 1000
LAYOUTS = ("in two archives", "a file each")


def main(arguments: argparse.Namespace) -> None:
    """Measures in other processes and prints the results."""
    if arguments.measure:
        print(json.dumps(MEASURES[arguments.measure]()))
        return
    section = dataclasses.replace(SECTION, images_per_shard=arguments.images_per_shard)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        for layout in arguments.layout or LAYOUTS:
            few, many = (
                measured("driver", made_up(Path(name) / f"{layout} {rows}", rows, layout == "a file each", section))
                for rows in (arguments.small, arguments.rows)
            )
            print(
                f"driver, {arguments.rows:,} pictures {layout}: {many['seconds'] - few['seconds']:.1f} s and "
                f"{(many['bytes'] - few['bytes']) / 1e9:.2f} GB more than for {arguments.small:,} "
                f"(in all {many['seconds']:.1f} s and {many['bytes'] / 1e9:.2f} GB; {many['parts']})",
                flush=True,
            )
        for count in (arguments.small, arguments.pictures):
            worker = measured("worker", archive(Path(name) / f"archive {count}", count, section))
            print(f"worker, archive of {count:,} pictures: {worker['bytes'] / 1e6:.0f} MB at most", flush=True)


def measured(what: str, folder: Path) -> dict[str, float | str]:
    """Runs this program with --measure in a working copy, in another process; returns its results."""
    elsewhere = ("ALEXNET_MACHINE", "DVC_ROOT", "RAY_ADDRESS")
    environment = {name: value for name, value in os.environ.items() if name not in elsewhere}
    environment["PYTHONPATH"] = str(ROOT)  # for Ray's workers
    program = [sys.executable, Path(__file__).resolve(), "--measure", what]
    done = subprocess.run(program, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    results: dict[str, float | str] = json.loads(done.stdout.splitlines()[-1])
    return results


def made_up(folder: Path, rows: int, apart: bool, section: Resize) -> Path:
    """Creates a working copy with an index of pictures that do not exist, in one archive per split, or (`apart`) a file each."""
    number = np.arange(rows)
    label = number * CLASSES // rows
    wnids = [f"n{each:08}" for each in range(CLASSES)]
    split = np.where(number % 26, "train", "val")
    ids = [f"{wnids[each]}_{row}" for row, each in enumerate(label.tolist())]
    length = 60_000 + number * 7919 % 100_000
    if apart:
        names = [f"{where}/{wnids[each]}/{one}.JPEG" for where, each, one in zip(split, label, ids, strict=True)]
        sizes, offset, archive_of = length, np.zeros(rows, np.int64), names
    else:
        offset = np.cumsum(length) - length
        names, sizes = ["train.tar", "val.tar"], np.full(2, length.sum())
        archive_of = [f"{where}.tar" for where in split]
    index = {
        "id": ids,
        "split": split.tolist(),
        "label": label,
        "wnid": [wnids[each] for each in label],
        "archive": archive_of,
        "offset": offset,
        "length": length,
        "crc32": np.random.default_rng(0).integers(0, 2**32, rows, np.uint32),
    }
    archives = {"name": names, "bytes": sizes, "sha256": ["0" * 64] * len(names), "md5": [None] * len(names)}
    store(folder, section, index, archives, [Synset(wnid=wnid, words=wnid) for wnid in wnids])
    # of very many files `check_store` checks only some: the others need not exist
    for index_of_name in range(0, len(names), max(1, len(names) // LOOKED_AT)):
        file = folder / "data/store" / names[index_of_name]
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as handle:
            handle.truncate(int(sizes[index_of_name]))  # a sparse file
    return folder


def archive(folder: Path, count: int, section: Resize) -> Path:
    """Creates a working copy with an archive that contains one drawn picture `count` times."""
    lots = np.random.default_rng(0)
    coarse = Image.fromarray(lots.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((500, 375))
    noisy = np.clip(np.asarray(coarse) + lots.normal(0, 12, (375, 500, 3)), 0, 255).astype(np.uint8)
    picture = io.BytesIO()
    Image.fromarray(noisy).save(picture, "JPEG", quality=92)
    data = picture.getvalue()
    number = np.arange(count)
    index = {
        "id": [f"{each:08}" for each in number],
        "split": ["train"] * count,
        "label": np.zeros(count, np.int64),
        "wnid": ["n0"] * count,
        "archive": ["archive"] * count,
        "offset": number * len(data),
        "length": np.full(count, len(data)),
        "crc32": np.full(count, zlib.crc32(data), np.uint32),
    }
    archives = {"name": ["archive"], "bytes": [count * len(data)], "sha256": ["0" * 64], "md5": [None]}
    store(folder, section, index, archives, [Synset(wnid="n0", words="any")])
    with (folder / "data/store/archive").open("wb") as file:
        for _ in range(count):
            file.write(data)
    return folder


def store(
    folder: Path, section: Resize, index: dict[str, object], archives: dict[str, object], classes: list[Synset]
) -> None:
    """Writes the outs of `download`; the archives are written by the caller."""
    (folder / "data/store").mkdir(parents=True)
    (folder / "data/index").mkdir()
    tables.write(pa.table(index), tables.INDEX, folder / "data/index/index.parquet")
    tables.write(pa.table(archives), tables.ARCHIVES, folder / "data/index/archives.parquet")
    contents = {"drawn": False, "classes": [dataclasses.asdict(synset) for synset in classes]}
    (folder / "data/index/contents.json").write_text(json.dumps(contents))
    digests.seal(folder / "data/index")
    YAML().dump({"resize": dataclasses.asdict(section)}, folder / "params.yaml")


def driver() -> dict[str, float | str]:
    """Runs the stage in this working copy without its pictures: seconds, and peak memory."""
    section = params.read("resize", Resize)
    with cluster.connected(Machine()), contextlib.redirect_stderr(io.StringIO()):
        times = [time.monotonic()]
        index = resize.read_index(resize.INDEX)
        times.append(time.monotonic())
        resize.check_store(index, Path("data/store"))
        resize.key(section, index)
        times.append(time.monotonic())
        tasks = resize.plan(section, index, Path.cwd(), Path("data/store").absolute())
        times.append(time.monotonic())
        done = [made for _, made in cluster.each(_nothing, tasks, Machine())]
        times.append(time.monotonic())
    assert sum(made.shard.rows for made in done) == index.rows.num_rows
    names = ("reading", "checking", "planning", f"{len(tasks):,} tasks")
    spent = [f"{name} {later - sooner:.1f} s" for name, sooner, later in zip(names, times, times[1:], strict=False)]
    return {"seconds": times[-1] - times[0], "bytes": most_memory(), "parts": ", ".join(spent)}


def _nothing(task: Task) -> FinishedShard:
    shard = Shard(file=task.file, rows=task.rows.num_rows, bytes=0, sha256="0" * 64)
    return FinishedShard(shard=shard, rejected=[], damaged=[], census=resize.Census())


def worker() -> dict[str, float | str]:
    """Writes all shards of this working copy in this process: seconds, and peak memory."""
    begun = time.monotonic()
    section = params.read("resize", Resize)
    work = resize.prepare_work("any", Machine())
    for task in resize.plan(section, resize.read_index(resize.INDEX), work, Path("data/store").absolute()):
        resize.make_shard(task)
    return {"seconds": time.monotonic() - begun, "bytes": most_memory()}


def most_memory() -> int:
    """The peak memory of this process, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux getrusage includes the memory of the process that started this one
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


MEASURES = {"driver": driver, "worker": worker}


if __name__ == "__main__":
    main(parser.parse_args())
