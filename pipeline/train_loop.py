"""What every worker of `train` does: its place in the network and the batch, its steps, and the checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from ray.train import Checkpoint
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from alexnet.augmentation import Augmentation, Statistics, centre_view, subtracted, training_patches
from alexnet.columns import Apart, Link, Together, gather
from alexnet.dataset import Mean
from alexnet.errors import credits
from alexnet.learning import Learning, Measured, Momentum, Rates, Reduce, precision, step
from alexnet.model import Dropout, Model, build
from pipeline import stage
from pipeline.batches import Batch, Order, Pictures, batches, held_out, order
from pipeline.paths import AnyPath
from pipeline.tables import Manifest

CHECKPOINT = "checkpoint.pt"

LIST = "checkpoint_manager_snapshot.json"
"""Ray's list of a run's checkpoints."""

VALIDATION_BATCH = 64
"""Pictures at a time. It decides only the last bits of the loss."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the driver tells every worker. Only paths that all of them see."""

    model: Model
    augmentation: Augmentation
    learning: Learning
    manifest: Manifest
    mean: Mean
    shards: AnyPath
    fingerprint: str
    apart: bool
    """A process for each column."""
    threads: int
    checkpoint_steps: int
    first: ray.ObjectRef[dict[str, Tensor]]
    """Whole weights, by name, in place of drawn ones."""
    start: Path | None
    """A checkpoint to go on from where Ray knows of none."""
    mailbox: ray.actor.ActorHandle[Any]


@ray.remote(num_cpus=0)
class Mailbox:
    """Carries rows of history from rank 0 to the driver as they come."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.first: int | None = None
        self.images = 0

    def put(self, rows: list[dict[str, float]], images: float) -> None:
        """From the worker: rows of history, and the pictures learned from so far; first when it is about to begin."""
        self.rows += rows
        self.images = int(images)
        self.first = self.images if self.first is None else self.first

    def take(self) -> tuple[list[dict[str, float]], int, int | None]:
        """By the driver: the rows since it last asked, the pictures now, and those when the worker began, if it has."""
        rows, self.rows = self.rows, []
        return rows, self.images, self.first


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
    """Of the epoch so far: loss, right, count."""


def loop(config: dict[str, Task]) -> None:
    """Ray Train's function for a worker. What it leaves is its last checkpoint, after the last epoch."""
    task = config["task"]
    torch.set_num_threads(task.threads)
    worker = Worker(task)
    worker.restore()
    worker.tell(*worker.progress.steps, *worker.progress.epochs)
    while worker.progress.epoch < task.learning.epochs:
        worker.epoch()


