"""Ray Serve's replicas answer as the app of `alexnet serve` does."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest

from pipeline.inference.predictor import Predictor
from tests.pipeline.inference.servers import free_port, post
from tests.pipeline.inference.test_predictor import model, original


@pytest.mark.filterwarnings("default")  # Ray Serve's own
def test_replicas_answer_as_the_network_does(ray_session: None, tmp_path: Path) -> None:
    from ray import serve

    from pipeline.inference.replicas import app

    with pytest.raises(ValueError, match=r"copies: no such option\. There are model, replicas, cpus, gpus"):
        app({"copies": "2"})
    (tmp_path / "model.pt").write_bytes(model())
    port, predictor = free_port(), Predictor.load(model())
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        serve.run(app({"model": str(tmp_path / "model.pt"), "cpus": "0.1"}))
        for number in range(3):
            status, answer = post(f"http://127.0.0.1:{port}/predict", original(number), "image/jpeg")
            (expected,) = predictor.answer([predictor.prepare(original(number))])
            assert (status, [each["wnid"] for each in answer["guesses"]]) == (200, [each.wnid for each in expected])
            assert answer["guesses"][0]["probability"] == pytest.approx(expected[0].probability, abs=1e-5)
        assert post(f"http://127.0.0.1:{port}/predict", b"hello", "image/jpeg")[0] == 400
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=20) as answer:
            assert json.load(answer)["classes"] == 7
    finally:
        serve.shutdown()
