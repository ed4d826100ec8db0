"""A head that is away is told of, and ends the stage; one that is only late, or a machine that is, does not."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.runtime import guard, head, waiting

ROOT = Path(__file__).parents[3]

STAGE = """
import socket, sys, time
from pipeline.runtime import head, stage, waiting
head.EVERY, waiting.SAID_AFTER, head.LIMIT = 0.02, 0.04, 0.1

def run():
    stage.reached("step 34")
    print("begun")
    with head.watched("127.0.0.1:" + sys.argv[1]):
        while True:
            try:
                time.sleep(9)
            except BaseException:
                pass
stage.main("train", run)
"""


@contextlib.contextmanager
def listening(port: int = 0) -> Iterator[int]:
    """A head that takes connections and never answers, as one that is loaded or stopped."""
    with socket.create_server(("127.0.0.1", port)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Why the stage would have been ended; the watch is a hundred times as fast."""
    said: list[str] = []
    monkeypatch.setattr(guard, "end", lambda what, todo: said.append(what))
    monkeypatch.setattr(head, "EVERY", 0.02)
    monkeypatch.setattr(head, "LIMIT", 0.3)
    monkeypatch.setattr(waiting, "SAID_AFTER", 0.1)
    return said


def test_a_head_that_is_away_is_said_to_be_and_ends_the_stage_whatever_that_is_in(tmp_path: Path) -> None:
    with listening() as port:
        pass
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", STAGE, str(port)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert time.monotonic() - begun < 20
    assert (done.returncode, done.stdout) == (1, "begun\n")
    assert done.stderr.splitlines() == [
        f"ray: waiting for the head of the cluster at 127.0.0.1:{port}, which is away (Connection refused), 0 s at most",
        f"train: the head of the Ray cluster at 127.0.0.1:{port} has been away for 0 s (Connection refused)",
        "Start it and its nodes again (ray start), or mend the network between; then dvc repro goes on from step 34",
    ]


def test_a_head_that_takes_connections_is_there_however_late_it_is(
    ends: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with listening() as port, head.watched(f"127.0.0.1:{port}"):
        time.sleep(0.4)
    assert (ends, capsys.readouterr().err) == ([], "")


def test_one_that_comes_back_is_said_to_be_there_and_counted_anew(
    ends: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with listening() as port:
        pass
    with head.watched(f"127.0.0.1:{port}"):
        for _ in range(2):
            time.sleep(0.15)
            with listening(port):
                time.sleep(0.06)
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(" the head")[0] for line in said] == ["ray: waiting for", "ray:"] * 2
    assert said[1].endswith(f"{port} answers again")
    assert ends == []


def test_a_machine_that_sleeps_or_has_no_more_files_loses_no_head(
    ends: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with listening() as port, head.watched(f"127.0.0.1:{port}"):
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        time.sleep(0.4)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with listening() as port:
        pass
    hours = iter(range(10**6))
    monkeypatch.setattr(head.time, "monotonic", lambda: 3600.0 * next(hours))  # each knock is an hour late
    knocks = []
    over = threading.Event()

    def knock(_: str) -> str | None:
        knocks.append(1)
        return "it does not answer" if len(knocks) % 4 else None

    monkeypatch.setattr(head, "refusal", knock)
    thread = threading.Thread(target=head._watch, args=("x:1", over))
    thread.start()
    while len(knocks) < 40 and thread.is_alive():
        over.wait(0.01)
    over.set()
    thread.join()
    assert (ends, capsys.readouterr().err) == ([], "")


def test_the_watch_ends_with_the_block(ends: list[str]) -> None:
    with listening() as port:
        pass
    with head.watched(f"127.0.0.1:{port}"):
        assert "head" in [thread.name for thread in threading.enumerate()]
    time.sleep(0.4)
    assert "head" not in [thread.name for thread in threading.enumerate()]
    assert ends == []
