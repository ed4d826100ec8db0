"""Errors: against loops over sorted scores, scipy's interval, and what must hold of ties and NaN."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from alexnet import errors


def by_shuffling(scores: list[float], label: int, top: int) -> float:
    """The chance that the label is among the `top` best when equal scores are ordered by lot: all orders are tried."""
    hits, orders = 0, list(itertools.permutations(range(len(scores))))
    for order in orders:
        ranked = sorted(order, key=lambda k: -scores[k])  # stable: equal ones stay in this order
        hits += label in ranked[:top]
    return hits / len(orders)


@pytest.mark.parametrize("top", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("scores", [[3, 1, 2, 0, 1], [1, 1, 1, 1, 1], [2, 2, 1, 1, 0], [0, 5, 5, 5, -1]])
def test_ties_get_the_chance_of_a_lot(scores: list[float], top: int) -> None:
    for label in range(5):
        credit = errors.topk_credit(torch.tensor([scores]), torch.tensor([label]), top)
        assert float(credit) == pytest.approx(by_shuffling(scores, label, top), abs=1e-12)


def test_counts_equal_a_loop_over_sorted_scores() -> None:
    generator = np.random.default_rng(1)
    scores, labels = generator.normal(size=(200, 12)), generator.integers(12, size=200)
    for top in (1, 5):
        right = sum(label in np.argsort(-row)[:top] for row, label in zip(scores, labels, strict=True))
        counted = errors.count(torch.from_numpy(scores), torch.from_numpy(labels), top)
        assert counted == errors.Count(right, 200)
        assert counted.error == (200 - right) / 200


def test_parts_add_up_to_the_whole() -> None:
    scores, labels = torch.randn(101, 7), torch.randint(7, (101,))
    parts = [errors.count(scores[a:b], labels[a:b], 5) for a, b in ((0, 40), (40, 100), (100, 101))]
    assert parts[0] + parts[1] + parts[2] == errors.count(scores, labels, 5)


def test_a_constant_network_errs_at_chance() -> None:
    labels = torch.arange(1000)
    assert errors.count(torch.zeros(1000, 1000), labels, 5).error == pytest.approx(0.995)


def test_nan_is_never_right() -> None:
    nan = math.nan
    scores = torch.tensor([[nan, 1, 0], [nan, 1, 0], [nan, nan, nan], [2, 1, 0]])
    labels = torch.tensor([0, 1, 2, 0])
    for top in (1, 3, 5):
        assert errors.topk_credit(scores, labels, top).tolist() == [0, 0, 0, 1]
    assert errors.guesses(scores).tolist() == [-1, -1, -1, 0]


def test_fewer_classes_than_five() -> None:
    assert errors.count(torch.tensor([[0.0, 1, 2]]), torch.tensor([0]), 5).error == 0


def test_nothing_seen_has_no_error() -> None:
    empty = errors.count(torch.empty(0, 3), torch.empty(0, dtype=torch.int64), 1)
    assert math.isnan(empty.error)
    assert all(map(math.isnan, empty.interval))


def test_lengths_and_top_are_checked() -> None:
    with pytest.raises(ValueError, match="2 rows of scores for 3 labels"):
        errors.topk_credit(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64), 1)
    with pytest.raises(ValueError, match="at least 1, is 0"):
        errors.topk_credit(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), 0)


@pytest.mark.parametrize(("wrong", "images"), [(0, 300), (1, 300), (150, 300), (299, 300), (300, 300), (20350, 50000)])
def test_interval_is_scipys(wrong: int, images: int) -> None:
    theirs = binomtest(wrong, images).proportion_ci(method="wilson")
    assert errors.wilson(wrong, images) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_mean_over_views_averages_probabilities() -> None:
    logits = torch.randn(3, 10, 4)
    expected = np.zeros((3, 4))
    for b, v in itertools.product(range(3), range(10)):
        powers = np.exp(logits[b, v].double().numpy())
        expected[b] += powers / powers.sum() / 10
    np.testing.assert_allclose(errors.mean_over_views(logits), expected, rtol=1e-5)
    # averaging logits would be something else
    assert not np.allclose(torch.softmax(logits.mean(1), -1), expected, rtol=1e-3)


def test_mean_over_models() -> None:
    a, b = torch.rand(5, 3), torch.rand(5, 3)
    torch.testing.assert_close(errors.mean_over_models([a, b]), (a + b) / 2)
    torch.testing.assert_close(errors.mean_over_models([a, b], [3, 1]), 0.75 * a + 0.25 * b)
    torch.testing.assert_close(errors.mean_over_models([a, b], [0, 2]), b)
    for weights, message in (([1.0], "1 weights for 2"), ([0.0, 0.0], "not all 0"), ([-1.0, 2.0], "0 or more")):
        with pytest.raises(ValueError, match=message):
            errors.mean_over_models([a, b], weights)
    with pytest.raises(ValueError, match="different pictures or classes"):
        errors.mean_over_models([a, b[:4]])


def test_the_guess_is_the_lower_of_two_classes() -> None:
    scores = torch.tensor([[1.0, 2, 2, 0], [0, 0, 0, 0]])
    assert errors.guesses(scores).tolist() == [1, 0]


def test_per_class_adds_up() -> None:
    scores, labels = torch.randn(60, 5), torch.randint(4, (60,))  # class 4 has no picture
    counts = errors.per_class(errors.topk_credit(scores, labels, 1), labels, 5)
    assert sum(counts, errors.Count(0, 0)) == errors.count(scores, labels, 1)
    assert counts[4].images == 0
    for k in range(4):
        mine = labels == k
        assert counts[k] == errors.count(scores[mine], labels[mine], 1)
