"""A watch on a stage's Ray tasks while none of them ends: reports the wait, ends stopped workers, never slow ones."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psutil
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.runtime import waiting

LOOK = 1.0
"""Seconds between two looks. Looks are counted, not seconds, so that the time in which a machine slept does not count."""

ASKED = 10
"""Looks between two queries to the nodes."""

ANSWER = 10.0
"""Seconds in which a node has to answer."""


class Silence:
    """The time for which no task of `work` has ended. `takes`: what each task asks of Ray's resources; `patience`: in seconds."""

    def __init__(
        self, work: Callable[..., object], takes: Mapping[str, float], patience: float, stage: str = ""
    ) -> None:
        self.stage = stage or work.__module__.rpartition(".")[2]
        self.title = f"{work.__name__} of job {ray.get_runtime_context().get_job_id()}"
        """The name that Ray gives to a process while it runs such a task of this job."""
        self.takes, self.patience = takes, patience
        self._longest = self._silent = self._idle = 0
        self._reported, self._normal = "", True
        self._stopped: dict[str, set[int]] = {}

    @contextmanager
    def waiting_for_task(self) -> Iterator[None]:
        """To be held while the caller waits for the next task to end; counts from 0 again."""
        self._silent, self._idle, self._reported, self._stopped = 0, 0, "", {}
        self._normal = True
        yield
        if self._normal:
            self._longest = max(self._longest, self._silent)

    def look(self, under_way: int, done: str) -> None:
        """To be called every `LOOK` seconds while no task ends. `under_way`: running tasks; `done`: those that ended, in words.

        Prints what the stage waits for after `waiting.SAID_AFTER` seconds. Ends stopped workers after the patience; Ray runs
        their tasks again. Raises `TimeoutError` if no task has begun for three times the patience.
        """
        self._silent += 1
        longest, silent = self._longest * LOOK, self._silent * LOOK
        if silent <= waiting.SAID_AFTER:
            return
        free, whole = ray.available_resources(), ray.cluster_resources()  # type: ignore[no-untyped-call]
        nothing_runs = all(free.get(kind, 0) == whole.get(kind, 0) for kind in self.takes)
        idle = nothing_runs or any(whole.get(kind, 0) < count for kind, count in self.takes.items())
        self._idle = self._idle + 1 if idle else 0
        self._normal = self._normal and not idle
        if not idle and silent <= waiting.HONEST * longest:
            return
        event, limit = ("begin", waiting.BEGIN * self.patience) if idle else ("end", None)
        each = " and ".join(f"{count:.2g} {kind}" for kind, count in self.takes.items())
        what = (
            f"one of {under_way:,} tasks to {event}, each of which takes {each}: {done} are done, "
            f"and {cluster_in_words()}, of which {free.get('CPU', 0):.3g} are free"
        )
        if event != self._reported:
            self._reported = event
            waiting.tell(self.stage, waiting.line(what, limit))
        if limit is not None and self._idle * LOOK > limit:
            raise TimeoutError(
                f"gave up waiting for {what} after {limit:,.0f} s\n"
                "Are its nodes up, and what else runs there (ray status)? Then dvc repro goes on"
            )
        if silent > max(self.patience, waiting.LONGEST * longest) and self._silent % ASKED == 0:
            self._end_stopped()

    def _end_stopped(self) -> None:
        """Ends the workers that are stopped now and already were at the last query."""
        stopped = {}
        for node in nodes():
            name, before = node["NodeID"], self._stopped.get(node["NodeID"], set())
            stopped[name] = _ask(name, self.title, before)
            self._normal = self._normal and not stopped[name]
            for pid in before & stopped[name]:
                where = f"{pid} on {node['NodeManagerAddress']}"
                waiting.tell(self.stage, f"its worker {where} was stopped, and is ended; Ray tries its task again")
        self._stopped = stopped


def nodes() -> list[dict[str, Any]]:
    """Ray's record of each node that is alive."""
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def cluster_in_words() -> str:
    """The cluster's nodes that are alive, with their CPUs and GPUs, in words."""
    described = []
    for node in nodes():
        has = node["Resources"]
        gpus = f" and {has['GPU']:g} GPUs" if has.get("GPU") else ""
        described.append(f"{node['NodeManagerAddress']} with {has.get('CPU', 0):g} CPUs{gpus}")
    return f"the cluster has {', '.join(described)}"


def _ask(node: str, title: str, before: set[int]) -> set[int]:
    """Runs `_stopped` on a node and returns its result; an empty set if the node does not answer."""
    on_it = NodeAffinitySchedulingStrategy(node, soft=False)
    try:
        pids: set[int] = ray.get(_stopped.options(scheduling_strategy=on_it).remote(title, before), timeout=ANSWER)
    except (RayError, TimeoutError):
        return set()
    return pids


@ray.remote(num_cpus=0, max_retries=0)
def _stopped(title: str, before: set[int]) -> set[int]:
    """The pids of this node's processes named `title` that are stopped (SIGSTOP); kills those that are in `before` too."""
    pids = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() == psutil.STATUS_STOPPED and process.cmdline()[:1] == [f"ray::{title}"]:
                pids.add(process.pid)
    for pid in pids & before:
        os.kill(pid, signal.SIGKILL)  # unlike SIGTERM it also ends a stopped process
    return pids
