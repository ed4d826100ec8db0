"""Ray Train's worker: it determines its rank, trains, sends rows of history and heartbeats, and writes checkpoints."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Mapping
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
from pipeline.runtime import run_record
from pipeline.runtime.clock import Clock
from pipeline.runtime.paths import AnyPath
from pipeline.shards.batches import Pictures, batches
from pipeline.training import checkpoints
from pipeline.training.spec import TrainingSpec
from pipeline.training.trainer import Rank, Trainer

BEAT = 1.0
"""Seconds between two heartbeats."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """The driver's instructions to the workers. Its paths have to be valid on all nodes."""

    spec: ray.ObjectRef[TrainingSpec]
    columns: int
    """Number of columns of the network."""
    apart: bool
    """Whether each column has its own process."""
    shards: AnyPath
    """The folder of the shards."""
    threads: int
    """CPU threads of each worker, for computing and for decoding."""
    checkpoint_steps: int
    """Number of steps after which a checkpoint is due within an epoch."""
    run: Path
    """The run's folder, where checkpoints are written."""
    code: dict[str, Any]
    """The record of the code, to be written into checkpoints."""
    start: Path | None = None
    """The checkpoint to resume from; None: start at step 0."""
    existing: tuple[Path, ...] = ()
    """`start` and older checkpoints, oldest first; they are removed as newer ones are written (`checkpoints.KEPT`)."""
    mailbox: Any = None
    """The driver's `Mailbox`; each attempt has its own."""


def loop(config: dict[str, Task]) -> None:
    """The training function for Ray Train. Its result is the last checkpoint, written after the last epoch."""
    task = config["task"]
    torch.set_num_threads(task.threads)
    _report_location(task)
    worker = Worker(task)
    worker.restore()
    worker.send(*worker.trainer.progress.steps, *worker.trainer.progress.epochs)
    worker.trainer.learn()


class Worker:
    """A process of the training. It holds one or both columns of the network, and learns from a share of each batch."""

    def __init__(self, task: Task) -> None:
        self.task = task
        context = ray.train.get_context()
        self.world_rank = context.get_world_rank()
        spec: TrainingSpec = ray.get(task.spec)
        self.spec = spec
        device = ray.train.torch.get_device()
        self.clock = Clock(gpu=device.type == "cuda")
        train, val = (Pictures(task.shards, spec.manifest.shards[split]) for split in ("train", "val"))
        self.trainer = Trainer(
            spec,
            train,
            val,
            functools.partial(batches, threads=task.threads),
            device,
            _rank(self.world_rank, context.get_world_size(), task, self.clock),
            on_rows=self.send,
            on_batch=self.beat,
            on_boundary=self.save_if_due,
            on_times=functools.partial(self.record, "epoch"),
            clock=self.clock,
        )
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        self.record("worker", run_record.hardware(name) | {"threads": task.threads})
        self.saved_step, self.last_sent = 0, 0.0
        self.checkpoints = [*task.existing]

    def send(self, *rows: dict[str, float]) -> None:
        """Sends the driver rows of the history and the number of pictures learned from. Only rank 0 sends."""
        if self.world_rank == 0:
            self.last_sent = time.monotonic()
            trainer, progress = self.trainer, self.trainer.progress
            done = progress.epoch * (len(trainer.train) - len(trainer.held_out_N)) + progress.epoch_sums[2]
            self.task.mailbox.put.remote([*rows], done, progress.step)

    def record(self, what: str, facts: Mapping[str, Any]) -> None:
        """Adds a line to the run's record. Only rank 0 does."""
        if self.world_rank == 0:
            run_record.append(self.task.run, what, facts)

    def beat(self) -> None:
        """Sends a heartbeat to the driver, unless something was sent within the last `BEAT` seconds."""
        if time.monotonic() - self.last_sent > BEAT:
            self.send()

    def save_if_due(self) -> None:
        """Writes a checkpoint at the end of an epoch, and within an epoch every `checkpoint_steps` steps."""
        progress = self.trainer.progress
        if progress.batch == 0 or progress.step - self.saved_step >= self.task.checkpoint_steps:
            with self.clock.during("checkpoints"):
                self.save()

    def save(self) -> None:
        """Writes a checkpoint. A collective call: all ranks take part, and rank 0 writes."""
        task, state = self.task, self.trainer.state_dict()
        self.saved_step = self.trainer.progress.step
        if self.world_rank != 0:
            return
        facts = {"fingerprint": self.spec.fingerprint, "classes": self.spec.classes, "code": task.code}
        self.checkpoints.append(checkpoints.write(task.run, {**facts, **state}))
        checkpoints.thin_out(self.checkpoints)
        task.mailbox.saved.remote(self.saved_step)

    def restore(self) -> None:
        """Resumes from the checkpoint that the driver chose, if any. `ChangedError` if it is no longer whole."""
        if self.task.start is None:
            return
        try:
            self.trainer.load_state_dict(checkpoints.read(self.task.start))
        except (ValueError, OSError) as error:
            raise checkpoints.ChangedError(f"{error}; a moment ago it was whole") from None
        self.saved_step = self.trainer.progress.step


def _report_location(task: Task) -> None:
    """Reports this process's node, address and process id to the driver. `ValueError` if this node has no run folder."""
    context = ray.get_runtime_context()
    address = str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
    task.mailbox.here.remote(node=context.get_node_id(), address=address, pid=os.getpid())
    if not task.run.is_dir():
        raise ValueError(
            f"{task.run}: is not on the node {address}. machine.yaml: storage has to name a folder that all nodes see"
        )


class _TimedApart(Apart):
    """A column apart, whose exchanges are timed."""

    def __init__(self, column: int, peer: int, clock: Clock) -> None:
        super().__init__(column, peer)
        self.clock = clock

    def swap(self, sent: Tensor) -> Tensor:
        with self.clock.exchange():
            return super().swap(sent)


def _rank(world_rank: int, world_size: int, task: Task, clock: Clock) -> Rank:
    columns = 2 if task.apart else 1
    replica, replicas = world_rank // columns, world_size // columns
    link = _TimedApart(world_rank % 2, world_rank ^ 1, clock) if task.apart else Together(task.columns)
    if replicas == 1:
        return Rank(link=link)
    # torch.distributed requires every process to create every group, also those it does not belong to
    groups: list[Any] = [dist.new_group([*range(column, world_size, columns)]) for column in range(columns)]

    def add_up(tensors: list[Tensor]) -> None:
        group = groups[world_rank % columns]
        with clock.exchange():
            pending = [dist.all_reduce(tensor, group=group, async_op=True) for tensor in tensors]
            for work in pending:
                assert work is not None
                work.wait()

    return Rank(link=link, replica=replica, replicas=replicas, reduce=add_up)
