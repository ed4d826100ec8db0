"""Comparisons: who is compared with whom and what is said of it, against statistics by hand; pages without names' markup."""

from __future__ import annotations

import dataclasses
import hashlib
import html.parser
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import binomtest, chi2

from pipeline.comparing import answers, comparison, find, groups, layout, outs
from pipeline.comparing.answers import McNemar
from pipeline.comparing.groups import Group, grouped
from pipeline.comparing.measured import Cost, MeasuredRun, PictureSet, Rate
from pipeline.evaluation import mistakes, vectors
from pipeline.runtime import run_record
from tests.names import NASTY

ROOT = Path(__file__).parents[3]

PICTURES = PictureSet(split="val", manifest="m", images=200, classes=4)


def run(name: str = "a", seed: int = 0, error: float = 0.25, **changes: Any) -> MeasuredRun:
    params = {"learning.seed": seed, "learning.rate": 0.01, "model.dropout": 0.5} | changes.pop("params", {})
    rates = {
        f"{view}/top{top}_error": Rate(error=error / top, images=200)
        for view in ("ten_views", "centre")
        for top in (1, 5)
    }
    points = [
        {"step": float(step), "epoch": float(step), "loss": 2.0 - error * step, "val_top1_error": error}
        for step in range(4)
    ]
    plain = MeasuredRun(
        name=name, origin="here", params=params, rates=rates, tested=PICTURES, steps=points, epochs=points
    )
    return dataclasses.replace(plain, **changes)


def cells(table: layout.Table) -> dict[str, dict[str, str]]:
    return {row[0]: dict(zip(table.head, row, strict=True)) for row in table.rows}


OTHER = {"params": {"model.dropout": 0.0}}


def test_runs_that_differ_in_their_seed_alone_are_one_group() -> None:
    runs = [run("a", 0), run("b", 0, **OTHER), run("a", 1), run("b", 2, **OTHER), run("twice", 1)]
    assert [[each.name for each in group.runs] for group in grouped(runs)] == [["a", "a"], ["b", "b"], ["twice"]]


def test_the_difference_is_of_the_seeds_that_both_have_and_minus_the_other_way_round() -> None:
    one = [run("a", seed, error) for seed, error in enumerate((0.30, 0.40, 0.50))]
    two = [run("b", seed, error, **OTHER) for seed, error in ((0, 0.31), (1, 0.39))]
    there, back = comparison.errors(grouped([*one, *two])), comparison.errors(grouped([*two, *one]))
    assert cells(there)["b"]["top-1 minus a's, points"].startswith("paired: 35.00 - 35.00 = +0.00 (")
    assert (cells(there)["a"]["n"], cells(there)["b"]["n"], cells(there)["b"]["pairs"]) == ("3", "2", "2")
    assert cells(there)["a"]["top-1 error, %"] == "40.00 ± 10.00"
    (a, b), (c, d) = ([*map(float, re.findall(r"[+-]\d+\.\d+", cells(table)[name][f"top-1 minus {base}'s, points"]))][1:]
                      for table, name, base in ((there, "b", "a"), (back, "a", "b")))  # fmt: skip
    assert (a, b) == (-d, -c)


def test_other_seeds_are_no_pairs_and_said_to_be_none() -> None:
    table = comparison.errors(grouped([run("a", 0, 0.30), run("b", 1, 0.25, **OTHER)]))
    assert cells(table)["b"]["top-1 minus a's, points"] == "not paired, other seeds: 25.00 - 30.00 = -5.00"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tested": dataclasses.replace(PICTURES, manifest="other")}, "tested on other pictures"),
        ({"tested": dataclasses.replace(PICTURES, images=199)}, "tested on other pictures"),
        ({"tested": dataclasses.replace(PICTURES, split="test")}, "tested on other pictures"),
        ({"tested": PictureSet()}, "whether the test pictures are the same is not recorded"),
        ({"rates": {"centre/top1_error": Rate(error=0.1, images=200)}}, "tested on ten views and centre patch"),
        ({"rates": {}, "state": "failed, in train"}, "b is failed, in train"),
    ],
)
def test_what_cannot_be_compared_has_no_difference_and_no_verdict(changes: dict[str, Any], words: str) -> None:
    both = grouped([run("a"), run("b", **OTHER, **changes)])
    assert words in cells(comparison.errors(both))["b"]["top-1 minus a's, points"]
    (line,) = comparison.verdicts(both, [])
    assert words in line
    assert not re.search("better|worse|as good", line)
    assert comparison.tested(both) == []
    json.dumps(comparison.plain(both, []), allow_nan=False)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (0.26, "b is worse than a by 1.00 points; their intervals overlap"),
        (0.05, "b is better than a by 20.00 points; their intervals do not overlap"),
        (0.25, "b is as good as a"),
    ],
)
def test_the_verdict_is_in_words(error: float, words: str) -> None:
    (line,) = comparison.verdicts(grouped([run("a"), run("b", error=error, **OTHER)]), [])
    assert line.startswith(words)


