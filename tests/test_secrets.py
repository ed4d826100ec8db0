"""Secrets in every place where users put them never appear in output: all stages, MLflow's server, dvc, git and Ray."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from tests.pipeline import object_store
from tests.pipeline.proxy import proxied
from tests.pipeline.tracking import test_sender
from tests.test_workflow import Copy, cluster

server = test_sender.server
"""A fixture: MLflow's real server."""

pytestmark = [pytest.mark.slow, pytest.mark.faults]

PLANTED = f"Planted{uuid.uuid4().hex[:8]}"
"""The beginning of each secret; a word for its place follows. No other file contains it."""


def secret(where: str) -> str:
    return f"{PLANTED}.{where}.0123456789"


def environment(uri: str, folder: Path) -> dict[str, str]:
    """The environment variables that users export."""
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
        "AWS_ACCESS_KEY_ID": "me",
        "HTTPS_PROXY": proxy,
        "https_proxy": proxy,
        "NO_PROXY": "127.0.0.1,localhost",
        "NETRC": str(folder / "netrc"),
        "AWS_ENDPOINT_URL": f"http://me:{secret('endpoint')}@127.0.0.1:9",
        "ALEXNET_TRACEBACK": "1",
    }


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """A working copy with secrets in the files that are meant for them."""
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
"""The files with secrets."""


@pytest.fixture
def words_of_processes() -> Iterator[set[str]]:
    """The arguments of all processes of this machine while a test runs."""
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


def planted(data: bytes) -> bool:
    """Whether a text contains a secret, plain or encoded as in a header."""
    return PLANTED.encode() in data or base64.b64encode(f"me:{secret('tracking')}".encode())[4:20] in data


def holding(*folders: Path) -> list[str]:
    """The files that contain a secret."""
    found = []
    for folder in folders:
        for file in folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # Ray removes some while we look
                if file.is_file() and not file.is_symlink() and planted(file.read_bytes()):
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
    assert "no alias, since its top-1 error" in said, "the network is registered, and the reason comes back"
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
    try:
        words = process.cmdline()
    except psutil.Error:  # it has ended, or nobody has waited for it yet
        return False
    return "mlflow" in words and uri.rpartition(":")[2] in words


def test_a_database_s_password_is_in_no_argument_and_no_message(copy: Copy, tmp_path: Path) -> None:
    uri = f"postgresql://me:{secret('database')}/x@127.0.0.1:9/runs"
    code, said = copy.run("python", "-m", "pipeline.report", check=False, **environment(uri, tmp_path))
    assert code == 1 and "MLflow at postgresql://127.0.0.1:9/runs: " in said
    assert PLANTED not in said


# What libraries write past Python's streams

PAST_PYTHON = {
    "gRPC, by a proxy that is away": "channel('nowhere.example:1')",
    "gRPC, by a proxy that cannot be read": "os.environ['grpc_proxy'] += ' no port'; channel('nowhere.example:1')",
    "gRPC, to a server that is away": "channel('127.0.0.1:9', ('grpc.enable_http_proxy', 0))",
    "Arrow, a server that is away": "bucket(endpoint_override='http://127.0.0.1:9')",
    "Arrow, a server that refuses": "bucket(endpoint_override=os.environ['REFUSING'])",
    "Arrow, a host that is not there": "bucket(endpoint_override='http://nowhere.example')",
    "Arrow, credentials that cannot be read": "del os.environ['AWS_SECRET_ACCESS_KEY']; bucket(endpoint_override='http://127.0.0.1:9')",
    "gloo, nobody there": "import torch.distributed as dist; tried(dist.init_process_group, 'gloo', rank=1, world_size=2, "
    "init_method='tcp://127.0.0.1:9', timeout=datetime.timedelta(seconds=3))",
    "an abort": "import torch, ctypes; ctypes.CDLL(None).abort()",
    "a fault": "import faulthandler, torch, ctypes; faulthandler.enable(); ctypes.string_at(0)",
}
"""Ways in which native code fails; it writes to the file descriptor directly, past this project's filter."""

