"""The run before a run: the newest earlier one that was tested."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pipeline.comparing import before
from pipeline.comparing.measured import MeasuredRun, PictureSet, Rate
from pipeline.runtime import run_record
from pipeline.runtime.clock import PARTS
from pipeline.runtime.machines import Machine


def run(name: str, error: float | None, **more: Any) -> tuple[MeasuredRun, dict[str, Any]]:
    rates = {} if error is None else {"ten_views/top1_error": Rate(error=error, images=200)}
    tested = PictureSet(split="val", manifest="m", images=200)
    found = MeasuredRun(name=name, origin="", fingerprint=f"print of {name}", rates=rates, tested=tested, **more)
    return found, {"listed": True}


RUNS = [
    run("later", 0.5),
    run("this", 0.1),
    run("this, once more", 0.9),
    run("not tested", None, state="not evaluated"),
    run("failed", 0.3, state="failed, in evaluate"),
    run("earlier", 0.2, date="2026-01-01T00:00:00+00:00"),
    run("first", 0.4),
]
"""As MLflow lists them, the newest first."""


def test_it_is_the_newest_earlier_one_that_was_tested(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    same = dataclasses.replace(RUNS[2][0], fingerprint="print of this")
    runs = [*RUNS[:2], (same, {"listed": True}), *RUNS[3:]]
    monkeypatch.setattr(before.logged, "last", lambda number: runs)
    found, why = before.find("print of this", Machine())
    assert found is not None
    assert (found.name, found.begun, why) == ("earlier", "2026-01-01T00:00:00+00:00", "")
    assert found.errors["top1_error"] == 0.2
    assert found.errors["top1_low"] < 0.2 < found.errors["top1_high"]
    assert "top5_error" not in found.errors
    assert found.beside.startswith("better by 10.00 points than earlier, which has 20.00 (")
    assert (found.seconds, found.images_per_second) == (None, None)
    folder = tmp_path / "runs/print of earlier"
    folder.mkdir(parents=True)
    run_record.append(folder, "began", {})
    run_record.append(folder, "epoch", dict.fromkeys(PARTS, 1.0) | {"epoch": 0, "images": 60})
    run_record.append(folder, "ended", {"seconds": 9.0})
    found, _ = before.find("print of this", Machine())
    assert found is not None
    assert (found.seconds, found.images_per_second) == (9.0, 20.0)


def test_without_one_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(before.logged, "last", lambda number: RUNS[-1:])
    assert before.find("print of first", Machine()) == (None, before.NONE)

    def away(number: int) -> list[Any]:
        raise OSError("MLflow at http://x: no answer")

    monkeypatch.setattr(before.logged, "last", away)
    assert before.find("print of first", Machine()) == (None, "MLflow at http://x: no answer")
