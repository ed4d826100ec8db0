"""The pages that lead through the whole workflow, typed line by line; and the screenshots of what they end with."""

import re
import shutil

import pytest
from ruamel.yaml import YAML

from docs import typed
from pipeline.runtime import params
from tests.pipeline import layouts, miniature
from tests.test_recipes import ROOT
from tests.test_sources import check, here
from tests.whole.conftest import TWO_STEPS

pytestmark = [pytest.mark.slow, pytest.mark.whole]


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
    """The copy as it was committed, with a network that was trained in it."""
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
