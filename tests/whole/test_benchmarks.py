"""The benchmarks of whole programs, on a few pictures."""

import pytest

from tests.benchmarks.test_benchmarks import folder, number, printed
from tests.pipeline.inference.test_predictor import model

__all__ = ["folder"]  # a fixture

pytestmark = [pytest.mark.slow, pytest.mark.whole]


def test_serve_prints_the_rates_of_all_servers_and_their_ratios(folder, tmp_path):
    (tmp_path / "model.pt").write_bytes(model())
    arguments = ("--model", str(tmp_path / "model.pt"), "--pictures", "4", "--clients", "2", "--rounds", "1")
    ours = ("alexnet serve", "alexnet serve --replicas")
    text = printed("serve.py", str(folder), *arguments, where=tmp_path)
    for name in (*ours, "mlflow models serve"):
        assert number(rf"{name}, 2 at a time: ([\d.]+) requests a second, median [\d.]+ s, p99 [\d.]+ s", text) > 0
    for name in ours:
        ratio = (
            rf"(?m)^{name}, 2 at a time: ([\d.]+) times as many requests as mlflow models serve \(median of 1 rounds"
        )
        assert number(ratio, text) > 0


def test_training_prints_which_share_of_its_bare_step_each_placement_reaches(folder, tmp_path):
    text = printed("training.py", str(folder), "--pictures", "40", "--rounds", "1", where=tmp_path)
    for name in ("columns", "one"):
        assert number(rf"train, placement {name}, reaches ([\d.]+)% of its bare step \(1 rounds", text) > 0
