"""A stage that is told to stop ends in time, whatever it is in, says so, and leaves nobody behind."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.commands import STAGES
from pipeline.runtime import guard
from tests import kills

ROOT = Path(__file__).parents[3]

BEGIN = """
import os, signal, subprocess, sys, time
from pathlib import Path
from pipeline.runtime import guard, stage
guard.GRACE = {grace}

def run():
    Path("started").touch()
    {work}
stage.main("train", run)
"""

STUBBORN = {
    "a call that holds the interpreter": "sum(range(10**15))",
    "a loop that catches everything": """
    while True:
        try:
            time.sleep(9)
        except BaseException:
            pass""",
    "handlers of its own": """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, guard.STOP_SIGNAL):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(99)""",
    "an error on the way out": """
    try:
        time.sleep(99)
    finally:
        raise AssertionError""",
    "an abort on the way out": """
    try:
        time.sleep(99)
    finally:
        os.abort()""",
    "a long import": "sys.path.insert(0, '.'); import slow",
}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts programs in the folder of the test, and ends what is left of them."""
    started: list[subprocess.Popen[str]] = []

    def run(work: str, grace: float = 0.4) -> subprocess.Popen[str]:
        (tmp_path / "slow.py").write_text("import time\ntime.sleep(99)\n")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "ALEXNET_"))}
        process = subprocess.Popen(
            [sys.executable, "-c", BEGIN.format(work=work, grace=grace)],
            cwd=tmp_path,
            env=kept | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # a stage that was left holds the pipes as well
        process.communicate()


def wait(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def stage_of(process: subprocess.Popen[str]) -> psutil.Process:
    """The stage below its guard."""
    return psutil.Process(process.pid).children()[0]


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
@pytest.mark.parametrize("work", STUBBORN.values(), ids=STUBBORN)
def test_whatever_a_stage_is_in_it_ends_with_the_signal_s_code(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, work: str
) -> None:
    process = start(work)
    wait((tmp_path / "started").exists)
    time.sleep(0.1)
    stage, begun = stage_of(process), time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=10)
    assert time.monotonic() - begun < 4
    assert process.returncode == 143
    assert said.splitlines()[-1] == "train: stopped; dvc repro goes on"
    assert gone(stage)


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    process = start("sum(range(10**15))", grace=60)
    wait((tmp_path / "started").exists)
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)  # else they are one to the system too
    process.send_signal(signal.SIGINT)  # the same one, as `timeout` sends it twice
    time.sleep(guard.TWICE + 0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=5)
    assert process.returncode == 130


def test_a_stop_says_how_far_the_work_is(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    process = start("stage.reached('step 1,000'); stage.reached('step 34'); Path('said').touch(); time.sleep(99)")
    wait((tmp_path / "said").exists)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=10)
    assert (process.returncode, said) == (130, "train: stopped after step 34; dvc repro goes on from there\n")


