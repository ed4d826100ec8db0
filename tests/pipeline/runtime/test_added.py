"""A key that comes to params.yaml later: with the value that means "as before" it changes nothing, with another all."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from alexnet.learning import Learning
from pipeline.runtime import added, params
from pipeline.workflow import recipe
from studies import rows
from studies.study import read

ROOT = Path(__file__).parents[3]

KEY = "learning.warm_up"
STUDIES = ("plateau", "ablations")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Later(Learning):
    """The section as code reads it that knows the new key."""

    warm_up: int


def add(file: Path, value: object) -> None:
    text = file.read_text()
    file.write_text(text.replace("\nlearning:\n", f"\nlearning:\n  warm_up: {value}\n"))
    assert params.load(file)["learning"]["warm_up"] == value


def missing() -> int:
    found = [read(name) for name in STUDIES]
    return sum(len(rows.missing(dataclasses.replace(each, seeds=(1,)), each.variants)) for each in found)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what is kept, in which params.yaml has a key more than all of it."""
    for folder in ("studies", "recipes"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.py", "*.png", "curves.csv"))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(added, "ADDED", {**added.ADDED, KEY: 0})
    return tmp_path


def test_no_recorded_run_is_missing_for_a_key_that_says_as_before(here: Path) -> None:
    assert missing() == 0
    add(here / "params.yaml", 0)
    for name in STUDIES:
        add(here / f"studies/{name}/base.yaml", 0)
    assert missing() == 0
    for name in STUDIES:
        file = here / f"studies/{name}/base.yaml"
        file.write_text(file.read_text().replace("warm_up: 0", "warm_up: 5"))
    whole = sum(len(read(name).variants) for name in STUDIES)
    assert missing() == whole, "runs of another value are taken for those that were recorded"


def test_a_variant_may_change_a_key_that_its_base_does_not_have(here: Path) -> None:
    plateau = read("plateau")
    warm, same = (dataclasses.replace(plateau.variants[0], changes={KEY: value}) for value in (5, 0))
    assert rows.missing(plateau, [same]) == []
    assert [run.parameters["learning"]["warm_up"] for run in rows.missing(plateau, [warm])] == [5, 5, 5]


def test_recipes_and_bases_and_recorded_files_stay_valid(here: Path) -> None:
    add(here / "params.yaml", 0)
    kept = [*Path("recipes").glob("*.yaml"), *Path("studies").glob("*/base*.yaml")]
    assert len(kept) >= 11
    for file in kept:
        read = params.read("learning", Later, file)
        assert read.warm_up == 0
        assert read.rate == params.load(file)["learning"]["rate"]
        assert not [word for word in recipe.command(file, params.load(file), "x") if "warm_up" in word]
    add(here / "recipes/paper.yaml", 7)
    paper = Path("recipes/paper.yaml")
    assert "learning.warm_up=7" in recipe.command(paper, params.load(paper), "x")
    # and where params.yaml is a study's base that is older than the recipe
    shutil.copy("studies/ablations/base.yaml", "params.yaml")
    assert "+learning.warm_up=7" in recipe.command(paper, params.load(paper), "x")
    assert params.read("learning", Later).warm_up == 0


def test_a_key_that_was_not_added_later_is_still_refused(here: Path) -> None:
    paper = Path("recipes/paper.yaml")
    paper.write_text(paper.read_text().replace("\nlearning:\n", "\nlearning:\n  momentun: 0.9\n"))
    with pytest.raises(
        ValueError, match=r"paper.yaml: has to have the keys of params.yaml; differs in learning.momentun"
    ):
        recipe.command(paper, params.load(paper), "x")
    paper.write_text(paper.read_text().replace("  rate: ", "  ratio: "))
    with pytest.raises(params.ParamsError, match=r"learning.rate: is missing"):
        params.read("learning", Later, paper)


def test_what_was_added_is_in_params_and_of_no_single_source() -> None:
    there = params.flat(params.load(ROOT / "params.yaml"))
    assert [key for key in added.ADDED if key not in there or key.startswith("source.")] == []
