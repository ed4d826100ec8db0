"""What the driver makes of its workers' news, and of their silence."""

from __future__ import annotations

import io
import math
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.driver import listening
from pipeline.driver.listening import Course, Listener
from pipeline.driver.mailbox import News, Process
from pipeline.runtime import stage, waiting
from pipeline.runtime.cluster import Placement
from pipeline.runtime.progress import Progress

PLACEMENT = Placement(workers=2, apart=True, gpu=False, threads=3)

PROCESS = Process(node="1", address="10.0.0.7", pid=42)


class Heard:
    """A listener, and all that it does."""

    def __init__(self, patience: float = 300.0) -> None:
        self.rows: list[dict[str, float]] = []
        self.progress = Progress("train", 100, "images", io.StringIO())
        self.listener = Listener(PLACEMENT, self.progress, self.rows.extend, patience, epochs=3)
        self.ends = 0

    def end(self) -> None:
        self.ends += 1

    def silent(self, seconds: float) -> None:
        self.listener._since = time.monotonic() - seconds
        self.listener._heed_silence(self.end)


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    monkeypatch.setattr(listening, "cluster_in_words", lambda: "the cluster has 10.0.0.7 with 1 CPUs")
    monkeypatch.setattr(listening, "_kill", lambda processes: None)
    return Heard()


def told(monkeypatch: pytest.MonkeyPatch, heard: Heard, *answers: News | Exception) -> None:
    """The mailbox's answers, one after another."""
    left = [*answers]

    def get(_: object, timeout: float) -> News:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(listening.ray, "get", get)
    heard.listener._mailbox = SimpleNamespace(take=SimpleNamespace(remote=lambda: None))
    for _ in answers:
        heard.listener._look()
    heard.listener._mailbox = None


def epoch(number: int, error: float) -> dict[str, float]:
    return {"step": 10.0 * number, "epoch": number, "rate": 0.1, "train_loss": 1.5, "val_top1_error": error}


def test_the_course_says_the_epoch_the_error_and_the_best_so_far() -> None:
    course = Course(epochs=3)
    assert course.take([{"step": 2, "epoch": 0, "loss": 2.25}]) == []
    assert course.words == "epoch 1 of 3, loss 2.250"
    (first,) = course.take([epoch(0, 0.5)])
    assert first == "epoch 1 of 3: validation error 50.0%, the best so far, loss 1.500"
    assert course.words == "epoch 2 of 3, error 50.0%, the best so far, loss 2.250"
    (worse,) = course.take([epoch(1, 0.75)])
    assert worse == "epoch 2 of 3: validation error 75.0%, best 50.0% (epoch 1), loss 1.500"
    assert course.take([epoch(0, 0.5), epoch(1, 0.75)]) == [], "a resumed training sends its rows again"
    (nan,) = course.take([epoch(2, math.nan)])
    assert nan == "epoch 3 of 3: validation error nan%, best 50.0% (epoch 1), loss 1.500"
    assert course.words.startswith("epoch 3 of 3, ")
    paper = Course(epochs=90)
    paper.take([epoch(87, 0.406)])
    assert len(f"train: {paper.take([epoch(89, 0.407)])[0]}") <= 80


def test_rows_are_logged_as_they_come(heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, heard, News(mailbox="a", rows=[{"step": 1}]), News(mailbox="a", rows=[{"step": 2}, {"step": 3}]))
    assert heard.rows == [{"step": 1}, {"step": 2}, {"step": 3}]


@pytest.mark.parametrize("fault", [News(mailbox="b", beats=1), TimeoutError(), listening.RayError()])
def test_after_rows_were_lost_none_is_logged_before_those_between(
    heard: Heard, monkeypatch: pytest.MonkeyPatch, fault: News | Exception
) -> None:
    """MLflow takes no step that is before its last one: the checkpoint has them all, and they are logged in order."""
    told(monkeypatch, heard, News(mailbox="a", rows=[{"step": 1}]), fault, News(mailbox="b", rows=[{"step": 5}]))
    assert heard.rows == [{"step": 1}]
    with heard.listener.attempt(None, heard.end):
        told(monkeypatch, heard, News(mailbox="c", rows=[{"step": 1}, {"step": 2}]))
    assert heard.rows == [{"step": 1}, {"step": 1}, {"step": 2}]


