"""A network is found by each of the names that people have for it, and a name that leads to none says what there is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.inference import networks
from pipeline.runtime.machines import Machine
from pipeline.tracking import runs

FINGERPRINT = "0123456789abcdef"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "DVC_", "ALEXNET_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)


def test_a_file_a_folder_and_a_run_here_are_read(here: Path) -> None:
    put(here / "data/model.pt", b"own")
    put(here / f"runs/{FINGERPRINT}/model.pt", b"run")
    put(here / "sent.pt", b"sent")
    for name, data in (("data/model.pt", b"own"), ("data", b"own"), (FINGERPRINT, b"run"), ("sent.pt", b"sent")):
        assert networks.read(name, Machine()).data == data
    assert networks.read(FINGERPRINT, Machine()).where == str(here / f"runs/{FINGERPRINT}/model.pt")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("data/model.pt", r"data/model\.pt: no such file here .* Run: dvc repro train\nA network is a model\.pt"),
        ("sent.pt", r"sent\.pt: no such file here .*\nA network is a model\.pt, such as"),
        ("https://host/model.pt", "https://host/model.pt: is an address. Fetch the file"),
        ("empty", r"empty: is a folder without a model\.pt"),
        ("large.pt", r"large\.pt: has 4,294,967,297 bytes, more than 4,294,967,296"),
    ],
)
def test_a_name_that_is_none_says_what_may_be_given(here: Path, name: str, said: str) -> None:
    (here / "empty").mkdir()
    with (here / "large.pt").open("wb") as handle:
        handle.truncate(2**32 + 1)
    with pytest.raises((ValueError, OSError), match=said):
        networks.read(name, Machine())


def test_a_name_that_nothing_has_lists_what_there_is(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(here / f"runs/{FINGERPRINT}/model.pt", b"run")

    def none(_machine: Machine, name: str) -> Any:
        raise ValueError(f"no run has the name '{name}'")

    monkeypatch.setattr(runs, "weights", none)
    with pytest.raises(
        ValueError, match=rf"^rusty: no file here, .* no run has the name 'rusty'\nThere are: .*: {FINGERPRINT}; no exp"
    ):
        networks.read("rusty", Machine())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of DVC's own code
def test_the_out_of_a_revision_is_read_from_dvc_s_cache(here: Path) -> None:
    def run(*words: str) -> None:
        who = {f"GIT_{role}_{part}": "a@b" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        subprocess.run(words, check=True, env={**os.environ, **who, "PATH": path, "DVC_NO_ANALYTICS": "1"})

    run("git", "init", "-q")
    run("dvc", "init", "-q")
    for tag in ("v1.0", "of/me"):
        put(here / "data/model.pt", tag.encode())
        run("dvc", "add", "-q", "data/model.pt")
        run("git", "add", "-A")
        run("git", "commit", "-qm", tag)
        run("git", "tag", tag)
    (here / "data/model.pt").unlink()
    for name, data in (("v1.0", b"v1.0"), ("of/me", b"of/me"), ("HEAD~1", b"v1.0")):
        assert networks.read(name, Machine()) == networks.Found(data, f"data/model.pt of {name}")