def test_a_difference_over_seeds_is_sure_only_if_its_interval_leaves_out_0() -> None:
    base = [run("a", seed, error) for seed, error in enumerate((0.30, 0.32, 0.31))]
    sure = [run("b", seed, error, **OTHER) for seed, error in enumerate((0.35, 0.372, 0.359))]
    unsure = [run("b", seed, error, **OTHER) for seed, error in enumerate((0.35, 0.30, 0.40))]
    assert "does not contain 0" in comparison.verdicts(grouped([*base, *sure]), [])[0]
    assert "the seeds alone can explain it" in comparison.verdicts(grouped([*base, *unsure]), [])[0]


def test_parameters_that_one_does_not_record_do_not_differ_and_those_it_lacks_do() -> None:
    one = {"source.name": "sample", "source.seed": 0, "learning.rate": 1e-05, "learning.seed": 0, "report.seed": 0}
    two = {"learning.rate": 0.00001, "learning.seed": 1}
    assert groups.differing([one, two]) == []
    assert groups.differing([one, two | {"source.name": "cifar10"}]) == ["source.name", "source.seed"]
    assert groups.word({"a": 1.0}, "a") == groups.word({"a": 1}, "a") == "1"
    assert groups.word({"a": [1.0, 2.5]}, "a") == groups.word({"a": (1, 2.5)}, "a") == "[1, 2.5]"
    assert groups.word({"a": True}, "a") != groups.word({"a": 1}, "a")


def predictions(labels: list[int], guesses: list[int], ids: list[str] | None = None) -> bytes:
    shares = torch.full((len(labels), 4), 0.1)
    shares[range(len(guesses)), guesses] = 0.7
    columns = {"id": ids or [f"p{row}" for row in range(len(labels))], "label": labels}
    file = io.BytesIO()
    pq.write_table(pa.table({**columns, "probabilities": vectors.to_column(shares, "float32")}), file, row_group_size=7)
    return file.getvalue()


def of(data: bytes) -> answers.Answers:
    return answers.of(mistakes.read("x", io.BytesIO(data)))


def test_mcnemar_counts_the_pictures_that_one_alone_has_right() -> None:
    lots = np.random.default_rng(0)
    labels = lots.integers(4, size=100).tolist()
    one, two = (lots.integers(4, size=100).tolist() for _ in range(2))
    there, back = (answers.mcnemar(*pair) for pair in (
        (of(predictions(labels, one)), of(predictions(labels, two))), (of(predictions(labels, two)), of(predictions(labels, one)))
    ))  # fmt: skip
    right = np.array([one, two]) == labels
    assert (there.only_first, there.only_second) == (
        int((right[0] & ~right[1]).sum()),
        int((~right[0] & right[1]).sum()),
    )
    assert there.difference == pytest.approx(100 * (right[0].mean() - right[1].mean()))
    assert there.difference == -back.difference
    assert there.interval == pytest.approx((-back.interval[1], -back.interval[0]))
    assert there.p == pytest.approx(back.p)
    assert there.p == pytest.approx(binomtest(there.only_first, there.only_first + there.only_second).pvalue)


