"""A server that misbehaves holds no training, no progress line and no exit; what it missed it gets once, later."""

from __future__ import annotations

import base64
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.runtime import waiting
from pipeline.runtime.machines import Machine
from pipeline.runtime.stage import Stopped
from pipeline.tracking import journal, runs
from tests.pipeline.proxy import FAULTS, Proxy, proxied, until
from tests.pipeline.tracking.test_runs import classifier, manifest, only, saved, values
from tests.sections import PAPER

ROOT = Path(__file__).parents[3]

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType")]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working copy of its own, and nothing of this one's settings."""
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "DVC_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    return tmp_path


def children() -> list[psutil.Process]:
    """What speaks to MLflow for us."""
    found = psutil.Process().children(recursive=True)
    return [process for process in found if any("pipeline.tracking.sender" in word for word in process.cmdline())]


def threads() -> set[str]:
    """Those of this process, but for the proxy's."""
    return {thread.name for thread in threading.enumerate() if "process_request" not in thread.name}


def told(run: runs.Run, first: int, last: int) -> float:
    """Logs step by step, and returns the longest that one took."""
    longest = 0.0
    for step in range(first, last):
        start = time.monotonic()
        run.log_all([(step, {"loss": 1 / (1 + step), "rate": 0.1})])
        longest = max(longest, time.monotonic() - start)
    return longest


# Before any work


@pytest.mark.parametrize("mode", [*FAULTS, "away"])
def test_a_server_that_does_not_answer_at_the_start_is_refused_soon_and_plainly(
    mode: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "START", 6.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "4")
    with proxied("http://127.0.0.1:1") as proxy, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        proxy.mode = mode
        uri = proxy.url if mode != "away" else f"http://127.0.0.1:{taken.getsockname()[1]}"
        before, start = threads(), time.monotonic()
        run = runs.run(Machine(tracking=uri.replace("//", "//me:Pl4nted.Secret@")), "f", {}, manifest(), "train")
        with pytest.raises(OSError, match=f"MLflow at {uri}: ") as caught:
            run.__enter__()
        assert time.monotonic() - start < 40
        assert "It has to answer before any work" in str(caught.value) and "\n" not in str(caught.value)
        assert "Pl4nted" not in str(caught.value)
        assert threads() <= before
    assert children() == []
    assert not (home / "runs").exists()


# A database here


HOLDER = """
import sqlite3, sys
held = sqlite3.connect(sys.argv[1], isolation_level=None)
held.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.readline()
"""


def test_a_database_that_is_held_later_holds_nothing_and_gets_all_from_the_next_stage(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runs, "END", 2.0)
    with runs.run(Machine(), "held", {}, manifest(), "train") as run:
        told(run, 0, 10)
        held = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(home / "mlflow.db")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert held.stdout is not None and held.stdin is not None
        assert held.stdout.readline() == b"held\n"
        assert told(run, 10, 2000) < 0.5
        run.tag("tag", "words")
        start = time.monotonic()
    assert time.monotonic() - start < 10
    said = capsys.readouterr().err
    assert f"train: not all is in MLflow at sqlite:///{home}/mlflow.db" in said
    assert "The next stage sends it, or: python -m pipeline.tracking send" in said
    held.kill()
    held.wait()
    for pipe in (held.stdin, held.stdout):
        pipe.close()
    with runs.run(Machine(), "held", {}, manifest(), "evaluate", adopt=True):
        pass
    until(lambda: not journal.pending(home / "runs/journal"), 1)
    record, client = found("held")
    assert values(client, record.info.run_id, "loss") == [(step, 1 / (1 + step)) for step in range(2000)]
    assert record.info.status == "FINISHED" and record.data.tags["tag"] == "words"


