"""A comparison's runs on one device that holds all pictures: no Ray, no DVC, no MLflow.

Run:    python -m pipeline.resident experiments/full-width.yaml [VARIANT …] [--at-once 1]
Reads:  the comparison and its base; data/shards/ and data/mean.npz of the base's source and resize (dvc repro mean)
Writes: what pipeline.compare writes
Expect: a network at full width learns from some nine thousand pictures a second on an H200 in bfloat16, and from half as many
        in float32

What learns is what learns in `train` (pipeline/training/trainer.py), from the same batches; only where they come from is another
place. Runs that share a GPU hinder each other: four at once learned from six thousand pictures a second, all together. On CPUs
a run has one core, so that there should be as many at once as there are cores, if the memory holds the pictures so many times.
"""

from __future__ import annotations

if __name__ == "__main__":  # before all that takes long to import
    from pipeline.__main__ import main as enter

    enter("resident")

import hashlib
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from alexnet.augmentation import CENTRE, Augmentation, ten_views
from alexnet.dataset import Mean
from alexnet.errors import mean_over_views, topk_credit
from alexnet.features import features_and_logits
from alexnet.learning import Learning
from alexnet.network import Model
from pipeline import compare
from pipeline.compare import Comparison, Variant
from pipeline.runtime import added, commands, machine, params
from pipeline.runtime.paths import AnyPath
from pipeline.runtime.said import say
from pipeline.shards import artifacts
from pipeline.shards.batches import Batch, Order, Pictures, batches
from pipeline.shards.tables import Manifest
from pipeline.training import initial
from pipeline.training.spec import Start, TrainingSpec
from pipeline.training.trainer import Trainer

TESTED = 128
"""Pictures tested at once, with all their views. It decides only the last bits."""


