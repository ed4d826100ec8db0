"""Grad-CAM: against differences and plain loops in float64; each patch by itself; the network is left as it was."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from alexnet.model import AlexNet
from alexnet.saliency import grad_cam
from tests.sections import PAPER

SMALL = dataclasses.replace(PAPER, width=0.0625, first_std=(0.02, *(0.05,) * 9), first_bias=(0.1,) * 10)


@pytest.fixture(scope="module")
def network() -> AlexNet:
    network = AlexNet(SMALL, classes=5)
    network.draw_first_weights(1)
    return network.double().eval()


@pytest.fixture(scope="module")
def patches() -> Tensor:
    """Two, of coarse colours."""
    lots = torch.rand(2, 3, 14, 14, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (255 * lots - 128).repeat_interleave(16, 2).repeat_interleave(16, 3)


def maps_of(network: AlexNet, patches: Tensor) -> Tensor:
    kept: list[Tensor] = []
    hook = network.conv5.register_forward_hook(lambda _module, _inputs, maps: kept.append(maps.detach()))
    with torch.no_grad():
        network(patches)
    hook.remove()
    return kept[0]


def logit(network: AlexNet, patches: Tensor, maps: Tensor, label: int) -> float:
    """What the network would say if its last convolution gave these maps."""
    hook = network.conv5.register_forward_hook(lambda _module, _inputs, _maps: maps)
    with torch.no_grad():
        said = network(patches)
    hook.remove()
    return float(said[0, label])


def enlarged(small: np.ndarray, side: int) -> np.ndarray:
    """Bilinear, the corners of the outermost pixels on those of the picture, what lies beyond their centres repeated."""
    made = np.zeros((side, side))
    last = len(small) - 1
    for y in range(side):
        for x in range(side):
            places = [min(max((at + 0.5) * len(small) / side - 0.5, 0), last) for at in (y, x)]
            (top, down), (left, right) = ((int(place), place - int(place)) for place in places)
            below, beside = min(top + 1, last), min(left + 1, last)
            made[y, x] = (1 - down) * ((1 - right) * small[top, left] + right * small[top, beside]) + down * (
                (1 - right) * small[below, left] + right * small[below, beside]
            )
    return made


@pytest.mark.slow
def test_it_is_the_maps_weighed_by_mean_slopes_that_differences_give(network: AlexNet, patches: Tensor) -> None:
    """The mean of the slopes over a map's places is the logit's slope as the whole map rises, over their number."""
    patch, label, step = patches[:1], 3, 1e-5
    maps = maps_of(network, patch)
    weights = []
    for channel in range(maps.shape[1]):
        risen, fallen = maps.clone(), maps.clone()
        risen[:, channel] += step
        fallen[:, channel] -= step
        rise = logit(network, patch, risen, label) - logit(network, patch, fallen, label)
        weights.append(rise / (2 * step) / (13 * 13))
    total = np.zeros((13, 13))
    for weight, one in zip(weights, maps[0].numpy(), strict=True):
        for y in range(13):
            for x in range(13):
                total[y, x] += weight * max(0.0, one[y, x])
    expected = enlarged(np.maximum(total, 0), 224)
    found = grad_cam(network, patch, torch.tensor([label])).numpy()
    assert found.shape == (1, 224, 224)
    assert 0.01 < (expected > 0).mean() < 1, "the case has become too easy"
    np.testing.assert_allclose(found[0], expected, rtol=1e-6, atol=1e-6 * expected.max())


@pytest.mark.slow
def test_every_patch_has_the_map_it_has_alone_and_every_class_its_own(network: AlexNet, patches: Tensor) -> None:
    both = grad_cam(network, patches, torch.tensor([3, 1]))
    for row, label in enumerate((3, 1)):
        alone = grad_cam(network, patches[row : row + 1], torch.tensor([label]))
        torch.testing.assert_close(both[row : row + 1], alone, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(both[:1], grad_cam(network, patches[:1], torch.tensor([1])))


@pytest.mark.slow
def test_the_network_is_left_as_it_was(network: AlexNet, patches: Tensor) -> None:
    with torch.no_grad():
        before = network(patches)
        grad_cam(network, patches, torch.tensor([0, 0]))
        assert torch.equal(network(patches), before)
    assert all(weight.grad is None for weight in network.parameters())
    assert not network.conv5._forward_hooks


def test_in_training_it_is_refused(patches: Tensor) -> None:
    with pytest.raises(AssertionError, match="eval mode"):
        grad_cam(AlexNet(SMALL, classes=5).train(), patches, torch.tensor([0, 0]))


class Convolution(nn.Sequential):
    """A network of one convolution, which comes first."""

    fraction = 1.0

    @property
    def last_maps(self) -> nn.Module:
        return self[0]


def test_a_relu_that_works_in_place_changes_nothing() -> None:
    torch.manual_seed(0)
    front, back = nn.Conv2d(3, 4, 3), nn.Sequential(nn.Flatten(), nn.Linear(4 * 6 * 6, 2))
    patch = torch.randn(1, 3, 8, 8)
    maps = [
        grad_cam(Convolution(front, nn.ReLU(inplace=inplace), back).eval(), patch, torch.tensor([1]))
        for inplace in (False, True)
    ]
    assert maps[0].max() > 0
    assert torch.equal(*maps)
