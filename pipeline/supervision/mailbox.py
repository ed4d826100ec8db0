"""The mailbox between a training's workers and its driver: rows of the history, signs of life, news of checkpoints."""

from __future__ import annotations

import dataclasses
import uuid
from dataclasses import dataclass, field

import ray


@dataclass(frozen=True, kw_only=True)
class Process:
    """Where a worker is."""

    node: str
    """Ray's name for the node."""
    address: str
    pid: int


@dataclass(kw_only=True)
class News:
    """What the driver hears of its workers."""

    mailbox: str
    """Names the mailbox. One that died and was started again has another name: what it held is lost."""
    rows: list[dict[str, float]] = field(default_factory=list)
    images: int = 0
    """Pictures learned from so far."""
    first: int | None = None
    """Pictures learned from when the workers began."""
    step: int = 0
    beats: int = 0
    """Signs of life."""
    processes: list[Process] = field(default_factory=list)
    saved: int = 0
    """The step of the last checkpoint."""


@ray.remote(num_cpus=0)
class Mailbox:
    """Carries news from the workers to the driver as they come."""

    def __init__(self) -> None:
        self.news = News(mailbox=uuid.uuid4().hex)

    def here(self, *, node: str, address: str, pid: int) -> None:
        """From each worker: where it is."""
        self.news.processes.append(Process(node=node, address=address, pid=pid))
        self.news.beats += 1

    def put(self, rows: list[dict[str, float]], images: float, step: int) -> None:
        """From rank 0: new rows, and pictures and steps learned from so far; for the first time when it is about to begin."""
        news = self.news
        news.rows += rows
        news.images, news.step, news.beats = int(images), step, news.beats + 1
        news.first = news.images if news.first is None else news.first

    def saved(self, step: int) -> None:
        """From rank 0: it has left a checkpoint."""
        self.news.saved = step

    def take(self) -> News:
        """To the driver: the news, with the rows since it last asked."""
        taken, self.news = self.news, dataclasses.replace(self.news, rows=[])
        return taken
