"""While no task of a stage ends it is said what is waited for; what cannot end is ended, and what is slow never is."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray

from pipeline.runtime import silence
from pipeline.runtime.silence import Silence

ROOT = Path(__file__).parents[3]


def make_shard() -> None:
    """What the tasks are said to do."""


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> Silence:
    """Tasks of a CPU each on a cluster of a node with two, both of which are in use."""
    node = {"Alive": True, "NodeID": "1", "NodeManagerAddress": "10.0.0.7", "Resources": {"CPU": 2.0}}
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_job_id=lambda: "07"))
    monkeypatch.setattr(ray, "nodes", lambda: [node])
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(ray, "available_resources", dict)
    monkeypatch.setattr(silence, "_ask", lambda node, title, known: set())
    return Silence(make_shard, {"CPU": 1.0}, 300)


def look(quiet: Silence, seconds: int) -> None:
    for _ in range(seconds):
        quiet.look(2, "3 of 12")


def test_after_ten_seconds_it_is_said_once_what_is_waited_for_and_a_slow_task_is_never_ended(
    quiet: Silence, capsys: pytest.CaptureFixture[str]
) -> None:
    with quiet.waiting_for_task():
        look(quiet, 10)
        assert capsys.readouterr().err == ""
        look(quiet, 20_000)
    assert capsys.readouterr().err == (
        "test_silence: waiting for one of 2 tasks to end, each of which takes 1 CPU: 3 of 12 are done, "
        "and the cluster has 10.0.0.7 with 2 CPUs, of which 0 are free\n"
    )


def test_tasks_that_are_honestly_long_are_told_of_only_where_one_takes_three_times_as_long(
    quiet: Silence, capsys: pytest.CaptureFixture[str]
) -> None:
    for seconds, lines in ((80, 1), (200, 0), (600, 0), (1801, 1)):
        with quiet.waiting_for_task():
            look(quiet, seconds)
        assert len(capsys.readouterr().err.splitlines()) == lines, seconds


@pytest.mark.parametrize(("there", "free"), [({"CPU": 2.0}, {"CPU": 2.0}), ({}, {}), ({"CPU": 0.5}, {})])
def test_tasks_that_find_no_room_are_told_of_and_given_up_after_three_times_the_patience(
    quiet: Silence,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    there: dict[str, float],
    free: dict[str, float],
) -> None:
    with quiet.waiting_for_task():
        look(quiet, 100)
        assert "tasks to end" in capsys.readouterr().err
        monkeypatch.setattr(ray, "cluster_resources", lambda: there)
        monkeypatch.setattr(ray, "available_resources", lambda: free)
        look(quiet, 900)
        assert re.search(
            r"one of 2 tasks to begin, each of which takes 1 CPU: .*, 900 s at most\n$", capsys.readouterr().err
        )
        with pytest.raises(
            TimeoutError, match=r"gave up waiting for one of 2 tasks to begin.* after 900 s\nAre its nodes up"
        ):
            look(quiet, 1)


def test_after_a_long_fault_the_next_one_is_told_of_as_soon(
    quiet: Silence, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three times the longest silence is waited for without a word, and a fault is no honest silence."""
    for free, answer in (({"CPU": 2.0}, set[int]()), ({}, {7})):
        with quiet.waiting_for_task():
            monkeypatch.setattr(ray, "available_resources", lambda free=free: free)
            monkeypatch.setattr(silence, "_ask", lambda node, title, known, answer=answer: answer)
            look(quiet, 500)
        capsys.readouterr()
        with quiet.waiting_for_task():
            look(quiet, 11)
        assert "waiting for one of 2 tasks" in capsys.readouterr().err


def test_room_that_is_found_again_counts_anew(quiet: Silence, monkeypatch: pytest.MonkeyPatch) -> None:
    with quiet.waiting_for_task():
        for _ in range(3):
            monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 2.0})
            look(quiet, 890)
            monkeypatch.setattr(ray, "available_resources", dict)
            look(quiet, 10)


