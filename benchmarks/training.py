"""Speed of the stage `train` from shards, in each placement of the columns, beside its bare step.

Run:    python benchmarks/training.py FOLDER [--pictures 1500] [--rounds 4]
Reads:  the JPEGs below FOLDER; params.yaml says the network, the batch and the rest
Prints: pictures a second of each, and the ratios

The bare step is one process with all threads, which has its pictures decoded in memory: patches, forward, backward, update. The
stage's rate is that of its last epoch without validation and checkpoints, as its record has it. They take turns.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

if __name__ == "__main__":  # before the slow imports
    from pipeline.runtime import usage

    parser = usage.parser_at(__file__, "python benchmarks/training.py")
    parser.add_argument("folder", type=usage.existing_path)
    parser.add_argument("--pictures", type=int, default=1500, help="of an epoch: those of FOLDER again and again")
    parser.add_argument("--rounds", type=int, default=4)
    parser.parse_args()

import shutil
import statistics
import subprocess
import tempfile

from ruamel.yaml import YAML

from benchmarks import feeding, turns
from benchmarks.kernel import read
from benchmarks.turns import Contender
from pipeline import mean, resize
from pipeline.runtime import cluster, params, run_record

ROOT = Path(__file__).resolve().parents[1]

BARE = "bare step"

PLACEMENTS = ("columns", "one")

EPOCHS = 2
"""The first warms up."""

SECTIONS = ("model", "start", "augmentation", "learning")

VALIDATION = 8
"""Pictures; they do not count."""

LIMIT = 900
"""Seconds for a training."""


def main(arguments: argparse.Namespace) -> None:
    """Runs the benchmark and prints its results."""
    with tempfile.TemporaryDirectory() as folder:
        found = compare(Path(folder), read(arguments.folder, arguments.pictures), arguments.pictures, arguments.rounds)
    for name, rates in found.items():
        print(f"{name:<10} {statistics.median(rates):>7,.0f} pictures/s ({min(rates):,.0f} to {max(rates):,.0f})")
    for name in PLACEMENTS:
        shares = [rate / bare for rate, bare in zip(found[name], found[BARE], strict=True)]
        print(
            f"train, placement {name}, reaches {statistics.median(shares):.1%} of its bare step "
            f"({len(shares)} rounds; {min(shares):.1%} to {max(shares):.1%})"
        )


def compare(place: Path, pictures: list[bytes], count: int, rounds: int) -> dict[str, list[float]]:
    """Pictures per second of the bare step and of each placement, one for each round."""
    cores = len(os.sched_getaffinity(0))
    feeding.prepare(place, pictures, count, cores, VALIDATION, (resize.run, mean.run))
    document = params.load(ROOT / "params.yaml")
    document["learning"] |= {"epochs": EPOCHS, "rate_falls": []}
    YAML().dump({name: document[name] for name in SECTIONS}, place / "params.yaml")
    environment = {"PYTHONPATH": str(ROOT), **cluster.MEMORY}
    command = [sys.executable, "-m", "benchmarks.training_bare", str(place)]
    found: dict[str, list[float]] = {name: [] for name in (BARE, *PLACEMENTS)}
    with turns.ready([Contender(BARE, command, place, environment)]) as there:
        there[0].turn()  # warms up
        for _ in range(rounds):
            found[BARE].append(there[0].turn().rate)
            for name in PLACEMENTS:
                found[name].append(trained(place, name))
    return found


def trained(place: Path, placement: str) -> float:
    """Pictures per second of the last epoch of a training in the working copy, which is as before afterwards."""
    (place / "machine.yaml").write_text(f"placement: {placement}\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = "from pipeline import train; train.run()"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=place, env=environment, capture_output=True, text=True, timeout=LIMIT
    )
    if done.returncode:
        raise SystemExit(f"train, placement {placement}:\n{done.stderr[-2000:]}")
    (file,) = (place / "runs").glob(f"*/{run_record.FILE}")
    record = run_record.read(file.parent)
    assert record is not None
    last = record.epochs[-1]
    for each in ("runs", "data/history"):
        shutil.rmtree(place / each)
    return last["images"] / sum(last[part] for part in run_record.TRAINING)


if __name__ == "__main__":
    main(parser.parse_args())
