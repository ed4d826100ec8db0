"""Which faults of a training are tried again, how often, and what is said at the end."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ray.exceptions import ActorDiedError, OutOfMemoryError, RuntimeEnvSetupError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)

from pipeline.driver.attempts import Attempts
from pipeline.driver.faults import PAUSES, Fault, explained
from pipeline.runtime import cluster
from pipeline.training.checkpoints import ChangedError, Checkpoint

GLOO = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:5813")

DEAD = WorkerHealthCheckFailedError("A worker health check failed.", ActorDiedError())

MEMORY = (
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.7, ID: 02b8) was "
    "22.45GB used / 23.54GB limit (0.953)\nOOM kill reason: Memory usage 24105B exceeded threshold of 24012B "
    "(95.0% of 25276502016B limit)\nObject store memory usage: [- objects spillable: 2"
)


def failed(*errors: Exception) -> WorkerGroupError:
    return WorkerGroupError("all of it", dict(enumerate(errors)))


@pytest.mark.parametrize(
    "error",
    [
        DEAD,
        ActorDiedError(),
        OutOfMemoryError("memory"),
        WorkerHealthCheckTimeoutError("hanging"),
        GLOO,
        RuntimeError("NCCL error: remote process exited or there was a network error"),
        dist.DistNetworkError("The client socket has timed out after 60000ms"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError(),
        ConnectionResetError("reset"),
        TimeoutError("no answer"),
        OSError(errno.ESTALE, "Stale file handle"),
        OSError("s3://b/a: gone or damaged: AWS Error NETWORK_CONNECTION during GetObject"),
        ChangedError("checkpoint.pt: damaged; a moment ago it was whole"),
    ],
)
def test_what_comes_from_outside_may_not_come_again(error: Exception) -> None:
    assert explained(failed(error)).outside
    assert explained(failed(DEAD, error)).outside


@pytest.mark.parametrize(
    "error",
    [
        FloatingPointError("the loss is nan in step 3"),
        ValueError("params.yaml: no"),
        OSError("train-0.parquet: gone or damaged: checksum"),
        OSError(errno.ENOSPC, "runs: no room for a checkpoint"),
        FileNotFoundError(errno.ENOENT, "no such file", "mean.npz"),
        PermissionError(errno.EACCES, "denied", "runs"),
        OSError("s3://b/a: gone or damaged: AWS Error ACCESS_DENIED during GetObject"),
        ZeroDivisionError("division by zero"),
        ModuleNotFoundError("No module named 'torchvision'"),
        AssertionError("5 of 6 pictures were seen"),
        KeyError("conv1"),
        RuntimeError("shape '[3]' is invalid for input of size 4"),
        RuntimeEnvSetupError("no working_dir"),
    ],
)
def test_what_would_come_again_the_same_is_known_also_beside_the_link_that_breaks_with_it(error: Exception) -> None:
    for fault in (explained(failed(error)), explained(failed(GLOO, error)), explained(ControllerError(error))):
        assert not fault.outside
    ours = isinstance(error, (AssertionError, KeyError, RuntimeError)) and not isinstance(error, RuntimeEnvSetupError)
    assert (fault.bug is error) is ours


def test_where_a_worker_died_what_the_others_say_of_it_is_no_fault_of_theirs() -> None:
    assert explained(failed(RuntimeError("a tensor that never came"), DEAD)).outside
    assert not explained(failed(ValueError("a setting"), DEAD)).outside


def test_no_room_for_workers_comes_from_outside() -> None:
    assert explained(ControllerError(WorkerGroupStartupTimeoutError(2))).outside


KILLED = OutOfMemoryError(MEMORY)


@pytest.mark.parametrize("error", [KILLED, failed(WorkerHealthCheckFailedError("x", KILLED), GLOO)])
def test_rays_memory_monitor_is_told_with_the_node_its_memory_and_what_to_set(error: Exception) -> None:
    fault = explained(error)
    assert fault.what == (
        "Ray's memory monitor killed a worker: on 10.0.0.7, 22.45GB of 23.54GB of memory were in use, and its limit is 95.0 %"
    )
    assert "learning.batch_size" in fault.advice
    assert "\n" not in fault.what + fault.advice


OUTSIDE = Fault("a worker died", "Was it killed?", outside=True)


def reached(step: int) -> Checkpoint:
    return Checkpoint(Path(f"runs/one/checkpoint-{step:09d}-0001"), step, 1, None)


def test_what_comes_from_outside_is_tried_three_times_with_longer_and_longer_pauses(
    capsys: pytest.CaptureFixture[str],
) -> None:
    slept: list[float] = []
    attempts = Attempts(Path("runs/one"), reached(4), slept.append)
    for _ in range(3):
        attempts.again(OUTSIDE, reached(4))
    assert tuple(slept) == PAUSES == (1, 4, 16)
    assert capsys.readouterr().err.splitlines()[1] == "train: a worker died; trying again from step 4 in 4 s, 2 of 3"
    with pytest.raises(OSError) as caught:
        attempts.again(OUTSIDE, reached(4))
    assert str(caught.value).splitlines() == [
        "a worker died; 3 more attempts came no further",
        "Was it killed?",
        "The last whole checkpoint is runs/one/checkpoint-000000004-0001, step 4: dvc repro goes on from there",
    ]


def test_progress_begins_the_count_anew() -> None:
    attempts = Attempts(Path("runs/one"), None, lambda _: None)
    for step in range(1, 20):
        attempts.again(OUTSIDE, reached(step))
    assert attempts.failed == 1


def test_what_would_come_again_the_same_is_tried_once() -> None:
    attempts = Attempts(Path("runs/one"), None, lambda _: pytest.fail("it waits"))  # type: ignore[arg-type]
    with pytest.raises(OSError) as caught:
        attempts.again(Fault("the loss is nan"), None)
    assert str(caught.value).splitlines() == [
        "the loss is nan",
        "There is no checkpoint in runs/one yet: dvc repro starts from the beginning",
    ]


def test_a_fault_of_ours_is_raised_as_it_is_and_names_the_last_checkpoint() -> None:
    error = KeyError("conv1")
    attempts = Attempts(Path("runs/one"), None, lambda _: pytest.fail("it waits"))  # type: ignore[arg-type]
    with pytest.raises(KeyError) as caught:
        attempts.again(explained(failed(error)), reached(8))
    assert "step 8" in caught.value.__notes__[0]


def test_what_ray_tells_a_driver_in_pages_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    retried = "Task work failed due to oom. There are 3 oom retries remaining, so the task will be retried. Error: "
    cluster._print_message({"lines": [retried + MEMORY], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    cluster._print_message(
        {"lines": ["A node has died\nand this is its story"], "pid": "raylet", "is_err": False}, False
    )
    oom, died = capsys.readouterr().err.splitlines()
    assert oom.startswith("ray: Ray's memory monitor killed a worker: on 10.0.0.7, ")
    assert died == "ray: A node has died"
