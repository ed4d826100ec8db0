"""The predictor answers for the originals of tested pictures as `evaluate` does for the stored ones, alone and in batches."""

from __future__ import annotations

import ast
import dataclasses
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet import build
from alexnet.appearance import Appearance, measure
from alexnet.dataset import resize as rescaled
from alexnet.pictures import Undecodable, decode, encode
from alexnet.preparation import Preparation
from pipeline.evaluation import forward, trained
from pipeline.inference import predictor
from pipeline.inference.predictor import Guess, Predictor
from tests.pipeline import noise
from tests.pipeline.sections import RESIZE
from tests.sections import PREPARATION

COUNT = 50

KINDS: tuple[dict[str, Any], ...] = ({"format": "JPEG", "quality": 80}, {"format": "PNG"}, {"format": "WEBP"})


def original(number: int) -> bytes:
    """A picture file of its own size and kind, with coarse patches and noise."""
    lots = np.random.default_rng(number)
    size = (int(lots.integers(200, 500)), int(lots.integers(200, 500)))
    coarse = Image.fromarray(lots.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noisy = np.clip(np.asarray(coarse, np.float64) + lots.normal(0, 9, (*size[::-1], 3)), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, **KINDS[number % len(KINDS)])
    return file.getvalue()


def model(preparation: Preparation = PREPARATION, without: str = "", **others: Any) -> bytes:
    """The bytes of noise's model.pt with this preparation and other facts."""
    written, again = io.BytesIO(), io.BytesIO()
    noise.save(written)
    network, facts = build.load(io.BytesIO(written.getvalue()))
    facts = {**facts, "preparation": preparation.plain, **others}
    build.save(again, network, **{name: fact for name, fact in facts.items() if name != without})
    return again.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 32])
def test_the_answer_to_an_original_is_that_of_evaluate_to_the_stored_picture(
    originals: list[bytes], tested: list[dict[str, Any]], size: int
) -> None:
    shown = Predictor.load(model())
    names = trained.names(noise.CLASSES)
    for view, column in ((10, "probabilities"), (1, "centre")):
        for first in range(0, COUNT, size):
            pictures = [shown.prepare(data) for data in originals[first : first + size]]
            answers = shown.answer(pictures, view, top=5)
            for answer, row in zip(answers, tested[first : first + size], strict=True):
                best = np.argsort(-np.array(row[column]), kind="stable")[:5]
                assert [guess.wnid for guess in answer] == [noise.CLASSES[label].wnid for label in best]
                assert [guess.name for guess in answer] == [names[label] for label in best]
                np.testing.assert_allclose(
                    [guess.probability for guess in answer], [row[column][label] for label in best], atol=1e-5
                )
    assert len({int(np.argmax(row["probabilities"])) for row in tested}) > 1, "the case has become too easy"


