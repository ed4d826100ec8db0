"""Running a study on one device that holds all pictures, without Ray and MLflow; DVC only makes the pictures.

The trainer and the batches are those of `train`; only the batches' source differs. On an H200 a network at full width learns
from some 9,000 pictures a second in bfloat16, and from half as many in float32. Runs that share a GPU slow each other down:
four at once learned from 6,000 pictures a second altogether. On CPUs each run uses one core, so --at-once should be the
number of cores, if the memory holds the pictures that many times.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from alexnet import features
from alexnet.augmentation import CENTRE, Augmentation, ten_views
from alexnet.dataset import Mean
from alexnet.errors import mean_over_views, topk_credit
from alexnet.learning import Learning
from alexnet.network import Model
from pipeline.runtime import machines, params
from pipeline.runtime.paths import AnyPath
from pipeline.runtime.printing import say
from pipeline.shards.batches import Batch, Order, Pictures, Plan, batches
from pipeline.shards.manifest import Manifest
from pipeline.training import initial
from pipeline.training.spec import Start, TrainingSpec
from pipeline.training.trainer import Trainer
from studies import rows
from studies.rows import Result
from studies.study import Run, Study
from studies.workspace import Prepared, prepare

TESTED = 128
"""Batch size for testing; each picture counts once, with all its views. It affects results by rounding only."""


class PicturesInMemory:
    """Decoded pictures in a device's memory. A call yields the same batches as `batches.batches`, which reads shards."""

    def __init__(self, device: torch.device, threads: int) -> None:
        self.device, self.threads = device, threads
        self._held: dict[Pictures, tuple[Tensor, Tensor]] = {}

    def hold(self, stored: Pictures, side: int) -> None:
        """Decodes the pictures into the device's memory."""
        images_NCHW = torch.empty((len(stored), 3, side, side), dtype=torch.uint8, device=self.device)
        labels_N = torch.empty(len(stored), dtype=torch.int64, device=self.device)
        for batch in batches(stored, as_stored(stored), 512, threads=self.threads):
            images_NCHW[batch.positions_B] = batch.images_BCHW.to(self.device)
            labels_N[batch.positions_B] = batch.labels_B.to(self.device)
        self._held[stored] = images_NCHW, labels_N

    def __call__(
        self,
        stored: Pictures,
        epoch: Order,
        size: int,
        *,
        first: int = 0,
        replica: int = 0,
        replicas: int = 1,
        plan: Plan | None = None,  # noqa: ARG002  # nothing is decoded here
    ) -> Iterator[Batch]:
        """Yields the batches of an epoch from batch `first` on, on the device, as pictures."""
        images_NCHW, labels_N = self._held[stored]
        pictures_E = torch.from_numpy(epoch.pictures_N).to(self.device)
        streams_E = torch.from_numpy(epoch.streams_N).to(self.device)
        for number in range(first, -(-len(pictures_E) // size)):
            positions_B = torch.arange(number * size, min((number + 1) * size, len(pictures_E)), device=self.device)
            own_B = positions_B[streams_E[positions_B] % replicas == replica] if replicas > 1 else positions_B
            rows_B = pictures_E[own_B]
            yield Batch(number, len(positions_B), own_B, images_NCHW[rows_B], labels_N[rows_B])


def as_stored(pictures: Pictures) -> Order:
    """An order with each picture once, as stored."""
    return Order(np.arange(len(pictures)), np.zeros(len(pictures), dtype=np.int64))


@dataclass(frozen=True, kw_only=True)
class Shared:
    """The values that all processes of a study get."""

    manifest: Manifest
    shards: AnyPath
    """The folder of the shards."""
    mean: Path
    """mean.npz."""
    device: str
    """cpu or cuda."""
    threads: int
    """Number of threads for decoding."""
    base: Path
    """The params file, for error messages."""
    test: bool
    """Whether to test a finished run with ten views."""


class Process:
    """A process that holds the pictures and trains one run after another."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.held = PicturesInMemory(torch.device(shared.device), shared.threads)
        self.train, self.val = (Pictures(shared.shards, shared.manifest.shards[split]) for split in ("train", "val"))
        for pictures in (self.train, self.val):
            self.held.hold(pictures, shared.manifest.side)

    def run(self, document: dict[str, Any]) -> Result:
        """Trains one run. `document`: the contents of params.yaml. Tests on all validation pictures if the study asks for it."""
        began = time.monotonic()
        trainer = Trainer(self.spec(document), self.train, self.val, self.held, self.held.device)
        trainer.learn()
        errors = self.test(trainer) if self.shared.test else {}
        minutes = (time.monotonic() - began) / 60
        cells = {"minutes": f"{minutes:.1f}", "classes": len(self.shared.manifest.classes), **errors}
        return Result(steps=trainer.progress.steps, epochs=trainer.progress.epochs, cells=cells)

    def spec(self, document: dict[str, Any]) -> TrainingSpec:
        """The training specification of a document, checked as `train` does."""
        base, manifest, mean = self.shared.base, self.shared.manifest, self.shared.mean
        model = params.check(document["model"], Model, base, "model")
        start = params.check(document["start"], Start, base, "start")
        spec = TrainingSpec(
            model=model,
            start=start,
            augmentation=params.check(document["augmentation"], Augmentation, base, "augmentation"),
            learning=params.check(document["learning"], Learning, base, "learning"),
            manifest=manifest,
            mean=Mean.load(mean),
            mean_digest=hashlib.sha256(mean.read_bytes()).hexdigest(),
            first=initial.read_pretrained(start, model, manifest, machines.read()),
        )
        return initial.with_clusters(spec, self.shared.shards)

    @torch.no_grad()
    def test(self, trainer: Trainer) -> dict[str, float]:
        """The errors (0 to 1) on all validation pictures, by ten views and by the centre patch, as cells of runs.csv."""
        trainer.network.eval()
        side, right = trainer.spec.model.patch, dict.fromkeys(rows.ERRORS, 0.0)
        for batch in self.held(self.val, as_stored(self.val), TESTED):
            mean_CHW = trainer.statistics.mean_CHW
            views_BVCHW = ten_views(batch.images_BCHW, mean_CHW, side, trainer.spec.augmentation.mean)
            _, logits_BVK = features.of_views(trainer.network, views_BVCHW)
            for name, some_BVK in (("", logits_BVK), ("centre_", logits_BVK[:, CENTRE : CENTRE + 1])):
                for top in (1, 5):
                    credit_B = topk_credit(mean_over_views(some_BVK), batch.labels_B, top)
                    right[f"{name}top{top}_error"] += float(credit_B.sum())
        count = len(self.val)
        return {name: (count - credit) / count for name, credit in right.items()} | {"images": count}


_process: Process


def _begin(shared: Shared) -> None:
    global _process
    torch.set_num_threads(1)
    _process = Process(shared)


def _run(document: dict[str, Any]) -> Result:
    return _process.run(document)


def run(study: Study, missing: Sequence[Run], at_once: int) -> None:
    """Trains the runs, `at_once` at a time and those of the first seed first, and records each.

    `ValueError` at the end if any of them failed.
    """
    prepared = prepare(study)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    threads = max(1, (os.cpu_count() or 1) // at_once)
    at_once = min(at_once, len(missing))
    check_room(prepared, device, at_once)
    shared = Shared(
        manifest=prepared.manifest,
        shards=prepared.shards,
        mean=prepared.mean,
        device=device,
        threads=threads,
        base=study.base,
        test=study.target == "evaluate",
    )
    faults = []
    context = multiprocessing.get_context("spawn")  # CUDA does not work in a forked process
    with ProcessPoolExecutor(at_once, context, _begin, (shared,)) as pool:
        ordered = sorted(missing, key=lambda each: study.seeds.index(each.seed))
        futures = {pool.submit(_run, dict(each.parameters)): each for each in ordered}
        for future in as_completed(futures):
            each = futures[future]
            try:
                result = future.result()
            except Exception as error:  # any error of one run: the other runs go on
                faults.append(f"{each}: {error}")
                say(f"studies: {faults[-1]}")
                continue
            rows.record(study, each, result)
            say(summary(each, result))
    if faults:
        raise ValueError("; ".join(faults))


def summary(run: Run, result: Result) -> str:
    """A line for the user on a finished run."""
    last = result.epochs[-1]
    error = result.cells.get("top1_error", last["val_top1_error"])
    return f"studies: {run}: {result.cells['minutes']} minutes, loss {last['train_loss']:.3f}, top-1 error {error:.1%}"


def check_room(prepared: Prepared, device: str, at_once: int) -> None:
    """`ValueError` if the device's memory does not hold the pictures `at_once` times."""
    manifest = prepared.manifest
    size = at_once * sum(manifest.rows(split) for split in ("train", "val")) * 3 * manifest.side**2
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available
    if size > free:
        raise ValueError(
            f"{prepared.shards}: {size:,} bytes of pixels for {at_once} at once, and {free:,} are free in the memory of the "
            f"{device}. Take fewer classes, or fewer runs --at-once, each of which holds them all"
        )
