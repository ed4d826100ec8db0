"""The pictures of a study's base are made in a copy, once, and nothing of the working copy changes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.runtime import params
from pipeline.shards.manifest import Manifest
from studies import workspace
from studies.study import Study, Variant

ROOT = Path(__file__).parents[2]

STUDY = Study(name="x", target="train", seeds=(0,), variants=(Variant(name="a", changes={}, section="", paper=""),))

CHANGES = {"source": {"train_images": 40, "val_images": 12}, "resize": {"max_rejected": 0.1}}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working copy without git, whose params.yaml has other pictures than the study's base."""
    for name in workspace.CODE:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".dvcignore", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc/config", tmp_path / ".dvc")
    (tmp_path / "studies/x").mkdir(parents=True)
    base = params.load(ROOT / "params.yaml")
    for section, values in CHANGES.items():
        assert values.keys() <= base[section].keys()
        base[section].update(values)
    with (tmp_path / "studies/x/base.yaml").open("w") as handle:
        YAML(typ="safe").dump(base, handle)
    for name in ("DVC_ROOT", "DVC_STAGE", "DVC_SITE_CACHE_DIR", "ALEXNET_MACHINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path) -> dict[str, bytes]:
    """What a person has in the working copy."""
    own = [file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    tops = ("work", "data", ".dvc")
    return {
        name: file.read_bytes() for file in own if (name := str(file.relative_to(folder))).split("/")[0] not in tops
    }


@pytest.mark.slow
def test_the_pictures_are_those_of_the_base_and_are_made_once_beside_the_working_copy(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "machine.yaml").write_text("workers: 1\n")
    before = files(here)
    prepared = workspace.prepare(STUDY)
    assert (prepared.manifest.rows("train"), prepared.manifest.rows("val")) == (39, 12)  # one of the sample is damaged
    copy = here / "work/studies/x"
    assert Path(str(prepared.shards)) == copy / "data/shards"
    assert prepared.mean == copy / "data/mean.npz"
    assert Manifest.read(copy / "data/shards") == prepared.manifest
    assert files(here) == before
    assert [*(here / "data/store").iterdir()], "the store is not that of the working copy"
    assert [*(here / ".dvc/cache/files/md5").iterdir()], "the cache is not that of the working copy"
    assert not (copy / "data/store").exists()
    assert not (copy / ".dvc/cache").exists()
    assert params.load(copy / "machine.yaml")["workers"] == 1
    capfd.readouterr()
    assert workspace.prepare(STUDY) == prepared
    assert "Data and pipelines are up to date" in capfd.readouterr().out


@pytest.mark.slow
def test_pictures_that_cannot_be_made_are_told(here: Path) -> None:
    text = (here / "studies/x/base.yaml").read_text()
    (here / "studies/x/base.yaml").write_text(text.replace("train_images", "train_pictures"))
    with pytest.raises(ValueError, match=r"work/studies/x: dvc repro mean ended with \d+; what it said is above"):
        workspace.prepare(STUDY)


def test_the_cache_of_the_working_copy_may_lie_elsewhere(here: Path) -> None:
    assert workspace.cache() == here / ".dvc/cache"
    (here / ".dvc/config.local").write_text(f"[cache]\n    dir = {here / 'elsewhere'}\n")
    assert workspace.cache() == here / "elsewhere"
    (here / ".dvc/config.local").write_text("[cache]\n    dir = ../beside\n")
    assert workspace.cache().resolve() == here / "beside"
