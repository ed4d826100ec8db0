"""Networks saved and loaded, and the classifier that subtracts the mean image itself."""

import io

import torch

from alexnet.build import Classifier, load, save
from tests.alexnet.test_model import narrow, patches


def test_what_is_saved_loads_to_the_same_network_and_the_same_bytes():
    network = narrow().eval()
    buffers = []
    for _ in range(2):
        buffers.append(io.BytesIO())
        save(buffers[-1], network, classes=[["n01440764", "tench"]], mean=torch.ones(3, 256, 256))
    assert buffers[0].getvalue() == buffers[1].getvalue()
    again, facts = load(io.BytesIO(buffers[0].getvalue()))
    assert facts["classes"] == [["n01440764", "tench"]]
    assert torch.equal(again(patches()), network(patches()))


def test_the_classifier_subtracts_the_centre_of_the_mean():
    network = narrow().eval()
    mean = torch.rand(3, 256, 256, generator=torch.Generator().manual_seed(1)) * 255
    raw = patches() + 120
    expected = torch.softmax(network(raw - mean[:, 16:240, 16:240]), 1)
    torch.testing.assert_close(Classifier(network, mean)(raw), expected)