class Worker:
    """One process of the training: one or both columns of the network, for a share of each batch."""

    def __init__(self, task: Task) -> None:
        self.task = task
        context = ray.train.get_context()
        self.rank, size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
        self.link, self.replica, self.replicas, self.reduce = _place(self.rank, size, task)
        self.network = build(task.model, len(task.manifest.classes), self.link)
        self.network.draw_first_weights(task.learning.seed)
        if self.replicas > 1 and any(isinstance(layer, _BatchNorm) for layer in self.network.modules()):
            raise ValueError(
                "params.yaml: model: batch normalization takes its means over the whole batch, and each of several replicas "
                "sees a part of it. Set placement: one in machine.yaml"
            )
        self.network.load_state_dict(self.network.state_dict() | self.network.part(ray.get(task.first)))
        dtype = torch.float64 if task.learning.precision == "float64" else torch.float32
        self.network.to(self.device, dtype)
        self.rule = Momentum(self.network, task.learning)
        mean, values, vectors = (
            torch.from_numpy(array).to(self.device, dtype)
            for array in (task.mean.image_CHW, task.mean.eigenvalues_C, task.mean.eigenvectors_CC)
        )
        self.statistics = Statistics(subtracted(mean, task.augmentation), values, vectors)
        self.dtype = dtype
        self.train = self._pictures("train")
        self.aside = np.flatnonzero(held_out(len(self.train), task.learning))
        self.progress = Progress()

    def _pictures(self, split: str) -> Pictures:
        return Pictures(self.task.shards, [shard.file for shard in self.task.manifest.shards[split]])

    def epoch(self) -> None:
        """The rest of an epoch, and its validation."""
        task, progress = self.task, self.progress
        watched = "val_top1_error" if task.learning.watched == "validation" else "held_out_top1_error"
        rates = task.learning.rates(progress.epoch, [row.get(watched, np.inf) for row in progress.epochs])
        rate = rates.last
        started, seen, window = time.monotonic(), 0, [0.0, 0.0, 0.0]
        for batch in self._batches(progress.epoch, progress.batch):
            measured = self._step(batch, rates)
            for sums in (window, progress.epoch_sums):
                sums[0] += measured.loss_sum
                sums[1] += measured.right
                sums[2] += measured.count
            seen += measured.count
            progress.step += 1
            progress.batch += 1
            if progress.step % task.learning.log_steps == 0:
                # a checkpoint falls only here, where no sum is open
                row = {"step": progress.step, "epoch": progress.epoch, "rate": rate, **_means(*window)}
                progress.steps.append(row)
                self.tell(row | {"images_per_second": seen / (time.monotonic() - started)})
                window = [0.0, 0.0, 0.0]
                if progress.step - self.saved_step >= task.checkpoint_steps:
                    self.save()
        row = {"epoch": progress.epoch, "step": progress.step, "rate": rate}
        row |= {f"train_{name}": value for name, value in _means(*progress.epoch_sums).items()}
        pictures = self._pictures("val")
        row |= {f"val_{name}": value for name, value in self.measure(pictures, np.arange(len(pictures))).items()}
        if len(self.aside):
            row |= {f"held_out_{name}": value for name, value in self.measure(self.train, self.aside).items()}
        progress.epochs.append(row)
        self.tell(row)
        progress.epoch, progress.batch, progress.epoch_sums = progress.epoch + 1, 0, [0.0, 0.0, 0.0]
        self.save()

    def _batches(self, epoch: int, first: int) -> Iterator[Batch]:
        learning = self.task.learning
        return batches(
            self.train,
            order(self.train, learning, epoch),
            learning.batch_size,
            first=first,
            replica=self.replica,
            replicas=self.replicas,
            threads=self.task.threads,
        )

    def _step(self, batch: Batch, rates: Rates) -> Measured:
        task, progress = self.task, self.progress
        places, labels = batch.places.to(self.device), batch.labels.to(self.device)
        patches = torch.empty(0, device=self.device)
        if len(labels):
            images = batch.images.to(self.device)
            patches = training_patches(
                images, places, self.statistics, task.augmentation, task.learning.seed, progress.epoch, self.dtype,
                task.model.patch,
            )  # fmt: skip
        dropout = Dropout(task.learning.seed, progress.step, places - batch.number * task.learning.batch_size)
        return step(
            self.network,
            self.rule,
            patches,
            labels,
            rates=rates,
            dropout=dropout,
            count=batch.count,
            reduce=self.reduce,
        )

    @torch.no_grad()
    def measure(self, pictures: Pictures, chosen: NDArray[np.int64]) -> dict[str, float]:
        """Loss, top-1 and top-5 error on the centre patches of the chosen pictures, each exactly once."""
        as_stored = Order(chosen, np.arange(len(chosen)) % self.replicas)
        self.network.eval()
        sums = torch.zeros(4, dtype=torch.float64)
        for batch in batches(
            pictures,
            as_stored,
            VALIDATION_BATCH,
            replica=self.replica,
            replicas=self.replicas,
            threads=self.task.threads,
        ):
            if len(batch.labels):
                labels = batch.labels.to(self.device)
                images = batch.images.to(self.device)
                patches = centre_view(images, self.statistics.mean_CHW, self.task.model.patch)
                with precision(self.task.learning, self.device):
                    logits = self.network(patches)
                logits = logits.to(self.dtype)
                loss = F.cross_entropy(logits, labels, reduction="sum")
                rights = [credits(logits, labels, top).sum() for top in (1, 5)]
                sums += torch.stack([loss.double(), *rights, loss.new_tensor(len(labels)).double()]).cpu()
        sums = sums.to(self.device)
        if self.reduce is not None:
            self.reduce([sums])
        loss_sum, right, right5, seen = sums.tolist()
        assert seen == len(chosen), f"{seen} of {len(chosen)} pictures were seen"
        return {**_means(loss_sum, right, seen), "top5_error": 1 - right5 / seen}

    def tell(self, *rows: dict[str, float]) -> None:
        """Sends the driver rows of history, and how many pictures were learned from."""
        if self.rank == 0:
            done = self.progress.epoch * (len(self.train) - len(self.aside)) + self.progress.epoch_sums[2]
            self.task.mailbox.put.remote([*rows], done)

    def save(self) -> None:
        """A checkpoint of the whole tensors and the progress: any placement can go on from it."""
        weights, velocity = (
            gather(tensors, self.link, self.network.undivided)
            for tensors in (self.network.state_dict(), self.rule.velocity)
        )
        self.saved_step = self.progress.step
        if self.rank != 0:
            ray.train.report({})
            return
        contents = {
            "fingerprint": self.task.fingerprint,
            "weights": {name: tensor.cpu() for name, tensor in weights.items()},
            "velocity": {name: tensor.cpu() for name, tensor in velocity.items()},
            "progress": dataclasses.asdict(self.progress),
        }
        with tempfile.TemporaryDirectory() as folder:
            torch.save(contents, Path(folder, CHECKPOINT))
            name = f"checkpoint-{self.progress.step:09d}-{self.progress.epoch:04d}"
            ray.train.report({}, checkpoint=Checkpoint.from_directory(folder), checkpoint_dir_name=name)

    def restore(self) -> None:
        """Goes on from the last checkpoint of this run, if there is one."""
        self.saved_step = 0
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None and self.task.start is not None:
            checkpoint = Checkpoint.from_directory(self.task.start)
        if checkpoint is None:
            return
        contents = read(checkpoint)
        self.network.load_state_dict(self.network.part(contents["weights"]))
        for name, tensor in self.network.part(contents["velocity"]).items():
            self.rule.velocity[name].copy_(tensor)
        self.progress = Progress(**contents["progress"])
        self.saved_step = self.progress.step


