"""The bare step beside `train` in benchmarks/training.py: one process with all threads, and pictures that are decoded already

Run:    python benchmarks/training_bare.py FOLDER, by benchmarks/training.py: an epoch for each line of standard input
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

if __name__ == "__main__":  # before the slow imports
    from pipeline.runtime import usage

    parser = usage.parser_at(__file__, "python benchmarks/training_bare.py")
    parser.add_argument("folder", type=usage.existing_path, help="a working copy before `train`")
    parser.parse_args()

import os
from contextlib import chdir

import torch

from alexnet.augmentation import Statistics, mean_to_subtract, training_patches
from alexnet.build import build
from alexnet.learning import Momentum, step
from alexnet.network import Dropout
from alexnet.pictures import decode
from benchmarks.turns import work
from pipeline import train
from pipeline.runtime.machines import Machine
from pipeline.shards.batches import Pictures

PICTURES = 512
"""As many are held decoded."""


def main(folder: Path) -> None:
    """Makes as many steps at each turn as an epoch has."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with chdir(folder):
        spec = train.read_spec(Machine())
        stored = Pictures(Path("data/shards"), spec.manifest.shards["train"])
        jpegs = [data for group in range(len(stored.groups)) for data in stored.read(group)[0]][:PICTURES]
    images = torch.stack([decode(data) for data in jpegs])
    learning, network = spec.learning, build(spec.model, len(spec.manifest.classes))
    network.draw_first_weights(learning.seed)
    rule = Momentum(network, learning)
    mean = torch.from_numpy(spec.mean.image_CHW).float()
    values, vectors = (torch.from_numpy(each).float() for each in (spec.mean.eigenvalues_C, spec.mean.eigenvectors_CC))
    statistics = Statistics(mean_to_subtract(mean, spec.augmentation), values, vectors)
    labels = torch.zeros(len(images), dtype=torch.int64)
    size, steps, done = learning.batch_size, -(-len(stored) // learning.batch_size), 0

    def epoch() -> int:
        nonlocal done
        for number in range(done, done + steps):
            positions_B = number * size + torch.arange(size)
            chosen_B = positions_B % len(images)
            patches_BCHW = training_patches(
                images[chosen_B], positions_B, statistics, spec.augmentation, 0, 0, torch.float32, spec.model.patch
            )
            step(
                network, rule, patches_BCHW, labels[chosen_B],
                rates=learning.rates(0), dropout=Dropout(0, number, positions_B - number * size), count=size,
            )  # fmt: skip
        done += steps
        return steps * size

    work(epoch)


if __name__ == "__main__":
    main(parser.parse_args().folder)
