"""A stage's life, with real processes, locks and signals: what is stopped leaves nothing half done and nobody behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.runtime import stage

ROOT = Path(__file__).parents[3]

SLEEPER = """
import time
from pathlib import Path
from pipeline.runtime import files, stage

def run():
    with files.atomic(Path("out")) as made:
        made.write_text("half")
        Path("started").touch()
        for _ in range(600):
            time.sleep(0.1)
stage.main("sleeper", run)
"""

FAILURE = """
from pipeline.runtime import stage

def run():
    raise {error}
stage.main("failure", run)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def start(here: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts programs in the folder of the test, and ends what is left of them."""
    started: list[subprocess.Popen[str]] = []

    def run(*words: str, **more: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            words,
            cwd=here,
            env=environment(**more),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # a stage that was left holds the pipes as well
        process.communicate()


def environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "ALEXNET_"))}
    return kept | {"PYTHONPATH": str(ROOT)} | more


def wait(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stopped_stage_ends_with_the_signals_code_and_no_out(
    start: Callable[..., subprocess.Popen[str]], here: Path, number: signal.Signals
) -> None:
    process = start(sys.executable, "-c", SLEEPER)
    wait((here / "started").exists)
    process.send_signal(number)
    _, said = process.communicate(timeout=10)
    assert process.returncode == 128 + number
    assert not (here / "out").exists()
    assert "Traceback" not in said


# One at a time


@pytest.mark.slow
def test_a_second_stage_of_a_kind_waits_for_the_first(start: Callable[..., subprocess.Popen[str]], here: Path) -> None:
    first = start(sys.executable, "-c", SLEEPER)
    wait((here / "started").exists)
    second = start(sys.executable, "-c", SLEEPER.replace('Path("started").touch()', 'Path("second").touch(); return'))
    time.sleep(1)
    assert second.poll() is None
    assert not (here / "second").exists()
    first.kill()  # what SIGKILL leaves is no lock
    assert second.wait(20) == 0
    assert (here / "out").read_text() == "half"


def test_a_second_stage_says_so_when_it_has_waited_long(
    start: Callable[..., subprocess.Popen[str]], here: Path
) -> None:
    start(sys.executable, "-c", SLEEPER)
    wait((here / "started").exists)
    second = start(sys.executable, "-c", SLEEPER.replace("def run", "stage.PATIENCE = 0.3\ndef run"))
    _, said = second.communicate(timeout=20)
    assert second.returncode == 1
    assert said == (
        f"sleeper: gave up waiting for another 'sleeper' that is at work in {here} after 0 s: another process holds "
        "work/sleeper.lock. Wait for it, or end it\n"
    )


@pytest.mark.slow
def test_a_second_stage_says_what_it_waits_for(start: Callable[..., subprocess.Popen[str]], here: Path) -> None:
    start(sys.executable, "-c", SLEEPER)
    wait((here / "started").exists)
    patient = "from pipeline.runtime import waiting\nwaiting.SAID_AFTER = 0.1\nstage.PATIENCE = 0.4\ndef run"
    second = start(sys.executable, "-c", SLEEPER.replace("def run", patient))
    _, said = second.communicate(timeout=20)
    assert said.startswith(f"sleeper: waiting for another 'sleeper' that is at work in {here}, 0 s at most\n")


def test_stages_of_two_kinds_do_not_wait_for_each_other(
    start: Callable[..., subprocess.Popen[str]], here: Path
) -> None:
    start(sys.executable, "-c", SLEEPER)
    wait((here / "started").exists)
    other = start(sys.executable, "-c", SLEEPER.replace('"sleeper"', '"other"').replace("range(600)", "range(0)"))
    assert other.wait(20) == 0


def test_the_lock_is_free_again_after_a_stage_that_failed(here: Path) -> None:
    with pytest.raises(KeyError), stage.alone("one"):
        raise KeyError
    with stage.alone("one"):
        pass


# DVC


def dvc(folder: Path, line: str) -> Path:
    """A program named dvc that runs a stage as DVC does: by a shell, with DVC_STAGE set."""
    program = folder / "bin" / "dvc"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport os, subprocess\n"
        f'subprocess.run(["/bin/sh", "-c", {line!r}], env={{**os.environ, "DVC_STAGE": "sleeper"}})\n'
    )
    program.chmod(0o755)
    return program


@pytest.mark.slow
@pytest.mark.parametrize("exec_it", [False, True], ids=["below a shell", "in the shell's place"])
def test_a_stage_ends_when_its_dvc_was_killed(
    start: Callable[..., subprocess.Popen[str]], here: Path, *, exec_it: bool
) -> None:
    (here / "sleeper.py").write_text(SLEEPER)
    line = f"{'exec ' if exec_it else ''}{sys.executable} sleeper.py{'' if exec_it else '; true'}"
    parent = start(str(dvc(here, line)))
    wait((here / "started").exists)
    below = psutil.Process(parent.pid).children(recursive=True)
    child = next(process for process in below if "sleeper.py" in process.cmdline())
    parent.kill()
    parent.wait()
    wait(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, seconds=5)
    assert not (here / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("shell_too", [True, False])
def test_a_stage_whose_dvc_is_gone_before_it_looks_does_not_start(
    start: Callable[..., subprocess.Popen[str]], here: Path, *, shell_too: bool
) -> None:
    (here / "sleeper.py").write_text("import time; time.sleep(1.5)\n" + SLEEPER)
    parent = start(str(dvc(here, f"{sys.executable} sleeper.py & echo $! > pid; wait")))
    wait(lambda: (here / "pid").exists() and (here / "pid").read_text().strip() != "")
    child = psutil.Process(int((here / "pid").read_text()))
    shells = psutil.Process(parent.pid).children()
    parent.kill()
    for shell in shells if shell_too else []:
        shell.kill()
    wait(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, seconds=15)
    assert not (here / "started").exists()


@pytest.mark.slow
def test_without_dvc_a_stage_does_not_mind_who_its_parent_is(
    start: Callable[..., subprocess.Popen[str]], here: Path
) -> None:
    (here / "sleeper.py").write_text(SLEEPER.replace("range(600)", "range(20)"))
    parent = start("/bin/sh", "-c", f"{sys.executable} sleeper.py & wait")
    wait((here / "started").exists)
    parent.kill()
    wait((here / "out").exists)


# What a stage says


@pytest.mark.parametrize(
    "error", ["ValueError('rate: is 3')", "OSError('rate: is 3')", "FileNotFoundError('rate: is 3')"]
)
def test_what_the_user_can_mend_is_said_in_one_line(start: Callable[..., subprocess.Popen[str]], error: str) -> None:
    process = start(sys.executable, "-c", FAILURE.format(error=error))
    _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (1, "failure: rate: is 3\n")


def test_a_traceback_is_there_for_the_asking(start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start(sys.executable, "-c", FAILURE.format(error="ValueError('is 3')"), ALEXNET_TRACEBACK="1")
    _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "Traceback" in said
    assert "ValueError: is 3" in said


def test_a_fault_of_ours_keeps_its_traceback(start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start(sys.executable, "-c", FAILURE.format(error="AssertionError('ours')"))
    _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "Traceback" in said
