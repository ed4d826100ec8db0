"""Draws by key: uniform, independent of the slice asked for, and of the other parts of the key."""

import math

import pytest
import torch

from alexnet import draws


def test_any_slice_of_a_draw_is_that_part_of_the_whole():
    rows, units = torch.arange(64)[:, None], torch.arange(100)
    whole = draws.uniform("mask", 3, 7, rows, units)
    assert torch.equal(whole[10:20, 50:], draws.uniform("mask", 3, 7, rows[10:20], units[50:]))


@pytest.mark.parametrize("axis", [0, 1, 2, 3], ids=["seed", "epoch", "row", "unit"])
def test_uniform_along_every_part_of_the_key(axis):
    key = [5, 11, 2, 8]
    key[axis] = torch.arange(100_000)
    numbers = draws.uniform("any", *key)
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = torch.histc(numbers, bins=100, min=0, max=1)
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert chi_square < 99 + 5 * math.sqrt(2 * 99)
    neighbours = torch.corrcoef(torch.stack([numbers[1:], numbers[:-1]]))[0, 1]
    assert abs(neighbours) < 5 / math.sqrt(len(numbers))


def test_purposes_and_keys_are_apart():
    place = torch.arange(10_000)
    draws_of = [draws.uniform("x", 0, place), draws.uniform("y", 0, place), draws.uniform("x", 1, place)]
    correlations = torch.corrcoef(torch.stack(draws_of)) - torch.eye(3)
    assert correlations.abs().max() < 5 / math.sqrt(len(place))


def test_normal_has_the_moments_of_the_normal_distribution():
    numbers = draws.normal("noise", 0, torch.arange(200_000))
    assert abs(numbers.mean()) < 0.01
    assert abs(numbers.std() - 1) < 0.01
    assert abs((numbers**4).mean() - 3) < 0.1


def test_integers_reach_both_ends():
    assert set(draws.integers(33, "patch", torch.arange(5000)).tolist()) == set(range(33))
