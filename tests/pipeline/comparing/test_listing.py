"""The list of runs, and runs out of a real MLflow database that the house's own code filled."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.comparing import comparison, find, groups, layout, listing, logged
from pipeline.comparing.measured import Cost, MeasuredRun, PictureSet, Rate
from pipeline.runtime.machines import Machine
from pipeline.runtime.stage import Stopped
from pipeline.tracking import courier, runs
from tests.pipeline.miniature import prepared

PHOTOGRAPHS = PictureSet(split="val", manifest="m", images=50_000, classes=1000, drawn=False, source="ilsvrc2012")


def run(name: str, error: float = 0.42, **changes: Any) -> MeasuredRun:
    tested = changes.get("tested", PHOTOGRAPHS)
    rates = {f"ten_views/top{top}_error": Rate(error=error / top, images=tested.images) for top in (1, 5)}
    plain = MeasuredRun(
        name=name, origin="MLflow run", rates=rates, tested=tested, date="2026-11-27T03:04:05+00:00", fingerprint=name,
        params={"learning.seed": 0, "learning.rate": 0.01}, cost=Cost(minutes=61.5, images_per_second=812.2),
    )  # fmt: skip
    return dataclasses.replace(plain, **changes)


def test_the_newest_is_said_to_be_good_or_not() -> None:
    champion = run("best", 0.40)
    lines = listing.verdict([run("new", 0.41), run("before", 0.43)], [(champion, "alexnet")])
    assert lines[0].startswith("new: top-1 error 41.00 (40.57 to 41.43) %")
    assert lines[1].startswith(
        "The run before: better by 2.00 points than before, which has 43.00 (42.57 to 43.43) %; their"
    )
    assert lines[1].endswith("their intervals do not overlap.")
    assert lines[2].startswith("The champion of alexnet: worse by 1.00 points than best, which has 40.00")
    assert lines[3].startswith(
        "The paper, ILSVRC-2012, ten views (Table 2): 40.7 %; this run is worse than that (+0.30 points); inside"
    )
    assert "It is the champion of alexnet." in listing.verdict([champion], [(champion, "alexnet")])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"drawn": True}, "a program drew the pictures"),
        ({"classes": 100}, "the pictures or classes are not the paper's"),
        ({"images": 5_000}, "the pictures or classes are not the paper's"),
        ({"split": "test"}, "the pictures or classes are not the paper's"),
        ({"classes": None}, "does not record its classes"),
    ],
)
def test_the_paper_is_beside_a_run_only_if_it_tested_the_paper_s_pictures(changes: dict[str, Any], words: str) -> None:
    said = listing.of_paper(run("a", tested=dataclasses.replace(PHOTOGRAPHS, **changes)))
    assert words in said
    assert "40.7" not in said


@pytest.mark.parametrize(("error", "guesses"), [(0.9989, True), (0.9991, True), (0.99, False)])
def test_a_network_that_learned_nothing_is_called_that(error: float, guesses: bool) -> None:
    words = "It cannot be told from guessing among 1,000 classes, which errs by 99.9 %."
    one, other = run("new", error), run("before", 0.4, params={"learning.seed": 0, "learning.rate": 0.02})
    assert (words in listing.verdict([one, other], [])) == guesses
    said = comparison.verdicts(groups.grouped([other, one]), [])
    assert (f"new {words[3:]}" in said) == guesses


def test_runs_of_other_pictures_are_not_compared() -> None:
    other = run("before", tested=dataclasses.replace(PHOTOGRAPHS, manifest="other"))
    lines = listing.verdict([run("new"), other], [(other, "alexnet")])
    assert (
        lines[1] == "The run before: before, with 42.00 (41.57 to 42.43) %, was tested on other pictures: not compared."
    )
    assert not any("champion" in line for line in lines)


def test_a_run_without_errors_is_said_to_have_none_and_the_one_before_it_is_judged() -> None:
    failed = run("bad", rates={}, state="failed, in train")
    lines = listing.verdict([failed, run("new"), run("old", 0.5)], [])
    assert lines[:2] == ["bad: failed, in train.", "The last one with errors is new:"]
    assert listing.verdict([failed], []) == ["bad: failed, in train."]


@pytest.mark.parametrize("number", [1, 3, 12])
def test_the_table_is_no_wider_than_a_terminal_and_says_which_parameters_it_leaves_out(number: int) -> None:
    made = [
        run(
            "x" * 40 + str(row),
            params={"learning.seed": row, **{f"model.parameter_{key}": f"value {row * key}" for key in range(number)}},
        )
        for row in range(3)
    ]
    table = listing.table(made, [(made[1], "alexnet")])
    assert max(map(len, layout.text([table]).split("\n"))) <= layout.WIDTH
    assert all(len(line) == 1 for line in (layout.columns([row]) for row in [table.head, *table.rows]))
    keys = {f"model.parameter_{key}" for key in range(1, number)}
    assert {key for key in keys if key in table.head or key in table.note} == keys
    assert [row[0].endswith(" *") for row in table.rows] == [False, True, False]
    assert [row[2] for row in table.rows] == ["42.0 (41.6–42.4)"] * 3
    assert [row[table.head.index("learning.seed")] for row in table.rows] == ["0", "1", "2"]


def test_the_table_escapes_names() -> None:
    text = layout.text([listing.table([run("\x1b[2J<script>"), run("a\nb")], [])])
    assert all(line.isprintable() for line in text.split("\n"))


METRICS = {
    view: {f"top{top}_error": 0.25 / top for top in (1, 5)} | {"top1_low": 0.1, "top1_high": 0.5}
    for view in ("ten_views", "centre")
}


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working copy whose database has four runs: evaluated twice, failed, and stopped."""
    folder = tmp_path_factory.mktemp("logs")
    with pytest.MonkeyPatch.context() as patched, contextlib.ExitStack() as stack:
        for name in list(os.environ):
            if name.startswith(("MLFLOW_", "DVC_", "ALEXNET_")):
                patched.delenv(name)
        patched.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
        patched.setenv("GIT_CEILING_DIRECTORIES", str(folder.parent))
        patched.chdir(folder)
        sender = stack.enter_context(courier.running("kept"))  # one for all, since it takes seconds to be there
        patched.setattr(courier, "running", lambda _: contextlib.nullcontext(sender))
        manifest = prepared(folder, 4, 4, 2, side=32)
        (folder / "metrics.json").write_text(json.dumps({"images": 4, "classes": 2, **METRICS}))
        for number, rate in enumerate((0.01, 1e-05)):
            params = {"learning": {"rate": rate, "seed": 0}, "model": {"kernels": [1, 2]}, "results": {"split": "val"}}
            with runs.run(Machine(), f"{number}" * 16, params, manifest, "train") as record:
                rows = [(step, {"train/loss": 2.0 - step, "rate": rate, "epoch": 0.0}) for step in (1, 2)]
                record.log_all([*rows, (3, {"val/top1_error": 0.5, "val/loss": float("nan"), "epoch": 0.0})])
            with runs.run(Machine(), f"{number}" * 16, params, manifest, "evaluate", adopt=True) as record:
                record.score({"ten_views/top1_error": 0.25, "ten_views/top5_error": 0.05})
                if number:
                    record.artifact(folder / "metrics.json", "evaluation")
        for number, error in ((2, ValueError("no")), (3, Stopped(15))):
            with pytest.raises(type(error)), runs.run(Machine(), f"{number}" * 16, {}, manifest, "train"):
                raise error
        yield folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of MLflow's own code
