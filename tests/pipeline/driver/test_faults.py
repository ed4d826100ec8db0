"""Trainings that something happens to, on a real Ray: what comes from outside is tried again, the rest is told once."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.pipeline.test_train import SECTIONS, Ran, Training, copy, write

pytestmark = [pytest.mark.faults, pytest.mark.slow]

MACHINE = "devices: cpu\nplacement: columns\nworkers: 2\ncheckpoint_steps: 2\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy(tmp_path)
    (tmp_path / "machine.yaml").write_text(MACHINE)
    longer(tmp_path)
    return tmp_path


def longer(folder: Path, **learning: Any) -> None:
    """Enough epochs for something to happen in them."""
    write(folder, {**SECTIONS, "learning": {**SECTIONS["learning"], "epochs": 10, "log_steps": 1, **learning}})


@pytest.fixture
def begin() -> Iterator[Callable[..., Training]]:
    """Starts a training with more in its environment; ends what is left of it."""
    begun: list[Training] = []

    def start(folder: Path, **environment: str) -> Training:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            begun.append(Training(folder, keep=tuple(environment)))
        return begun[-1]

    yield start
    for training in begun:
        training.log.close()
        if training.process.poll() is None:
            for process in [*training.below(), training.process]:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            training.process.wait()


def saved(training: Training) -> list[int]:
    """The steps of the checkpoints that are there."""
    there = training.folder.glob("runs/*/checkpoint-*/checkpoint.pt")
    return sorted(int(file.parent.name.split("-")[1]) for file in there)


def told(ran: Ran) -> list[str]:
    """What the stage said, without its progress."""
    lines = [line for line in ran.said.splitlines() if not re.match(r"train: [\d,]+ of [\d,]+ images", line)]
    return [line for line in lines if line.strip()]


def last_lines(ran: Ran) -> list[str]:
    """The error at the end: from the last line that begins with the stage's name."""
    lines = told(ran)
    first = max(number for number, line in enumerate(lines) if line.startswith("train: "))
    return lines[first:]


def test_a_worker_that_is_killed_once_costs_a_line_and_no_bit(folder: Path, begin: Callable[..., Training]) -> None:
    training = begin(folder)
    training.until(lambda: bool(saved(training)))
    training.workers()[0].kill()
    ran = training.end()
    assert ran.code == 0, ran.said
    (line,) = [line for line in told(ran) if "trying again" in line]
    assert re.fullmatch(r"train: a worker died, or its node; trying again from step [1-9]\d* in 1 s, 1 of 3", line), (
        ran.said
    )
    assert "Traceback" not in ran.said
    assert len(told(ran)) <= 8, ran.said


def test_a_worker_that_is_killed_while_the_other_waits_for_its_half_costs_a_line(
    folder: Path, begin: Callable[..., Training]
) -> None:
    """The columns exchange activations in every step: once one is stopped, the other is in the middle of that."""
    training = begin(folder)
    training.until(lambda: bool(saved(training)))
    worker = training.workers()[0]
    worker.suspend()
    time.sleep(2)
    worker.kill()
    ran = training.end()
    assert ran.code == 0, ran.said
    (line,) = [line for line in told(ran) if "trying again" in line]
    assert re.match(r"train: a worker died, or its node; trying again from step [1-9]\d* in 1 s, 1 of 3$", line), (
        ran.said
    )
    assert "Traceback" not in ran.said


def test_workers_that_are_killed_again_and_again_end_it_with_the_last_checkpoint_named(
    folder: Path, begin: Callable[..., Training]
) -> None:
    training = begin(folder)
    training.until(lambda: bool(saved(training)))
    while training.process.poll() is None:
        with contextlib.suppress(psutil.Error):
            for worker in training.workers():
                worker.kill()
        time.sleep(0.05)
    ran = training.end()
    assert ran.code == 1
    assert [int(found) for found in re.findall(r"trying again .* (\d) of 3", ran.said)][-3:] == [1, 2, 3], ran.said
    what, why, last = last_lines(ran)
    assert what == "train: a worker died, or its node; 3 more attempts came no further"
    assert "dmesg" in why
    step = max(saved(training))
    assert re.search(rf"checkpoint-{step:09d}-\d+, step {step}: dvc repro goes on from there", last)


def test_a_loss_that_is_no_number_is_tried_once(folder: Path, begin: Callable[..., Training]) -> None:
    longer(folder, rate=1e12)
    ran = begin(folder).end()
    assert ran.code == 1
    assert "trying again" not in ran.said
    what, last = last_lines(ran)
    assert re.match(r"train: the loss is (nan|inf) in step \d+, at rate .* Try a smaller learning\.rate", what)
    assert "checkpoint" in last


