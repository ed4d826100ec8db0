"""Speed of feeding a training: shards of JPEGs → shuffled, cropped, reflected, coloured batches of 128, beside other projects.

Run:    python benchmarks/feeding.py FOLDER [--peers PYTHON] [--pictures 3000]
Reads:  the JPEGs below FOLDER; each becomes a JPEG of 256 × 256 by `resize`, and these bytes are everybody's
Prints: pictures a second of each, the memory that each takes, and the ratios

PYTHON has the packages of benchmarks/requirements.lock: benchmarks/.env/bin/python, which `make bench` makes. Without it our
loader is compared with torchvision's ImageFolder alone. Ours draws by (seed, epoch, picture), gives each picture once, and can
resume; most of the others do not.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

if __name__ == "__main__":  # before the slow imports
    from pipeline.runtime import usage

    parser = usage.parser_at(__file__, "python benchmarks/feeding.py")
    parser.add_argument("folder", type=usage.existing_path)
    parser.add_argument("--pictures", type=int, default=3000, help="those of FOLDER again and again")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads or processes of each"
    )
    parser.add_argument(
        "--peers", type=usage.existing_path, default=None, help="a Python that has the others' packages"
    )
    parser.add_argument("--only", nargs="+", default=None, help="these of them")
    parser.parse_args()

import contextlib
import io
import statistics
import tempfile
from collections.abc import Callable, Sequence

import pyarrow.parquet as pq

from benchmarks import rows, stage, turns
from benchmarks.kernel import read
from benchmarks.turns import Contender, Turn
from pipeline import resize
from pipeline.runtime import cluster
from pipeline.runtime.machines import Machine

ROOT = Path(__file__).resolve().parents[1]

TARGETS = {
    "imagefolder": 3.0,
    "webdataset": 1.0,
    "litdata": 1.0,
    "spdl": 1.0,
    "dali": 1.0,
    "ffcv": 1.0,
    "ray_data": 1.0,
}
"""Each peer, and how many times as fast ours has to be."""

BATCH = 128

OURS = "ours"


def main(arguments: argparse.Namespace) -> None:
    """Runs the benchmark and prints its results."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        prepare(place, read(arguments.folder, arguments.pictures), arguments.pictures, arguments.threads)
        turned = compare(place, arguments.peers, arguments.rounds, arguments.threads, arguments.only)
    print(
        f"{arguments.pictures:,} pictures of 256 × 256 an epoch, batches of {BATCH}, {arguments.threads} threads each"
    )
    for name, rounds in turned.items():
        rate = statistics.median(turn.rate for turn in rounds)
        print(f"{name:<12} {rate:>7,.0f} pictures/s, {max(turn.memory for turn in rounds) / 2**20:>6,.0f} MiB")
    for name, rounds in turned.items():
        if name != OURS:
            made = rows.row(name, [turn.rate for turn in turned[OURS]], [turn.rate for turn in rounds])
            spread = f"{len(rounds)} rounds; {made.low:.2f} to {made.high:.2f}"
            print(f"ours is {made.ratio:.2f} times as fast as {name} ({spread})")


def prepare(
    place: Path,
    pictures: list[bytes],
    count: int,
    workers: int,
    val: int = 0,
    stages: Sequence[Callable[[], None]] = (resize.run,),
) -> None:
    """Writes `place`/data/shards by the stage `resize`, and its training pictures as files below `place`/files.

    `stages` run one after another on one Ray, which starts once in a process.
    """
    for name in ("ALEXNET_MACHINE", "DVC_ROOT", "RAY_ADDRESS"):
        os.environ.pop(name, None)
    os.environ["PYTHONPATH"] = str(ROOT)  # for Ray's workers
    stage.lay_out(place, pictures, val + count, workers, 500, val)
    quiet = contextlib.redirect_stderr(io.StringIO())
    with contextlib.chdir(place), contextlib.redirect_stdout(io.StringIO()), quiet, cluster.connected(Machine()):
        for run in stages:
            run()
    (place / "files/n0").mkdir(parents=True)
    for shard in sorted((place / "data/shards").glob("train-*.parquet")):
        for row in pq.read_table(shard, columns=["id", "image"]).to_pylist():
            (place / "files/n0" / f"{row['id']}.jpg").write_bytes(row["image"]["bytes"])


def compare(
    place: Path, peers: Path | None, count: int, threads: int, only: Sequence[str] | None = None
) -> dict[str, list[Turn]]:
    """The turns of our loader, and of each peer that is there. `peers`: the Python that has their packages."""
    names = only or (list(TARGETS) if peers else ["imagefolder"])
    python, program = str(peers.absolute()) if peers else sys.executable, str(ROOT / "benchmarks/peers/feeding.py")
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **cluster.MEMORY}  # as in the stage's workers
    ours = [sys.executable, "-m", "benchmarks.feeding_ours", str(place), str(threads)]
    others = [(name, [python, program, name, str(place / "files"), str(threads)]) for name in names]
    contenders = [Contender(name, command, place, environment) for name, command in [(OURS, ours), *others]]
    with turns.ready(contenders) as there:
        return turns.rounds(there, count)


if __name__ == "__main__":
    main(parser.parse_args())
