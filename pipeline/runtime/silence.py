"""Watching a stage's Ray tasks while none of them ends: says so, and ends stopped workers, never slow ones."""

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
"""Seconds between two looks. These are what is counted: a machine that was asleep has not waited."""

ASKED = 10
"""Looks from one question to the nodes to the next."""

ANSWER = 10.0
"""Seconds within which a node has to answer."""


class Silence:
    """The silence of tasks that do `work`, each of which takes so much of Ray's resources."""

    def __init__(self, work: Callable[..., object], takes: Mapping[str, float], patience: float) -> None:
        self.stage = work.__module__.rpartition(".")[2]
        self.title = f"{work.__name__} of job {ray.get_runtime_context().get_job_id()}"
        """What Ray calls a process that does such a task, and none of another job."""
        self.takes, self.patience = takes, patience
        self._longest = self._silent = self._idle = 0
        self._said, self._honest = "", True
        self._stopped: dict[str, set[int]] = {}

    @contextmanager
    def begun(self) -> Iterator[None]:
        """The end of a task is waited for while the block runs."""
        self._silent, self._idle, self._said, self._stopped = 0, 0, "", {}
        self._honest = True
        yield
        if self._honest:
            self._longest = max(self._longest, self._silent)

    def look(self, under_way: int, done: str) -> None:
        """One more look without the end of a task; `done` says how many have ended.

        After some seconds it is said what is waited for. Workers that are stopped are ended after the patience, and Ray
        tries their tasks again. `TimeoutError` where no task has begun for three times the patience.
        """
        self._silent += 1
        longest, silent = self._longest * LOOK, self._silent * LOOK
        if silent <= waiting.SAID_AFTER:
            return
        free, whole = ray.available_resources(), ray.cluster_resources()  # type: ignore[no-untyped-call]
        nothing_runs = all(free.get(kind, 0) == whole.get(kind, 0) for kind in self.takes)
        idle = nothing_runs or any(whole.get(kind, 0) < count for kind, count in self.takes.items())
        self._idle = self._idle + 1 if idle else 0
        self._honest = self._honest and not idle
        if not idle and silent <= waiting.HONEST * longest:
            return
        event, limit = ("begin", waiting.BEGIN * self.patience) if idle else ("end", None)
        each = " and ".join(f"{count:.2g} {kind}" for kind, count in self.takes.items())
        what = (
            f"one of {under_way:,} tasks to {event}, each of which takes {each}: {done} are done, "
            f"and {there()}, of which {free.get('CPU', 0):.3g} are free"
        )
        if event != self._said:
            self._said = event
            waiting.tell(self.stage, waiting.line(what, limit))
        if limit is not None and self._idle * LOOK > limit:
            raise TimeoutError(
                f"gave up waiting for {what} after {limit:,.0f} s\n"
                "Are its nodes up, and what else runs there (ray status)? Then dvc repro goes on"
            )
        if silent > max(self.patience, waiting.LONGEST * longest) and self._silent % ASKED == 0:
            self._end_stopped()

    def _end_stopped(self) -> None:
        """Ends the workers that are stopped, and were when the nodes were last asked."""
        found = {}
        for node in nodes():
            name, known = node["NodeID"], self._stopped.get(node["NodeID"], set())
            found[name] = _ask(name, self.title, known)
            self._honest = self._honest and not found[name]
            for pid in known & found[name]:
                where = f"{pid} on {node['NodeManagerAddress']}"
                waiting.tell(self.stage, f"its worker {where} was stopped, and is ended; Ray tries its task again")
        self._stopped = found


def nodes() -> list[dict[str, Any]]:
    """What Ray knows of each node that lives."""
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def there() -> str:
    """The nodes of the cluster that live, and their CPUs and GPUs, in words."""
    said = []
    for node in nodes():
        has = node["Resources"]
        gpus = f" and {has['GPU']:g} GPUs" if has.get("GPU") else ""
        said.append(f"{node['NodeManagerAddress']} with {has.get('CPU', 0):g} CPUs{gpus}")
    return f"the cluster has {', '.join(said)}"


def _ask(node: str, title: str, known: set[int]) -> set[int]:
    """What `_stopped` finds on a node; nothing if that does not answer."""
    on_it = NodeAffinitySchedulingStrategy(node, soft=False)
    try:
        found: set[int] = ray.get(_stopped.options(scheduling_strategy=on_it).remote(title, known), timeout=ANSWER)
    except (RayError, TimeoutError):
        return set()
    return found


@ray.remote(num_cpus=0, max_retries=0)
def _stopped(title: str, known: set[int]) -> set[int]:
    """The processes of this node with such a task that are stopped (SIGSTOP); those that are known are ended."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() == psutil.STATUS_STOPPED and process.cmdline()[:1] == [f"ray::{title}"]:
                found.add(process.pid)
    for pid in found & known:
        os.kill(pid, signal.SIGKILL)  # which one that is stopped heeds as well
    return found
