"""All comparisons of speed in one run: one table of ratios with their spread, and benchmarks/results.json.

Run:    make bench [FOLDER=a folder of JPEGs]; make bench-quick, ten minutes on 2 cores
        (python -m benchmarks [FOLDER] [--quick] [--peers PYTHON] [--only feeding step])
Reads:  the JPEGs below FOLDER; without it pictures that are drawn as the sample's are
Writes: benchmarks/results.json: a row for each comparison, with the target that was set for it

The contenders of a comparison take turns, and a ratio is taken within a round: it carries over to another machine, pictures a
second do not. What cannot be measured here has a row that says why.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

if __name__ == "__main__":  # before the slow imports
    from pipeline.runtime import usage

    PARTS = ("feeding", "resize", "step", "train")
    parser = usage.parser_at(__file__, "python -m benchmarks")
    parser.add_argument("folder", type=usage.existing_path, nargs="?", default=None)
    parser.add_argument("--quick", action="store_true", help="fewer rounds of fewer pictures")
    parser.add_argument(
        "--pictures", type=int, default=None, help="of feeding, resize and train, in place of thousands"
    )
    parser.add_argument("--peers", type=usage.existing_path, default=None, help="a Python that has the peers' packages")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="these comparisons")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.json"))
    parser.parse_args()

import io
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import get_args

import numpy as np

from benchmarks import feeding, kernel, rows, stage, step, training
from benchmarks.rows import Row
from pipeline.archives import harder
from pipeline.archives.drawing import Shape, Texture

DRAWN = 200
"""Pictures that are drawn if no folder is given."""


def main(arguments: argparse.Namespace) -> None:
    """Runs the comparisons, prints the table, and writes the rows."""
    with tempfile.TemporaryDirectory() as place:
        if len(arguments.only) == 1:
            found = compare(arguments.only[0], Path(place), arguments)
        else:
            found = [row for part in arguments.only for row in in_a_process(part, Path(place), arguments)]
    rows.write(found, arguments.out)
    print(rows.machine())
    print(rows.table(found))
    print(f"{arguments.out}: {len(found)} rows")


def in_a_process(part: str, place: Path, arguments: argparse.Namespace) -> list[Row]:
    """The rows of a comparison, made by this program in a process of its own: Ray starts once in a process."""
    out, began = place / f"{part}.json", time.monotonic()
    words = [str(arguments.folder.absolute())] if arguments.folder else []
    words += ["--quick"] * arguments.quick + (["--pictures", str(arguments.pictures)] if arguments.pictures else [])
    words += ["--peers", str(arguments.peers.absolute())] if arguments.peers else []
    command = [sys.executable, "-m", "benchmarks", *words, "--only", part, "--out", str(out)]
    ended = subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode
    if ended:
        return [rows.missing(part, f"its program ended with code {ended}; what it said is above the table")]
    print(f"{part}: {time.monotonic() - began:,.0f} s", file=sys.stderr, flush=True)
    return rows.read(out)


def compare(part: str, place: Path, arguments: argparse.Namespace) -> list[Row]:
    """Makes a comparison."""
    pictures = kernel.read(arguments.folder, 3000) if arguments.folder else drawn(DRAWN)
    return COMPARISONS[part](place, pictures, arguments)


def drawn(count: int) -> list[bytes]:
    """JPEGs drawn as the sample's hard pictures are, of many sizes."""
    made = []
    for number in range(count):
        shape, texture = get_args(Shape)[number % 5], get_args(Texture)[number % 2]
        file = io.BytesIO()
        harder.picture(np.random.default_rng(number), shape, texture).save(file, "JPEG", quality=95)
        made.append(file.getvalue())
    return made


def of_feeding(place: Path, pictures: Sequence[bytes], arguments: argparse.Namespace) -> list[Row]:
    """Our loader beside the others'."""
    threads = len(os.sched_getaffinity(0))
    count = arguments.pictures or (1500 if arguments.quick else 6000)
    feeding.prepare(place, list(pictures), count, threads)
    turned = feeding.compare(place, arguments.peers, 2 if arguments.quick else 5, threads)
    ours = [turn.rate for turn in turned[feeding.OURS]]
    found = []
    for name, target in feeding.TARGETS.items():
        label = f"feeding, beside {name}"
        if name in turned:
            found.append(rows.row(label, ours, [turn.rate for turn in turned[name]], target=target))
        else:
            why = "does not run here" if arguments.peers else "no --peers: make bench makes their environment"
            found.append(rows.missing(label, why, target))
    return found


def of_resize(place: Path, pictures: Sequence[bytes], arguments: argparse.Namespace) -> list[Row]:
    """The stage beside as many bare processes of its kernel."""
    count, turns = (2000, 2) if arguments.quick else (8000, 5)
    count = arguments.pictures or count
    measured = stage.measure(place, list(pictures), count, len(os.sched_getaffinity(0)), turns)
    made, kernels = ([count / seconds for seconds, _ in side] for side in (measured.stage, measured.bare))
    return [rows.row("resize, beside bare processes of its kernel", made, kernels, target=0.9)]


def of_step(place: Path, pictures: Sequence[bytes], arguments: argparse.Namespace) -> list[Row]:  # noqa: ARG001
    """A training step beside the peers' in float32."""
    count, turns = (2, 2) if arguments.quick else (6, 5)
    speeds, floors = step.measure(["paper", "original-2012"], ["float32", "bfloat16"], step.PEERS, count, 128, turns)
    found = []
    for ours, peer, target in step.TARGETS:
        floor = floors.get(ours.split()[-1])
        share = f"{max(speeds[ours]) / floor:.0%} of the matrix product's rate" if floor else ""
        found.append(rows.row(f"step, {ours}, beside {peer}", speeds[ours], speeds[peer], target=target, limit=share))
    return found


def of_train(place: Path, pictures: Sequence[bytes], arguments: argparse.Namespace) -> list[Row]:
    """`train` from shards beside its own bare step."""
    count = arguments.pictures or (600 if arguments.quick else 1500)
    turned = training.compare(place, list(pictures), count, 2 if arguments.quick else 4)
    bare = turned.pop(training.BARE)
    return [
        rows.row(f"train, placement {name}, beside its bare step", rates, bare, target=0.9)
        for name, rates in turned.items()
    ]


COMPARISONS: Mapping[str, Callable[[Path, Sequence[bytes], argparse.Namespace], list[Row]]] = {
    "feeding": of_feeding,
    "resize": of_resize,
    "step": of_step,
    "train": of_train,
}

if __name__ == "__main__":
    main(parser.parse_args())