def found(fingerprint: str, uri: str | None = None) -> tuple[Any, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(uri or runs.address(Machine()))
    return only(client, fingerprint), client


STAGE = """
import os, signal, sys, time
from pipeline.tracking import runs
from pipeline.runtime.machines import Machine
from tests.pipeline.tracking.test_runs import manifest
with runs.run(Machine(), "killed", {}, manifest(), "train") as run:
    run.log_all((step, {"loss": 1 / (1 + step)}) for step in range(2000))
    run.tag("tag", "words")
    print(run._handover.courier._child.process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_stage_leaves_no_process_and_no_value_behind(home: Path) -> None:
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", STAGE], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert time.monotonic() - start < 120, "its output was held open"
    until(lambda: not psutil.pid_exists(int(done.stdout)), 5)
    assert journal.pending(home / "runs/journal")
    with runs.run(Machine(), "killed", {}, manifest(), "train") as run:
        run.log_all((step, {"loss": 1 / (1 + step)}) for step in range(1500, 2500))
    assert not journal.pending(home / "runs/journal")
    record, client = found("killed")
    assert values(client, record.info.run_id, "loss") == [(step, 1 / (1 + step)) for step in range(2500)]
    assert record.data.tags["tag"] == "words" and record.info.status == "FINISHED"


def test_a_sender_that_was_killed_is_replaced_at_the_end(home: Path) -> None:
    before = threads()
    with runs.run(Machine(), "replaced", {}, manifest(), "train") as run:
        told(run, 0, 100)
        run._handover.courier._child.process.kill()
        run._handover.courier._child.process.wait()
        told(run, 100, 200)
    record, client = found("replaced")
    assert len(values(client, record.info.run_id, "loss")) == 200
    assert record.info.status == "FINISHED"
    assert threads() <= before and children() == []


# A real server behind a proxy


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server, for all tests of this file."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = {
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": "sqlite:///mlflow.db",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words],
            cwd=folder,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        ) as process,
    ):

        def there() -> bool:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return True
            assert process.poll() is None, (folder / "log").read_text()
            return False

        until(there, 120)
        yield f"http://127.0.0.1:{port}"
        os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def proxy(server: str) -> Iterator[Proxy]:
    with proxied(server) as state:
        yield state


@pytest.mark.faults
@pytest.mark.parametrize("mode", [*FAULTS, "lose"])
def test_a_server_that_fails_later_holds_nothing_and_gets_each_value_once(
    mode: str,
    proxy: Proxy,
    server: str,
    home: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runs, "END", 5.0)
    machine, before = Machine(tracking=proxy.url), threads()
    (home / "file.txt").write_text("first")
    with runs.run(machine, f"later {mode}", {"a": 1}, manifest(), "train") as run:
        told(run, 0, 50)
        until(lambda: found(f"later {mode}", server)[0].data.metrics)
        proxy.mode = mode
        assert told(run, 50, 3000) < 0.5
        time.sleep(3)
        assert told(run, 3000, 3100) < 0.5
        run.score({"top1": 0.5})
        run.tag("tag", "words")
        run.artifact(home / "file.txt", "there")
        start = time.monotonic()
    assert time.monotonic() - start < 10
    (home / "file.txt").write_text("second")
    assert threads() <= before
    assert children() == []
    said = capsys.readouterr().err
    assert f"train: not all is in MLflow at {proxy.url} (" in said and "python -m pipeline.tracking send" in said
    assert said.count("\n") <= 2
    proxy.mode = "pass"
    monkeypatch.setattr(runs, "END", 30.0)
    with runs.run(machine, f"later {mode}", {}, manifest(), "evaluate", adopt=True) as again:
        assert again.run_id == run.run_id
        again.score({"top1": 0.5})
    assert not journal.pending(home / "runs/journal")
    record, client = found(f"later {mode}", server)
    assert values(client, record.info.run_id, "loss") == [(step, 1 / (1 + step)) for step in range(3100)]
    assert values(client, record.info.run_id, "top1") == [(0, 0.5)]
    assert record.info.status == "FINISHED" and record.data.tags["tag"] == "words"
    (kept,) = client.list_artifacts(record.info.run_id, "there")
    assert Path(client.download_artifacts(record.info.run_id, kept.path, str(home))).read_text() == "first"


@pytest.mark.faults
@pytest.mark.parametrize("mode", ["trickle", "hang"])
def test_a_server_that_hangs_while_a_model_is_registered_holds_no_evaluation(
    mode: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "END", 4.0)
    with runs.run(Machine(tracking=proxy.url), f"model {mode}", {}, manifest(), "evaluate", adopt=True) as run:
        proxy.mode, start = mode, time.monotonic()
        assert run.publish(saved(classifier("none", 8)), PAPER, 0.5) == ()
    assert time.monotonic() - start < 20


@pytest.mark.faults
def test_what_was_not_sent_is_sent_by_the_command_and_a_model_is_registered_once(
    proxy: Proxy, server: str, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "END", 4.0)
    (home / "machine.yaml").write_text(f"tracking: {proxy.url}\n")
    weights = saved(classifier("none", 7))
    with runs.run(Machine(tracking=proxy.url), "command", {}, manifest(), "evaluate", adopt=True) as run:
        proxy.mode = "500"
        assert run.publish(weights, PAPER, 0.5) == ()
    assert "the model, the run's end" in capsys.readouterr().err

    def send(*words: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "pipeline.tracking", "send", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=200)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout or done.stderr

    code, said = send("--limit", "3")
    assert (code == 1 and "It has to answer" in said) or "not all was sent in 3 s" in said
    proxy.mode = "pass"
    assert send() == (0, f"all is in MLflow at {proxy.url}\n")
    assert send() == (0, f"nothing is left for {proxy.url}\n")
    record, client = found("command", server)
    assert record.info.status == "FINISHED"
    assert len(client.search_model_versions("name = 'alexnet-drawn'")) == 1
    assert len(client.search_logged_models([record.info.experiment_id])) == 1
    monkeypatch.setattr(runs, "END", 60.0)
    assert runs.weights(Machine(tracking=proxy.url), "models:/alexnet-drawn/1") == weights


@pytest.mark.faults
def test_the_default_end_is_within_thirty_seconds_and_a_stop_within_five(
    proxy: Proxy, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(error: BaseException | None) -> float:
        proxy.mode, start = "pass", 0.0
        with suppress(Stopped), runs.run(Machine(tracking=proxy.url), "ends", {}, manifest(), "train") as run:
            proxy.mode = "hang"
            told(run, 0, 10)
            start = time.monotonic()
            if error:
                raise error
        return time.monotonic() - start

    assert ends(Stopped(143)) < 5
    assert ends(None) < 33
    assert f"train: waiting for MLflow at {proxy.url}, 30 s at most" in capsys.readouterr().err
    assert waiting.SAID_AFTER == 10.0


@pytest.mark.faults
def test_a_password_is_sent_and_stays_unsaid(
    proxy: Proxy, server: str, home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.wanted = "Basic " + base64.b64encode(b"me:Pl4nted.Secret").decode()
    uri = proxy.url.replace("//", "//me:Pl4nted.Secret@")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with runs.run(Machine(), "secret", {"start": {"network": f"{uri}/x"}}, manifest(), "train") as run:
        run.tag("from", f"{uri}/a")
        seen = [word for process in children() for word in process.cmdline()]
        proxy.wanted, run._handover.left = "nobody", 3.0
    out, err = capfd.readouterr()
    kept = b"".join(file.read_bytes() for file in home.rglob("*") if file.is_file())
    record, _ = found("secret", server)
    for place in (out, err, str(seen), kept.decode(errors="ignore"), str(record.to_dictionary())):
        assert "Pl4nted" not in place
    assert "not all is in MLflow" in err
