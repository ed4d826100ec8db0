"""Launches a training's workers with Ray Train, and again after external faults, until the last checkpoint is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import ray
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from pipeline.driver.attempts import Attempts
from pipeline.driver.faults import Fault, explained
from pipeline.driver.listening import Listener, Rows, remove_placement_groups, start_mailbox
from pipeline.runtime.cluster import Placement
from pipeline.runtime.progress import Progress
from pipeline.runtime.rendezvous import Rendezvous
from pipeline.training import checkpoints
from pipeline.training.checkpoints import Checkpoint
from pipeline.training.worker import Task

Loop = Callable[[dict[str, Any]], None]
"""The function that each worker runs."""


class _EndableTrainer(TorchTrainer):
    """Ray's TorchTrainer without its SIGINT handler, and with a method that ends it."""

    controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        self.controller = controller

    def end(self) -> None:
        if self.controller is not None:
            ray.kill(self.controller)


def until_the_last_checkpoint(
    loop: Loop,
    task: Task,
    last: Checkpoint | None,
    placement: Placement,
    *,
    fingerprint: str,
    epochs: int,
    images: int,
    log: Rows,
    patience: float,
    say: Callable[[str], None],
) -> Checkpoint:
    """Runs attempts until the checkpoint after the last epoch exists, and returns it.

    `images`: the number of training pictures in all epochs together, for the progress line; `patience`: machine.yaml's, in
    seconds. Raises the error that ends the training if another attempt would not help.
    """
    attempts = Attempts(task.run, last)
    with Progress("train", images, "images") as progress:
        listener = Listener(placement, progress, log, patience, epochs)
        while True:
            fault, raised = None, None
            try:
                attempt(loop, task, last, placement, listener)
            except Exception as error:  # Ray Train raises its workers' errors and many of its own
                fault, raised = explained(error), error
            last = checkpoints.newest_whole_checkpoint(task.run, fingerprint, say)
            if last and last.epoch == epochs:
                return last
            if listener.ended:
                fault = Fault(listener.ended, "", outside=not listener.hopeless)
            attempts.again(fault or Fault(f"{task.run}: the training ended without its last checkpoint"), last, raised)


def attempt(loop: Loop, task: Task, last: Checkpoint | None, placement: Placement, listener: Listener) -> None:
    """Launches the workers once, to resume from `last`, and waits until they end; the listener reads their mailbox."""
    box = start_mailbox()
    earlier = [folder for folder in checkpoints.all_folders(task.run) if last and folder.name <= last.folder.name]
    resumed = dataclasses.replace(
        task, mailbox=box, start=last.folder if last else None, existing=tuple(reversed(earlier))
    )
    trainer = _EndableTrainer(
        loop,
        train_loop_config={"task": resumed},
        torch_config=Rendezvous(),
        scaling_config=ScalingConfig(
            num_workers=placement.workers,
            use_gpu=placement.gpu,
            resources_per_worker={"CPU": placement.threads, **({"GPU": 1} if placement.gpu else {})},
        ),
        run_config=RunConfig(  # (its types are annotated for Ray Train V1)
            name="ray",
            storage_path=str(task.run),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),  # type: ignore[call-arg]
            logging_config=LoggingConfig(log_level="CRITICAL"),
        ),
    )
    try:
        with listener.attempt(box, trainer.end):
            trainer.fit()
    finally:
        remove_placement_groups()
        ray.kill(box)
