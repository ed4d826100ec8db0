"""`alexnet serve --replicas`: Ray Serve's replicas answer as the network does, and end with the command."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from pipeline.inference.networks import Found
from pipeline.inference.predictor import Predictor
from tests.pipeline.inference.servers import free_port, post, running
from tests.pipeline.inference.test_predictor import model, original

ROOT = Path(__file__).parents[3]


def command(network: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "pipeline", "serve", "--model", str(network), *options]


@pytest.mark.slow
def test_replicas_answer_as_the_network_does_and_end_with_the_command(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(model())
    port, predictor = free_port(), Predictor.load(model())
    address = f"http://127.0.0.1:{port}"
    options = ("--port", str(port), "--replicas", "2", "--cpus", "0.1")
    with running(command(tmp_path / "model.pt", *options), tmp_path, f"{address}/ready", ROOT) as (process, log):
        processes = psutil.Process(process.pid).children(recursive=True)
        names = {re.split(r"[ :]", each.name())[0] for each in processes}
        assert "raylet" in names
        for number in range(6):
            status, answer = post(f"{address}/predict", original(number), "image/jpeg")
            (expected,) = predictor.answer([predictor.prepare(original(number))])
            assert (status, [each["wnid"] for each in answer["guesses"]]) == (200, [each.wnid for each in expected])
            assert answer["guesses"][0]["probability"] == pytest.approx(expected[0].probability, abs=1e-5)
        status, answer = post(f"{address}/predict", b"hello", "image/jpeg")
        assert (status, "no picture that can be read" in answer["error"]) == (400, True)
        with urllib.request.urlopen(f"{address}/ready", timeout=20) as ready:
            assert json.load(ready)["classes"] == 7
        for _ in range(100):
            if "answers at" in log.read_text():
                break
            time.sleep(0.1)
        # on a loaded machine a line before them says what it waits for
        assert log.read_text().splitlines()[-2:] == [
            f"{tmp_path}/model.pt answers at {address}",
            f"curl --data-binary @picture.jpg {address}/predict",
        ]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 128 + signal.SIGINT
        _, alive = psutil.wait_procs(processes, timeout=20)
        assert not alive


@pytest.mark.filterwarnings("default")  # Ray Serve's own, when it is imported
@pytest.mark.parametrize("option", ["cpus", "gpus"])
def test_more_than_the_cluster_has_is_said_before_anything_starts(ray_session: None, option: str) -> None:
    import ray

    from pipeline.inference import replicas

    there = ray.cluster_resources().get(option[:-1].upper(), 0) or 64  # two replicas of all that there is
    takes = {"cpus": 0.1, "gpus": 0.0} | {option: there}
    with (
        pytest.raises(
            ValueError,
            match=rf"^--replicas 2 --{option} {there:g}: {2 * there:g} {option} are asked for, the cluster has",
        ),
        replicas.running(Found(model(), "here"), "127.0.0.1", free_port(), 2, **takes),
    ):
        raise AssertionError("it started")
