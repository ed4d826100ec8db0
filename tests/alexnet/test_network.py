"""§3 The section `model` and §4.2 dropout: in training, in testing, and what is refused."""

import dataclasses

import pytest
import torch

from alexnet.network import Dropout
from tests.alexnet.test_model import narrow
from tests.sections import PAPER


def test_dropout_leaves_out_half_in_training_and_halves_in_testing():
    network = narrow().train()
    units = torch.ones(512, 256)
    kept = network._dropped(7, units, Dropout(0, 0, torch.arange(512)))
    assert set(kept.unique().tolist()) == {0, 1}
    assert abs(kept.mean() - 0.5) < 0.01
    assert (network.eval()._dropped(7, units, None) == 0.5).all()


def test_inverted_and_printed_dropout_expect_the_same_of_the_next_layer():
    units = torch.ones(4096, 64)
    for scale in ("test", "training"):
        network = narrow(dropout_scale=scale)
        trained = network.train()._dropped(6, units, Dropout(0, 0, torch.arange(4096))).mean()
        tested = network.eval()._dropped(6, units, None).mean()
        assert abs(trained - tested) < 0.01, scale


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 0.0}, r"width has to be in \(0, 1\], is 0.0"),
        ({"kernels": (95, 256, 384, 384, 256, 0)}, "kernels has to be 0 or more and divide among 2 columns, is .95"),
        ({"kernels": (0, 256, 384, 384, 256, 0)}, "kernels has to have a first layer"),
        ({"dropout_layers": (4, 6)}, r"dropout_layers can have 5, 6 and 7, is \[4, 6\]"),
        ({"deviation": (1.0, 0.0, 1.0)}, "deviation has to be more than 0, is 0.0"),
        ({"dropout": 1.0}, r"dropout has to be in \[0, 1\), is 1.0"),
        ({"first_std": (0.01,)}, "first_std has to have a number for each of conv1, conv2, .*, fc8, has 1"),
    ],
)
def test_impossible_values_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(PAPER, **change)
