"""Nearest neighbours: against all distances in float64, sorted; ties, blocks, rounding, NaN."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from alexnet import features
from alexnet.model import AlexNet
from tests.sections import PAPER

SMALL = dataclasses.replace(PAPER, width=0.0625, normalization="printed")


def all_distances(queries: np.ndarray, base: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    distances = np.sqrt(((queries[:, None].astype(np.float64) - base[None]) ** 2).sum(-1))
    order = np.argsort(distances, axis=1, kind="stable")[:, :number]
    return order, np.take_along_axis(distances, order, 1)


@pytest.mark.parametrize("blocks", [1, 3, 7, 100])
@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_nearest_equals_sorting_all(blocks: int, kind: type[np.floating]) -> None:
    generator = np.random.default_rng(0)
    queries = generator.normal(size=(9, 33)).astype(np.float32)
    base = generator.normal(size=(100, 33)).astype(kind)
    rows, distances = features.nearest(queries, np.array_split(base, blocks), 6)
    expected_rows, expected_distances = all_distances(queries, base, 6)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(distances, expected_distances, rtol=1e-12)


def test_near_ones_far_from_zero_are_told_apart() -> None:
    """|q|² + |b|² - 2 q·b in float32 alone would order these by its rounding."""
    generator = np.random.default_rng(0)
    centre = 1000 * generator.normal(size=64).astype(np.float32)
    base = (centre + 0.01 * generator.normal(size=(500, 64))).astype(np.float32)
    queries = base[:5] + np.float32(0.005)
    rows, _ = features.nearest(queries, np.array_split(base, 4), 6)
    np.testing.assert_array_equal(rows, all_distances(queries, base, 6)[0])
    product = (queries**2).sum(1)[:, None] + (base**2).sum(1) - 2 * queries @ base.T
    assert (np.argsort(product, axis=1)[:, :6] != rows).any(), "the case has become too easy"


def test_equal_distances_take_the_lower_row() -> None:
    base = np.tile(np.eye(4, dtype=np.float32), (5, 1))
    for blocks in (1, 4, 20):
        rows, _ = features.nearest(np.zeros((1, 4), dtype=np.float32), np.array_split(base, blocks), 7)
        assert rows.tolist() == [[0, 1, 2, 3, 4, 5, 6]]


def test_too_few_rows_and_nan() -> None:
    base = np.array([[0, 0], [np.nan, 0], [3, 4]], dtype=np.float32)
    for blocks in (1, 3):
        rows, distances = features.nearest(np.zeros((1, 2), dtype=np.float32), np.array_split(base, blocks), 4)
        assert rows.tolist() == [[0, 2, -1, -1]]
        assert distances.tolist() == [[0, 5, np.inf, np.inf]]
    rows, _ = features.nearest(np.full((1, 2), np.nan, dtype=np.float32), [base], 2)
    assert rows.tolist() == [[-1, -1]]


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="3 features a row, the queries have 2"):
        features.nearest(np.zeros((1, 2)), [np.zeros((5, 3))], 1)
    with pytest.raises(ValueError, match="at least 1, is 0"):
        features.nearest(np.zeros((1, 2)), [np.zeros((5, 2))], 0)


@pytest.mark.slow
def test_features_and_logits_are_the_networks() -> None:
    network = AlexNet(SMALL, classes=5)
    network.draw_first_weights(1)
    network.eval()
    patches = torch.rand(2, 3, 224, 224) * 255
    found, logits = features.features_and_logits(network, patches)
    with torch.inference_mode():
        assert torch.equal(found, network.features(patches))
        assert torch.equal(logits, network(patches))
    assert found.shape == (2, 256)