def test_runs_come_back_as_they_were_logged(
    logs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.read_bytes() for file in logs.glob("mlflow.db")}
    found = [each for each, _ in logged.last(10)]
    assert [each.fingerprint[0] for each in found] == ["3", "2", "1", "0"]
    assert [each.state for each in found] == [
        "stopped before its end, in train",
        "failed, in train",
        "finished",
        "finished",
    ]
    for each in found[2:]:
        rate = each.rate()
        assert rate is not None
        assert (rate.error, rate.images) == (0.25, 4), "of metrics.json, or of the data set's profile"
    assert (found[2].tested.classes, found[3].tested.classes) == (2, None)
    assert groups.differing([found[2].params, found[3].params]) == ["learning.rate"]
    assert found[2].params["learning.rate"] == 1e-05
    by_name = find.runs(["1" * 16])[0]
    assert by_name.name == found[2].name == find.runs([found[2].name])[0].name == find.runs(["11111111"])[0].name
    assert [row["loss"] for row in by_name.steps if "loss" in row] == [1.0, 0.0]
    assert by_name.epochs[-1]["val_top1_error"] == 0.5
    with pytest.raises(
        ValueError, match=r"rusty-nail: no folder with metrics.json, study, experiment, revision or run"
    ):
        find.runs(["rusty-nail"])
    comparison.compare(["0" * 16, "1" * 16], html=logs / "page.html", markdown=logs / "page.md")
    said = capsys.readouterr().out
    assert re.search(r"learning.rate +0.01 +1e-05", said)
    assert "paired: 25.00 - 25.00 = +0.00" in said
    assert "<svg" in (logs / "page.html").read_text() and "learning.rate" in (logs / "page.md").read_text()
    listing.runs(4)
    said = capsys.readouterr().out
    said_before = said
    assert "as good as" in said and "a program drew the pictures" in said
    listing.runs(2, as_json=True)
    assert [each["state"] for each in json.loads(capsys.readouterr().out)["runs"]] == [each.state for each in found[:2]]
    assert {file: file.read_bytes() for file in before} == before, "reading has written"
    with runs.run(Machine(), "e" * 16, {"members": ["a", "HEAD"]}, None, "ensemble", adopt=True) as record:
        record.score({"ten_views/top1_error": 0.125})
    listing.runs(4)
    after = capsys.readouterr().out
    assert "ensemble" not in after, "it is no training"
    assert after.split("The last run")[1].splitlines()[1:] == said_before.split("The last run")[1].splitlines()[1:]


def test_where_nothing_was_logged_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    listing.runs()
    assert "no run is in MLflow yet" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="--last has to be at least 1, is 0"):
        listing.runs(0)