def test_for_many_pictures_mcnemar_is_the_textbook_s_chi_square() -> None:
    test = McNemar(images=50_000, only_first=2_400, only_second=2_250)
    statistic = (abs(2_400 - 2_250) - 1) ** 2 / (2_400 + 2_250)
    assert test.p == pytest.approx(chi2.sf(statistic, 1), rel=0.01)
    half = 1.96 * np.sqrt(2_400 + 2_250 - 150**2 / 50_000) / 500
    assert test.interval == pytest.approx((0.3 - half, 0.3 + half), abs=0.002)
    assert McNemar(images=9, only_first=0, only_second=0).p == 1


def test_other_pictures_and_labels_have_no_mcnemar() -> None:
    one = of(predictions([0, 1], [0, 0]))
    with pytest.raises(ValueError, match="picture p0 has label 0 in one test and 1"):
        answers.mcnemar(one, of(predictions([1, 1], [0, 0])))
    with pytest.raises(ValueError, match="was tested with one network only"):
        answers.mcnemar(one, of(predictions([0, 1], [0, 0], ["p0", "p9"])))


def test_the_answers_of_two_runs_decide_where_both_are_at_hand() -> None:
    labels = [0] * 200
    first = predictions(labels, [0] * 150 + [1] * 50)
    second = predictions(labels, [0] * 120 + [1] * 80)
    runs = [
        run("a", predictions=lambda: io.BytesIO(first)),
        run("b", error=0.4, predictions=lambda: io.BytesIO(second), **OTHER),
        run("c", params={"model.dropout": 0.1}),
    ]
    found = comparison.tested(grouped(runs))
    assert [(name, test.only_first, test.only_second) for name, test in found] == [("b", 30, 0)]
    assert "on the same pictures, more than chance (p = 1.9e-09)" in comparison.verdicts(grouped(runs), found)[0]


