"""The mailbox from a training's workers to its driver: rows of history, heartbeats, the last checkpoint's step."""

from __future__ import annotations

import dataclasses
import uuid
from dataclasses import dataclass, field

import ray


@dataclass(frozen=True, kw_only=True)
class Process:
    """A worker's process."""

    node: str
    """Ray's id of the node."""
    address: str
    """The node's IP address."""
    pid: int


@dataclass(kw_only=True)
class News:
    """The workers' messages to the driver."""

    mailbox: str
    """Id of the mailbox. One that died and was restarted has another id: its contents are lost."""
    rows: list[dict[str, float]] = field(default_factory=list)
    """New rows of the history."""
    images: int = 0
    """Training pictures so far, counted in every epoch."""
    first: int | None = None
    """`images` when the workers began."""
    step: int = 0
    """Steps so far."""
    beats: int = 0
    """Heartbeats so far."""
    processes: list[Process] = field(default_factory=list)
    saved: int = 0
    """The step of the last checkpoint."""


@ray.remote(num_cpus=0)
class Mailbox:
    """A Ray actor that passes messages from the workers to the driver."""

    def __init__(self) -> None:
        self.news = News(mailbox=uuid.uuid4().hex)

    def here(self, *, node: str, address: str, pid: int) -> None:
        """Called by each worker once: registers its process."""
        self.news.processes.append(Process(node=node, address=address, pid=pid))
        self.news.beats += 1

    def put(self, rows: list[dict[str, float]], images: float, step: int) -> None:
        """Called by rank 0 with new rows, and the pictures and steps so far; first just before the first step."""
        news = self.news
        news.rows += rows
        news.images, news.step, news.beats = int(images), step, news.beats + 1
        news.first = news.images if news.first is None else news.first

    def saved(self, step: int) -> None:
        """Called by rank 0 after it has written a checkpoint, with its step."""
        self.news.saved = step

    def take(self) -> News:
        """Called by the driver: returns the state so far, with the rows since the last call."""
        taken, self.news = self.news, dataclasses.replace(self.news, rows=[])
        return taken
