"""What each of Ray's workers does in `train`: it finds its place, learns, tells its driver, and leaves checkpoints."""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train import Checkpoint
from torch import Tensor

from alexnet.augmentation import Augmentation
from alexnet.columns import Apart, Together
from alexnet.dataset import Mean
from alexnet.learning import Learning
from alexnet.model import Model
from pipeline import stage
from pipeline.batches import Pictures, batches
from pipeline.learner import Learner, Lesson, Place
from pipeline.paths import AnyPath
from pipeline.tables import Manifest

CHECKPOINT = "checkpoint.pt"

LIST = "checkpoint_manager_snapshot.json"
"""Ray's list of a run's checkpoints."""


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


def loop(config: dict[str, Task]) -> None:
    """Ray Train's function for a worker. What it leaves is its last checkpoint, after the last epoch."""
    task = config["task"]
    torch.set_num_threads(task.threads)
    worker = Worker(task)
    worker.restore()
    worker.tell(*worker.progress.steps, *worker.progress.epochs)
    worker.learn()


class Worker(Learner):
    """One process of the training: one or both columns of the network, for a share of each batch."""

    def __init__(self, task: Task) -> None:
        self.task = task
        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        lesson = Lesson(
            model=task.model,
            augmentation=task.augmentation,
            learning=task.learning,
            mean=task.mean,
            classes=len(task.manifest.classes),
            first=ray.get(task.first),
        )
        train, val = (Pictures(task.shards, task.manifest.shards[split]) for split in ("train", "val"))
        read = functools.partial(batches, threads=task.threads)
        place = _place(self.rank, context.get_world_size(), task)
        super().__init__(lesson, train, val, read, ray.train.torch.get_device(), place)
        self.saved_step = 0

    def tell(self, *rows: dict[str, float]) -> None:
        """Sends the driver rows of history, and how many pictures were learned from."""
        if self.rank == 0:
            done = self.progress.epoch * (len(self.pictures) - len(self.aside)) + self.progress.epoch_sums[2]
            self.task.mailbox.put.remote([*rows], done)

    def pause(self) -> None:
        """A checkpoint at the end of an epoch, and within one when enough steps have gone by."""
        if self.progress.batch == 0 or self.progress.step - self.saved_step >= self.task.checkpoint_steps:
            self.save()

    def save(self) -> None:
        """Leaves a checkpoint."""
        classes = [[synset.wnid, synset.words] for synset in self.task.manifest.classes]
        contents = {"fingerprint": self.task.fingerprint, "classes": classes, **self.contents()}
        self.saved_step = self.progress.step
        if self.rank != 0:
            ray.train.report({})
            return
        with tempfile.TemporaryDirectory() as folder:
            torch.save(contents, Path(folder, CHECKPOINT))
            name = f"checkpoint-{self.progress.step:09d}-{self.progress.epoch:04d}"
            ray.train.report({}, checkpoint=Checkpoint.from_directory(folder), checkpoint_dir_name=name)

    def restore(self) -> None:
        """Goes on from the last checkpoint of this run, if there is one."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None and self.task.start is not None:
            checkpoint = Checkpoint.from_directory(self.task.start)
        if checkpoint is not None:
            self.go_on(read(checkpoint))
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


def _place(rank: int, size: int, task: Task) -> Place:
    """A worker's place among them all."""
    columns = 2 if task.apart else 1
    replica, replicas = rank // columns, size // columns
    link = Apart(rank % 2, rank ^ 1) if task.apart else Together(task.model.columns)
    if replicas == 1:
        return Place(link=link)
    # every process has to make every group, its own or not
    groups: list[Any] = [dist.new_group([*range(column, size, columns)]) for column in range(columns)]

    def add_up(tensors: list[Tensor]) -> None:
        pending = [dist.all_reduce(tensor, group=groups[rank % columns], async_op=True) for tensor in tensors]
        for work in pending:
            assert work is not None
            work.wait()

    return Place(link=link, replica=replica, replicas=replicas, reduce=add_up)