def refuse_others(folder: Path, fingerprint: str) -> None:
    """`ValueError` if a checkpoint in a run's folder is another run's, as when somebody has renamed the folder."""
    for file in sorted(folder.glob(f"checkpoint-*/{CHECKPOINT}")):
        whose = fingerprint
        with contextlib.suppress(Exception):  # a part of a file can raise anything in torch's reader; see `mend`
            whose = torch.load(file, weights_only=True, mmap=True)["fingerprint"]  # without the tensors
        if whose != fingerprint:
            raise ValueError(
                f"{file.parent}: belongs to run {whose}, this is {fingerprint}. "
                "Move it away, or bring back its parameters and pictures"
            )


def mend(folder: Path) -> Path | None:
    """Of a run whose list of checkpoints is lost, the newest one that is whole; None if the list is there.

    Ray writes its list over the old one, so a process that is killed meanwhile leaves none, or a part that Ray refuses
    ever after.
    """
    listed = folder / LIST
    try:
        json.loads(listed.read_bytes())
        return None
    except FileNotFoundError:
        pass
    except ValueError:
        listed.unlink()
    for found in sorted(folder.glob("checkpoint-*"), reverse=True):
        try:
            read(Checkpoint.from_directory(found))
            return found
        except Exception:  # a part of a file can raise anything in torch's reader
            stage.discard(found)
    return None


def read(checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint's contents, on the CPU; runs no code of the file."""
    with checkpoint.as_directory() as folder:
        contents: dict[str, Any] = torch.load(Path(folder, CHECKPOINT), weights_only=True, map_location="cpu")
    return contents


def _means(loss_sum: float, right: float, count: float) -> dict[str, float]:
    return {"loss": loss_sum / count, "top1_error": 1 - right / count}


def _place(rank: int, size: int, task: Task) -> tuple[Link, int, int, Reduce | None]:
    """A worker's link to the other column, its replica, how many there are, and how to add up over them."""
    columns = 2 if task.apart else 1
    replica, replicas = rank // columns, size // columns
    link: Link = Apart(rank % 2, rank ^ 1) if task.apart else Together(task.model.columns)
    if replicas == 1:
        return link, 0, 1, None
    # every process has to make every group, its own or not
    groups: list[Any] = [dist.new_group([*range(column, size, columns)]) for column in range(columns)]

    def add_up(tensors: list[Tensor]) -> None:
        pending = [dist.all_reduce(tensor, group=groups[rank % columns], async_op=True) for tensor in tensors]
        for work in pending:
            assert work is not None
            work.wait()

    return link, replica, replicas, add_up
