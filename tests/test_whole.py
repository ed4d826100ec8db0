"""Every source and every recipe through all six stages, by the user's command (`make whole`, a quarter of an hour).

`make test` runs parts of it: each source up to the mean, each recipe for two steps in one process.
"""

import csv
import json
import re
import shutil

import pytest
from mlflow import MlflowClient
from ruamel.yaml import YAML

from alexnet.build import load
from alexnet.network import Model
from docs import typed
from pipeline.runtime import params
from tests.pipeline import layouts, miniature
from tests.test_recipes import ROOT, section
from tests.test_sources import Copy, check, here

pytestmark = [pytest.mark.slow, pytest.mark.whole]

TWO_STEPS = {
    "source": {"name": "sample", "seed": 0, "train_images": 20, "val_images": 10, "level": "easy"},
    "resize": {"max_rejected": 0.5},
    # the recipes' rates are for larger batches: ResNet-50 comes to no number at .1
    "learning": {"epochs": 1, "batch_size": 10, "log_steps": 1, "rate": 0.0001},
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    copy = Copy(tmp_path_factory.mktemp("whole"))
    with (copy.folder / "recipes/sources/two-steps.yaml").open("w") as file:
        YAML().dump(TWO_STEPS, file)
    copy.run("git", "add", "-A")
    copy.run("git", "commit", "-qm", "pictures for two steps")
    return copy


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


@pytest.mark.parametrize("name", [name for name in layouts.ALL if ", " not in name])  # one for each source
def test_a_source_is_learned_from_tested_and_reported(copy, name, ray_session):
    layout = layouts.ALL[name](copy.folder / "data/store" / name)
    (copy.folder / "machine.yaml").write_text(json.dumps({"store": f"data/store/{name}", "workers": 1}))
    copy.replace("source", layout.section)
    # forced, since DVC sees the parameters and not the store: two of these sets have the same
    copy.run("dvc", "repro", "--force", **here())
    manifest = check(copy.folder, layout)
    metrics = json.loads((copy.folder / "metrics.json").read_text())
    assert metrics["classes"] == len(layout.words)
    assert metrics["images"] == manifest.rows("val") > 0
    assert "drawn by a program" not in (copy.folder / "report/index.html").read_text()
    assert "Data and pipelines are up to date" in copy.run("dvc", "status")


def typed_in(copy, page, places):
    """Types the shell blocks of a page in the copy, line by line, with other words in some places; returns what was said."""
    said = {}
    for command in typed.commands((ROOT / page).read_text(), in_text=False):
        line = command
        for word, other in places.items():
            line = line.replace(word, str(other))
        said[command] = copy.run("bash", "-euc", line, DVC_SITE_CACHE_DIR=str(copy.folder / ".dvc/site"), **here())
    return said


@pytest.fixture
def clean(copy):
    """The copy as it was committed, with a network that was trained in it, and without the stores of the sets above."""
    (copy.folder / "machine.yaml").unlink(missing_ok=True)
    for store in (copy.folder / "data/store").glob("*"):
        if store.is_symlink():  # the page on ImageNet asks its reader for one
            store.unlink()
        elif store.name in layouts.ALL:
            shutil.rmtree(store)
    copy.run("git", "reset", "-q", "--hard")
    if not (copy.folder / "data/model.pt").exists():
        copy.run("dvc", "repro", **here())
    yield copy
    copy.run("git", "reset", "-q", "--hard")


def test_the_page_on_fine_tuning_is_typed(ray_session, clean, tmp_path):
    before = clean.run("git", "status", "--porcelain")
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for number in range(50):
            (tmp_path / name / f"{number}.jpg").write_bytes(miniature.jpeg(100 * label + number, 64))
    (written,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/finetuning.md").read_text(), re.S)
    written = written.replace("epochs: 10", "epochs: 2").replace("[8]", "[1]")
    (clean.folder / "recipes/sources/pets.yaml").write_text(written)
    checked = {
        "/data/pets": tmp_path,
        "cat.jpg": tmp_path / "cat/0.jpg",
        "pets-onnx": f"work/pets-onnx --check {tmp_path}",
    }
    said = typed_in(clean, "docs/finetuning.md", checked)
    assert "source.folder" in said["alexnet run --dry --source pets"]
    trained = said["alexnet run --source pets"]
    assert re.search(r"conv1, .* of .*data/model\.pt", trained)
    assert re.search(r"fc8\S* is .* in that network", trained), "ten classes there, two here"
    assert re.search(r"^evaluate: 20 pictures, top-1 error", trained, re.M)
    assert {"cat", "dog"} <= set(said["alexnet predict cat.jpg --model pets"].split())
    assert (clean.folder / "work/confused.html").exists()
    assert list((clean.folder / "work/pets-onnx").glob("*.onnx"))
    (clean.folder / "recipes/sources/pets.yaml").unlink()
    assert clean.run("git", "status", "--porcelain") == before, "the results here stay as they are"


def test_the_page_on_imagenet_is_typed_on_its_miniature(ray_session, clean, tmp_path):
    layout = layouts.ALL["ilsvrc2012"](tmp_path)
    with (clean.folder / "recipes/sources/ilsvrc2012.yaml").open("w") as file:
        YAML().dump({**TWO_STEPS, "source": layout.section}, file)
    clean.run("git", "commit", "-qam", "the miniature")
    said = typed_in(clean, "docs/imagenet.md", {"/data/imagenet": tmp_path / "ilsvrc2012"})
    assert "as experiment original-2012-ilsvrc2012" in said["alexnet run --recipe original-2012 --source ilsvrc2012"]
    assert params.load(clean.folder / "params.yaml")["source"] == layout.section, "as dvc exp apply brought it"
    check(clean.folder, layout)
    assert (clean.folder / "compared.html").exists()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_screenshots_are_taken_of_finished_runs(clean, ray_session):
    if not clean.run("dvc", "exp", "list", "--name-only").split():
        clean.run("dvc", "exp", "run", "--temp", "--name", "other", "-S", "report.seed=1", **here())
    pictures = clean.folder / "docs/pictures"
    shutil.rmtree(pictures, ignore_errors=True)
    clean.run("python", "docs/screenshots.py", ".")
    assert {file.name for file in pictures.iterdir()} == {file.name for file in (ROOT / "docs/pictures").iterdir()}