class Elements(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.names: set[str] = set()
        self.addresses: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.names |= {name for name, _ in attributes}
        self.addresses += [
            value or "" for name, value in attributes if name.endswith(("src", "href")) or name == "action"
        ]

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(runs: list[MeasuredRun]) -> tuple[Elements, str]:
    text = layout.to_html(comparison.TITLE, comparison.parts(grouped(runs), []))
    elements = Elements()
    elements.feed(text)
    return elements, text


@pytest.mark.slow
def test_the_page_makes_no_request_and_runs_nothing_whatever_runs_are_called() -> None:
    named = [
        run(name, params={"start.network": name, "model.dropout": number / 100}, cost=Cost(machine=name), notes=(name,))
        for number, name in enumerate(NASTY[:45:3])
    ]
    elements, text = page_of(named)
    assert not elements.tags & {"script", "img", "link", "iframe", "object", "a", "foreignobject"}
    assert not [name for name in elements.names if name.startswith("on")]
    assert all(address.startswith("#") for address in elements.addresses)
    assert not re.search(r"https?:|url\((?!#)|@import", text)
    assert NASTY[9] in elements.text
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    shown = layout.to_markdown(comparison.TITLE, comparison.parts(grouped(named), []))
    assert "<script" not in shown
    assert max(map(len, layout.text(comparison.parts(grouped(named[:8]), [])).split("\n"))) <= layout.WIDTH


@pytest.mark.slow
def test_equal_runs_give_an_equal_page_with_both_curves() -> None:
    runs = [run("a"), run("b", error=0.1, **OTHER)]
    elements, text = page_of(runs)
    assert text == page_of(runs)[1]
    assert text.count("<svg") == 2
    assert {"Training loss", "b"} <= set(elements.text.split("\n")) | {"Training loss", "b"}
    assert "currentColor" in text


STUDIES = ("ablations", "ablations_quarter_width", "plateau", "sample")


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in STUDIES:
        shutil.copytree(ROOT / "studies" / name, tmp_path / "studies" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "studies"


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_s_comparison_has_its_table_s_differences(studies: Path, name: str) -> None:
    found = cells(comparison.errors(grouped(find.runs([name]))))
    base = next(iter(found))
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in (studies / name / "table.md").read_text().splitlines()
        if line.startswith("| ")
    ][2:]
    rows = [row for row in rows if row[0] != "one view"]
    assert [row[0] for row in rows] == [*found]
    for row in rows[1:]:
        own = found[row[0]]
        assert own[f"top-1 minus {base}'s, points"] == f"paired: {row[6]}"
        assert (own["n"], own["pairs"]) == (row[2], row[5])
        if row[2] != "1":
            assert own["top-1 error, %"] == row[3]


def test_a_study_has_its_runs_with_their_parameters_and_curves(studies: Path) -> None:
    runs = find.runs(["ablations"])
    assert len(runs) == 39
    assert {each.params["learning.rate"] for each in runs if each.name.startswith("no-dropout")} == {0.005}
    assert all(each.steps and each.epochs and each.cost.minutes for each in runs)
    assert [each.name for each in find.runs(["ablations:one-column"])] == [
        f"one-column, seed {seed}" for seed in range(3)
    ]
    with pytest.raises(ValueError, match="there is no variant 'one-colum'; there are base, one-column"):
        find.runs(["ablations:one-colum"])
    (studies / "ablations/runs.csv").write_text("variant,seed\nbase,0\n")
    with pytest.raises(ValueError, match=r"runs\.csv: line 1: has no column key\. docs/studies\.md says"):
        find.runs(["ablations"])


def test_rows_of_other_parameters_are_left_out(studies: Path) -> None:
    file = studies / "plateau/base.yaml"
    file.write_text(re.sub(r"(?m)^  momentum: \S+", "  momentum: 0.25", file.read_text()))
    with pytest.raises(ValueError, match="has no row of the parameters"):
        find.runs(["plateau"])


LOCK = """stages:
  train:
    params: {params.yaml: {learning: {seed: 3, rate: 0.01}}}
    outs: [{path: data/model.pt, md5: NEW}]
  evaluate:
    deps: [{path: data/model.pt, md5: OLD}]
"""


def copied(folder: Path, lock: str) -> MeasuredRun:
    folder.mkdir(exist_ok=True)
    (folder / "params.yaml").write_text("learning: {seed: 3, rate: 0.02}\nresults: {split: val}\n")
    (folder / "dvc.lock").write_text(lock)
    shutil.copy(ROOT / "metrics.json", folder)
    return outs.here(folder)


def test_a_working_copy_has_the_parameters_that_it_ran_with(tmp_path: Path) -> None:
    found = copied(tmp_path / "copy", LOCK.replace("NEW", "OLD"))
    assert found.params["learning.rate"] == 0.01
    assert "params.yaml was changed after this run (learning.rate)" in found.notes[0]
    metrics = json.loads((ROOT / "metrics.json").read_text())
    rate = found.rate()
    assert rate is not None
    assert rate.interval == pytest.approx((metrics["ten_views"]["top1_low"], metrics["ten_views"]["top1_high"]))


def test_a_working_copy_has_the_cost_of_the_training_that_made_its_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    trained = {"one": (b"network", 60.0), "two": (b"another", 90.0)}
    for name, (model, seconds) in trained.items():
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        run_record.append(folder, "began", {"at": "2026-11-27T03:04:05+00:00", "host": "node"})
        run_record.append(folder, "ended", {"seconds": seconds, "model": hashlib.sha256(model).hexdigest()})
    for name, (model, seconds) in trained.items():
        (tmp_path / "data/model.pt").write_bytes(model)
        found = copied(tmp_path, LOCK.replace("NEW", "OLD"))
        assert (found.cost.minutes, found.fingerprint) == (seconds / 60, name)
        assert found.date == "2026-11-27T03:04:05+00:00"
    (tmp_path / "data/model.pt").write_bytes(b"a third")
    assert copied(tmp_path, LOCK.replace("NEW", "OLD")).cost.minutes is None


def test_errors_of_an_earlier_network_are_not_those_of_this_one(tmp_path: Path) -> None:
    found = copied(tmp_path / "copy", LOCK)
    assert (found.rates, found.state) == ({}, "not evaluated")
    assert any("metrics.json is of an earlier network" in note for note in found.notes)


def test_one_run_alone_is_not_a_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied(tmp_path, LOCK)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="here is one run: name another one"):
        comparison.compare(["here"])
    with pytest.raises(ValueError, match="here is named more than once, and is one run: name another one"):
        comparison.compare(["here", "here"])


def test_groups_have_a_line_of_each_run() -> None:
    assert Group((run("a", 0), run("a", 1))).seeds == "0, 1"
    assert Group((run("a, seed 0", 0),)).name == "a"
