"""Network access on a machine with a default route and a neighbour: no stage lets the neighbour in; a training on two nodes."""

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest

from pipeline.runtime import access
from tests.pipeline.namespaces import hosts
from tests.test_workflow import BIN, ROOT, TINY, Copy, cluster

pytestmark = pytest.mark.faults

LOOPBACK = ("127.0.0.1:", "[::1]:", "[::ffff:127.0.0.1]:")


@contextlib.contextmanager
def looking(host, seen):
    """Records the host's listening sockets while the block runs."""
    over = threading.Event()

    def look():
        while not over.wait(0.1):
            seen.update(host.listening())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def reachable(here, there, ports):
    """The ports of one host that the other host can connect to."""
    program = """
import socket, sys
for port in sys.argv[2:]:
    with socket.socket() as link:
        link.settimeout(1)
        if link.connect_ex((sys.argv[1], int(port))) == 0:
            print(port)
"""
    return here.run(BIN / "python", "-c", program, there.address, *ports).stdout.split()


@pytest.mark.timeout(900)
def test_each_stage_listens_on_loopback_alone_and_a_neighbour_gets_in_nowhere(tmp_path):
    copy = Copy(tmp_path)
    with hosts() as (here, neighbour):
        for stage in ("download", "resize", "mean", "train", "evaluate", "report"):
            seen, open_ports = set(), set()
            with looking(here, seen):
                tried = threading.Event()

                def knock(seen=seen, open_ports=open_ports, tried=tried):
                    while not tried.wait(1):
                        ports = sorted({address.rpartition(":")[2] for address, _ in list(seen)})
                        open_ports.update(reachable(neighbour, here, ports) if ports else ())

                thread = threading.Thread(target=knock)
                thread.start()
                copy.run(*here.command([BIN / "dvc", "repro", "--single-item", stage]))
                tried.set()
                thread.join()
            elsewhere = {(address, program) for address, program in seen if not address.startswith(LOOPBACK)}
            assert elsewhere == set(), stage
            assert open_ports == set(), stage
            if stage in ("resize", "mean", "train", "evaluate"):
                assert any(program == "gcs_server" for _, program in seen), f"{stage}: Ray was seen"


