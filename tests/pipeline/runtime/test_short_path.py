"""A TMPDIR too long for Ray's sockets does not matter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.runtime import short_path

PROGRAM = """
from pipeline.runtime import cluster
from pipeline.runtime.machines import Machine
with cluster.connected(Machine()):
    import ray
    print("the task's answer:", ray.get(ray.remote(lambda: 41 + 1).remote()))
"""


def test_a_short_folder_is_ray_s_own_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    with short_path.ray_folder() as folder:
        assert folder is None


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_a_long_folder_is_reached_by_a_short_link(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(variable, str(tmp_path / ("a" * 120)))
    with short_path.ray_folder() as folder:
        assert folder is not None
        assert len(folder) + short_path.SESSION < 107
        (Path(folder) / "here").touch()
        assert (tmp_path / ("a" * 120) / "ray/here").exists()
        assert Path(folder).parent.stat().st_mode & 0o777 == 0o700
    assert not Path(folder).parent.exists()
    assert (tmp_path / ("a" * 120) / "ray/here").exists()


def test_without_a_link_it_is_said_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("a" * 120)))
    monkeypatch.setattr(short_path, "SHORT", tmp_path / "gone")
    most = short_path.SOCKET - short_path.SESSION - len("/ray")
    with (
        pytest.raises(OSError, match=f"Set RAY_TMPDIR to a folder whose path has at most {most} bytes"),
        short_path.ray_folder(),
    ):
        pass


@pytest.mark.slow
def test_ray_starts_with_a_long_tmpdir(tmp_path: Path) -> None:
    folder = tmp_path / ("a" * 150)
    folder.mkdir()
    environment = {**os.environ, "TMPDIR": str(folder)}
    environment.pop("RAY_TMPDIR", None)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert "the task's answer: 42" in done.stdout, done.stderr[-3000:]
    assert list(folder.glob("ray/session_2*"))
