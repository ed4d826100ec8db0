"""The trainer: one rank's training steps, their measurements, and the state to resume from. It does not depend on Ray."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from alexnet.augmentation import Patches, Statistics, centre_view, draw, mean_to_subtract, training_patches
from alexnet.build import build
from alexnet.columns import Link, Together, gather
from alexnet.errors import topk_credit
from alexnet.learning import Measured, Momentum, Rates, Reduce, precision, step
from alexnet.network import Dropout
from pipeline.runtime.clock import Clock
from pipeline.shards.batches import Batch, Order, Pictures, Plan, held_out, order
from pipeline.training.spec import TrainingSpec

VALIDATION_BATCH = 64
"""Batch size for measuring. It affects the loss by rounding only."""


@dataclass(frozen=True, kw_only=True)
class Rank:
    """This process's position in the training. Changing it changes results by rounding only."""

    link: Link
    """The connection to the process that holds the other column."""
    replica: int = 0
    """Index of this process's replica, from 0."""
    replicas: int = 1
    """Number of replicas."""
    reduce: Reduce | None = None
    """Sums tensors in place over the replicas; None if there is only one."""


class Read(Protocol):
    """A function that reads a replica's batches: `batches.batches`, or another that yields the same."""

    def __call__(
        self,
        stored: Pictures,
        epoch: Order,
        size: int,
        *,
        first: int = 0,
        replica: int = 0,
        replicas: int = 1,
        plan: Plan | None = None,
    ) -> Iterator[Batch]:
        """Yields the batches of an epoch from batch `first` on; of patches by `plan`, or of pictures all the same."""


@dataclass
class Progress:
    """The progress of a training and its measurements: everything in a checkpoint besides tensors."""

    epoch: int = 0
    """Number of epochs completed."""
    batch: int = 0
    """Index of the next batch in the epoch."""
    step: int = 0
    """Number of updates made."""
    steps: list[dict[str, float]] = dataclasses.field(default_factory=list)
    """The history by step: rows of step, epoch, rate, loss, top1_error."""
    epochs: list[dict[str, float]] = dataclasses.field(default_factory=list)
    """The history by epoch."""
    epoch_sums: list[float] = dataclasses.field(default_factory=lambda: [0.0, 0.0, 0.0])
    """Sums over the epoch so far: loss, top-1 credit, pictures."""


def _nothing(*_: Any) -> None:
    pass