TRIED = """
import contextlib, datetime, os

def tried(call, *words, **named):
    with contextlib.suppress(Exception):
        call(*words, **named)

def channel(address, *options):
    import grpc
    call = grpc.insecure_channel(address, options).unary_unary("/a/b")
    tried(call, b"", timeout=3, metadata=[("authorization", "Bearer " + os.environ["HF_TOKEN"])])

def bucket(**where):
    from pyarrow import fs
    tried(fs.S3FileSystem(region="here", **where).get_file_info, "bucket")

"""


def past_python(way: str, folder: Path, **more: str) -> tuple[int, bytes]:
    """The exit code and both outputs of a program in which native code fails."""
    (folder / ".aws").mkdir()
    (folder / ".aws/credentials").write_text(
        f"[default\naws_secret_access_key {secret('profile')}\n{secret('profile')}\n"
    )
    exported = environment(f"http://me:{secret('tracking')}@127.0.0.1:9", folder)
    exported |= dict.fromkeys(("http_proxy", "grpc_proxy"), exported["https_proxy"])
    with object_store.serving() as refusing:
        done = subprocess.run(
            [sys.executable, "-c", TRIED + PAST_PYTHON[way]],
            env=os.environ | exported | {"HOME": str(folder), "REFUSING": refusing.endpoint, **more},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=120,
        )  # fmt: skip
    return done.returncode, done.stdout


@pytest.mark.parametrize("way", PAST_PYTHON)
def test_what_native_code_writes_has_none(way: str, tmp_path: Path) -> None:
    code, said = past_python(way, tmp_path)
    assert code == {"an abort": -6, "a fault": -11}.get(way, 0), said.decode()
    assert not planted(said)
    assert (b"Fatal Python error" in said) == (way == "a fault")


def test_native_code_that_is_told_to_say_all_says_a_token(tmp_path: Path) -> None:
    """A check of the test above: with this setting, it would find a token."""
    _, said = past_python("Arrow, a server that refuses", tmp_path, ARROW_S3_LOG_LEVEL="debug")
    assert secret("AWS_SESSION_TOKEN").encode() in said


# On a cluster

PAGES = (
    *(
        f"/api/v0/{what}?detail=1&limit=10000"
        for what in ("actors", "jobs", "nodes", "objects", "placement_groups", "runtime_envs", "tasks", "workers")
    ),
    "/api/jobs/", "/api/train/v2/runs/v1", "/api/v0/cluster_events", "/api/v0/cluster_metadata", "/api/v0/tasks/timeline",
    "/events", "/logical/actors", "/nodes?view=summary",
)  # fmt: skip
"""The pages of the dashboard, which `ray list` and `ray job list` show, too."""

STORED = """
import sys
from ray._raylet import GcsClient
gcs = GcsClient(address=sys.argv[1])
for room in (None, b"session", b"cluster", b"fun", b"job", b"dashboard", b"healthcheck", b"usage_stats"):
    for key in gcs.internal_kv_keys(b"", room):
        sys.stdout.buffer.write(key + b" " + (gcs.internal_kv_get(key, room) or b"") + b"\\n")
"""
"""A program that prints all keys and values in the store of a cluster's head."""


def of_ray(folder: Path, port: str, dashboard: str, known: Mapping[str, str]) -> dict[str, bytes]:
    """Everything that a cluster shows and stores, by location; for its folder, the names of files that contain a secret."""
    token = {"Authorization": f"Bearer {secret('ray')}"}
    opened = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
    found = {}
    for page in PAGES:
        with contextlib.suppress(urllib.error.HTTPError):  # no training has been there yet
            found[page] = opened(urllib.request.Request(f"http://127.0.0.1:{dashboard}{page}", headers=token)).read()
    stored = [sys.executable, "-c", STORED, f"127.0.0.1:{port}"]
    found["stored"] = subprocess.run(stored, env=os.environ | known, capture_output=True, check=True).stdout
    found["files"] = "\n".join(holding(folder)).encode()
    return found


