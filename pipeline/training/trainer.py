"""One process of a training: its steps, what they measured, and how to go on from there; it knows no Ray."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from alexnet.augmentation import Augmentation, Statistics, centre_view, mean_to_subtract, training_patches
from alexnet.build import build
from alexnet.columns import Link, Together, gather
from alexnet.dataset import Mean
from alexnet.errors import topk_credit
from alexnet.learning import Learning, Measured, Momentum, Rates, Reduce, precision, step
from alexnet.network import Dropout, Model
from pipeline.shards.batches import Batch, Order, Pictures, held_out, order

VALIDATION_BATCH = 64
"""Pictures at a time. It decides only the last bits of the loss."""


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """All that decides what is learned, but for the pictures."""

    model: Model
    augmentation: Augmentation
    learning: Learning
    mean: Mean
    classes: int
    first: dict[str, Tensor]
    """Whole weights, by name, in place of drawn ones."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """This process's position in the training (its rank). Changing it changes results by rounding only."""

    link: Link
    """To the other column."""
    replica: int = 0
    replicas: int = 1
    reduce: Reduce | None = None
    """Adds up over the replicas."""


class Read(Protocol):
    """Batches of pictures, those of a replica: `batches.batches`, or another that gives the same."""

    def __call__(
        self, stored: Pictures, epoch: Order, size: int, *, first: int = 0, replica: int = 0, replicas: int = 1
    ) -> Iterator[Batch]:
        """The batches of an epoch from batch `first` on."""


@dataclass
class Progress:
    """How far the learning is, and what it measured: all that a checkpoint holds beside tensors."""

    epoch: int = 0
    batch: int = 0
    """The next one in the epoch."""
    step: int = 0
    steps: list[dict[str, float]] = dataclasses.field(default_factory=list)
    epochs: list[dict[str, float]] = dataclasses.field(default_factory=list)
    epoch_sums: list[float] = dataclasses.field(default_factory=lambda: [0.0, 0.0, 0.0])
    """Sums over the epoch so far: loss, right, count."""


