"""Our side of benchmarks/feeding.py: the loader of `train`, on a CPU, with the recipe of 2012

Run:    python benchmarks/feeding_ours.py FOLDER THREADS, by benchmarks/feeding.py: an epoch for each line of standard input
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

if __name__ == "__main__":  # before the slow imports
    from pipeline.runtime import usage

    parser = usage.parser_at(__file__, "python benchmarks/feeding_ours.py")
    parser.add_argument("folder", type=usage.existing_path, help="a working copy with shards")
    parser.add_argument("threads", type=int, help="that decode")
    parser.parse_args()

import itertools

import torch
from torch import Tensor

from alexnet.augmentation import Augmentation, Patches, Statistics, draw
from alexnet.learning import Learning
from benchmarks.turns import work
from pipeline.runtime import params
from pipeline.shards.batches import Pictures, batches, order
from pipeline.shards.manifest import Manifest

RECIPE = Path(__file__).resolve().parents[1] / "recipes/original-2012.yaml"

BATCH, SEED = 128, 0


def main(folder: Path, threads: int) -> None:
    """Runs an epoch at each turn."""
    document = params.load(RECIPE)
    section = params.check(document["augmentation"], Augmentation, RECIPE, "augmentation")
    learning = params.check(document["learning"], Learning, RECIPE, "learning")
    manifest = Manifest.read(folder / "data/shards")
    pictures = Pictures(folder / "data/shards", manifest.shards["train"])
    statistics = Statistics(
        torch.full((3, manifest.side, manifest.side), 120.0), torch.tensor([14000.0, 1300.0, 380.0]), torch.eye(3)
    )
    epochs = itertools.count()

    def epoch() -> int:
        number = next(epochs)

        def plan(positions_B: Tensor) -> Patches:
            return Patches(draw(positions_B, manifest.side, statistics, section, SEED, number), statistics, section)

        read = batches(pictures, order(pictures, learning, number), BATCH, threads=threads, plan=plan)
        return sum(len(batch.images_BCHW) for batch in read)

    work(epoch)


if __name__ == "__main__":
    arguments = parser.parse_args()
    main(arguments.folder, arguments.threads)
