"""The Ray cluster: joining or starting one, its CPUs and GPUs, running tasks on it, placing a training's processes."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray._private import auto_init_hook, ray_constants
from ray.exceptions import RayError, RayTaskError

from pipeline.runtime import access, edges, head, short_path, stage, waiting
from pipeline.runtime.machines import Machine, ray_address
from pipeline.runtime.silence import LOOK, Silence, nodes

Item = TypeVar("Item")
Result = TypeVar("Result")

# Set before Ray starts, because it reads them once.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # each report waits for a poll; the default is 2 s
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "180",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_worker_niceness": "0",  # the default lowers the workers' priority
    "RAY_task_oom_retries": "3",  # unlimited by default
    "RAY_ENABLE_AUTO_CONNECT": "0",  # otherwise a call after the shutdown joins any running Ray
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # otherwise, under `uv run`, Ray starts its workers with uv and hangs
}

# glibc's settings; other systems ignore them. Each step frees and reallocates most of its memory in pieces of many
# megabytes. By default glibc returns each piece to the system, which zeroes its pages when they are allocated again: a third
# of the time of a training at full width on 2 cores (128 pictures: 3.5 s, and 2.3 s with these settings). With them a worker
# keeps its memory, in one heap for all of its threads.
MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}

_KILLED = re.compile(
    r"IP: (?P<node>[^,]+).* was (?P<used>[\d.]+ ?\w+) used / (?P<all>[\d.]+ ?\w+) limit.*?\((?P<limit>[\d.]+)% of",
    re.DOTALL,
)
"""The message with which Ray's memory monitor reports that it has killed a process."""


@contextmanager
def connected(machine: Machine) -> Iterator[None]:
    """Joins the running cluster that machine.yaml or `RAY_ADDRESS` names, or starts one on this machine; leaves it at the end.

    Raises `ValueError` if the address is not a cluster's, or the cluster asks for no token or does not accept this machine's;
    `ConnectionError` or `TimeoutError` if no cluster answers at the address.
    """
    if ray.is_initialized():  # a test session starts Ray once
        yield
        return
    for name, value in (ENVIRONMENT | MEMORY).items():
        os.environ.setdefault(name, value)
    # Ray read these two when it was imported
    ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = False
    auto_init_hook.enable_auto_connect = False
    address = ray_address(machine)
    with nullcontext() if address else short_path.ray_folder() as folder:
        if address is None:
            _start(folder)
        else:
            _join(address)
        ray._private.worker.print_to_stdstream = _print_message  # Ray's own function prints pages
        try:
            with head.watched(ray.get_runtime_context().gcs_address) if address else nullcontext():
                yield
        finally:
            # Ray may delete a job's folder when its driver leaves the cluster, and the stage still runs in it
            if not in_job():
                ray.shutdown()


def _print_message(data: Mapping[str, Any], ignore_prefix: bool) -> None:  # noqa: ARG001
    """Prints a message from Ray to the driver, such as that a task is retried, as one line."""
    text = "\n".join(data["lines"]).strip()
    killed = out_of_memory(text)
    line = killed[0] if killed else text.partition("\n")[0][:300]
    print(f"ray: {line}", file=sys.stderr, flush=True)


def in_job() -> bool:
    """Whether this driver was started by `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def _join(address: str) -> None:
    access.admit(address)
    # Ray distributes a job's code by itself; a driver that was started on a node has to send it to the others
    environment: dict[str, object] = {"env_vars": {name: os.environ[name] for name in MEMORY}}
    if not in_job():
        environment["working_dir"] = str(Path.cwd())
    try:
        with waiting.saying("ray", f"the cluster at {address} to take in this driver and its code"):
            # logging_level: Ray warns each time that it does not send .git
            ray.init(address=address, runtime_env=environment, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError) as error:
        # RuntimeError: the head has another version of Ray or Python; the message has six lines
        words = edges.message(error) or edges.essential(str(error))
        raise ConnectionError(f"the Ray cluster at {address} cannot be joined from here: {words}") from None


def _start(folder: str | None) -> None:
    """Starts a cluster for this driver only: on loopback, with a token in the working copy; it ends with the driver.

    `folder`: Ray's temporary folder; None leaves the choice to Ray.
    """
    access.keep_private(stage.WORK)
    ray.init(
        address="local",
        include_dashboard=False,
        logging_level=logging.WARNING,
        log_to_driver=False,  # only the driver prints
        _node_ip_address="127.0.0.1",
        _temp_dir=folder,
        object_store_memory=_object_store_bytes(),
    )


def _object_store_bytes() -> int:
    # Little passes through it: shards are written and read as files
    return 512 * 2**20


def cpus() -> int:
    """The number of CPUs of the whole cluster."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]


def gpus(machine: Machine) -> int:
    """The number of GPUs to use: all of the cluster's, none, or the number in machine.yaml; `ValueError` if it has fewer."""
    if machine.devices == "cpu":
        return 0
    count = int(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]
    if machine.devices == "auto":
        return count
    if machine.devices > count:
        raise ValueError(f"machine.yaml: devices: {machine.devices} GPUs asked for, the cluster has {count}")
    return machine.devices


def workers(machine: Machine, tasks: int) -> int:
    """The number of processes for `tasks` tasks: workers in machine.yaml or all CPUs, at least 1, at most one for each task."""
    return max(1, min(tasks, cpus() if machine.workers == "auto" else machine.workers))


