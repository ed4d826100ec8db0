"""Overhead of the stage `resize`: the whole stage with Ray, compared with plain processes that run only its kernel.

Run:    python benchmarks/stage.py FOLDER
Reads:  the JPEGs below FOLDER, repeated if there are too few
Writes: a working copy with an archive, an index and the shards, in a temporary folder that is removed at the end
Prints: pictures per second of both, the fraction that the stage reaches, and an estimate for ILSVRC-2012

There are as many plain processes as the stage has workers. Each has its pictures in memory and only decodes, resizes and
compresses them. The stage reads the index, plans, reads the archive, and writes and syncs shards with their checksums, by
the same function as `dvc repro resize`. Both exclude start-up, that is imports and Ray's start, and take turns. CPU time is
printed beside wall time: it includes Ray's own processes, and depends less on the machine's other work.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

if __name__ == "__main__":  # before the slow imports
    from pipeline.runtime import usage

    parser = usage.parser_at(__file__, "python benchmarks/stage.py")
    parser.add_argument("folder", type=usage.existing_path)
    parser.add_argument("--pictures", type=int, default=10_000, help="number of pictures, repeated if there are fewer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--work", type=usage.existing_path, default=None, help="a folder with some 150 kB of space per picture"
    )
    parser.parse_args()

import contextlib
import dataclasses
import hashlib
import io
import json
import multiprocessing
import shutil
import statistics
import tempfile
import time
import zlib
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier

import psutil
import pyarrow as pa
import torch
from ruamel.yaml import YAML

from benchmarks.kernel import QUALITY, SIDE, described, our_jpeg, projection, read
from pipeline import resize
from pipeline.resize import Resize
from pipeline.runtime import cluster, digests
from pipeline.runtime.machines import Machine
from pipeline.shards import tables
from pipeline.shards.tables import Synset

ROOT = Path(__file__).resolve().parents[1]

SECTION = Resize(
    side=SIDE,
    fit="crop",
    filter="bilinear",
    quality=QUALITY,
    shuffle_seed=0,
    images_per_shard=1000,
    max_rejected=0.0,
    max_megapixels=200.0,
    damaged="keep",
)
WARM = 20
"""Pictures per process before the timing."""


def main(arguments: argparse.Namespace) -> None:
    """Runs the benchmark and prints its results."""
    pictures, workers = read(arguments.folder, arguments.pictures), arguments.workers
    print(described(pictures), flush=True)
    print(f"{arguments.pictures:,} of them in turn, {workers} at once", flush=True)
    with tempfile.TemporaryDirectory(dir=arguments.work) as name:
        found = measure(Path(name).absolute(), pictures, arguments.pictures, workers, arguments.rounds)
    rounds = list(zip(found.bare, found.stage, strict=True))
    kernel, made = (
        arguments.pictures / statistics.median(seconds for seconds, _ in side) for side in zip(*rounds, strict=True)
    )
    print(f"{workers} bare processes: {kernel:,.0f} pictures a second; stage: {made:,.0f}")
    for name, which in (("time", 0), ("processor time", 1)):
        shares = [kernel[which] / made[which] for kernel, made in rounds]
        print(
            f"the stage reaches {statistics.median(shares):.1%} of the bare processes' speed by {name} "
            f"(median of {len(shares)} rounds; {min(shares):.1%} to {max(shares):.1%})"
        )
    print(projection(made / workers, pictures))


@dataclass(frozen=True, slots=True)
class Measured:
    """Wall and CPU seconds of each round."""

    bare: list[tuple[float, float]]
    stage: list[tuple[float, float]]


def measure(place: Path, pictures: list[bytes], count: int, workers: int, rounds: int) -> Measured:
    """Measures bare processes and the stage in turn, on `count` pictures, in working copies below `place`."""
    for name in ("ALEXNET_MACHINE", "DVC_ROOT", "RAY_ADDRESS"):
        os.environ.pop(name, None)
    os.environ["PYTHONPATH"] = str(ROOT)  # for Ray's workers
    os.environ.update(cluster.MEMORY)  # as in the stage's workers
    small, large, found = place / "small", place / "large", Measured([], [])
    # a short shard for each worker, in which it imports what it needs
    lay_out(small, pictures, workers * WARM, workers, WARM)
    lay_out(large, pictures, count, workers, SECTION.images_per_shard)
    bare = Bare(pictures, workers)
    with contextlib.chdir(place), cluster.connected(Machine()):
        stage(small)
        for number in range(1, rounds + 1):
            found.bare.append(bare.run(count))
            found.stage.append(stage(large))
            (kernel, kernel_cpu), (made, made_cpu) = found.bare[-1], found.stage[-1]
            print(
                f"round {number}: bare {kernel:.1f} s, {kernel_cpu:.1f} s of CPU time; "
                f"stage {made:.1f} s, {made_cpu:.1f} s of CPU time",
                flush=True,
            )
    bare.close()
    return found


def lay_out(folder: Path, pictures: list[bytes], count: int, workers: int, images_per_shard: int, val: int = 0) -> None:
    """Creates a working copy as it is after `download`: one archive, its index, params.yaml and machine.yaml.

    The first `val` of the `count` pictures are for validation, the others for training.
    """
    (folder / "data/store").mkdir(parents=True)
    (folder / "data/index").mkdir()
    rows, offset, digest = [], 0, hashlib.sha256()
    with (folder / "data/store/archive").open("wb") as archive:
        for number in range(count):
            data = pictures[number % len(pictures)]
            archive.write(data)
            digest.update(data)
            row = {
                "id": f"{number:08}",
                "split": "val" if number < val else "train",
                "label": 0,
                "wnid": "n0",
                "archive": "archive",
            }
            rows.append({**row, "offset": offset, "length": len(data), "crc32": zlib.crc32(data)})
            offset += len(data)
        os.fsync(archive.fileno())
    tables.write(pa.Table.from_pylist(rows, schema=tables.INDEX), tables.INDEX, folder / "data/index/index.parquet")
    archives = {"name": ["archive"], "bytes": [offset], "sha256": [digest.hexdigest()], "md5": [None]}
    tables.write(archives, tables.ARCHIVES, folder / "data/index/archives.parquet")
    contents = {"drawn": False, "classes": [dataclasses.asdict(Synset(wnid="n0", words="any"))]}
    (folder / "data/index/contents.json").write_text(json.dumps(contents))
    digests.seal(folder / "data/index")
    section = dataclasses.replace(SECTION, images_per_shard=images_per_shard)
    YAML().dump({"resize": dataclasses.asdict(section)}, folder / "params.yaml")
    YAML().dump({"workers": workers}, folder / "machine.yaml")


def stage(folder: Path) -> tuple[float, float]:
    """Wall and CPU seconds of the stage in a working copy; its shards are removed afterwards."""
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        begun, used = time.monotonic(), processor()
        resize.run()
        seconds = time.monotonic() - begun, processor() - used
        shutil.rmtree("data/shards")
    return seconds


def processor() -> float:
    """CPU seconds used so far by this process and its descendants, among them Ray and its workers."""
    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:2])
    return total


class Bare:
    """Processes that only decode, resize and compress."""

    def __init__(self, pictures: list[bytes], workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.counts = [context.SimpleQueue() for _ in range(workers)]
        self.times = context.SimpleQueue()
        barrier = context.Barrier(workers)
        self.processes = [
            context.Process(target=_work, args=(pictures, worker, workers, counts, barrier, self.times), daemon=True)
            for worker, counts in enumerate(self.counts)
        ]
        for process in self.processes:
            process.start()
        self.run(workers)  # so that each has imported what it needs

    def run(self, count: int) -> tuple[float, float]:
        """Wall and CPU seconds for `count` pictures."""
        for counts in self.counts:
            counts.put(count)
        begun, ended, used = zip(*(self.times.get() for _ in self.processes), strict=True)
        return max(ended) - min(begun), sum(used)

    def close(self) -> None:
        """Ends the processes."""
        for counts in self.counts:
            counts.put(0)
        for process in self.processes:
            process.join()


def _work(
    pictures: list[bytes], worker: int, workers: int, counts: SimpleQueue, barrier: Barrier, times: SimpleQueue
) -> None:
    torch.set_num_threads(1)
    for data in pictures[:WARM]:
        our_jpeg(data)
    while count := counts.get():
        barrier.wait()
        begun, used = time.monotonic(), time.process_time()
        for index in range(worker, count, workers):
            our_jpeg(pictures[index % len(pictures)])
        times.put((begun, time.monotonic(), time.process_time() - used))


if __name__ == "__main__":
    main(parser.parse_args())
