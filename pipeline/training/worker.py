"""What each of Ray's workers does in `train`: it finds its place, learns, tells its driver, and leaves checkpoints."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor

from alexnet.augmentation import Augmentation
from alexnet.columns import Apart, Together
from alexnet.dataset import Mean
from alexnet.learning import Learning
from alexnet.network import Model
from pipeline.runtime.paths import AnyPath
from pipeline.shards.batches import Pictures, batches
from pipeline.shards.tables import Manifest
from pipeline.training import checkpoints
from pipeline.training.trainer import Learner, Lesson, Place

BEAT = 1.0
"""Seconds between two signs of life."""


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
    run: Path
    """Where the checkpoints lie."""
    code: dict[str, Any]
    """What decides this training, for the checkpoints to say."""
    start: Path | None = None
    """The checkpoint to go on from."""
    known: tuple[Path, ...] = ()
    """It and older ones, the oldest first: all but the newest of them go when there are newer ones."""
    mailbox: Any = None
    """A `Mailbox`, another for each attempt."""


@dataclass(frozen=True, kw_only=True)
class Process:
    """Where a worker is."""

    node: str
    """Ray's name for it."""
    address: str
    pid: int


@dataclass(kw_only=True)
class News:
    """What the driver hears of its workers."""

    mailbox: str
    """Another one after it died and was started again: what it held is lost."""
    rows: list[dict[str, float]] = field(default_factory=list)
    images: int = 0
    """Learned from so far."""
    first: int | None = None
    """Those when the worker began."""
    step: int = 0
    beats: int = 0
    """Signs of life."""
    processes: list[Process] = field(default_factory=list)
    saved: int = 0
    """The step of the last checkpoint."""


@ray.remote(num_cpus=0)
class Mailbox:
    """Carries rows of history, signs of life and news of checkpoints from the workers to the driver as they come."""

    def __init__(self) -> None:
        self.news = News(mailbox=uuid.uuid4().hex)

    def here(self, process: Process) -> None:
        """From each worker: where it is."""
        self.news.processes.append(process)
        self.news.beats += 1

    def put(self, rows: list[dict[str, float]], images: float, step: int) -> None:
        """From rank 0: rows of history, pictures and steps learned from so far; first when it is about to begin."""
        news = self.news
        news.rows += rows
        news.images, news.step, news.beats = int(images), step, news.beats + 1
        news.first = news.images if news.first is None else news.first

    def saved(self, step: int) -> None:
        """From rank 0: it has left a checkpoint."""
        self.news.saved = step

    def take(self) -> News:
        """By the driver: the news, with the rows since it last asked."""
        taken, self.news = self.news, dataclasses.replace(self.news, rows=[])
        return taken


def loop(config: dict[str, Task]) -> None:
    """Ray Train's function for a worker. What it leaves is its last checkpoint, after the last epoch."""
    task = config["task"]
    torch.set_num_threads(task.threads)
    _begin(task)
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
        self.saved_step, self.beaten = 0, 0.0
        self.known = [*task.known]

    def tell(self, *rows: dict[str, float]) -> None:
        """Sends the driver rows of history, and how many pictures were learned from."""
        if self.rank == 0:
            self.beaten = time.monotonic()
            done = self.progress.epoch * (len(self.pictures) - len(self.aside)) + self.progress.epoch_sums[2]
            self.task.mailbox.put.remote([*rows], done, self.progress.step)

    def beat(self) -> None:
        """Tells the driver that it is alive, if it has not just done so."""
        if time.monotonic() - self.beaten > BEAT:
            self.tell()

    def pause(self) -> None:
        """A checkpoint at the end of an epoch, and within one when enough steps have gone by."""
        if self.progress.batch == 0 or self.progress.step - self.saved_step >= self.task.checkpoint_steps:
            self.save()

    def save(self) -> None:
        """Leaves a checkpoint."""
        task, contents = self.task, self.contents()
        self.saved_step = self.progress.step
        if self.rank != 0:
            return
        classes = [[synset.wnid, synset.words] for synset in task.manifest.classes]
        facts = {"fingerprint": task.fingerprint, "classes": classes, "code": task.code}
        self.known.append(checkpoints.write(task.run, {**facts, **contents}))
        checkpoints.thin_out(self.known)
        task.mailbox.saved.remote(self.saved_step)

    def restore(self) -> None:
        """Goes on from the checkpoint that the driver has found whole, if there is one."""
        if self.task.start is None:
            return
        try:
            self.go_on(checkpoints.read(self.task.start))
        except (ValueError, OSError) as error:
            raise checkpoints.ChangedError(f"{error}; a moment ago it was whole") from None
        self.saved_step = self.progress.step


def _begin(task: Task) -> None:
    """Tells the driver where this process is, and sees that the run's folder is here too."""
    context = ray.get_runtime_context()
    address = str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
    task.mailbox.here.remote(Process(node=context.get_node_id(), address=address, pid=os.getpid()))
    if not task.run.is_dir():
        raise ValueError(
            f"{task.run}: is not on the node {address}. machine.yaml: storage has to name a folder that all nodes see"
        )


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