def test_a_worker_is_ended_only_where_it_is_stopped_at_two_questions_after_the_patience(
    quiet: Silence, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = iter([{7}, {8}, {8, 9}, set()])
    asked: list[set[int]] = []

    def ask(node: str, title: str, known: set[int]) -> set[int]:
        assert (node, title) == ("1", "make_shard of job 07")
        asked.append(known)
        return next(answers)

    monkeypatch.setattr(silence, "_ask", ask)
    with quiet.waiting_for_task():
        look(quiet, 300)
        assert asked == []
        look(quiet, 40)
    assert asked == [set(), {7}, {8}, {8, 9}]
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "stopped" in line]
    assert line == "test_silence: its worker 8 on 10.0.0.7 was stopped, and is ended; Ray tries its task again"


PROGRAM = """
import slow
from pipeline.runtime import cluster, stage, waiting
from pipeline.runtime.machines import Machine
waiting.SAID_AFTER = 2.0

def run():
    with cluster.connected(Machine(patience=4)):
        for number, _ in cluster.each(slow.work, range(10**6), Machine(patience=4)):
            print(f"done {number}", flush=True)
stage.main("mean", run)
"""


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster of a head without a CPU, and a node with one."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    cluster.second = cluster.add_node(num_cpus=1)  # type: ignore[attr-defined]
    yield cluster
    cluster.shutdown()


@pytest.mark.faults
def test_a_worker_that_is_stopped_and_a_node_that_is_lost_are_told_of_and_the_work_goes_on(
    nodes: Any, tmp_path: Path
) -> None:
    (tmp_path / "slow.py").write_text("import time\ndef work(number):\n    time.sleep(0.3)\n")
    for name in ("alexnet", "pipeline"):
        (tmp_path / name).symlink_to(ROOT / name)
    log = tmp_path / "said.txt.log"
    with log.open("w") as out:
        stage = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            cwd=tmp_path,
            env=os.environ | {"RAY_ADDRESS": nodes.address, "RAY_AUTH_MODE": "disabled"},
            stdout=out,
            stderr=out,
        )

    def until(there: Callable[[str], bool], seconds: float = 60) -> str:
        end = time.monotonic() + seconds
        while not there(text := log.read_text()):
            assert stage.poll() is None, text
            assert time.monotonic() < end, text
            time.sleep(0.1)
        return text

    def goes_on(text: str) -> None:
        until(lambda now: now.count("done ") > text.count("done ") + 2)

    try:
        goes_on("")
        for process in psutil.process_iter(["cmdline"]):
            if (process.info["cmdline"] or [""])[0].startswith("ray::work of job"):
                process.suspend()
        until(lambda text: "slow: waiting for one of 1 tasks to end, each of which takes 1 CPU: " in text)
        goes_on(until(lambda text: "was stopped, and is ended; Ray tries its task again" in text))
        waits = "slow: waiting for one of 1 tasks to begin, each of which takes 1 CPU: "
        nodes.remove_node(nodes.second, allow_graceful=False)
        text = until(lambda text: waits in text)
        again = nodes.add_node(num_cpus=1)
        goes_on(text)
        nodes.remove_node(again, allow_graceful=False)
        assert stage.wait(120) == 1
    finally:
        with contextlib.suppress(ProcessLookupError):
            stage.kill()
        stage.wait()
    what, todo = log.read_text().splitlines()[-2:]
    assert re.match(
        r"mean: gave up waiting for one of 1 tasks to begin, .* with 0 CPUs, of which 0 are free after 12 s$", what
    )
    assert todo == "Are its nodes up, and what else runs there (ray status)? Then dvc repro goes on"


def test_the_stage_is_named_and_not_the_module_that_its_work_is_in(quiet: Silence) -> None:
    assert quiet.stage == "test_silence"
    assert Silence(make_shard, {"CPU": 1.0}, 300, "evaluate").stage == "evaluate"