def test_the_progress_moves_on_from_the_checkpoint_after_a_fault(heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    told(
        monkeypatch,
        heard,
        News(mailbox="a", first=0, images=1, beats=1),
        News(mailbox="a", first=0, images=80, beats=2),
    )
    assert heard.progress.done == 80
    with heard.listener.attempt(None, heard.end):
        told(monkeypatch, heard, News(mailbox="b", first=50, images=52, beats=1))
        assert heard.progress.done == 50
        told(monkeypatch, heard, News(mailbox="b", first=50, images=90, beats=2))
    assert heard.progress.done == 90


def test_the_last_checkpoint_is_noted_for_whoever_stops_the_stage(
    heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[str] = []
    monkeypatch.setattr(stage, "reached", noted.append)
    told(monkeypatch, heard, *(News(mailbox="a", saved=saved) for saved in (0, 4, 4, 8)))
    assert noted == ["step 4", "step 8"]


def test_before_the_workers_begin_it_is_said_what_they_need_and_what_there_is(
    heard: Heard, capsys: pytest.CaptureFixture[str]
) -> None:
    for seconds in (waiting.SAID_AFTER - 1, waiting.SAID_AFTER + 1, waiting.SAID_AFTER + 2):
        heard.silent(seconds)
    needs = "its workers to begin: they are 2 processes with 3 CPU cores each, and the cluster has 10.0.0.7 with 1 CPUs"
    assert capsys.readouterr().err == f"train: waiting for {needs}, 900 s at most\n", "once"
    heard.silent(901)
    assert (heard.listener.ended, heard.listener.hopeless, heard.ends) == (
        f"gave up waiting for {needs} after 900 s",
        True,
        1,
    )


def test_workers_that_take_no_step_are_named_and_ended_and_may_be_tried_again(
    heard: Heard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told(monkeypatch, heard, News(mailbox="a", first=0, step=7, beats=2, processes=[PROCESS]))
    heard.silent(11)
    said = "a step after step 7 of its workers (42 on 10.0.0.7)"
    assert capsys.readouterr().err == f"train: waiting for {said}, 300 s at most\n"
    heard.silent(299)
    assert heard.ends == 0
    heard.silent(301)
    assert (heard.listener.ended, heard.listener.hopeless) == (f"gave up waiting for {said} after 300 s", False)
    assert heard.ends == 1


def test_a_step_that_is_honestly_long_is_no_silence(
    heard: Heard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told(monkeypatch, heard, News(mailbox="a", first=0, beats=1, processes=[PROCESS]))
    heard.listener._since -= 60
    told(monkeypatch, heard, News(mailbox="a", first=0, beats=2, processes=[PROCESS]))
    heard.silent(170)
    assert capsys.readouterr().err == ""
    heard.silent(590)
    assert heard.ends == 0
    heard.silent(620)
    assert heard.ends == 1


def test_no_thread_and_no_question_outlive_an_attempt(heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def get(_: object, timeout: float) -> News:
        asked.append(timeout)
        return News(mailbox="a")

    monkeypatch.setattr(listening.ray, "get", get)
    with heard.listener.attempt(SimpleNamespace(take=SimpleNamespace(remote=lambda: None)), heard.end):
        assert "listener" in [thread.name for thread in threading.enumerate()]
    assert "listener" not in [thread.name for thread in threading.enumerate()]
    assert len(asked) == 1, "the last news are taken"
    heard.listener._look()
    assert len(asked) == 1


def test_metrics_that_cannot_be_logged_do_not_end_the_listening(
    heard: Heard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(_: Any) -> None:
        raise OSError("MLflow is away")

    heard.listener.log = fail
    told(monkeypatch, heard, News(mailbox="a", first=0, images=1, rows=[{"step": 1}], beats=1))
    told(monkeypatch, heard, News(mailbox="a", first=0, images=30, rows=[{"step": 2}], beats=2))
    assert heard.progress.done == 30
