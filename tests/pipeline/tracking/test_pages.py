"""What MLflow's pages show first: columns, charts, descriptions, names of runs, and the address that opens them."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from pathlib import Path
from typing import Any

import mlflow
import pytest

from pipeline.runtime.machines import Machine
from pipeline.tracking import __main__ as program
from pipeline.tracking import description, pages, runs

MACHINE = Machine()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working copy whose params.yaml is committed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    for name in ("DVC_EXP_NAME", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    (tmp_path / "params.yaml").write_text(
        "source: {name: sample}\nlearning: {rate: 0.01, seed: 0}\nmodel: {dropout: 0.5}\n"
    )
    for words in (["init", "-q"], ["add", "params.yaml"], ["commit", "-qm", "as it is"]):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True)
    return tmp_path


def name(**learning: Any) -> str:
    return description.run_name({"learning": learning})


def test_a_run_is_called_by_its_pictures_its_seed_and_what_differs_from_the_commit(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert name(seed=0) == "sample, seed 0"
    assert description.run_name({"members": ["a", "HEAD"], "weights": [1, 1]}) == "ensemble of a, HEAD"
    assert description.run_name({"results": {"split": "val"}}) == "sample, seed 0", "evaluate reads no learning"
    (here / "params.yaml").write_text(
        "source: {name: sample}\nlearning: {rate: 0.02, seed: 3}\nmodel: {dropout: none}\n"
    )
    assert name(seed=3) == "sample, learning.rate 0.02, model.dropout none, seed 3"
    monkeypatch.setenv("DVC_EXP_NAME", "rusty-nail")
    assert name(seed=3) == "rusty-nail, learning.rate 0.02, model.dropout none, seed 3"
    (here / "params.yaml").write_text("".join(f"{key}: {{a: 1, b: 2}}\n" for key in "cdef"))
    assert description.run_name({}) == "rusty-nail, c.a 1, c.b 2, d.a 1, 5 more changes"


class Drawn:
    drawn, digest, shards = True, "0" * 64, {"train": (), "val": (), "test": ()}

    def rows(self, split: str) -> int:
        return {"train": 1500, "val": 300, "test": 0}[split]


def test_a_run_s_page_says_its_errors_its_pictures_and_what_was_changed(here: Path) -> None:
    before = description.note("sample, seed 0", Drawn())
    assert "- not evaluated yet" in before
    assert "- drawn by a program, not photographed: 1,500 train, 300 val\n" in before
    assert "changed" not in before
    (here / "params.yaml").write_text("source: {name: '`<b>`\\n# x'}\n")
    errors = {"top1_error": 0.407, "top1_low": 0.4, "top1_high": 0.4142}
    errors |= {"top5_error": 0.182, "top5_low": 0.18, "top5_high": 0.19}
    after = description.note("a ` <i>", Drawn(), errors)
    assert after.startswith("**`a ' <i>`**\n")
    assert "- top-1 error **40.70%** (40.00% to 41.42%), ten views\n" in after
    (changed,) = (line for line in after.split("\n") if "changed" in line)
    assert changed.startswith("- changed from the commit: `source.name: '<b>'") and changed.count("`") == 2


@pytest.mark.parametrize("committed", ["", "[1, 2", "- 1\n"])
def test_a_commit_without_good_params_hides_no_run(committed: str, here: Path) -> None:
    good = (here / "params.yaml").read_text()
    (here / "params.yaml").write_text(committed)
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qam", "x"], cwd=here, check=True)
    (here / "params.yaml").write_text(good)
    assert name(seed=0) == "sample, seed 0"


def test_what_differs_between_runs_is_a_column_and_the_seed_always() -> None:
    params = [{"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"}, {}]
    assert pages.differing(params) == ["b"]
    assert pages.differing([]) == []
    columns = pages.state(["b"])["selectedColumns"]
    assert columns[-2:] == ["params.`learning.seed`", "params.`b`"]
    assert columns[0] == "metrics.`ten_views/top1_error`"
    many = pages.state([f"model.parameter_{number}" for number in range(200)])
    assert sum(column.startswith("params.") for column in many["selectedColumns"]) == pages.MOST
    assert len(json.dumps(many)) < 20_000, "MLflow's limit for a tag of an experiment"


def test_each_chart_is_in_a_section_that_is_there() -> None:
    state = pages.state([])
    sections = {section["uuid"] for section in state["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == sections
    assert len({chart["uuid"] for chart in state["compareRunCharts"]}) == len(state["compareRunCharts"])


def test_mlflow_s_pages_still_read_such_a_view() -> None:
    built = Path(mlflow.__file__).parent / "server/js/build/static/js"
    code = "".join(file.read_text(encoding="utf-8") for file in built.glob("*.js"))
    for word in ("mlflow.sharedViewState.", "viewStateShareKey", "machine_learning", *pages.state([])):
        assert word in code, word


@pytest.mark.slow
def test_the_experiment_s_page_follows_its_runs(here: Path) -> None:
    for rate in (0.01, 0.02):
        sections = {"learning": {"rate": rate, "seed": 0}}
        with runs.run(MACHINE, f"{rate}", sections, None, "train"):
            pass
    client = mlflow.MlflowClient(runs.address(MACHINE))
    experiment = client.get_experiment_by_name("alexnet")
    assert experiment is not None
    assert experiment.tags["mlflow.note.content"] == pages.DESCRIPTION
    assert "params.`learning.rate`" in json.loads(experiment.tags[pages.TAG])["selectedColumns"]
    client.set_experiment_tag(experiment.experiment_id, "mlflow.note.content", "mine")
    with runs.run(MACHINE, "third", {"learning": {"seed": 1}}, None, "train"):
        pass
    assert client.get_experiment(experiment.experiment_id).tags["mlflow.note.content"] == "mine"


@pytest.mark.slow
def test_a_run_that_is_taken_over_keeps_its_errors(here: Path) -> None:
    errors = {f"top{top}_{name}": 0.25 for top in (1, 5) for name in ("error", "low", "high")}
    with runs.run(MACHINE, "a", {"learning": {"seed": 0}}, None, "train") as run:
        pass
    client = mlflow.MlflowClient(runs.address(MACHINE))
    assert "not evaluated yet" in client.get_run(run.run_id).data.tags[description.NOTE]
    with runs.run(MACHINE, "a", {}, None, "evaluate", adopt=True) as run:
        run.describe(errors)
    with runs.run(MACHINE, "a", {"learning": {"seed": 0}}, None, "train", adopt=True):
        pass
    assert "error **25.00%**" in client.get_run(run.run_id).data.tags[description.NOTE]


def test_a_busy_port_is_told_with_another_one(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        with pytest.raises(OSError, match=rf"port {port} of 127\.0\.0\.1 cannot be used .* make ui PORT=\d+$"):
            program.show(port)
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_the_pages_address_opens_on_the_runs(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "execv", lambda *_: None)
    program.show(5999)
    assert capsys.readouterr().out == "the runs: http://127.0.0.1:5999\n"
    with runs.run(MACHINE, "a", {}, None, "train"):
        pass
    monkeypatch.chdir(here)
    program.show(5999)
    said = capsys.readouterr().out
    assert re.fullmatch(r"the runs: (http://127\.0\.0\.1:5999)/#/experiments/1/runs\?.*\n", said)
    assert f"viewStateShareKey={pages.VIEW}" in said
