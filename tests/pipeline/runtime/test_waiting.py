"""Waits say what for, and end."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pytest
from filelock import FileLock

from pipeline.runtime import waiting


def test_what_takes_long_is_said_once_and_what_does_not_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(waiting, "SAID_AFTER", 0.05)
    with waiting.saying("train", "the cluster at head:6379", 60):
        time.sleep(0.2)
    assert capsys.readouterr().err == "train: waiting for the cluster at head:6379, 60 s at most\n"
    with waiting.saying("train", "nothing"):
        pass
    time.sleep(0.1)
    assert capsys.readouterr().err == ""


def hold(file: str, held: multiprocessing.synchronize.Event) -> None:
    with FileLock(file):
        held.set()
        time.sleep(60)


def test_a_lock_that_another_process_holds_is_given_up_and_taken_once_that_process_is_gone(tmp_path: Path) -> None:
    file, processes = tmp_path / "runs/abc.lock", multiprocessing.get_context("fork")
    file.parent.mkdir()
    held = processes.Event()
    other = processes.Process(target=hold, args=(str(file), held), daemon=True)
    other.start()
    assert held.wait(10)
    said = rf"gave up waiting for the run abc after 0 s: another .* holds {file}"
    with pytest.raises(TimeoutError, match=said), waiting.locked(file, "train", "the run abc", 0.1):
        pass
    other.kill()
    other.join()
    with waiting.locked(file, "train", "the run abc", 0.1):
        pass


def test_what_never_comes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([None, None, "there"])
    assert waiting.until(lambda: next(answers), "train", "it", 5, pause=0.01) == "there"
    with pytest.raises(TimeoutError, match="gave up waiting for it after 0 s"):
        waiting.until(lambda: None, "train", "it", 0.05, pause=0.01)
