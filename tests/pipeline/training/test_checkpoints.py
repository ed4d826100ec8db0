"""Checkpoints: the newest whole one is gone on from, and what is damaged is named and left."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.training import checkpoints


def contents(step: int, **others: Any) -> dict[str, Any]:
    """As a training has them."""
    tensor = torch.arange(1000.0) + step
    progress = {"step": step, "epoch": step // 3, "batch": 0, "steps": [{"step": step, "loss": 1 / step}]}
    facts = {"fingerprint": "ours", "classes": [["n00000000", "a word"]], "code": {"files": {}, "libraries": {}}}
    return {**facts, "weights": {"w": tensor}, "velocity": {"w": -tensor}, "progress": progress, **others}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with whole checkpoints at steps 3, 6 and 9."""
    for step in (3, 6, 9):
        checkpoints.write(tmp_path, contents(step))
    return tmp_path


def file(run: Path, step: int) -> Path:
    return run / f"checkpoint-{step:09d}-{step // 3:04d}" / checkpoints.FILE


def flip(where: Path, place: Callable[[bytes], int]) -> None:
    data = bytearray(where.read_bytes())
    data[place(bytes(data))] ^= 1
    where.write_bytes(data)


def tensor(data: bytes) -> int:
    return data.index((torch.arange(1000.0) + 9).numpy().tobytes()) + 2001


def a_number_in_the_progress(data: bytes) -> int:
    return data.index(b"step") + 7


def the_fingerprint(data: bytes) -> int:
    return data.index(b"ours")


def the_name_of_the_digest(data: bytes) -> int:
    return data.rindex(b"sha256 ")


def the_digest(data: bytes) -> int:
    return data.rindex(b"sha256 ") + 20


def the_zip_directory(data: bytes) -> int:
    return data.rindex(b"PK\x01\x02") + 42


def the_end_of_the_zip(data: bytes) -> int:
    return data.rindex(b"PK\x05\x06") + 16


PLACES = [
    tensor,
    a_number_in_the_progress,
    the_fingerprint,
    the_name_of_the_digest,
    the_digest,
    the_zip_directory,
    the_end_of_the_zip,
]


@pytest.mark.parametrize("place", PLACES)
def test_a_flipped_bit_is_never_gone_on_from(run: Path, place: Callable[[bytes], int]) -> None:
    flip(file(run, 9), place)
    damaged, said = file(run, 9).read_bytes(), list[str]()
    found = checkpoints.newest_whole_checkpoint(run, "ours", said.append)
    assert found is not None
    assert found.step == 6
    (line,) = said
    assert str(file(run, 9)) in line
    assert "not resumed from" in line
    assert file(run, 9).read_bytes() == damaged, "it is left"


@pytest.mark.parametrize("keep", [0, 10, 4000])
def test_a_cut_newest_one_costs_no_more_than_itself(run: Path, keep: int) -> None:
    file(run, 9).write_bytes(file(run, 9).read_bytes()[:keep])
    said: list[str] = []
    found = checkpoints.newest_whole_checkpoint(run, "ours", said.append)
    assert found is not None
    assert found.step == 6
    assert len(said) == 1


def test_one_whose_file_is_gone_is_passed_over_whatever_rays_list_says(run: Path) -> None:
    file(run, 9).unlink()
    (run / "checkpoint_manager_snapshot.json").write_text('{"latest_checkpoint_result": "checkpoint-000000009-0003"}')
    said: list[str] = []
    found = checkpoints.newest_whole_checkpoint(run, "ours", said.append)
    assert found is not None
    assert found.folder == file(run, 6).parent
    assert "No such file" in said[0]


def test_where_none_is_whole_nothing_begins_anew_by_itself(run: Path) -> None:
    for step in (3, 6, 9):
        flip(file(run, step), lambda data: data.rindex(b"sha256 ") + 20)
    said: list[str] = []
    with pytest.raises(ValueError, match=r"none of its checkpoints is whole \(3 there\).*begin anew.*rm -r"):
        checkpoints.newest_whole_checkpoint(run, "ours", said.append)
    assert len(said) == 3


def test_a_run_without_checkpoints_begins(tmp_path: Path) -> None:
    assert checkpoints.newest_whole_checkpoint(tmp_path / "none", "ours", pytest.fail) is None


def test_a_damaged_one_does_not_get_in_the_way_of_the_same_step(run: Path) -> None:
    flip(file(run, 9), tensor)
    damaged = file(run, 9).read_bytes()
    again = checkpoints.write(run, contents(9))
    assert file(run, 9).read_bytes() == damaged
    found = checkpoints.newest_whole_checkpoint(run, "ours", pytest.fail)
    assert found is not None
    assert found.folder == again
    assert checkpoints.read(again)["progress"]["step"] == 9


def test_a_file_of_something_else_is_no_checkpoint(run: Path) -> None:
    with file(run, 9).open("wb") as handle:
        checkpoints.sealed.write(handle, {"weights": {}, "facts": {}})
    with pytest.raises(ValueError, match=r"checkpoint\.pt: no checkpoint of a training"):
        checkpoints.read(file(run, 9).parent)


def test_one_of_before_is_read_and_has_no_code(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = contents(12)
    del old["code"]
    file(run, 12).parent.mkdir()
    torch.save(old, file(run, 12))
    found = checkpoints.newest_whole_checkpoint(run, "ours", pytest.fail)
    assert found is not None
    assert (found.step, found.code) == (12, None)
    assert "written before files had a digest" in caplog.text


def test_one_of_now_without_its_digest_is_none_of_before(run: Path) -> None:
    torch.save(contents(12), file(run, 9))
    said: list[str] = []
    found = checkpoints.newest_whole_checkpoint(run, "ours", said.append)
    assert found is not None
    assert found.step == 6


def test_another_run_s_among_them_is_refused_and_a_damaged_one_is_not_another_run_s(run: Path) -> None:
    checkpoints.write(run, contents(12, fingerprint="theirs"))
    with pytest.raises(ValueError, match=r"checkpoint-000000012-0004: belongs to run theirs, this is ours\. Move it"):
        checkpoints.newest_whole_checkpoint(run, "ours", pytest.fail)
    flip(file(run, 12), tensor_of_12)
    found = checkpoints.newest_whole_checkpoint(run, "ours", [].append)
    assert found is not None
    assert found.step == 9


def tensor_of_12(data: bytes) -> int:
    return data.index((torch.arange(1000.0) + 12).numpy().tobytes()) + 2001


def test_the_newest_two_are_kept(run: Path) -> None:
    known = [file(run, step).parent for step in (3, 6, 9)]
    checkpoints.thin_out(known)
    assert known == [file(run, 6).parent, file(run, 9).parent]
    assert checkpoints.all_folders(run) == known[::-1]


def test_without_room_it_says_so_and_leaves_no_part(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints.sealed, "write", full)
    with pytest.raises(OSError, match=r"no room for a checkpoint \(No space left on device\)\. Make room") as caught:
        checkpoints.write(run, contents(12))
    assert caught.value.errno == errno.ENOSPC
    assert str(run) in str(caught.value)
    assert len(list(run.iterdir())) == 3


def test_what_a_killed_process_has_half_written_is_cleared_and_rays_list_with_it(run: Path) -> None:
    (run / "part-checkpoint-000000012-0004").mkdir()
    (run / "checkpoint_manager_snapshot.json").write_text("{")
    checkpoints.clear(run)
    assert sorted(run.iterdir()) == [file(run, step).parent for step in (3, 6, 9)]
