"""A working copy in a folder with any name, moved and copied: MLflow's database and artifacts stay its own."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.test_workflow import Copy

pytestmark = [pytest.mark.slow, pytest.mark.faults]


def artifacts(folder: Path) -> set[str]:
    """The artifacts' files in a working copy."""
    there = folder / "mlartifacts"
    return {str(file.relative_to(there)) for file in there.rglob("*") if file.is_file()}


def places(folder: Path) -> set[str]:
    """The locations of artifacts in the copy's database."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        return {row[0] for row in database.execute("SELECT artifact_uri FROM runs")}


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """Runs all stages in a folder whose name has characters that are special in URLs, SQL and shells."""
    folder = tmp_path_factory.mktemp("places") / "it's we?ird #1 100% & co; naïve"
    folder.mkdir()
    copy = Copy(folder)
    copy.printed = copy.run("dvc", "repro")  # type: ignore[attr-defined]
    return copy


def test_all_stages_run_in_a_folder_of_any_name(strange: Copy) -> None:
    assert json.loads((strange.folder / "metrics.json").read_text())["images"] == 12
    assert [path.name for path in strange.folder.parent.iterdir()] == [strange.folder.name], "something lies beside it"
    assert any(name.endswith("artifacts/report/index.html") for name in artifacts(strange.folder))
    assert any(name.endswith("data/model.pt") for name in artifacts(strange.folder))
    assert not list((strange.folder / "runs/journal").iterdir())


def test_a_moved_copy_and_a_copied_one_go_on_by_themselves(strange: Copy) -> None:
    old = strange.folder
    moved, copied = old.with_name("moved, 50% off"), old.with_name("copied")
    old.rename(moved)
    shutil.copytree(moved, copied, symlinks=True)
    before = artifacts(moved)
    for folder, seed in ((moved, 5), (copied, 6)):
        strange.folder = folder
        strange.change({"report": {"seed": seed}})
        said = strange.run("dvc", "repro", "report")
        assert "was moved or copied" in said
        assert all(uri.startswith((folder / "mlartifacts").as_uri()) for uri in places(folder))
        assert "was moved or copied" not in strange.run("dvc", "repro", "-f", "-s", "report")
    assert not old.exists(), "the old place was made again"
    assert artifacts(moved) == artifacts(copied) == before, "the same run, in each a page of its own"
    (page,) = (name for name in before if name.endswith("artifacts/report/index.html"))
    pages = [(folder / "mlartifacts" / page).read_text() for folder in (moved, copied)]
    assert pages[0] != pages[1]