def test_whom_a_stage_started_is_not_left_behind(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    away = "subprocess.run(['sh', '-c', 'setsid sleep 98 & echo $! > orphan'])"
    process = start(away)
    assert process.wait(20) == 0
    pid = int((tmp_path / "orphan").read_text())
    left = psutil.pid_exists(pid) and not gone(psutil.Process(pid))
    if left:
        os.kill(pid, signal.SIGKILL)  # it holds the pipes of this test
    assert not left


def test_a_stage_does_not_outlive_a_guard_that_was_killed(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = start("time.sleep(97)")
    wait((tmp_path / "started").exists)
    stage = stage_of(process)
    process.kill()
    wait(lambda: gone(stage), 5)


def test_a_stage_that_the_system_killed_is_said_to_be(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = start("time.sleep(96)")
    wait((tmp_path / "started").exists)
    stage_of(process).kill()
    _, said = process.communicate(timeout=10)
    assert process.returncode == 137
    assert (
        said == "train: its process was ended by SIGKILL, as the system does where memory runs out; dvc repro goes on\n"
    )


def test_a_stage_that_a_library_ended_is_said_to_be_and_one_that_has_said_why_is_not(
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    lost = start("stage.reached('step 34'); os._exit(1)")
    _, said = lost.communicate(timeout=10)
    assert lost.returncode == 1
    assert said.startswith("train: a library ended its process with 1, as Ray does when the head of its cluster")
    assert said.endswith("dvc repro goes on from step 34\n")
    for work, words in (("raise ValueError('no')", "train: no\n"), ("sys.exit(3)", "")):
        plain = start(work)
        _, said = plain.communicate(timeout=10)
        assert (plain.returncode, said) == ({"": 3}.get(words, 1), words)


def test_a_step_of_the_clock_ends_no_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard asks whether its DVC lives; psutil knows a process by the time it was started, on the monotonic clock."""
    chain, boot, now = psutil.Process().parents(), psutil.boot_time(), time.time
    for step in (-3600.0, -1.0, 1.0, 3600.0):
        monkeypatch.setattr("psutil._pslinux.boot_time", lambda step=step: boot + step)
        monkeypatch.setattr("time.time", lambda step=step: now() + step)
        assert guard._all_running(chain)


# The stages


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working copy with the smallest sample."""
    folder = tmp_path_factory.mktemp("copy")
    kills.fill(folder)
    return folder


def holding(pid: int) -> bool:
    """Whether a process has held back or taken SIGTERM, as the first line of a stage does."""
    with contextlib.suppress(OSError):
        masks = re.findall(r"^Sig(?:Blk|Cgt):\s+(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.M)
        return any(int(mask, 16) >> (signal.SIGTERM - 1) & 1 for mask in masks)
    return False


def stopped(copy: Path, name: str, number: signal.Signals, after: float, *, group: bool = False) -> tuple[int, str]:
    """Starts a stage and stops it, itself or its whole group; its code and what it said. None may be left, in 5 seconds."""
    mark = uuid.uuid4().hex
    ours = ("DVC_", "ALEXNET_", "RAY_", "MLFLOW_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", name],
        cwd=copy,
        env=kept | {"ALEXNET_KILLS": mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    while process.poll() is None and not holding(process.pid):  # its first line is still to come
        time.sleep(0.01)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(after)
    begun = time.monotonic()
    with contextlib.suppress(ProcessLookupError):
        (os.killpg if group else os.kill)(process.pid, number)
    said, _ = process.communicate(timeout=60)
    assert time.monotonic() - begun < 5
    assert kills.Copy(copy, mark).processes() == []
    return process.returncode, said


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_each_stage_can_be_stopped_from_its_first_line_on(copy: Path, name: str) -> None:
    for number, after in ((signal.SIGTERM, 0.0), (signal.SIGINT, 0.0), (signal.SIGTERM, 1.0), (signal.SIGINT, 1.5)):
        code, said = stopped(copy, name, number, after)
        if code != 1:  # without its inputs a stage may have said so and ended before
            assert (code, said.splitlines()[-1:]) == (128 + number, [f"{name}: stopped; dvc repro goes on"])
            assert "Traceback" not in said


@pytest.mark.faults
def test_each_stage_can_be_stopped_at_any_moment(copy: Path) -> None:
    lots, seconds = random.Random(0), {}
    for name in STAGES:
        begun = time.monotonic()
        subprocess.run([sys.executable, "-m", "pipeline", name], cwd=copy, check=True, capture_output=True)
        seconds[name] = time.monotonic() - begun
    for name in STAGES:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            if name == "train":
                shutil.rmtree(copy / "runs")
            after, group = lots.uniform(0.1, seconds[name]), lots.random() < 0.5
            code, said = stopped(copy, name, number, after, group=group)
            if code != 0:  # it was faster than before
                assert code == 128 + number, (name, number, after, group, said)
                assert said.splitlines()[-1].startswith(f"{name}: stopped")
                assert "Traceback" not in said
