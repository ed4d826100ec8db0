"""Speed of training on this device: pictures per second of the whole step at full width, augmentation included.

Run:    python benchmarks/step.py [--recipes paper original-2012] [--steps 50] [--batch 128]
Needs:  torch, ruamel.yaml and pydantic; on a GPU some 5 GB of its memory

The contenders take turns. The floor is the speed that 3 × 1.43 GFLOP per picture would have at the device's own rate in a
large matrix product, measured in the same run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

if __name__ == "__main__":  # before the slow imports
    from pipeline.runtime import usage

    parser = usage.parser_at(__file__, "python benchmarks/step.py")
    parser.add_argument(
        "--recipes",
        nargs="+",
        choices=usage.names(Path(__file__).parents[1] / "recipes"),
        default=["paper", "original-2012"],
    )
    parser.add_argument(
        "--precisions", nargs="+", choices=("float32", "bfloat16", "float64"), default=["float32", "bfloat16"]
    )
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.parse_args()

import dataclasses
import statistics
import time

import torch

from alexnet.augmentation import Augmentation, Statistics, training_patches
from alexnet.build import build
from alexnet.learning import Learning, Momentum, step
from alexnet.network import Dropout, Model
from pipeline.runtime import params

RECIPES = Path(__file__).parents[1] / "recipes"

CLASSES, IMAGES = 1000, 1024


class Contender:
    """A recipe at a precision, with its network and random pictures on the device."""

    def __init__(self, recipe: str, precision: str, batch: int, device: torch.device) -> None:
        file = RECIPES / f"{recipe}.yaml"
        document = params.load(file)
        self.model = params.check(document["model"], Model, file, "model")
        self.augmentation = params.check(document["augmentation"], Augmentation, file, "augmentation")
        learning = params.check(document["learning"], Learning, file, "learning")
        self.learning = dataclasses.replace(learning, precision=precision, rate=1e-6)
        self.name, self.batch, self.device, self.number = f"{recipe} {precision}", batch, device, 0
        self.network = build(self.model, CLASSES)
        self.network.draw_first_weights(0)
        self.network.to(device)
        self.rule = Momentum(self.network, self.learning)
        lots = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (IMAGES, 3, 256, 256), generator=lots, dtype=torch.uint8).to(device)
        self.labels = torch.randint(0, CLASSES, (IMAGES,), generator=lots).to(device)
        mean, values, vectors = torch.full((3, 256, 256), 120.0), torch.tensor([14000.0, 1300.0, 380.0]), torch.eye(3)
        self.statistics = Statistics(mean.to(device), values.to(device), vectors.to(device))

    def steps(self, count: int) -> float:
        """Pictures per second over `count` steps."""
        _wait(self.device)
        began = time.perf_counter()
        for _ in range(count):
            positions = self.number * self.batch + torch.arange(self.batch, device=self.device)
            chosen = positions % IMAGES
            patches = training_patches(
                self.images[chosen],
                positions,
                self.statistics,
                self.augmentation,
                0,
                0,
                torch.float32,
                self.model.patch,
            )
            dropout = Dropout(0, self.number, positions - self.number * self.batch)
            step(
                self.network, self.rule, patches, self.labels[chosen],
                rates=self.learning.rates(0), dropout=dropout, count=self.batch,
            )  # fmt: skip
            self.number += 1
        _wait(self.device)
        return count * self.batch / (time.perf_counter() - began)


def rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second in a product of large random matrices, the best of six."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        _wait(device)
        began = time.perf_counter()
        a @ b
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(options: argparse.Namespace) -> None:
    """Prints a row for each recipe and precision: median and range of pictures per second, and the floor."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    on = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(
        f"{on}, torch {torch.__version__}, batches of {options.batch}, {options.rounds} rounds of {options.steps} steps"
    )
    floors = {name: rate(device, getattr(torch, name)) / 4.3e9 for name in options.precisions}
    contenders = [
        (Contender(recipe, precision, options.batch, device), precision)
        for recipe in options.recipes
        for precision in options.precisions
    ]
    speeds: dict[str, list[float]] = {contender.name: [] for contender, _ in contenders}
    for contender, _ in contenders:
        contender.steps(min(10, options.steps))
    for _ in range(options.rounds):
        for contender, _ in contenders:
            speeds[contender.name].append(contender.steps(options.steps))
    for contender, precision in contenders:
        rates = speeds[contender.name]
        median = statistics.median(rates)
        print(
            f"{contender.name:<32}{median:>9,.0f} images/s ({min(rates):,.0f} to {max(rates):,.0f}), "
            f"{median / floors[precision]:.0%} of the floor's {floors[precision]:,.0f}"
        )


if __name__ == "__main__":
    main(parser.parse_args())
