"""Files and folders on a disk, whole or not at all; test_paths.py has the same on an object store."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pipeline.runtime import files


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fail(out: Path, *, folder: bool) -> None:
    with files.atomic(out) as made:
        if folder:
            made.mkdir()
        (made / "stale" if folder else made).write_text("half")
        raise KeyError


def test_an_out_takes_the_place_of_what_was_there(here: Path) -> None:
    for text in ("first", "second"):
        with files.atomic(Path("data/out.txt")) as made:
            made.write_text(text)
        assert (here / "data/out.txt").read_text() == text
    with files.atomic(Path("data/out.txt")) as made:  # a folder now
        made.mkdir()
        (made / "a").write_text("1")
    assert [file.name for file in (here / "data/out.txt").iterdir()] == ["a"]
    with files.atomic(Path("data/out.txt")) as made:  # other files: none of the old ones stays
        made.mkdir()
        (made / "b").write_text("2")
    assert [file.name for file in (here / "data/out.txt").iterdir()] == ["b"]
    with files.atomic(Path("data/out.txt")) as made:  # a file again
        made.write_text("third")
    assert (here / "data/out.txt").read_text() == "third"


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("before", [None, "old"])
def test_an_error_changes_nothing(here: Path, before: str | None, *, folder: bool) -> None:
    out = Path("data/out")
    if before:
        with files.atomic(out) as made:
            made.write_text(before)
    with pytest.raises(KeyError):
        fail(out, folder=folder)
    assert (out.read_text() if out.exists() else None) == before
    assert [path.name for path in here.iterdir() if path.name != "work"] == (["data"] if before else [])


def test_what_an_earlier_try_left_is_not_in_the_out(here: Path) -> None:
    (here / "work/outs/out").mkdir(parents=True)  # by a kill
    (here / "work/outs/out/stale").touch()
    with files.atomic(Path("out")) as made:
        made.mkdir()
        (made / "fresh").touch()
    assert [file.name for file in Path("out").iterdir()] == ["fresh"]


def test_a_linked_folder_is_unlinked_not_emptied(here: Path) -> None:
    (here / "elsewhere").mkdir()
    (here / "elsewhere/kept").touch()
    (here / "link").symlink_to(here / "elsewhere")
    files.discard(here / "link")
    assert not (here / "link").is_symlink()
    assert (here / "elsewhere/kept").exists()


def test_two_that_make_one_file_do_not_meet(tmp_path: Path) -> None:
    with files.atomic(tmp_path / "file") as first, files.atomic(tmp_path / "file") as second:
        first.write_text("first")
        second.write_text("second")
        assert first.read_text() == "first"
    assert (tmp_path / "file").read_text() == "first"  # which ended last
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_a_kill_left_of_a_file_goes_when_the_file_is_made_again(tmp_path: Path) -> None:
    for name in ("a.tar.01234567.part", "a.tar.part", "b.tar.01234567.part"):
        (tmp_path / name).write_bytes(b"half")
    with files.locked(tmp_path / "a.tar"), files.atomic(tmp_path / "a.tar") as made:
        made.write_bytes(b"whole")
    left = {path.name for path in tmp_path.iterdir()} - {"a.tar.lock"}
    assert left == {"a.tar", "a.tar.part", "b.tar.01234567.part"}  # what is fetched goes on where it was


@pytest.mark.parametrize("folder", [False, True])
def test_a_disk_without_room_is_told_of_by_the_name_that_is_wanted(here: Path, *, folder: bool) -> None:
    with (
        pytest.raises(OSError, match=rf"^{here}/data: no room for out: No space left on device after 1\.0 MiB, with"),
        files.atomic(Path("data/out")) as made,
    ):
        if folder:
            made.mkdir()
        (made / "part" if folder else made).write_bytes(bytes(2**20))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not list((here / "work/outs").rglob("out"))
