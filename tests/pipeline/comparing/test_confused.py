"""What a network confuses: counts against a plain loop, and a page with the stored pictures and no markup of names."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import binomtest

from pipeline import evaluate
from pipeline.comparing import confused, layout, outs
from pipeline.evaluation import mistakes, vectors
from pipeline.evaluation.mistakes import Answer
from pipeline.runtime import digests
from pipeline.shards.manifest import Manifest
from tests.pipeline.comparing.test_comparison import Elements
from tests.pipeline.noise import CLASSES, rows_of

COUNT = len(CLASSES)


def answers(seed: int = 0, number: int = 300, classes: int = 6) -> list[Answer]:
    lots = np.random.default_rng(seed)
    labels, guesses = (lots.integers(classes, size=number).tolist() for _ in range(2))
    shares = lots.uniform(0.2, 1, size=number).tolist()
    return [
        Answer(id=f"p{row:03}", label=label, guess=guess, probability=share)
        for row, (label, guess, share) in enumerate(zip(labels, guesses, shares, strict=True))
    ]


def test_pairs_are_those_of_a_plain_count_in_both_directions() -> None:
    made = answers()
    matrix = Counter((answer.label, answer.guess) for answer in made)
    found = mistakes.pairs(made)
    assert {frozenset((pair.more.label, pair.more.guess)) for pair in found} == {
        frozenset(key) for key in matrix if key[0] != key[1]
    }
    assert sum(pair.count for pair in found) == sum(answer.label != answer.guess for answer in made)
    for pair in found:
        for way in (pair.more, pair.less):
            images = sum(answer.label == way.label for answer in made)
            assert (way.count, way.images) == (matrix[way.label, way.guess], images)
            expected = binomtest(way.count, images).proportion_ci(method="wilson")
            assert way.interval == pytest.approx((expected.low, expected.high))
        assert pair.more.count >= pair.less.count
    assert [pair.count for pair in found] == sorted((pair.count for pair in found), reverse=True)
    assert found == mistakes.pairs(made[::-1]), "the order of the table decides"


def test_the_most_confident_mistake_and_the_least_sure_picture_are_first() -> None:
    made = answers()
    wrong = mistakes.most_confident(made)
    assert {answer.id for answer in wrong} == {answer.id for answer in made if answer.label != answer.guess}
    assert wrong[0].probability == max(answer.probability for answer in made if answer.label != answer.guess)
    assert mistakes.least_sure(made)[0] == min(made, key=lambda answer: answer.probability)
    none = Answer(id="x", label=0, guess=-1, probability=float("nan"))
    assert not none.wrong
    assert none not in mistakes.least_sure([*made, none])
    assert mistakes.pairs([none]) == []


def test_answers_are_read_from_predictions() -> None:
    shares = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.5, 0.0], [float("nan"), 0.0, 1.0]])
    file = io.BytesIO()
    columns = {"id": ["a", "b", "c"], "label": [1, 1, 2], "probabilities": vectors.to_column(shares, "float32")}
    pq.write_table(pa.table(columns), file, row_group_size=2)
    found = mistakes.read("x", file)
    assert [(answer.id, answer.label, answer.guess) for answer in found] == [("a", 1, 1), ("b", 1, 0), ("c", 2, -1)]
    assert [answer.probability for answer in found[:2]] == pytest.approx([0.7, 0.5])
    assert np.isnan(found[2].probability)
    with pytest.raises(ValueError, match="x: damaged, or not a predictions"):
        mistakes.read("x", io.BytesIO(b"no"))


@pytest.fixture(scope="module")
def world(summarized: tuple[Path, Manifest, dict[str, Any]]) -> Path:
    """A working copy after `evaluate`, whose classes have names that are markup and control characters."""
    folder, _, summary = summarized
    text = json.dumps(summary)
    (folder / "metrics.json").write_text(text)
    evaluate.seal(folder / "data/evaluation", text)
    digests.seal(folder / "data/shards")
    return folder


@pytest.fixture
def here(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(world)
    monkeypatch.delenv("ALEXNET_MACHINE", raising=False)
    return world


def test_the_page_has_the_stored_pictures_and_nothing_of_the_names(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    confused.confused(html=tmp_path / "page.html")
    said = capsys.readouterr().out
    assert all(line.isprintable() and len(line) <= layout.WIDTH for line in said.splitlines()[:-1])
    assert "\x1b" not in said
    page = (tmp_path / "page.html").read_text()
    elements = Elements()
    elements.feed(page)
    assert not elements.tags & {"script", "iframe", "object", "link", "a"}
    assert not [name for name in elements.names if name.startswith("on")]
    assert elements.addresses
    assert all(address.startswith("data:image/jpeg;base64,") for address in elements.addresses)
    stored = {row["image"]["bytes"] for row in rows_of(here, "val")}
    assert {base64.b64decode(address.partition(",")[2]) for address in elements.addresses} <= stored
    assert not re.search(r"https?:|url\(|@import", page)
    confused.confused(as_json=True)
    told = json.loads(capsys.readouterr().out)
    metrics = json.loads(Path("metrics.json").read_text())
    assert told["images"] == metrics["images"]
    assert told["wrong"] == sum(pair["count"] for pair in told["pairs"])
    assert told["wrong"] / told["images"] == pytest.approx(metrics["ten_views"]["top1_error"])


def test_pictures_that_are_not_of_the_run_are_not_shown(here: Path) -> None:
    run = outs.here(here)
    other = dataclasses.replace(run, tested=dataclasses.replace(run.tested, pictures="f" * 64, manifest="f" * 64))
    assert run.predictions is not None
    confusion = confused.read(dataclasses.replace(other, name="x"))
    images, why = confused.pictures(confusion)
    assert images == {}
    assert "not those of data/shards here" in why
    assert why in confused.page(confusion, images, why)


def test_a_run_whose_answers_are_not_at_hand_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("results: {split: val}\n")
    with pytest.raises(ValueError, match=r"here: its answers are not at hand: .*Run: dvc repro evaluate"):
        confused.confused()
    with pytest.raises(ValueError, match="name a run each: give one of them"):
        confused.confused("here", last=True)


def test_a_network_without_mistakes_confuses_nothing(here: Path) -> None:
    right = [dataclasses.replace(answer, guess=answer.label) for answer in answers(classes=COUNT)]
    confusion = confused.Confusion(run=outs.here(here), answers=right, classes=[f"c{k}" for k in range(COUNT)])
    assert "Nothing is confused" in layout.text(confused.parts(confusion))
    assert "Nothing is confused" in confused.page(confusion, {}, "")