def each(
    work: Callable[[Item], Result], items: Sequence[Item], machine: Machine, gpus: int = 0, stage: str = ""
) -> Iterator[tuple[Item, Result]]:
    """Runs `work` on every item as a Ray task, and yields (item, result) in the order in which the tasks end.

    At most `workers` tasks run at a time. Each takes one CPU, or a fraction if there are more workers than CPUs, and `gpus`
    GPUs. `work` has to be idempotent, because the task of a lost node runs again elsewhere. Raises what `work` raises;
    `OSError` if its workers keep dying; `TimeoutError` if no task finds room on the cluster. A slow task is never ended, a
    stopped one is: see `Silence`. `stage` names the stage in messages; by default it is the module of `work`.
    """
    most = workers(machine, len(items))
    takes = {"CPU": min(1, cpus() / most), **({"GPU": gpus} if gpus else {})}
    silence = Silence(work, takes, machine.patience, stage)
    # max_calls=0: a worker runs one task after another. By default Ray ends it after each task on a GPU, and the next worker
    # has to import torch and initialize the GPU again, some 4 s for each shard
    task = ray.remote(num_cpus=takes["CPU"], num_gpus=gpus, max_retries=3, max_calls=0)(work).options(
        name=silence.title
    )
    running: dict[ray.ObjectRef[Result], Item] = {}
    for number, item in enumerate(items, 1):
        running[task.remote(item)] = item
        if len(running) >= most:
            yield _next(running, silence, f"{number - len(running):,} of {len(items):,}")
    while running:
        yield _next(running, silence, f"{len(items) - len(running):,} of {len(items):,}")


def _next(running: dict[ray.ObjectRef[Result], Item], silence: Silence, done: str) -> tuple[Item, Result]:
    with silence.waiting_for_task():
        while not (ready := ray.wait(list(running), num_returns=1, timeout=LOOK)[0]):
            silence.look(len(running), done)
    item = running.pop(ready[0])
    try:
        return item, ray.get(ready[0])
    except RayTaskError as error:
        raise error.cause from None
    except RayError as error:
        if killed := out_of_memory(str(error)):
            raise OSError("\n".join(killed)) from None
        raise OSError(
            f"a worker died, also when its task was tried again: {edges.essential(str(error))}\n"
            "Was it killed (dmesg), or is there too little memory (machine.yaml: workers)? Then dvc repro goes on"
        ) from None


def out_of_memory(text: str) -> tuple[str, str] | None:
    """What happened and what to do, if Ray's text says that its memory monitor killed a worker; None for any other text."""
    killed = _KILLED.search(text)
    if killed is None:
        return None
    what = (
        f"Ray's memory monitor killed a worker: on {killed['node']}, {killed['used']} of {killed['all']} of memory were in use, "
        f"and its limit is {killed['limit']} %"
    )
    advice = (
        "End what else is in memory there (ps aux --sort -rss), set fewer workers or placement: one in machine.yaml, or a "
        "smaller learning.batch_size; RAY_memory_usage_threshold sets the limit"
    )
    return what, advice


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """A training's processes: their number, which columns each has, their devices."""

    workers: int
    """The number of processes."""
    apart: bool
    """Each process has one column; otherwise each process has all columns."""
    gpu: bool
    threads: int
    """The number of CPU cores of each process."""

    @property
    def replicas(self) -> int:
        """The number of replicas; each gets a part of every batch."""
        return self.workers // 2 if self.apart else self.workers

    def __str__(self) -> str:
        what = "a column each" if self.apart else "a whole network each" if self.workers > 1 else "the whole network"
        on = "on a GPU" if self.gpu else f"with {self.threads} CPU core{'s' * (self.threads > 1)}"
        return f"{self.workers} process{'es' * (self.workers > 1)}, {what}, {on}"


def placement(machine: Machine, divisible: bool) -> Placement:
    """Chooses the placement by machine.yaml's `placement`. `divisible`: whether the network's columns can be in two processes.

    Any placement gives the same weights, up to rounding. Raises `ValueError` if the network or the cluster does not allow the
    one that machine.yaml asks for.
    """
    gpu_count, cpu_count = gpus(machine), cpus()
    wanted = machine.placement
    if wanted == "columns" and not divisible:
        raise ValueError(
            "machine.yaml: placement: 'columns' needs a network of 2 columns (params.yaml: model.columns) that meet only "
            "where the paper says, which 'caffe' normalization and later networks do not"
        )
    if wanted == "auto":
        pair = gpu_count >= 2 or (gpu_count == 0 and cpu_count >= 2)
        wanted = "columns" if divisible and pair else "replicas" if gpu_count >= 2 else "one"
    if gpu_count == 0:
        workers = 2 if wanted == "columns" else min(cpu_count, 2) if wanted == "replicas" else 1
        if workers > cpu_count:
            raise ValueError(f"machine.yaml: placement: 'columns' needs 2 CPU cores, the cluster has {cpu_count}")
        return Placement(workers=workers, apart=wanted == "columns", gpu=False, threads=_threads(workers))
    workers = {"one": 1, "columns": gpu_count - gpu_count % 2, "replicas": gpu_count}[wanted]
    if workers == 0:
        raise ValueError("machine.yaml: placement: 'columns' needs 2 GPUs, since a GPU takes one process; there is 1")
    if workers > cpu_count:
        raise ValueError(
            f"machine.yaml: placement: {workers} GPUs need a CPU core each, the cluster has {cpu_count}. "
            "devices takes the number of GPUs to use"
        )
    return Placement(workers=workers, apart=wanted == "columns", gpu=True, threads=min(16, _threads(workers)))


def _threads(workers: int) -> int:
    """The largest number of CPU cores that each of `workers` processes can have; the cores of a process are on one node."""
    cores = [int(node["Resources"].get("CPU", 0)) for node in nodes()]
    fitting = (threads for threads in range(sum(cores), 0, -1) if sum(node // threads for node in cores) >= workers)
    return next(fitting, 1)
