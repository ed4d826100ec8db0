"""VGG-16 and ResNet-50 against torchvision's own forward pass, and their draws by key."""

import dataclasses
import io

import pytest
import torch
from torchvision import models

from alexnet.build import build, load, save
from alexnet.learning import Momentum, Rates, step
from alexnet.network import Dropout
from tests.sections import LEARNING, PAPER

pytestmark = pytest.mark.slow  # a hundred million weights take seconds to draw


def peer(name, **changes):
    network = build(dataclasses.replace(PAPER, network=name, **changes), 10)
    network.draw_first_weights(0)
    return network


def patches(count):
    return 60 * torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "parameters"), [("vgg16", 138_357_544), ("resnet50", 25_557_032)])
def test_it_is_torchvision_s_network(name, parameters):
    network = build(
        dataclasses.replace(PAPER, network=name, deviation=(58.0, 57.0, 56.0), dropout_scale="training"), 1000
    )
    assert sum(weight.numel() for weight in network.parameters()) == parameters
    theirs = getattr(models, name)(num_classes=1000).eval()
    theirs.load_state_dict(network.body.state_dict())
    x = patches(2)
    expected = theirs(x / torch.tensor([58.0, 57.0, 56.0])[:, None, None])
    torch.testing.assert_close(network.eval()(x), expected, rtol=1e-4, atol=1e-4)
    features = network.features(x)
    assert features.shape == (2, {"vgg16": 4096, "resnet50": 2048}[name])
    torch.testing.assert_close(network.classify(features), network(x))


def test_resnet_learns_and_is_saved_with_its_running_means():
    network = peer("resnet50")
    rule = Momentum(network, LEARNING)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    step(
        network,
        rule,
        patches(2),
        torch.arange(2),
        rates=Rates(0.01, 1),
        dropout=Dropout(0, 0, torch.arange(2)),
        count=2,
    )
    moved = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert "body.bn1.running_mean" in moved and "body.conv1.weight" in moved
    buffer = io.BytesIO()
    save(buffer, network, classes=[])
    buffer.seek(0)
    again, _ = load(buffer)
    assert torch.equal(again(patches(1)), network.eval()(patches(1)))


def test_first_weights_belong_to_the_seed_and_leave_torch_s_own_draws_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, same, other = (build(dataclasses.replace(PAPER, network="resnet50"), 10) for _ in range(3))
    for network, seed in ((one, 1), (same, 1), (other, 2)):
        network.draw_first_weights(seed)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(one.first_layer(), same.first_layer())
    assert not torch.equal(one.first_layer(), other.first_layer())


def test_vgg_leaves_out_units_by_key():
    network = peer("vgg16", dropout=0.9).train()
    x, rows = patches(2), torch.arange(2)
    with torch.no_grad():
        whole = network.features(x, Dropout(0, 3, rows))
        alone = network.features(x[1:], Dropout(0, 3, rows[1:]))
    torch.testing.assert_close(alone, whole[1:], rtol=1e-4, atol=1e-5)
    assert (whole == 0).float().mean() > 0.88
