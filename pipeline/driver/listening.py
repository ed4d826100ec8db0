"""The driver's reader of the mailbox: it logs the workers' rows, shows their progress, and ends workers that hang."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psutil
import ray
from ray import PlacementGroupID
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.driver.mailbox import Mailbox, News, Process
from pipeline.runtime import stage, waiting
from pipeline.runtime.cluster import Placement
from pipeline.runtime.progress import Progress
from pipeline.runtime.silence import ANSWER, cluster_in_words

Rows = Callable[[list[dict[str, float]]], None]


class Course:
    """The course of a training in words: the epoch, the error on validation pictures, and the best one so far."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.words = ""
        """For the end of the line of progress."""
        self._loss, self._error, self._best, self._last = "", "", (math.inf, 0), -1

    def take(self, rows: list[dict[str, float]]) -> list[str]:
        """Reads rows of the history; returns a line for each epoch that is new."""
        lines = []
        for row in rows:
            if "loss" in row:
                self._loss = f"loss {row['loss']:.3f}"
            if "val_top1_error" in row and row["epoch"] > self._last:
                lines.append(self._epoch(row))
        # the epoch that is under way, counted from 1
        under_way = f"epoch {min(self.epochs, int(self._last) + 2)} of {self.epochs}"
        self.words = ", ".join(filter(None, (under_way, self._error, self._loss)))
        return lines

    def _epoch(self, row: Mapping[str, float]) -> str:
        self._last, error, number = int(row["epoch"]), row["val_top1_error"], int(row["epoch"]) + 1
        if error < self._best[0]:
            self._best = error, number
        best = "the best so far" if self._best[1] == number else f"best {self._best[0]:.1%} (epoch {self._best[1]})"
        self._error = f"error {error:.1%}, {best}"
        loss = f", loss {row['train_loss']:.3f}" if "train_loss" in row else ""
        return f"epoch {number} of {self.epochs}: validation error {error:.1%}, {best}{loss}"


class Listener:
    """Polls the mailbox, logs its rows, and ends workers that have been silent for too long."""

    def __init__(self, placement: Placement, progress: Progress, log: Rows, patience: float, epochs: int) -> None:
        self.placement, self.progress, self.log, self.patience = placement, progress, log, patience
        self.course = Course(epochs)
        self.ended = ""
        """Why this listener ended the workers; empty if it did not."""
        self.hopeless = False
        """Whether the workers never began, so that another attempt would not help."""
        self._since = time.monotonic()
        self._longest, self._reported, self._begun, self._gap = 0.0, False, False, False
        self._news = News(mailbox="")
        self._mailbox: Any = None

    @contextmanager
    def attempt(self, mailbox: Any, end: Callable[[], None]) -> Iterator[None]:
        """Listens while the block runs; `end` ends the trainer that owns the workers."""
        self._mailbox, self._news, self._begun, self._gap = mailbox, News(mailbox=""), False, False
        self.ended, self._reported = "", False
        thread: threading.Thread | None = None
        try:
            with waiting.beside(lambda over: self._listen(over, end), "listener", join=30.0) as thread:
                yield
        finally:
            if thread and not thread.is_alive():
                self._look()
            self._mailbox = None  # a thread that is still running must not call Ray, which may be gone by then

    def _listen(self, over: threading.Event, end: Callable[[], None]) -> None:
        while not over.wait(1.0):
            self._look()
            self._heed_silence(end)

    def _look(self) -> None:
        """Reads the mailbox once."""
        mailbox = self._mailbox
        if mailbox is None:
            return
        try:
            news: News = ray.get(mailbox.take.remote(), timeout=ANSWER)
        except (RayError, TimeoutError):
            self._gap = (
                True  # rows may be lost here; the checkpoint has them, and the next attempt sends them all again
            )
            return
        self._take(news)
        if news.rows and not self._gap:
            try:
                self.log(news.rows)
            except Exception as error:  # the history is in the checkpoint as well, and is logged at the end
                self._gap = True
                logging.getLogger(__name__).warning("while training, metrics were not logged: %s", error)

    def _take(self, news: News) -> None:
        before, self._news = self._news, news
        self._gap = self._gap or before.mailbox not in ("", news.mailbox)
        if news.beats != before.beats or news.mailbox != before.mailbox:
            self._hear(news)
        for line in self.course.take(news.rows):
            self.progress.note(line)
        if news.first is not None:
            if not self._begun:
                self._begun = True
                self.progress.begin(news.first)
            else:
                self.progress.add(news.images - self.progress.done, self.course.words)
        if news.saved > before.saved:
            stage.reached(f"step {news.saved}")

    def _hear(self, news: News) -> None:
        now = time.monotonic()
        if self._begun and news.beats:
            self._longest = max(self._longest, now - self._since)
        if news.beats:
            self._since, self._reported = now, False

    def _limit(self) -> float:
        return max(self.patience, waiting.LONGEST * self._longest) if self._begun else waiting.BEGIN * self.patience

    def _heed_silence(self, end: Callable[[], None]) -> None:
        silent, limit = time.monotonic() - self._since, self._limit()
        if silent > max(waiting.SAID_AFTER, waiting.HONEST * self._longest) and not self._reported:
            self._reported = True
            print(f"train: waiting for {self._what()}, {limit:,.0f} s at most", file=sys.stderr, flush=True)
        if silent > limit and not self.ended:
            self.ended = f"gave up waiting for {self._what()} after {limit:,.0f} s"
            self.hopeless = not self._news.processes
            self._since = time.monotonic()
            _kill(self._news.processes)
            end()

    def _what(self) -> str:
        """What the driver waits for, in words, with the workers' processes."""
        if not self._news.processes:
            return f"its workers to begin: they are {needed(self.placement)}, and {cluster_in_words()}"
        where = ", ".join(f"{process.pid} on {process.address}" for process in self._news.processes)
        step = f"a step after step {self._news.step}" if self._begun else "the first step"
        return f"{step} of its workers ({where})"


def needed(placement: Placement) -> str:
    """The resources that a training asks Ray for, in words."""
    count, gpu = placement.workers, " and a GPU" if placement.gpu else ""
    each = " each" if count > 1 else ""
    return f"{count} process{'es' * (count > 1)} with {placement.threads} CPU core{'s' * (placement.threads > 1)}{gpu}{each}"


def start_mailbox() -> Any:
    """Starts a mailbox on the driver's own node; Ray restarts it if it dies."""
    own = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Mailbox.options(scheduling_strategy=own, max_restarts=-1).remote()  # type: ignore[attr-defined]


def remove_placement_groups() -> None:
    """Removes the placement groups of this driver's trainings; Ray does not if the training's controller has died."""
    job = ray.get_runtime_context().get_job_id()
    for name, group in placement_group_table().items():
        if name.endswith(job) and group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(name)))


def _kill(processes: list[Process]) -> None:
    """Ends processes by SIGKILL, each from its own node; unlike SIGTERM it also ends stopped processes."""
    for process in processes:
        with contextlib.suppress(RayError, TimeoutError):
            on_it = NodeAffinitySchedulingStrategy(process.node, soft=False)
            ray.get(_end.options(scheduling_strategy=on_it).remote(process.pid), timeout=ANSWER)


@ray.remote(num_cpus=0, max_retries=0)
def _end(pid: int) -> None:
    with contextlib.suppress(psutil.Error):
        if "ray::" in " ".join(psutil.Process(pid).cmdline()):  # another process may have this pid by now
            os.kill(pid, signal.SIGKILL)