class Trainer:
    """Trains this rank's part of the network: one or both columns, on its replica's share of each batch.

    `on_rows` is called with new rows of the history, `on_batch` after each batch of training or measuring, `on_boundary`
    at the points where `state_dict` is complete, that is, where no partial sum is pending, and `on_times` after each epoch
    with the seconds of each of the clock's parts and the number of training pictures in them.
    """

    def __init__(
        self,
        spec: TrainingSpec,
        train: Pictures,
        val: Pictures,
        read: Read,
        device: torch.device,
        rank: Rank | None = None,
        *,
        on_rows: Callable[..., None] = _nothing,
        on_batch: Callable[[], None] = _nothing,
        on_boundary: Callable[[], None] = _nothing,
        on_times: Callable[[dict[str, float]], None] = _nothing,
        clock: Clock | None = None,
    ) -> None:
        self.spec, self.train, self.val, self.read, self.device = spec, train, val, read, device
        self.on_rows, self.on_batch, self.on_boundary, self.on_times = on_rows, on_batch, on_boundary, on_times
        self.clock = clock or Clock(gpu=device.type == "cuda")
        self.rank = rank or Rank(link=Together(spec.model.columns))
        self.learning, learning = spec.learning, spec.learning
        if device.type == "cuda":
            torch.backends.cudnn.benchmark = True
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
        self.network = build(spec.model, len(spec.manifest.classes), self.rank.link)
        self.network.draw_first_weights(learning.seed)
        if self.rank.replicas > 1 and any(isinstance(layer, _BatchNorm) for layer in self.network.modules()):
            raise ValueError(
                "params.yaml: model: batch normalization takes its means over the whole batch, and each of several replicas "
                "sees a part of it. Set placement: one in machine.yaml"
            )
        self.network.load_state_dict(self.network.state_dict() | self.network.local_part(spec.first.weights))
        self.dtype = torch.float64 if learning.precision == "float64" else torch.float32
        self.network.to(device, self.dtype)
        self.rule = Momentum(self.network, learning)
        mean_CHW, values_C, vectors_CC = (
            torch.from_numpy(array).to(device, self.dtype)
            for array in (spec.mean.image_CHW, spec.mean.eigenvalues_C, spec.mean.eigenvectors_CC)
        )
        self.statistics = Statistics(mean_to_subtract(mean_CHW, spec.augmentation), values_C, vectors_CC)
        self.held_out_N = np.flatnonzero(held_out(len(train), learning))
        self.progress = Progress()

    def learn(self) -> None:
        """Runs the remaining epochs."""
        while self.progress.epoch < self.learning.epochs:
            self.epoch()

    def epoch(self) -> None:
        """Runs the rest of the current epoch, then measures on the validation pictures and on the pictures held out."""
        learning, progress = self.learning, self.progress
        watched = "val_top1_error" if learning.watched == "validation" else "held_out_top1_error"
        rates = learning.rates(progress.epoch, [row.get(watched, np.inf) for row in progress.epochs])
        rate = rates.last
        started, seen, window = time.monotonic(), 0, [0.0, 0.0, 0.0]
        self.clock.begin()
        in_order = order(self.train, learning, progress.epoch)
        for batch in self._batches(self.train, in_order, learning.batch_size, progress.batch, self._plan()):
            with self.clock.during("computing"):
                measured = self._step(batch, rates)
            for sums in (window, progress.epoch_sums):
                sums[0] += measured.loss_sum
                sums[1] += measured.right
                sums[2] += measured.count
            seen += measured.count
            progress.step += 1
            progress.batch += 1
            if progress.step % learning.log_steps == 0:
                row = {"step": progress.step, "epoch": progress.epoch, "rate": rate, **_means(*window)}
                progress.steps.append(row)
                self.on_rows(row | {"images_per_second": seen / (time.monotonic() - started)})
                window = [0.0, 0.0, 0.0]
                self.clock.settle()
                self.on_boundary()
        self._end_epoch(rate, seen)

    def _end_epoch(self, rate: float, seen: int) -> None:
        progress = self.progress
        row = {"epoch": progress.epoch, "step": progress.step, "rate": rate}
        row |= {f"train_{name}": value for name, value in _means(*progress.epoch_sums).items()}
        row |= {f"val_{name}": value for name, value in self.measure(self.val, np.arange(len(self.val))).items()}
        if len(self.held_out_N):
            row |= {f"held_out_{name}": value for name, value in self.measure(self.train, self.held_out_N).items()}
        progress.epochs.append(row)
        self.on_rows(row)
        progress.epoch, progress.batch, progress.epoch_sums = progress.epoch + 1, 0, [0.0, 0.0, 0.0]
        self.on_boundary()
        self.on_times({"epoch": row["epoch"], "step": progress.step, "images": seen, **self.clock.seconds()})

    def _plan(self) -> Plan | None:
        """On a CPU patches are made by the threads that decode; on a GPU they are made there, of the whole batch."""
        if self.device.type != "cpu":
            return None
        spec, seed, epoch = self.spec, self.learning.seed, self.progress.epoch

        def plan(positions_B: Tensor) -> Patches:
            whole, side = self.statistics.mean_CHW.shape[-1], spec.model.patch
            drawn = draw(positions_B, whole, self.statistics, spec.augmentation, seed, epoch, side)
            return Patches(drawn, self.statistics, spec.augmentation, self.dtype, side)

        return plan

    def _batches(
        self, stored: Pictures, epoch: Order, size: int, first: int = 0, plan: Plan | None = None
    ) -> Iterator[Batch]:
        replica, replicas = self.rank.replica, self.rank.replicas
        batches = self.read(stored, epoch, size, first=first, replica=replica, replicas=replicas, plan=plan)
        while True:
            with self.clock.during("waiting"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch
            self.on_batch()

    def _step(self, batch: Batch, rates: Rates) -> Measured:
        spec, progress = self.spec, self.progress
        positions_B, labels_B = batch.positions_B.to(self.device), batch.labels_B.to(self.device)
        patches_BCHW = batch.images_BCHW.to(self.device)
        if len(labels_B) and patches_BCHW.dtype == torch.uint8:
            patches_BCHW = training_patches(
                patches_BCHW, positions_B, self.statistics, spec.augmentation, self.learning.seed,
                progress.epoch, self.dtype, spec.model.patch,
            )  # fmt: skip
        rows_B = positions_B - batch.number * self.learning.batch_size
        return step(
            self.network,
            self.rule,
            patches_BCHW,
            labels_B,
            rates=rates,
            dropout=Dropout(self.learning.seed, progress.step, rows_B),
            count=batch.count,
            reduce=self.rank.reduce,
        )

    @torch.no_grad()
    def measure(self, pictures: Pictures, chosen_N: NDArray[np.int64]) -> dict[str, float]:
        """Loss, top-1 and top-5 error (0 to 1) on the centre patches of the pictures with these indices, each used once."""
        as_stored = Order(chosen_N, np.arange(len(chosen_N)) % self.rank.replicas)
        self.network.eval()
        sums = torch.zeros(4, dtype=torch.float64)
        for batch in self._batches(pictures, as_stored, VALIDATION_BATCH):
            with self.clock.during("validating"):
                sums += self._sums(batch)
        sums = sums.to(self.device)
        if self.rank.reduce is not None:
            self.rank.reduce([sums])
        loss_sum, right1, right5, seen = sums.tolist()
        assert seen == len(chosen_N), f"{seen} of {len(chosen_N)} pictures were seen"
        return {**_means(loss_sum, right1, seen), "top5_error": 1 - right5 / seen}

    def _sums(self, batch: Batch) -> Tensor:
        """Sums over a batch, float64 on the CPU: loss, credit in top 1 and in top 5, pictures."""
        if not len(batch.labels_B):
            return torch.zeros(4, dtype=torch.float64)
        labels_B = batch.labels_B.to(self.device)
        images_BCHW = batch.images_BCHW.to(self.device)
        patches_BCHW = centre_view(images_BCHW, self.statistics.mean_CHW, self.spec.model.patch)
        with precision(self.learning, self.device):
            logits_BK = self.network(patches_BCHW)
        logits_BK = logits_BK.to(self.dtype)
        loss = F.cross_entropy(logits_BK, labels_B, reduction="sum")
        right = [topk_credit(logits_BK, labels_B, top).sum() for top in (1, 5)]
        return torch.stack([loss.double(), *right, loss.new_tensor(len(labels_B)).double()]).cpu()

    def state_dict(self) -> dict[str, Any]:
        """Weights, velocity and progress. A collective call: all ranks take part.

        Each rank gets the whole tensors on the CPU, so that any placement can resume from them.
        """
        weights, velocity = (
            gather(tensors, self.rank.link, self.network.replicated)
            for tensors in (self.network.state_dict(), self.rule.velocity)
        )
        return {
            "weights": {name: tensor.cpu() for name, tensor in weights.items()},
            "velocity": {name: tensor.cpu() for name, tensor in velocity.items()},
            "progress": dataclasses.asdict(self.progress),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores a state that `state_dict` returned, under any placement."""
        self.network.load_state_dict(self.network.local_part(state["weights"]))
        for name, tensor in self.network.local_part(state["velocity"]).items():
            self.rule.velocity[name].copy_(tensor)
        self.progress = Progress(**state["progress"])


def _means(loss_sum: float, right: float, count: float) -> dict[str, float]:
    return {"loss": loss_sum / count, "top1_error": 1 - right / count}
