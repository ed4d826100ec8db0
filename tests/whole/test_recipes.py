"""Every recipe through all six stages, by the user's command."""

import csv
import json

import pytest
from mlflow import MlflowClient

from alexnet.build import load
from alexnet.network import Model
from pipeline.runtime import params
from tests.test_recipes import ROOT, section
from tests.test_sources import here

pytestmark = [pytest.mark.slow, pytest.mark.whole]


@pytest.mark.parametrize("name", sorted(file.stem for file in (ROOT / "recipes").glob("*.yaml")))
def test_a_recipe_makes_two_steps_at_full_width_and_is_tested_and_reported(copy, name, ray_session):
    copy.run("python", "-m", "pipeline", "run", "--recipe", name, "--source", "two-steps", **here())
    assert copy.run("git", "status", "--porcelain") == ""
    refs = copy.run("git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
    (ref,) = (ref for ref in refs if ref.endswith(f"/{name}-two-steps"))
    copy.run("git", "checkout", ref, "--", "params.yaml", "dvc.lock", "metrics.json")
    try:
        copy.run("dvc", "checkout", "data/history", "data/model.pt", "report")
        assert params.load(copy.folder / "params.yaml")["model"] == params.load(ROOT / f"recipes/{name}.yaml")["model"]
        with (copy.folder / "data/history/steps.csv").open(newline="") as file:
            assert [row["step"] for row in csv.DictReader(file)] == ["1", "2"]
        with (copy.folder / "data/model.pt").open("rb") as file:
            network, _ = load(file)
        assert network.model == section(name, "model", Model)
        assert network.model.width == 1
        assert json.loads((copy.folder / "metrics.json").read_text())["images"] == 10
        assert "drawn by a program" in (copy.folder / "report/index.html").read_text()
    finally:
        copy.run("git", "reset", "-q", "--hard")


def test_they_stand_beside_each_other_in_one_view_of_mlflow(copy):
    """The README compares them by `model.network` and `ten_views/top1_error`. Uses the copy of the tests above."""
    client = MlflowClient(f"sqlite:///{copy.folder}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("alexnet").experiment_id])
    tested = [run.data.params["model.network"] for run in runs if "ten_views/top1_error" in run.data.metrics]
    assert sorted(tested) == ["alexnet"] * 5 + ["resnet50", "vgg16"]
    registered = {model.name for model in client.search_registered_models()}
    assert registered == {"alexnet-drawn", "resnet50-drawn", "vgg16-drawn"}