def _around(data: bytes) -> bytes:
    """Some bytes before the first secret, for the error message."""
    place = max(0, data.find(PLANTED.encode()))
    return data[max(0, place - 300) : place + 40]


@pytest.mark.timeout(900)
def test_a_cluster_that_is_joined_and_its_jobs_show_and_keep_none(
    copy: Copy, server: str, tmp_path: Path, words_of_processes: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lying_about = (".env", "kaggle.json")
    for name in lying_about:
        (copy.folder / name).write_text(secret(name))
    short = Path(tempfile.mkdtemp(prefix="alexnet-"))  # the path of Ray's sockets has to be short
    (short / "ray-token").write_text(secret("ray"))
    (short / "machine.yaml").write_text((copy.folder / "machine.yaml").read_text() + f"storage: {short}/storage\n")
    seen: list[dict[str, bytes]] = []
    over = threading.Event()
    try:
        with proxied(server) as proxy:
            proxy.wanted = "Basic " + base64.b64encode(f"me:{secret('tracking')}".encode()).decode()
            exported = environment(proxy.url.replace("//", f"//me:{secret('tracking')}@"), tmp_path)
            for name, value in {**exported, "RAY_TRAIN_ENABLE_STATE_TRACKING": "1"}.items():
                monkeypatch.setenv(name, value)  # the nodes have them as well
            with cluster(short) as (known, port, dashboard):
                on_node = exported | known | {"RAY_ADDRESS": f"127.0.0.1:{port}"}
                api = exported | known | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
                submit = ["ray", "job", "submit", "--working-dir", ".", "--", "python", "-m", "pipeline", "train"]

                def look() -> None:
                    while not over.wait(3):
                        with contextlib.suppress(OSError, subprocess.CalledProcessError):  # the cluster is gone
                            seen.append(of_ray(short / "ray", port, dashboard, known))

                # forced: DVC does not see that machine.yaml names another storage than the tests before had
                said = copy.run("dvc", "repro", "--force", "mean", **on_node)
                looking = threading.Thread(target=look, daemon=True)
                looking.start()
                said += copy.run(*submit, **api)
                over.set()
                looking.join()
                proxy.wanted, wanted = "nobody", proxy.wanted
                code, refused = copy.run(*submit, check=False, **api)
                assert code != 0 and "401" in refused and "Traceback" in refused
                proxy.wanted = wanted
                for file in (short / "storage/shards").rglob("train-*.parquet"):
                    file.write_bytes(bytes(file.stat().st_size))
                code, failed = copy.run("dvc", "repro", "-f", "-s", "mean", check=False, **on_node)
                assert code != 0 and "not as 'resize' wrote it" in failed
                said += refused + failed + copy.run("ray", "job", "list", **api)
                seen.append(of_ray(short / "ray", port, dashboard, known))
    finally:
        over.set()
        shutil.rmtree(short, ignore_errors=True)
        for name in lying_about:
            (copy.folder / name).unlink()
    assert PLANTED not in said
    assert words_of_processes == set()
    assert holding(copy.folder) == sorted(OWN)
    assert len(seen) > 3
    assert {where: _around(data) for found in seen for where, data in found.items() if planted(data)} == {}
    assert {found["files"] for found in seen} == {b""}, "what lies about in the working copy stays there"
    for where, word in (("/api/jobs/", "pipeline train"), ("stored", "pipeline train"), (PAGES[6], "not as 'resize'")):
        assert word.encode() in seen[-1][where], f"{where} was looked at"
    assert any(b"RUNNING" in found["/api/jobs/"] for found in seen), "it was looked at while a job ran"
    assert b"Task(" in seen[-1]["/api/train/v2/runs/v1"], "what its workers were told is shown"