def test_a_shard_that_is_damaged_under_way_is_tried_once(folder: Path, begin: Callable[..., Training]) -> None:
    training = begin(folder)
    training.until(lambda: bool(saved(training)))
    for shard in (folder / "data/shards").glob("train-*.parquet"):
        data = bytearray(shard.read_bytes())
        for place in range(100, len(data) - 2000, 500):
            data[place] ^= 255
        shard.write_bytes(data)
    ran = training.end()
    assert ran.code == 1, ran.said
    assert "trying again" not in ran.said
    what, last = last_lines(ran)
    assert re.search(r"train-\d\.parquet: .*dvc repro --force --single-item resize", what)
    assert re.search(r"The last whole checkpoint is .*, step \d+", last)


def test_a_full_disk_is_tried_once_and_the_last_checkpoint_stays(folder: Path, begin: Callable[..., Training]) -> None:
    disk = folder / "runs"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4M", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        ran = begin(folder).end()
        assert ran.code == 1, ran.said
        assert "trying again" not in ran.said
        assert len(last_lines(ran)) == 2, ran.said
        what, last = last_lines(ran)
        assert re.search(r"runs/\w+: no room for a checkpoint \(No space left on device\)\. Make room", what)
        assert not list(disk.rglob("part-*"))
        assert re.search(r"The last whole checkpoint is .*, step \d+|There is no checkpoint", last)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_worker_that_is_stopped_is_told_of_ended_and_tried_again(
    folder: Path, begin: Callable[..., Training]
) -> None:
    (folder / "machine.yaml").write_text(MACHINE + "patience: 25\n")
    training = begin(folder)
    training.until(lambda: bool(saved(training)))
    worker = training.workers()[0]
    worker.send_signal(signal.SIGSTOP)
    training.until(lambda: "waiting for a step after step" in training.text(), 60)
    assert re.search(
        rf"train: waiting for a step after step \d+ of its workers \(.*{worker.pid} on .*\), \d+ s at most",
        training.text(),
    )
    ran = training.end()
    assert ran.code == 0, ran.said
    (line,) = [line for line in told(ran) if "trying again" in line]
    assert re.match(
        r"train: gave up waiting for a step after step \d+ of its workers .* after \d+ s; trying again", line
    )


def test_workers_that_rays_memory_monitor_kills_end_it_in_three_lines(
    folder: Path, begin: Callable[..., Training]
) -> None:
    training = begin(folder, RAY_memory_usage_threshold="0.02", RAY_memory_monitor_refresh_ms="100")
    ran = training.end()
    assert ran.code == 1, ran.said
    what, why, last = last_lines(ran)
    said = r"train: Ray's memory monitor killed a worker: on [\d.]+, .*GB of .*GB of memory were in use, and its limit is 2.0 %"
    assert re.match(said, what), ran.said
    assert "batch_size" in why
    assert "checkpoint" in last


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster of two nodes with a CPU each; the second can be taken away."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.second = cluster.add_node(num_cpus=1)  # type: ignore[attr-defined]
    yield cluster
    cluster.shutdown()


def test_a_node_that_is_lost_with_none_to_spare_is_waited_for_and_missed_by_name(
    folder: Path, nodes: Any, begin: Callable[..., Training]
) -> None:
    (folder / "machine.yaml").write_text(MACHINE + "patience: 12\n")
    training = begin(folder, RAY_ADDRESS=nodes.address, RAY_AUTH_MODE="disabled")
    training.until(lambda: bool(saved(training)))
    nodes.remove_node(nodes.second, allow_graceful=False)
    # Ray may take its time to miss a node: the line names those that it still counts
    waits = r"waiting for its workers to begin: they are 2 processes .*, and the cluster has ([\d.]+ with 1 CPUs, )+36 s at most"
    training.until(lambda: bool(re.search(waits, training.text().partition("trying again")[2])), 120)
    ran = training.end()
    assert ran.code == 1, ran.said
    what, last = last_lines(ran)
    assert re.match(
        r"train: gave up waiting for its workers to begin: .* the cluster has [\d.]+ with 1 CPUs after 36 s$", what
    )
    assert re.search(r"The last whole checkpoint is .*, step \d+: dvc repro goes on from there", last)


def test_a_node_that_comes_back_is_used_and_the_progress_moves_on(
    folder: Path, nodes: Any, begin: Callable[..., Training]
) -> None:
    longer(folder, epochs=30)
    training = begin(folder, RAY_ADDRESS=nodes.address, RAY_AUTH_MODE="disabled")
    training.until(lambda: bool(saved(training)))
    nodes.remove_node(nodes.second, allow_graceful=False)
    training.until(lambda: "trying again" in training.text(), 120)
    nodes.add_node(num_cpus=1)
    ran = training.end()
    assert ran.code == 0, ran.said
    after = ran.said.rpartition("trying again")[2]
    done = [int(found.replace(",", "")) for found in re.findall(r"train: ([\d,]+) of 540 images", after)]
    assert done == sorted(done)
    assert done[-1] == 540
