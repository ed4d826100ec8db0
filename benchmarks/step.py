"""Speed of training on this device: pictures per second of the whole step at full width, augmentation included.

Run:    python benchmarks/step.py [--recipes paper original-2012] [--steps 50] [--batch 128]
Needs:  torch, ruamel.yaml and pydantic; on a GPU some 5 GB of its memory

The contenders take turns. The floor is the speed that 3 × 1.43 GFLOP per picture would have at the device's own rate in a
large matrix product, measured in the same run. The peers are given patches that are ready: `usual` is the paper's network
without columns as most people write it, with torch's own normalization and SGD, in float32; `torchvision` is that library's
alexnet, which has other kernels and no normalization.
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
    parser.add_argument("--peers", nargs="*", choices=("usual", "torchvision"), default=["usual", "torchvision"])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.parse_args()

import dataclasses
import statistics
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from alexnet.augmentation import Augmentation, Statistics, training_patches
from alexnet.build import build
from alexnet.learning import Learning, Momentum, step
from alexnet.network import Dropout, Model
from pipeline.runtime import params

RECIPES = Path(__file__).parents[1] / "recipes"

CLASSES, IMAGES = 1000, 1024

PEERS = ("usual", "torchvision")

TARGETS = (
    ("paper float32", "torchvision", 0.95),
    ("paper float32", "usual", None),
    ("paper bfloat16", "usual", 4.5),
    ("original-2012 float32", "paper float32", 0.9),
    ("original-2012 bfloat16", "paper bfloat16", 0.9),
)
"""Ours, the peer, and the ratio that is wanted."""


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


class Peer:
    """Another network with torch's SGD in float32, and random patches on the device."""

    def __init__(self, name: str, batch: int, device: torch.device) -> None:
        self.name, self.batch, self.device = name, batch, device
        self.network = (usual() if name == "usual" else torchvisions()).to(device)
        self.rule = torch.optim.SGD(self.network.parameters(), 1e-6, momentum=0.9, weight_decay=5e-4)
        lots = torch.Generator().manual_seed(0)
        self.patches = torch.randn(batch, 3, 224, 224, generator=lots).to(device)
        self.labels = torch.randint(0, CLASSES, (batch,), generator=lots).to(device)

    def steps(self, count: int) -> float:
        """Pictures per second over `count` steps."""
        _wait(self.device)
        began = time.perf_counter()
        for _ in range(count):
            self.rule.zero_grad()
            F.cross_entropy(self.network(self.patches), self.labels).backward()  # type: ignore[no-untyped-call]
            self.rule.step()
        _wait(self.device)
        return count * self.batch / (time.perf_counter() - began)


def usual() -> nn.Module:
    """The paper's network of 2012 on one device, layer by layer as in a tutorial; groups stand for the two columns."""
    return nn.Sequential(
        nn.Conv2d(3, 96, 11, stride=4, padding=2), nn.ReLU(), nn.LocalResponseNorm(5, 1e-4, 0.75, 2), nn.MaxPool2d(3, 2),
        nn.Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU(), nn.LocalResponseNorm(5, 1e-4, 0.75, 2), nn.MaxPool2d(3, 2),
        nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 384, 3, padding=1, groups=2), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Flatten(),
        nn.Dropout(), nn.Linear(256 * 6 * 6, 4096), nn.ReLU(),
        nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, CLASSES),
    )  # fmt: skip


def torchvisions() -> nn.Module:
    """Torchvision's alexnet, with random weights."""
    from torchvision.models import alexnet  # a machine that measures our steps alone needs no torchvision

    network: nn.Module = alexnet()
    return network


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


def measure(
    recipes: Sequence[str], precisions: Sequence[str], peers: Sequence[str], steps: int, batch: int, rounds: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Pictures per second of each contender and round, and each precision's floor; `steps` steps a round."""
    device = _device()
    floors = {name: rate(device, getattr(torch, name)) / 4.3e9 for name in precisions}
    ours = [Contender(recipe, precision, batch, device) for recipe in recipes for precision in precisions]
    contenders = [*ours, *(Peer(name, batch, device) for name in peers)]
    speeds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for contender in contenders:
        contender.steps(min(10, steps))
    for number in range(rounds):
        for contender in contenders if number % 2 else reversed(contenders):
            speeds[contender.name].append(contender.steps(steps))
    return speeds, floors


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda")


def main(options: argparse.Namespace) -> None:
    """Prints a row for each recipe and precision: median and range of pictures per second, and the floor."""
    device = _device()
    on = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(
        f"{on}, torch {torch.__version__}, batches of {options.batch}, {options.rounds} rounds of {options.steps} steps"
    )
    speeds, floors = measure(
        options.recipes, options.precisions, options.peers, options.steps, options.batch, options.rounds
    )
    for name, rates in speeds.items():
        median = statistics.median(rates)
        floor = floors.get(name.split()[-1])
        of_floor = f", {median / floor:.0%} of the floor's {floor:,.0f}" if floor else ""
        print(f"{name:<32}{median:>9,.0f} images/s ({min(rates):,.0f} to {max(rates):,.0f}){of_floor}")
    for peer in options.peers:
        for name in (name for name in speeds if name not in options.peers):
            ratios = [one / other for one, other in zip(speeds[name], speeds[peer], strict=True)]
            print(
                f"{name} is {statistics.median(ratios):.2f} times as fast as {peer} "
                f"({len(ratios)} rounds; {min(ratios):.2f} to {max(ratios):.2f})"
            )


if __name__ == "__main__":
    main(parser.parse_args())
