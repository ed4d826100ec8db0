"""MLflow's database in a file: any path, one that is held, one that was moved, one that was copied."""

from __future__ import annotations

import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.runtime import waiting
from pipeline.tracking import database

STRANGE = [
    "plain", "we?ird #1 & co", "100%", "a%20b %3F", "it's \"quoted\"", "semi;colon", "naïve ☃", "me@here:1", "[x] {y} $HOME `z`",
    "back\\slash", "new\nline", " ends with a space ",
]  # fmt: skip


@pytest.mark.parametrize("name", STRANGE)
def test_any_path_is_an_address_and_back(name: str, tmp_path: Path) -> None:
    from sqlalchemy.engine import make_url

    file = tmp_path / name / "mlflow.db"
    assert database.path(database.address(file)) == file
    assert make_url(database.address(file)).database == str(file), "as MLflow's own reader has it"


def test_what_is_no_file_is_refused_or_left_alone() -> None:
    assert database.path("http://host:5000") is None
    assert database.path("postgresql://u:p@host/db") is None
    for uri in ("sqlite:///a.db?mode=ro", "sqlite:////a/we?ird/mlflow.db", "sqlite:///:memory:", "sqlite:///"):
        with pytest.raises(ValueError, match="tracking: sqlite:///"):
            database.path(uri)


def made(file: Path, location: str) -> None:
    """A database with the tables and columns in which MLflow keeps places."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(file)) as there:
        for table in dict.fromkeys(table for table, _ in database.PLACES):
            columns = ", ".join(column for other, column in database.PLACES if other == table)
            there.execute(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, {columns})")
        there.execute("INSERT INTO experiments VALUES (1, ?)", (location,))
        there.execute("INSERT INTO experiments VALUES (2, 's3://bucket/mlartifacts')")
        there.execute("INSERT INTO experiments VALUES (3, '/elsewhere/mlruns/0')")
        there.execute("INSERT INTO runs VALUES (1, ?)", (f"{location}/r1/artifacts",))
        there.execute("INSERT INTO runs VALUES (2, ?)", (f"{location}-not/r1/artifacts",))
        there.execute("INSERT INTO logged_models VALUES (1, ?)", (f"{location}/models/m-1/artifacts",))
        there.execute("INSERT INTO model_versions VALUES (1, 'models:/m-1', ?)", (f"{location}/models/m-1/artifacts",))
        there.commit()


def places(file: Path) -> list[str]:
    with closing(sqlite3.connect(file)) as there:
        return [row[0] for table, column in database.PLACES for row in there.execute(f"SELECT {column} FROM {table}")]


@pytest.mark.parametrize("name", ["old", "we?ird #1 & co", "100%"])
def test_a_moved_database_uses_the_artifacts_beside_it(name: str, tmp_path: Path) -> None:
    old, new = tmp_path / name, tmp_path / f"moved {name}"
    made(old / "mlflow.db", (old / "mlartifacts").as_uri())
    assert database.repoint_artifacts(old / "mlflow.db") == ""
    before = places(old / "mlflow.db")
    old.rename(new)
    assert "was moved or copied" in database.repoint_artifacts(new / "mlflow.db")
    here = (new / "mlartifacts").as_uri()
    changed = [place.replace((old / "mlartifacts").as_uri() + "-not", "kept") for place in before]
    changed = [place.replace((old / "mlartifacts").as_uri(), here) for place in changed]
    assert [
        place.replace((old / "mlartifacts").as_uri() + "-not", "kept") for place in places(new / "mlflow.db")
    ] == changed
    assert database.repoint_artifacts(new / "mlflow.db") == ""
    assert not old.exists()


def test_a_copy_has_places_of_its_own_and_the_original_keeps_its(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    made(one / "mlflow.db", (one / "mlartifacts").as_uri())
    (one / "mlartifacts").mkdir()
    before = places(one / "mlflow.db")
    shutil.copytree(one, two)
    said = database.repoint_artifacts(two / "mlflow.db")
    assert str(one / "mlartifacts") in said and str(two / "mlartifacts") in said
    assert places(two / "mlflow.db")[0] == (two / "mlartifacts").as_uri()
    assert database.repoint_artifacts(one / "mlflow.db") == ""
    assert places(one / "mlflow.db") == before


def test_a_folder_with_two_names_is_one_place(tmp_path: Path) -> None:
    made(tmp_path / "real/mlflow.db", (tmp_path / "real/mlartifacts").as_uri())
    (tmp_path / "real/mlartifacts").mkdir()
    (tmp_path / "link").symlink_to("real")
    before = places(tmp_path / "real/mlflow.db")
    assert database.repoint_artifacts(tmp_path / "link/mlflow.db") == ""
    assert places(tmp_path / "real/mlflow.db") == before


HOLDER = """
import sqlite3, sys
held = sqlite3.connect(sys.argv[1], isolation_level=None)
held.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def held(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A database that another process holds, and that process."""
    file = tmp_path / "mlflow.db"
    made(file, (tmp_path / "mlartifacts").as_uri())
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield file, process
        process.kill()


@pytest.mark.slow
def test_a_database_that_is_held_is_refused_with_its_holder(
    held: tuple[Path, subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, process = held
    monkeypatch.setattr(database, "PATIENCE", 0.5)
    monkeypatch.setattr(waiting, "SAID_AFTER", 0.1)
    start = time.monotonic()
    with pytest.raises(TimeoutError, match="Wait for it, or end it") as caught:
        database.wait_until_free(file, "train")
    assert time.monotonic() - start < 5
    who = f"process {process.pid}" if Path("/proc/locks").exists() else "another process"
    assert re.search(rf"{file} is held by {who}\b", str(caught.value))
    assert f"train: waiting for {file}, which {who} holds" in capsys.readouterr().err


def test_a_database_that_is_let_go_is_used(held: tuple[Path, subprocess.Popen[str]]) -> None:
    file, process = held
    assert database.holder(file)
    process.kill()
    process.wait()
    database.wait_until_free(file, "train")
    assert database.holder(file) is None


def test_a_file_that_is_no_database_is_said(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("no database at all, but long enough to be read as one" * 10)
    with pytest.raises(OSError, match=r"mlflow\.db: file is not a database. Move it away"):
        database.holder(tmp_path / "mlflow.db")
    assert database.holder(tmp_path / "none.db") is None
    assert not (tmp_path / "none.db").exists()
