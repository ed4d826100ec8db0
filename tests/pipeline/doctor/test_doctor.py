"""The doctor: real faults, here and on servers, are each said with what to do, in time, and without secrets."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest

from pipeline.doctor import here, nodes, program, servers
from pipeline.doctor.finding import Finding
from tests.pipeline.server import File, Server, serving

ROOT = Path(__file__).parents[3]

SECRET = "Pl4nted.Secret"

OURS = ("ALEXNET_MACHINE", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_URI", "DVC_ROOT")


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a working copy with the repository's lock and settings, and no server."""
    for name in ("params.yaml", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    for name in OURS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as state:
        yield state


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield server.getsockname()[1]


def one(found: object) -> Finding:
    assert isinstance(found, list)
    (only,) = found
    assert isinstance(only, Finding)
    assert bool(only.todo) == (only.state != "ok"), only
    return only


# Here


def test_a_package_of_another_version_and_one_that_is_missing_are_faults(copy: Path) -> None:
    assert one(here.lock()).state == "ok"
    lock = (copy / "requirements.lock").read_text()
    numpy = metadata.version("numpy")
    assert f"\nnumpy=={numpy} " in lock
    more = 'nowhere-at-all==1.0 \\\n    --hash=sha256:0\nwin-only==1 ; sys_platform == "win32" \\\n'
    (copy / "requirements.lock").write_text(lock.replace(f"\nnumpy=={numpy} ", "\nnumpy==0.1 ") + more)
    found = one(here.lock())
    assert found.state == "fault"
    assert f"numpy {numpy} is installed, locked is 0.1; nowhere-at-all is missing" in found.seen
    assert "win-only" not in found.seen
    assert "make .venv/ready" in found.todo


def test_another_python_is_a_fault(copy: Path) -> None:
    assert one(here.python()).state == "ok"
    project = (copy / "pyproject.toml").read_text()
    (copy / "pyproject.toml").write_text(project.replace(">=3.11,<3.14", ">=3.9,<3.10"))
    assert one(here.python()).state == "fault"


def test_no_git_and_no_commit(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(copy.parent))
    found = one(here.repository())
    assert (found.state, found.todo.partition(" &&")[0]) == ("warning", "git init")
    monkeypatch.setenv("PATH", str(copy))
    assert (one(here.repository()).state, one(here.repository()).seen[:20]) == ("fault", "git is not installed")


def test_a_folder_of_pickles_that_everybody_may_write_to_is_a_fault(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = copy / "site"
    site.mkdir()
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(site))
    assert "fault" not in [each.state for each in here.dvc()]
    site.chmod(0o777)
    (found,) = [each for each in here.dvc() if each.state == "fault"]
    assert str(site) in found.seen
    assert "DVC_SITE_CACHE_DIR" in found.todo


def test_dvc_s_cache_is_where_its_settings_say(copy: Path) -> None:
    (copy / ".dvc").mkdir()
    (copy / ".dvc/config").write_text("[core]\n    dir = x\n[cache]\n    dir = ../there\n")
    assert here.cache() == copy / "there"
    (copy / ".dvc/config.local").write_text("[cache]\n    dir = /big/cache\n['remote \"a\"']\n    url = s3://x\n")
    assert here.cache() == Path("/big/cache")


def test_settings_with_faults_and_too_little_room(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy / "machine.yaml").write_text("wokers: 2\n")
    found = one(here.settings())
    assert found.state == "fault"
    assert "wokers" in found.seen
    (copy / "machine.yaml").write_text("devices: 99\n")
    assert one(here.gpus()).seen.startswith("machine.yaml: devices: 99 GPUs asked for")
    usage = shutil.disk_usage(copy)
    for free, state in ((2**20, "fault"), (2**31, "warning"), (2**40, "ok")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        assert one(here.disk()).state == state


# Servers


def test_a_server_of_mlflow_says_its_version_and_another_version_is_a_warning(
    copy: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    for version, state in ((metadata.version("mlflow"), "ok"), ("1.2.3", "warning"), ("<html>", "fault")):
        server.files["/version"] = File(version.encode())
        assert one(servers.tracking()).state == state
    server.files["/version"] = File(status=404)
    assert "is not MLflow's server" in one(servers.tracking()).seen


def test_a_login_that_a_server_refuses_is_a_fault_and_is_not_shown(
    copy: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/version"] = File(b"3.17.2", wanted="Basic eDp5")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "x")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    found = one(servers.tracking())
    assert (found.state, SECRET in f"{found}") == ("fault", False)
    assert "MLFLOW_TRACKING_PASSWORD" in found.todo
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "y")
    assert one(servers.tracking()).state == "ok"


def test_a_dashboard_that_refuses_the_token_or_is_another_version_is_a_fault(
    copy: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert servers.dashboard() == []
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", server.url)
    monkeypatch.setenv("RAY_AUTH_TOKEN", SECRET)
    server.files["/api/version"] = File(b'{"ray_version": "1.0.0"}', wanted="Bearer right")
    found = one(servers.dashboard())
    assert (found.state, SECRET in f"{found}") == ("fault", False)
    assert "auth_token" in found.todo
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    assert "has Ray 1.0.0" in one(servers.dashboard()).seen
    server.files["/api/version"] = File(json.dumps({"ray_version": metadata.version("ray")}).encode())
    assert one(servers.dashboard()).state == "ok"
    server.files["/api/version"] = File(b"[]")
    assert "is not Ray's dashboard" in one(servers.dashboard()).seen


@pytest.mark.parametrize(
    ("variable", "value", "probe", "said"),
    [
        ("RAY_ADDRESS", "http://head:8265", servers.cluster, "host:6379"),
        ("RAY_ADDRESS", "127.0.0.1:1", servers.cluster, "127.0.0.1:1: Connection refused"),
        ("MLFLOW_TRACKING_URI", "http://127.0.0.1:1", servers.tracking, "http://127.0.0.1:1: nothing listens there"),
        ("MLFLOW_TRACKING_URI", "http://x.invalid:5000", servers.tracking, "there is no such host"),
        ("MLFLOW_TRACKING_URI", "htp:/x", servers.tracking, "tracking: htp:/x"),
        ("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1", servers.dashboard, "nothing listens there"),
    ],
)
def test_a_wrong_address_is_a_fault(
    copy: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    probe: Callable[[], list[Finding]],
    said: str,
) -> None:
    monkeypatch.setenv(variable, value)
    found = one(probe())
    assert found.state == "fault"
    assert said in found.seen


def test_nodes_of_another_version_are_named_with_what_differs() -> None:
    ours = nodes.versions()
    assert ours["ray"] == metadata.version("ray")
    other = {**ours, "torch": "1.0"}
    (found,) = nodes.compared(json.dumps([["10.0.0.1", ours], ["10.0.0.2", other]]))
    assert (found.state, "10.0.0.2 has torch 1.0, here" in found.seen) == ("fault", True)
    assert nodes.compared(json.dumps([["10.0.0.1", ours]]))[0].state == "ok"
    assert nodes.compared(json.dumps([["10.0.0.1", None]]))[0].state == "warning"


# All at once


def test_a_probe_that_hangs_or_fails_is_a_fault_and_holds_up_no_other() -> None:
    def fails() -> list[Finding]:
        raise RuntimeError("this is new")

    def hangs() -> list[Finding]:
        over.wait(60)
        return []

    good = Finding("good", "ok", "as it has to be")
    begun = time.monotonic()
    over = threading.Event()
    found = program.ask({"s3": hangs, "disk": hangs, "fails": fails, "good": lambda: [good]}, 0.2)
    over.set()
    assert time.monotonic() - begun < 5
    assert [(each.about, each.state) for each in found] == [
        ("s3", "fault"),
        ("disk", "warning"),
        ("fails", "fault"),
        ("good", "ok"),
    ]
    assert "no answer in 0.2 s" in found[0].seen
    assert "this is new" in found[2].seen


def run(copy: Path, *words: str, **variables: str) -> tuple[subprocess.CompletedProcess[str], float]:
    kept = {name: value for name, value in os.environ.items() if name not in OURS and not name.startswith("AWS_")}
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "doctor", *words], cwd=copy, capture_output=True, text=True, check=False,
        env=kept | {"PYTHONPATH": str(ROOT)} | variables, timeout=60,
    )  # fmt: skip
    return done, time.monotonic() - begun


@pytest.mark.slow
def test_it_ends_in_time_when_every_server_hangs_and_shows_no_secret(copy: Path, silent: int) -> None:
    there = f"127.0.0.1:{silent}"
    (copy / "machine.yaml").write_text("store: s3://bucket/store\n")
    variables = {
        "RAY_ADDRESS": there,
        "RAY_API_SERVER_ADDRESS": f"http://user:{SECRET}@{there}",
        "MLFLOW_TRACKING_URI": f"http://user:{SECRET}@{there}",
        "AWS_ENDPOINT_URL": f"http://{there}",
        "AWS_ACCESS_KEY_ID": "a-key",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "RAY_AUTH_TOKEN": SECRET,
    }
    done, took = run(copy, "--json", **variables)
    found = {each["about"]: each for each in json.loads(done.stdout)}
    assert [name for name, each in found.items() if each["state"] == "fault"] == ["ray", "dashboard", "tracking", "s3"]
    assert all(each["todo"] for each in found.values() if each["state"] != "ok")
    assert "gave up waiting" in found["ray"]["seen"], "in its own limit, not in that of all"
    assert done.returncode == 1
    assert took < 15
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_working_copy_in_order_has_no_fault_and_no_colour(copy: Path) -> None:
    done, _ = run(copy)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert {"python", "lock", "git", "dvc", "settings", "disk", "memory", "gpu", "ray", "tracking", "s3"} <= {
        line.split()[1] for line in lines if not line.startswith(" ")
    }
    assert lines[-1].startswith("0 faults")
    assert "\x1b" not in done.stdout


@pytest.mark.slow
def test_the_nodes_of_a_cluster_say_their_versions(copy: Path) -> None:
    from pipeline.runtime import access
    from tests.test_workflow import free_ports

    short = Path(tempfile.mkdtemp(prefix="alexnet-"))  # the path of Ray's sockets has to be short
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(access.token(short))}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))}
    address = f"127.0.0.1:{free_ports(1)[0]}"
    head = subprocess.Popen(
        [
            Path(sys.executable).with_name("ray"), "start", "--block", "--head", "--num-cpus=1", "--include-dashboard=false",
            "--node-ip-address=127.0.0.1", f"--port={address.rpartition(':')[2]}", f"--temp-dir={short}/a",
        ],
        env=kept | token | {"RAY_USAGE_STATS_ENABLED": "0"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        end = time.monotonic() + 60
        found: dict[str, dict[str, str]] = {}
        while "nodes" not in found and time.monotonic() < end:
            done, took = run(copy, "--json", **token, RAY_ADDRESS=address)
            found = {each["about"]: each for each in json.loads(done.stdout)}
            assert took < 15
        assert found["ray"]["state"] == "ok", found
        assert found["nodes"] == {
            "about": "nodes",
            "state": "ok",
            "seen": "1 with the versions that are here",
            "todo": "",
        }
        (short / "other").mkdir()
        other = str(access.token(short / "other"))
        done, _ = run(copy, "--json", **token | {"RAY_AUTH_TOKEN_PATH": other}, RAY_ADDRESS=address)
        (refused,) = [each for each in json.loads(done.stdout) if each["about"] == "ray"]
        assert (refused["state"], "has another token" in refused["seen"]) == ("fault", True)
        assert "auth_token" in refused["todo"]
    finally:
        head.terminate()
        head.communicate(timeout=60)
        shutil.rmtree(short, ignore_errors=True)
