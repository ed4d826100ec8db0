"""Who lives: told without the clock, in namespaces, and by the tags of before."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.runtime import owner

LINUX = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the kernel's count is in /proc")


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process


def words(process: subprocess.Popen[bytes]) -> str:
    return f"{socket.gethostname()} {process.pid} {owner._start(process.pid)}"


@LINUX
def test_a_step_of_the_clock_leaves_a_process_alive(
    other: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs, began, now = owner.identity(), words(other), psutil.boot_time(), time.time()
    assert owner.lives(mine) and owner.lives(theirs)
    for step in (-1, 1, 3600, -(10**6)):
        monkeypatch.setattr(psutil, "boot_time", lambda step=step: began + step)
        monkeypatch.setattr(psutil._pslinux, "boot_time", lambda step=step: began + step)
        monkeypatch.setattr(time, "time", lambda step=step: now + step)
        assert owner.identity() == mine
        assert owner.lives(mine) and owner.lives(theirs)


@LINUX
def test_an_ended_process_does_not_live_nor_one_that_waits_to_be_asked(other: subprocess.Popen[bytes]) -> None:
    theirs = words(other)
    other.kill()
    end = time.monotonic() + 5
    while owner.lives(theirs) and time.monotonic() < end:
        time.sleep(0.01)
    assert owner.lives(theirs) is False, "a zombie"
    other.wait()
    assert owner.lives(theirs) is False


@LINUX
def test_a_number_that_was_given_again_is_another_process() -> None:
    head, _, ticks = owner.identity().rpartition("/")
    assert owner.lives(f"{head}/{int(ticks) + 1}") is False


@LINUX
def test_another_boot_of_this_machine_has_ended_and_that_of_another_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(owner, "_machine", lambda: "m1")
    before = owner.identity().replace(owner._boot(), "0-0")
    assert owner.lives(before) is False
    monkeypatch.setattr(owner, "_machine", lambda: "m2")
    assert owner.lives(before) is None, "another machine of the same name"


@LINUX
def test_a_container_of_the_same_name_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = owner.identity()
    monkeypatch.setattr(owner, "_namespace", lambda: "1")
    assert owner.lives(mine) is None


@LINUX
@pytest.mark.slow
def test_a_real_namespace_has_numbers_of_its_own() -> None:
    code = "from pipeline.runtime import owner; print(owner.identity())"
    inside = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code]
    done = subprocess.run(inside, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no namespace can be made here: {done.stderr.strip()}")
    assert owner.lives(done.stdout.strip()) is None


def test_the_tags_of_before_are_understood_with_tolerance(other: subprocess.Popen[bytes]) -> None:
    host, began = socket.gethostname(), psutil.Process(other.pid).create_time()
    for step in (0, 1, -1, 60):
        assert owner.lives(f"{host} {other.pid} {began + step:.2f}")
    assert owner.lives(f"{host} {other.pid} {began - 86400:.2f}") is False
    assert owner.lives(f"{host} {2**22 + 1} {began:.2f}") is False
    for strange in ("", "elsewhere 1 2.00", f"{host}", f"{host} x y"):
        assert owner.lives(strange) is None
    other.kill()
    other.wait()
    assert owner.lives(f"{host} {other.pid} {began:.2f}") is False


def test_where_the_kernel_does_not_tell_the_clock_has_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "PROC", tmp_path)
    mine = owner.identity()
    assert "/" not in mine.partition(" ")[2]
    assert owner.lives(mine)
    assert mine.split()[1] == str(os.getpid())