class Resident:
    """Pictures in a device's memory, decoded once. To be read as `batches.batches` reads those in shards."""

    def __init__(self, device: torch.device, threads: int) -> None:
        self.device, self.threads = device, threads
        self._held: dict[Pictures, tuple[Tensor, Tensor]] = {}

    def hold(self, stored: Pictures, side: int) -> None:
        """Brings them there."""
        images = torch.empty((len(stored), 3, side, side), dtype=torch.uint8, device=self.device)
        labels = torch.empty(len(stored), dtype=torch.int64, device=self.device)
        as_stored = Order(np.arange(len(stored)), np.zeros(len(stored), dtype=np.int64))
        for batch in batches(stored, as_stored, 512, threads=self.threads):
            images[batch.positions_B] = batch.images_BCHW.to(self.device)
            labels[batch.positions_B] = batch.labels_B.to(self.device)
        self._held[stored] = images, labels

    def __call__(
        self, stored: Pictures, epoch: Order, size: int, *, first: int = 0, replica: int = 0, replicas: int = 1
    ) -> Iterator[Batch]:
        """The batches of an epoch from batch `first` on, on the device."""
        images, labels = self._held[stored]
        pictures = torch.from_numpy(epoch.pictures_N).to(self.device)
        streams = torch.from_numpy(epoch.streams_N).to(self.device)
        for number in range(first, -(-len(pictures) // size)):
            places = torch.arange(number * size, min((number + 1) * size, len(pictures)), device=self.device)
            own = places[streams[places] % replicas == replica] if replicas > 1 else places
            chosen = pictures[own]
            yield Batch(number, len(places), own, images[chosen], labels[chosen])


@dataclass(frozen=True, kw_only=True)
class Here:
    """What every process needs: the pictures, and where."""

    manifest: Manifest
    shards: AnyPath
    mean: Path
    device: str
    threads: int
    """For decoding."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a run came to."""

    steps: list[dict[str, float]]
    epochs: list[dict[str, float]]
    errors: dict[str, float]
    minutes: float


class Process:
    """A process that makes one run after another."""

    def __init__(self, here: Here) -> None:
        self.here = here
        self.resident = Resident(torch.device(here.device), here.threads)
        self.train, self.val = (Pictures(here.shards, here.manifest.shards[split]) for split in ("train", "val"))
        for pictures in (self.train, self.val):
            self.resident.hold(pictures, here.manifest.side)

    def run(self, document: dict[str, Any], base: Path, test: bool) -> Done:
        """Learns as a params file says, and takes ten views of every validation picture if it is to be tested."""
        began = time.monotonic()
        spec = self.spec(document, base)
        trainer = Trainer(spec, self.train, self.val, self.resident, self.resident.device)
        trainer.learn()
        errors = self.test(trainer) if test else {}
        minutes = (time.monotonic() - began) / 60
        return Done(steps=trainer.progress.steps, epochs=trainer.progress.epochs, errors=errors, minutes=minutes)

    def spec(self, document: dict[str, Any], base: Path) -> TrainingSpec:
        """What the params file says, as `train` understands it."""
        model, start = (
            params.check(document["model"], Model, base, "model"),
            params.check(document["start"], Start, base, "start"),
        )
        manifest, mean = self.here.manifest, self.here.mean
        spec = TrainingSpec(
            model=model,
            start=start,
            augmentation=params.check(document["augmentation"], Augmentation, base, "augmentation"),
            learning=params.check(document["learning"], Learning, base, "learning"),
            manifest=manifest,
            mean=Mean.load(mean),
            mean_digest=hashlib.sha256(mean.read_bytes()).hexdigest(),
            first=initial.read_pretrained(start, model, manifest, machine.read()),
        )
        return initial.with_clusters(spec, self.here.shards)

    @torch.no_grad()
    def test(self, trainer: Trainer) -> dict[str, float]:
        """The columns of runs.csv: errors on all validation pictures, of ten views and of the centre."""
        trainer.network.eval()
        side, sums = trainer.spec.model.patch, dict.fromkeys(compare.ERRORS, 0.0)
        as_stored = Order(np.arange(len(self.val)), np.zeros(len(self.val), dtype=np.int64))
        for batch in self.resident(self.val, as_stored, TESTED):
            views = ten_views(batch.images_BCHW, trainer.statistics.mean_CHW, side, trainer.spec.augmentation.mean)
            _, logits = features_and_logits(trainer.network, views.flatten(0, 1))
            logits = logits.float().reshape(*views.shape[:2], -1)
            for name, some in (("", logits), ("centre_", logits[:, CENTRE : CENTRE + 1])):
                for top in (1, 5):
                    sums[f"{name}top{top}_error"] += float(
                        topk_credit(mean_over_views(some), batch.labels_B, top).sum()
                    )
        count = len(self.val)
        return {name: (count - right) / count for name, right in sums.items()} | {"images": count}


_process: Process


def _begin(here: Here) -> None:
    global _process
    torch.set_num_threads(1)
    _process = Process(here)


def _run(document: dict[str, Any], base: Path, test: bool) -> Done:
    return _process.run(document, base, test)


def run(comparison: Comparison, variants: list[Variant], at_once: int) -> None:
    """Makes the runs that are missing, first seed first; `ValueError` at the end if some of them failed."""
    missing, base = compare.missing(comparison, variants), Path(comparison.base)
    if not missing:
        return
    check_pictures(base)
    settings = machine.read()
    manifest, mean = artifacts.inputs(settings)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    threads = max(1, (os.cpu_count() or 1) // at_once)
    place = artifacts.locate(manifest, settings)
    here = Here(manifest=manifest, shards=place, mean=mean, device=device, threads=threads)
    at_once = min(at_once, len(missing))
    check_room(manifest, device, at_once)
    faults = []
    context = multiprocessing.get_context("spawn")  # CUDA bears no fork
    with ProcessPoolExecutor(at_once, context, _begin, (here,)) as pool:
        futures = {
            pool.submit(_run, document, base, comparison.target == "evaluate"): (variant, seed, document)
            for variant, seed, document in sorted(missing, key=lambda run: comparison.seeds.index(run[1]))
        }
        for future in as_completed(futures):
            variant, seed, document = futures[future]
            try:
                done = future.result()
            except Exception as error:  # of one run, whatever it is: the others are made
                faults.append(f"{variant.name}, seed {seed}: {error}")
                say(f"resident: {faults[-1]}")
                continue
            facts = {"commit": compare.commit(), "minutes": f"{done.minutes:.1f}", "classes": len(manifest.classes)}
            compare.record(comparison, variant, seed, document, done.steps, done.epochs, {**facts, **done.errors})
            last = done.epochs[-1]
            print(
                f"resident: {variant.name}, seed {seed}: {done.minutes:.1f} minutes, loss {last['train_loss']:.3f}, "
                f"top-1 error {done.errors.get('top1_error', last['val_top1_error']):.1%}",
                flush=True,
            )
    if faults:
        raise ValueError("; ".join(faults))


def check_room(manifest: Manifest, device: str, at_once: int) -> None:
    """`ValueError` if the device's memory does not hold the pictures `at_once` times."""
    size = at_once * sum(manifest.rows(split) for split in ("train", "val")) * 3 * manifest.side**2
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available
    if size > free:
        raise ValueError(
            f"{artifacts.SHARDS}: {size:,} bytes of pixels for {at_once} at once, and {free:,} are free in the memory of the "
            f"{device}. Take fewer classes, or fewer runs --at-once, each of which holds them all"
        )


def check_pictures(base: Path) -> None:
    """`ValueError` unless params.yaml, which made data/shards, has the same pictures as the base."""
    ours, theirs = (added.completed(params.load(file)) for file in (params.PARAMS, base))
    for section in ("source", "resize"):
        if ours.get(section) != theirs.get(section):
            raise ValueError(
                f"{params.PARAMS}: {section}: is not that of {base}. "
                f"In a copy of the repository: cp {base} {params.PARAMS}, and dvc repro mean"
            )


def main() -> None:
    """The program."""
    options = commands.resident().parse_args()
    try:
        comparison = compare.read(options.file)
        try:
            run(comparison, compare.select(comparison, options.variants, options.file), options.at_once)
        finally:
            compare.show(comparison)
    except (ValueError, OSError) as error:
        raise SystemExit(f"resident: {error}") from None