class Learner:
    """A network that learns, or a column of it, from the whole of each batch or from a replica's share."""

    def __init__(
        self,
        lesson: Lesson,
        train: Pictures,
        val: Pictures,
        read: Read,
        device: torch.device,
        place: Place | None = None,
    ) -> None:
        self.lesson, self.pictures, self.val, self.read, self.device = lesson, train, val, read, device
        self.place = place = place or Place(link=Together(lesson.model.columns))
        self.learning, learning = lesson.learning, lesson.learning
        if device.type == "cuda":
            torch.backends.cudnn.benchmark = True
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
        self.network = build(lesson.model, lesson.classes, place.link)
        self.network.draw_first_weights(learning.seed)
        if place.replicas > 1 and any(isinstance(layer, _BatchNorm) for layer in self.network.modules()):
            raise ValueError(
                "params.yaml: model: batch normalization takes its means over the whole batch, and each of several replicas "
                "sees a part of it. Set placement: one in machine.yaml"
            )
        self.network.load_state_dict(self.network.state_dict() | self.network.local_part(lesson.first))
        self.dtype = torch.float64 if learning.precision == "float64" else torch.float32
        self.network.to(device, self.dtype)
        self.rule = Momentum(self.network, learning)
        mean, values, vectors = (
            torch.from_numpy(array).to(device, self.dtype)
            for array in (lesson.mean.image_CHW, lesson.mean.eigenvalues_C, lesson.mean.eigenvectors_CC)
        )
        self.statistics = Statistics(mean_to_subtract(mean, lesson.augmentation), values, vectors)
        self.aside = np.flatnonzero(held_out(len(train), learning))
        self.progress = Progress()

    def tell(self, *rows: dict[str, float]) -> None:
        """Hears of rows of history as they come."""

    def beat(self) -> None:
        """Called after each batch that was learned from or measured."""

    def pause(self) -> None:
        """Called where no sum is open, so that what `contents` gives is all there is to go on from."""

    def learn(self) -> None:
        """All that is left of the epochs."""
        while self.progress.epoch < self.learning.epochs:
            self.epoch()

    def epoch(self) -> None:
        """The rest of an epoch, and its validation."""
        learning, progress = self.learning, self.progress
        watched = "val_top1_error" if learning.watched == "validation" else "held_out_top1_error"
        rates = learning.rates(progress.epoch, [row.get(watched, np.inf) for row in progress.epochs])
        rate = rates.last
        started, seen, window = time.monotonic(), 0, [0.0, 0.0, 0.0]
        in_order = order(self.pictures, learning, progress.epoch)
        for batch in self._batches(self.pictures, in_order, learning.batch_size, progress.batch):
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
                self.tell(row | {"images_per_second": seen / (time.monotonic() - started)})
                window = [0.0, 0.0, 0.0]
                self.pause()
        row = {"epoch": progress.epoch, "step": progress.step, "rate": rate}
        row |= {f"train_{name}": value for name, value in _means(*progress.epoch_sums).items()}
        row |= {f"val_{name}": value for name, value in self.measure(self.val, np.arange(len(self.val))).items()}
        if len(self.aside):
            row |= {f"held_out_{name}": value for name, value in self.measure(self.pictures, self.aside).items()}
        progress.epochs.append(row)
        self.tell(row)
        progress.epoch, progress.batch, progress.epoch_sums = progress.epoch + 1, 0, [0.0, 0.0, 0.0]
        self.pause()

    def _batches(self, stored: Pictures, epoch: Order, size: int, first: int = 0) -> Iterator[Batch]:
        place = self.place
        for batch in self.read(stored, epoch, size, first=first, replica=place.replica, replicas=place.replicas):
            yield batch
            self.beat()

    def _step(self, batch: Batch, rates: Rates) -> Measured:
        lesson, progress = self.lesson, self.progress
        places, labels = batch.positions_B.to(self.device), batch.labels_B.to(self.device)
        patches = torch.empty(0, device=self.device)
        if len(labels):
            images = batch.images_BCHW.to(self.device)
            patches = training_patches(
                images, places, self.statistics, lesson.augmentation, self.learning.seed, progress.epoch, self.dtype,
                lesson.model.patch,
            )  # fmt: skip
        dropout = Dropout(self.learning.seed, progress.step, places - batch.number * self.learning.batch_size)
        return step(
            self.network,
            self.rule,
            patches,
            labels,
            rates=rates,
            dropout=dropout,
            count=batch.count,
            reduce=self.place.reduce,
        )

    @torch.no_grad()
    def measure(self, pictures: Pictures, chosen: NDArray[np.int64]) -> dict[str, float]:
        """Loss, top-1 and top-5 error on the centre patches of the chosen pictures, each exactly once."""
        as_stored = Order(chosen, np.arange(len(chosen)) % self.place.replicas)
        self.network.eval()
        sums = torch.zeros(4, dtype=torch.float64)
        for batch in self._batches(pictures, as_stored, VALIDATION_BATCH):
            if len(batch.labels_B):
                labels = batch.labels_B.to(self.device)
                images = batch.images_BCHW.to(self.device)
                patches = centre_view(images, self.statistics.mean_CHW, self.lesson.model.patch)
                with precision(self.learning, self.device):
                    logits = self.network(patches)
                logits = logits.to(self.dtype)
                loss = F.cross_entropy(logits, labels, reduction="sum")
                rights = [topk_credit(logits, labels, top).sum() for top in (1, 5)]
                sums += torch.stack([loss.double(), *rights, loss.new_tensor(len(labels)).double()]).cpu()
        sums = sums.to(self.device)
        if self.place.reduce is not None:
            self.place.reduce([sums])
        loss_sum, right, right5, seen = sums.tolist()
        assert seen == len(chosen), f"{seen} of {len(chosen)} pictures were seen"
        return {**_means(loss_sum, right, seen), "top5_error": 1 - right5 / seen}

    def contents(self) -> dict[str, Any]:
        """The whole tensors, on the CPU, and the progress: any placement can go on from it. All processes take part."""
        weights, velocity = (
            gather(tensors, self.place.link, self.network.replicated)
            for tensors in (self.network.state_dict(), self.rule.velocity)
        )
        return {
            "weights": {name: tensor.cpu() for name, tensor in weights.items()},
            "velocity": {name: tensor.cpu() for name, tensor in velocity.items()},
            "progress": dataclasses.asdict(self.progress),
        }

    def go_on(self, contents: dict[str, Any]) -> None:
        """From what `contents` gave."""
        self.network.load_state_dict(self.network.local_part(contents["weights"]))
        for name, tensor in self.network.local_part(contents["velocity"]).items():
            self.rule.velocity[name].copy_(tensor)
        self.progress = Progress(**contents["progress"])


def _means(loss_sum: float, right: float, count: float) -> dict[str, float]:
    return {"loss": loss_sum / count, "top1_error": 1 - right / count}