@contextlib.contextmanager
def node(host, folder, *words):
    """A node of a Ray cluster with a token."""
    environment = os.environ | known(folder) | {"RAY_USAGE_STATS_ENABLED": "0"}
    with (folder / f"{host.name}.log").open("w") as log:
        command = [BIN / "ray", "start", "--block", "--num-cpus=1", f"--node-ip-address={host.address}", *words]
        started = subprocess.Popen(host.command(command), env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield
    finally:
        started.terminate()
        started.wait(60)


def known(folder):
    """The environment that both nodes and the stages need."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(access.token(folder))}
    return {**token, "ALEXNET_MACHINE": str(folder / "machine.yaml")}


@pytest.mark.timeout(900)
def test_two_columns_on_two_nodes_find_each_other_by_the_addresses_that_ray_has(tmp_path):
    short = Path(tempfile.mkdtemp(prefix="alexnet-"))  # the path of Ray's sockets has to be short
    try:
        copy = Copy(tmp_path)
        (short / "machine.yaml").write_text(f"storage: {short}/storage\nplacement: columns\n")
        with hosts() as (first, second), contextlib.ExitStack() as nodes:
            nodes.enter_context(
                node(first, short, "--head", "--port=6379", "--include-dashboard=false", f"--temp-dir={short}/a")
            )
            time.sleep(5)
            nodes.enter_context(node(second, short, f"--address={first.address}:6379", f"--temp-dir={short}/b"))
            environment = known(short) | {"RAY_ADDRESS": f"{first.address}:6379"}
            time.sleep(5)
            seen = set()
            with looking(second, seen):
                said = copy.run(*first.command([BIN / "dvc", "repro", "train"]), **environment)
            assert "2 processes, a column each" in said
            trained = {address for address, program in seen if program.startswith("ray::RayTrainWo")}
            links = {address for address in trained if address.startswith(second.address)}
            assert links, f"gloo is on the node's own address: {sorted(trained)}"
            stranger = {**environment, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "none"), "HOME": str(tmp_path / "nobody")}
            with pytest.raises(AssertionError, match="asks for a token, and there is none here"):
                copy.run(*second.command([BIN / "dvc", "repro", "--force", "--single-item", "mean"]), **stranger)
    finally:
        shutil.rmtree(short)


@pytest.mark.timeout(300)
def test_the_pages_of_mlflow_listen_on_loopback_alone(tmp_path):
    with hosts() as (here, neighbour):
        environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
        command = here.command([BIN / "python", "-m", "pipeline", "tracking", "ui", "--port", "5123"])
        with (tmp_path / "log.txt").open("w") as log:
            pages = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 120
            while not any(address.endswith(":5123") for address, _ in here.listening()):
                assert pages.poll() is None, (tmp_path / "log.txt").read_text()
                assert time.monotonic() < deadline, (tmp_path / "log.txt").read_text()
                time.sleep(0.5)
            time.sleep(5)  # its workers
            addresses = {address for address, _ in here.listening()}
            assert {address for address in addresses if not address.startswith(LOOPBACK)} == set()
            assert reachable(neighbour, here, sorted({address.rpartition(":")[2] for address in addresses})) == []
        finally:
            pages.terminate()
            pages.wait(60)


@pytest.mark.timeout(600)
def test_a_head_that_is_lost_ends_a_training_in_two_minutes_and_is_said_to_be_away(tmp_path):
    copy = Copy(tmp_path, {**TINY, "learning": {**TINY["learning"], "epochs": 1000, "rate_falls": []}})
    copy.run("dvc", "repro", "mean")
    short = Path(tempfile.mkdtemp(prefix="alexnet-"))
    (short / "machine.yaml").write_text("workers: 1\n")
    try:
        with cluster(short) as (known, port, _):
            kept = {
                name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_", "RAY_"))
            }
            with (tmp_path / "said.txt").open("w") as said:
                training = subprocess.Popen(
                    [BIN / "python", "-m", "pipeline", "train"], cwd=tmp_path, stdout=said, stderr=said,
                    env=kept | known | {"RAY_ADDRESS": f"127.0.0.1:{port}"},
                )  # fmt: skip
            deadline = time.monotonic() + 180
            while not list(tmp_path.glob("runs/*/checkpoint-*")):
                assert training.poll() is None, (tmp_path / "said.txt").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.5)
            for process in psutil.process_iter(["cmdline"]):
                words = process.info["cmdline"] or [""]
                if words[0].endswith("gcs_server") and str(short) in " ".join(words):
                    process.kill()
            killed, away = (
                time.monotonic(),
                f"ray: waiting for the head of the cluster at 127.0.0.1:{port}, which is away",
            )
            while away not in (tmp_path / "said.txt").read_text():
                assert time.monotonic() - killed < 20, (tmp_path / "said.txt").read_text()
                time.sleep(0.5)
            assert training.wait(120) == 1
        after = (tmp_path / "said.txt").read_text().partition(away)[2].splitlines()
        assert after[0] == " (Connection refused), 50 s at most"
        what, todo = after[-2:]
        assert (
            what
            == f"train: the head of the Ray cluster at 127.0.0.1:{port} has been away for 50 s (Connection refused)"
        )
        assert re.search(r"Start it and its nodes again .*; then dvc repro goes on from step \d+$", todo)
    finally:
        shutil.rmtree(short, ignore_errors=True)


@pytest.mark.timeout(900)
def test_a_link_that_is_cut_in_a_training_of_two_nodes_ends_it_in_our_words_within_its_limits(tmp_path):
    short = Path(tempfile.mkdtemp(prefix="alexnet-"))
    storage = f"storage: {short}/storage\nplacement: columns\npatience: 15\ncheckpoint_steps: 5\n"
    (short / "machine.yaml").write_text(storage)
    try:
        copy = Copy(tmp_path, {**TINY, "learning": {**TINY["learning"], "epochs": 1000, "rate_falls": []}})
        copy.run("dvc", "repro", "mean", ALEXNET_MACHINE=str(short / "machine.yaml"))
        with hosts() as (first, second), contextlib.ExitStack() as nodes:
            nodes.enter_context(
                node(first, short, "--head", "--port=6379", "--include-dashboard=false", f"--temp-dir={short}/a")
            )
            time.sleep(5)
            nodes.enter_context(node(second, short, f"--address={first.address}:6379", f"--temp-dir={short}/b"))
            time.sleep(5)
            kept = {
                name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_", "RAY_"))
            }
            with (tmp_path / "said.txt").open("w") as said:
                training = subprocess.Popen(
                    first.command([BIN / "python", "-m", "pipeline", "train"]), cwd=tmp_path, stdout=said, stderr=said,
                    env=kept | known(short) | {"RAY_ADDRESS": f"{first.address}:6379"},
                )  # fmt: skip
            deadline = time.monotonic() + 240
            while not list(short.glob("storage/runs/*/checkpoint-*")):
                assert training.poll() is None, (tmp_path / "said.txt").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.5)
            second.link("down")
            try:
                assert training.wait(240) == 1
            finally:
                second.link("up")  # a node that reaches no head takes long to end
        text = (tmp_path / "said.txt").read_text()
        assert "Traceback" not in text
        assert re.search(rf"waiting for a step after step \d+ of its workers .*{second.address}.*, \d+ s at most", text)
        what, last = text.splitlines()[-2:]
        assert re.match(
            r"train: gave up waiting for its workers to begin: they are 2 processes .* after 45 s$", what
        ), text
        assert re.match(r"The last whole checkpoint is .*, step \d+: dvc repro goes on from there$", last)
    finally:
        shutil.rmtree(short, ignore_errors=True)