@pytest.mark.slow
def test_the_features_are_those_of_evaluate(originals: list[bytes], tested: list[dict[str, Any]]) -> None:
    shown = Predictor.load(model())
    pictures = [shown.prepare(data) for data in originals[:3]]
    for views in (10, 1):
        _, features = shown.described(pictures, views)
        np.testing.assert_allclose(features, [row["features"] for row in tested[:3]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "preparation",
    [
        dataclasses.replace(PREPARATION, side=64),
        dataclasses.replace(PREPARATION, quality="raw"),
        dataclasses.replace(PREPARATION, quality=30, filter="area"),
        dataclasses.replace(PREPARATION, fit="warp", filter="bicubic"),
    ],
)
def test_a_picture_is_shown_as_it_would_have_been_stored(preparation: Preparation) -> None:
    data = original(1)
    expected = rescaled(decode(data), preparation.side, preparation.filter, preparation.fit)
    expected = decode(encode(expected, preparation.quality))
    assert torch.equal(preparation.prepare(data), expected)
    assert Preparation.of(preparation.plain) == preparation
    assert Preparation.of(dataclasses.replace(RESIZE, side=64).plain).side == 64


@pytest.mark.parametrize(
    ("key", "value"),
    [("fit", "zoom"), ("side", True), ("side", "256"), ("quality", 3.0), ("side", 0), ("max_megapixels", None)],
)
def test_a_preparation_with_another_value_is_refused(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        Preparation.of({**PREPARATION.plain, key: value})
    with pytest.raises(ValueError, match="has the keys side, fit, filter"):
        Preparation.of({name: value for name, value in PREPARATION.plain.items() if name != key})


def test_what_the_run_rejected_is_rejected_here() -> None:
    shown = Predictor.load(model(dataclasses.replace(PREPARATION, max_megapixels=0.01)))
    with pytest.raises(Undecodable, match=r"too many pixels: .* \(resize\.max_megapixels: 0\.01\)"):
        shown.prepare(original(1))


def test_a_network_of_older_code_says_what_to_run() -> None:
    with pytest.raises(ValueError, match=r"sent\.pt: was written by older code.* dvc repro train"):
        Predictor.load(model(without="preparation"), "sent.pt")
    with pytest.raises(ValueError, match=r"sent\.pt: not a network that `train` wrote"):
        Predictor.load(model(without="mean_kind"), "sent.pt")
    with pytest.raises(ValueError, match=r"sent\.pt: not a network that `train` wrote .*mean and classes"):
        Predictor.load(model(dataclasses.replace(PREPARATION, side=64)), "sent.pt")


@pytest.mark.slow
def test_a_picture_unlike_the_training_pictures_is_warned_of() -> None:
    """The training pictures here are those of `original`; a flat picture is none of them."""
    shown = Predictor.load(model())
    like = [shown.prepare(original(number)) for number in range(60)]
    looks = Appearance.of(np.array([measure(picture) for picture in like])).plain
    shown = Predictor.load(model(appearance=looks))
    assert sum(bool(shown.unlike(picture)) for picture in like) <= 1
    flat = torch.full((3, 256, 256), 200, dtype=torch.uint8)
    assert re.match(
        r"unlike the training pictures, which were drawn by a program \(distance [\d.]+, limit [\d.]+\)",
        shown.unlike(flat),
    )
    assert "which were photographs" in Predictor.load(model(appearance=looks, drawn=False)).unlike(flat)
    assert Predictor.load(model(appearance=None)).unlike(flat) == ""
    with pytest.raises(ValueError, match=r"not a network that `train` wrote .*appearance"):
        Predictor.load(model(appearance=1))


def test_ties_are_ordered_by_class_and_no_number_is_no_answer() -> None:
    shown = Predictor.load(model())
    even = torch.full((1, 7), 1 / 7)
    assert [guess.wnid for guess in shown.guesses(even, 9)[0]] == [f"n{label}" for label in range(7)]
    assert shown.guesses(even, 1) == [[Guess("n0", trained.names(noise.CLASSES)[0], pytest.approx(1 / 7))]]
    with pytest.raises(ValueError, match="NaN"):
        shown.guesses(torch.full((1, 7), float("nan")))
    with pytest.raises(ValueError, match="top has to be at least 1, is 0"):
        shown.guesses(even, 0)
    assert shown.answer([]) == []
    with pytest.raises(ValueError, match=r"has uint8 3 x 256 x 256, this has torch\.float32 3 x 2 x 2"):
        shown.answer([torch.zeros(3, 2, 2)])
    with pytest.raises(ValueError, match="views has to be 10 or 1, is 5"):
        shown.answer([], 5)


def test_the_predictor_needs_no_other_part_of_this_repository() -> None:
    """It is sent to places where there is only alexnet, torch and numpy."""
    tree = ast.parse(Path(predictor.__file__).read_text())
    rooms = {
        (node.module if isinstance(node, ast.ImportFrom) else alias.name or "").split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert rooms <= {"__future__", "io", "collections", "dataclasses", "typing", "torch", "numpy", "alexnet"}


def test_the_forward_pass_has_the_batch_of_evaluate() -> None:
    assert predictor.BATCH == forward.BATCH
