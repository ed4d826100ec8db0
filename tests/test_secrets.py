"""Secrets, planted in every place where people put them, come out nowhere: all stages, the real server, dvc, git and Ray."""

from __future__ import annotations

import base64
import subprocess
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.pipeline import test_sender
from tests.pipeline.proxy import proxied
from tests.test_workflow import Copy

server = test_sender.server
"""A fixture: the real one."""

pytestmark = [pytest.mark.slow, pytest.mark.faults]

PLANTED = f"Planted{uuid.uuid4().hex[:8]}"
"""In each of them, with a word behind it that says where it was put; else in no file."""


def secret(where: str) -> str:
    return f"{PLANTED}.{where}.0123456789"


def environment(uri: str, folder: Path) -> dict[str, str]:
    """What people export."""
    (folder / "netrc").write_text(f"machine host.example login me password {secret('netrc')}\n")
    (folder / "netrc").chmod(0o600)
    names = (
        "HF_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "KAGGLE_KEY",
        "GITHUB_TOKEN",
        "MLFLOW_TRACKING_TOKEN",
    )
    proxy = f"http://me:{secret('proxy')}@127.0.0.1:9"
    return {
        **{name: secret(name) for name in names if name != "MLFLOW_TRACKING_TOKEN"},
        "MLFLOW_TRACKING_URI": uri,
        "HTTPS_PROXY": proxy,
        "https_proxy": proxy,
        "NO_PROXY": "127.0.0.1,localhost",
        "NETRC": str(folder / "netrc"),
        "AWS_ENDPOINT_URL": f"http://me:{secret('endpoint')}@127.0.0.1:9",
        "ALEXNET_TRACEBACK": "1",
    }


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """A working copy with secrets in the files that are for them."""
    copy = Copy(tmp_path_factory.mktemp("secrets"))
    copy.run("git", "remote", "add", "origin", f"https://me:{secret('git')}@host.example/a.git")
    copy.run("dvc", "remote", "add", "-d", "there", "https://host.example/store")
    copy.run("dvc", "remote", "modify", "--local", "there", "password", secret("dvc"))
    copy.run("git", "add", "-A")
    copy.run("git", "commit", "-qm", "a remote")
    (copy.folder / "machine.yaml").write_text(
        f'mirrors: {{"https://host.example": "https://me:{secret("mirror")}@127.0.0.1:9/x?token={secret("query")}"}}\n'
    )
    return copy


OWN = ("machine.yaml", ".git/config", ".dvc/config.local")
"""Where they were planted."""


@pytest.fixture
def words_of_processes() -> Iterator[set[str]]:
    """What any process of this machine shows as its arguments while a test runs."""
    seen: set[str] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            for process in psutil.process_iter():
                try:
                    seen.update(word for word in process.cmdline() if PLANTED in word)
                except psutil.Error:
                    continue

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    yield seen
    over.set()
    thread.join()


def holding(*folders: Path) -> list[str]:
    """The files that hold one of them, in plain or as a header has it."""
    encoded = base64.b64encode(f"me:{secret('tracking')}".encode())[4:20]
    found = []
    for folder in folders:
        for file in folder.rglob("*"):
            if file.is_file() and not file.is_symlink():
                data = file.read_bytes()
                if PLANTED.encode() in data or encoded in data:
                    found.append(str(file.relative_to(folder)))
    return sorted(found)


def test_no_stage_says_keeps_or_shows_a_secret(
    copy: Copy,
    server: str,
    tmp_path: Path,
    words_of_processes: set[str],
) -> None:
    ray = {folder.name for folder in Path("/tmp/ray").glob("session_2*")}
    with proxied(server) as proxy:
        proxy.wanted = "Basic " + base64.b64encode(f"me:{secret('tracking')}".encode()).decode()
        uri = proxy.url.replace("//", f"//me:{secret('tracking')}@")
        said = copy.run("dvc", "repro", **environment(uri, tmp_path))
        proxy.wanted = "nobody"
        code, refused = copy.run("dvc", "repro", "-f", "-s", "report", check=False, **environment(uri, tmp_path))
        assert code != 0 and "401" in refused and "Traceback" in refused
        code, listed = copy.run("python", "-m", "pipeline.tracking", **environment(uri, tmp_path), check=False)
        assert (code, listed) == (0, f"{proxy.url}\n")
    assert "registered in MLflow as candidate and champion" in said
    assert PLANTED not in said + refused
    assert words_of_processes == set()
    assert holding(copy.folder) == sorted(OWN)
    log = subprocess.run(["git", "log", "-p", "--all"], cwd=copy.folder, capture_output=True, check=True).stdout
    assert PLANTED.encode() not in log
    made = [folder for folder in Path("/tmp/ray").glob("session_2*") if folder.name not in ray]
    assert holding(*made) == []


def test_the_server_was_told_none(server: str) -> None:
    folders = [Path(process.cwd()) for process in psutil.process_iter() if _serves(process, server)]
    assert folders and holding(*set(folders)) == []


def _serves(process: psutil.Process, uri: str) -> bool:
    words = process.cmdline()
    return "mlflow" in words and uri.rpartition(":")[2] in words


def test_a_database_s_password_is_in_no_argument_and_no_message(copy: Copy, tmp_path: Path) -> None:
    uri = f"postgresql://me:{secret('database')}/x@127.0.0.1:9/runs"
    code, said = copy.run("python", "-m", "pipeline.report", check=False, **environment(uri, tmp_path))
    assert code == 1 and "MLflow at postgresql://127.0.0.1:9/runs: " in said
    assert PLANTED not in said
