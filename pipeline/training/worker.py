"""Ray Train's worker in `train`: it finds its rank, trains, sends the driver rows and signs of life, leaves checkpoints."""

from __future__ import annotations

import functools
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor

from alexnet.columns import Apart, Together
from pipeline.runtime.paths import AnyPath
from pipeline.shards.batches import Pictures, batches
from pipeline.training import checkpoints
from pipeline.training.spec import TrainingSpec
from pipeline.training.trainer import Rank, Trainer

BEAT = 1.0
"""Seconds between two signs of life."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the driver tells every worker. All nodes see its paths."""

    spec: ray.ObjectRef[TrainingSpec]
    columns: int
    """Columns of the network."""
    apart: bool
    """A process for each column."""
    shards: AnyPath
    threads: int
    checkpoint_steps: int
    run: Path
    """The run's folder, where the checkpoints lie."""
    code: dict[str, Any]
    """The record of the code, for the checkpoints to say."""
    start: Path | None = None
    """The checkpoint to resume from."""
    known: tuple[Path, ...] = ()
    """It and older checkpoints, the oldest first: when there are newer ones, all but the newest of them are removed."""
    mailbox: Any = None
    """The driver's `Mailbox`, another for each attempt."""


def loop(config: dict[str, Task]) -> None:
    """Ray Train's function for a worker. What it leaves is its last checkpoint, after the last epoch."""
    task = config["task"]
    torch.set_num_threads(task.threads)
    _begin(task)
    worker = Worker(task)
    worker.restore()
    worker.send(*worker.trainer.progress.steps, *worker.trainer.progress.epochs)
    worker.trainer.learn()


class Worker:
    """One process of the training: one or both columns of the network, for a share of each batch."""

    def __init__(self, task: Task) -> None:
        self.task = task
        context = ray.train.get_context()
        self.world_rank = context.get_world_rank()
        spec: TrainingSpec = ray.get(task.spec)
        self.spec = spec
        train, val = (Pictures(task.shards, spec.manifest.shards[split]) for split in ("train", "val"))
        self.trainer = Trainer(
            spec,
            train,
            val,
            functools.partial(batches, threads=task.threads),
            ray.train.torch.get_device(),
            _rank(self.world_rank, context.get_world_size(), task),
            on_rows=self.send,
            on_batch=self.beat,
            on_boundary=self.save_if_due,
        )
        self.saved_step, self.beaten = 0, 0.0
        self.known = [*task.known]

    def send(self, *rows: dict[str, float]) -> None:
        """Sends the driver rows of the history, and how many pictures were learned from. Only rank 0 does."""
        if self.world_rank == 0:
            self.beaten = time.monotonic()
            trainer, progress = self.trainer, self.trainer.progress
            done = progress.epoch * (len(trainer.train) - len(trainer.held_out_N)) + progress.epoch_sums[2]
            self.task.mailbox.put.remote([*rows], done, progress.step)

    def beat(self) -> None:
        """Tells the driver that this process is alive, if it has not just done so."""
        if time.monotonic() - self.beaten > BEAT:
            self.send()

    def save_if_due(self) -> None:
        """Leaves a checkpoint at the end of an epoch, and within one when enough steps have gone by."""
        progress = self.trainer.progress
        if progress.batch == 0 or progress.step - self.saved_step >= self.task.checkpoint_steps:
            self.save()

    def save(self) -> None:
        """Leaves a checkpoint. All ranks take part; rank 0 writes."""
        task, state = self.task, self.trainer.state_dict()
        self.saved_step = self.trainer.progress.step
        if self.world_rank != 0:
            return
        facts = {"fingerprint": self.spec.fingerprint, "classes": self.spec.classes, "code": task.code}
        self.known.append(checkpoints.write(task.run, {**facts, **state}))
        checkpoints.thin_out(self.known)
        task.mailbox.saved.remote(self.saved_step)

    def restore(self) -> None:
        """Resumes from the checkpoint that the driver has found whole, if there is one."""
        if self.task.start is None:
            return
        try:
            self.trainer.load_state_dict(checkpoints.read(self.task.start))
        except (ValueError, OSError) as error:
            raise checkpoints.ChangedError(f"{error}; a moment ago it was whole") from None
        self.saved_step = self.trainer.progress.step


def _begin(task: Task) -> None:
    """Tells the driver where this process is. `ValueError` if the run's folder is not on this node."""
    context = ray.get_runtime_context()
    address = str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
    task.mailbox.here.remote(node=context.get_node_id(), address=address, pid=os.getpid())
    if not task.run.is_dir():
        raise ValueError(
            f"{task.run}: is not on the node {address}. machine.yaml: storage has to name a folder that all nodes see"
        )


def _rank(world_rank: int, world_size: int, task: Task) -> Rank:
    columns = 2 if task.apart else 1
    replica, replicas = world_rank // columns, world_size // columns
    link = Apart(world_rank % 2, world_rank ^ 1) if task.apart else Together(task.columns)
    if replicas == 1:
        return Rank(link=link)
    # every process has to make every group, its own or not
    groups: list[Any] = [dist.new_group([*range(column, world_size, columns)]) for column in range(columns)]

    def add_up(tensors: list[Tensor]) -> None:
        group = groups[world_rank % columns]
        pending = [dist.all_reduce(tensor, group=group, async_op=True) for tensor in tensors]
        for work in pending:
            assert work is not None
            work.wait()

    return Rank(link=link, replica=replica, replicas=replicas, reduce=add_up)
