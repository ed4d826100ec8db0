"""No one in: a Ray that a stage starts is on loopback behind a token, and a cluster that it joins has to ask for one."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from ray._raylet import AuthenticationTokenLoader, Config

from pipeline.runtime import access, waiting
from pipeline.runtime.rendezvous import interface

TOKEN = "0123456789abcdef0123456789abcdef"


class Head(grpc.GenericRpcHandler):
    """The one request that `admit` makes, answered as Ray's head answers it."""

    def __init__(self, token: str | None) -> None:
        self.token = token

    def service(self, details: Any) -> Any:
        if details.method != access.ALIVE:
            return None
        known = self.token is None or ("authorization", f"Bearer {self.token}") in details.invocation_metadata

        def answer(_: bytes, context: grpc.ServicerContext) -> bytes:
            if not known:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


@contextlib.contextmanager
def head(token: str | None) -> Iterator[str]:
    """Address of a head that asks for this token; None: for none."""
    server = grpc.server(ThreadPoolExecutor(2), handlers=[Head(token)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """What the tests change of Ray's settings is put back, in this process too."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    yield
    monkeypatch.undo()
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def test_a_token_is_made_once_below_the_working_copy_for_its_owner_alone(tmp_path: Path) -> None:
    file = access.token(tmp_path / "work")
    assert file.parent == tmp_path / "work"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    first = file.read_text()
    assert len(first) == 64
    file.chmod(0o644)
    assert access.token(tmp_path / "work").read_text() == first
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list((tmp_path / "work").iterdir()) == [file], "no half of a token is left"
    assert access.token(tmp_path / "other").read_text() != first


def test_a_cluster_that_takes_anyone_is_refused_unless_that_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    with head(None) as address:
        with pytest.raises(ValueError, match=rf"the Ray cluster at {address} has no token: .*RAY_AUTH_MODE=disabled"):
            access.admit(address)
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        access.admit(address)


def test_a_cluster_that_asks_for_a_token_is_joined_with_the_same_one_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with head(TOKEN) as address:
        with pytest.raises(ValueError, match=r"asks for a token, and there is none here\. Copy"):
            access.admit(address)
        file = tmp_path / "token"
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
        with pytest.raises(ValueError, match=rf"and there is none here \({file}\)\. Copy"):
            access.admit(address)
        file.write_text("another")
        with pytest.raises(ValueError, match=r"has another token than this machine\. Copy") as refused:
            access.admit(address)
        assert TOKEN not in str(refused.value)
        file.write_text(TOKEN)
        access.admit(address)
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        with pytest.raises(ValueError, match="asks for a token, and RAY_AUTH_MODE is 'disabled'"):
            access.admit(address)


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_waited_for_with_a_word_and_a_limit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(access, "PATIENCE", 1.5)
    monkeypatch.setattr(waiting, "SAID_AFTER", 0.3)
    with head(None) as address:
        pass
    with pytest.raises(TimeoutError, match=f"gave up waiting for the cluster at {address} after 2 s"):
        access.admit(address)
    assert f"ray: waiting for the cluster at {address}, 2 s at most" in capsys.readouterr().err


def test_what_answers_and_is_no_cluster_is_told_apart() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with pytest.raises(ConnectionError, match=r"not the head of a Ray cluster \(UNIMPLEMENTED\)"):
        access.admit(f"127.0.0.1:{port}")
    server.stop(None)


def test_the_links_of_a_training_keep_to_the_interface_of_the_nodes_address() -> None:
    assert interface("127.0.0.1") in ("lo", "lo0")
    with pytest.raises(ValueError, match=r"no network interface here has 192\.0\.2\.77"):
        interface("192.0.2.77")


PROGRAM = """
import psutil
import torch, torch.distributed
from pipeline.runtime import access, cluster
from pipeline.runtime.machines import Machine

def together(config):
    numbers = torch.ones(3)
    torch.distributed.all_reduce(numbers)
    assert numbers.tolist() == [2, 2, 2]
    import ray, ray.train, psutil
    found = {each.laddr.ip for process in psutil.Process(config["driver"]).children(recursive=True)
             for each in process.net_connections("inet") if each.status == "LISTEN"}
    torch.distributed.barrier()
    return found

with cluster.connected(Machine()):
    import os, ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from pipeline.runtime.rendezvous import Rendezvous
    trainer = TorchTrainer(together, train_loop_config={"driver": os.getpid()}, torch_config=Rendezvous(),
                           scaling_config=ScalingConfig(num_workers=2),
                           run_config=RunConfig(storage_path=os.getcwd() + "/runs", name="a"))
    print("LISTENS", sorted(trainer.fit().return_value))
    print("MINE", sorted({each.laddr.ip for each in psutil.Process().net_connections("inet") if each.status == "LISTEN"}))
    address = ray.get_runtime_context().gcs_address
    print("STRANGER", access._ask(address, (), 60.0))
try:
    ray.put(1)
except ray.exceptions.RaySystemError as error:
    print("AFTERWARDS", error)
"""


@pytest.mark.slow
def test_every_socket_of_a_stage_and_of_its_training_is_on_loopback_and_a_stranger_cannot_join(tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = kept | {"PYTHONPATH": str(Path(__file__).parents[3]), "HOME": str(tmp_path / "home")}
    # below a process that looks like `uv run`, by which Ray would start its workers
    (tmp_path / "run").write_text(
        f"import subprocess\nexit(subprocess.run([{sys.executable!r}, '-c', {PROGRAM!r}]).returncode)"
    )
    done = subprocess.run(
        ["uv", "run"],
        executable=sys.executable,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines() if line.startswith(("LISTENS", "MINE")))
    for addresses in (said["LISTENS"], said["MINE"]):
        assert addresses != "[]"
        assert {each.strip("[]' ") for each in addresses.split(",")} <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert "STRANGER stranger" in done.stdout
    assert "AFTERWARDS System error: Ray has not been started" in done.stdout, "no other Ray is looked for"
    assert not (tmp_path / "home").exists(), "no token is written there"
    assert stat.S_IMODE((tmp_path / "work/ray-token").stat().st_mode) == 0o600
