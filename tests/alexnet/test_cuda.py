"""A GPU computes what a CPU does: the draws to the bit, a step to rounding. Skipped where there is none."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from alexnet import draws
from alexnet.augmentation import Statistics, ten_views, training_patches
from alexnet.errors import mean_over_views, topk_credit
from alexnet.learning import Momentum, step
from alexnet.model import AlexNet
from alexnet.network import Dropout
from tests.alexnet.test_model import NARROW
from tests.sections import AUGMENTATION, LEARNING, PAPER

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def exact():
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def distance(ours, reference):
    ours, reference = ours.detach().double().cpu(), reference.detach().double()
    return float((ours - reference).norm() / reference.norm())


def images(count):
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, 3, 256, 256), generator=generator, dtype=torch.uint8)


def statistics(device, dtype):
    generator = torch.Generator().manual_seed(4)
    mean = 100 + 20 * torch.rand(3, 256, 256, generator=generator, dtype=torch.float64)
    vectors, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    values = torch.tensor([14000.0, 1300.0, 380.0], dtype=torch.float64)
    return Statistics(*(tensor.to(device, dtype) for tensor in (mean, values, vectors)))


def test_draws_are_equal_to_the_bit():
    places = torch.arange(10_000)
    for draw in (draws.bits, draws.uniform):
        assert torch.equal(draw("x", 1, 2, places.to(GPU)).cpu(), draw("x", 1, 2, places))
    assert torch.equal(draws.integers(33, "x", 1, places.to(GPU)).cpu(), draws.integers(33, "x", 1, places))
    normal = draws.normal("x", 1, places.to(GPU)).cpu()
    torch.testing.assert_close(normal, draws.normal("x", 1, places), rtol=1e-12, atol=1e-12)
    kept = [Dropout(1, 2, places[:64].to(device)).kept(6, range(4096), 0.5).cpu() for device in (CPU, GPU)]
    assert torch.equal(*kept)


@pytest.mark.parametrize("patches", ["random", "centre", "resized"])
@pytest.mark.parametrize("colour", ["none", "eigenvalues", "deviations"])
def test_patches_are_those_of_the_cpu(patches, colour):
    section = dataclasses.replace(AUGMENTATION, patches=patches, colour=colour)
    made = [
        training_patches(images(16).to(device), torch.arange(16).to(device), statistics(device, torch.float64), section,
                         seed=5, epoch=1, dtype=torch.float64).cpu()
        for device in (CPU, GPU)
    ]  # fmt: skip
    # a resized patch is merged in float32, by other code
    torch.testing.assert_close(*made, rtol=0, atol=0.02 if patches == "resized" else 1e-9)


def learned(device, model, learning, steps=4, count=12):
    """A network after some steps, and their losses."""
    network = AlexNet(model, 10, None)
    network.draw_first_weights(0)
    dtype = torch.float64 if learning.precision == "float64" else torch.float32
    network.to(device, dtype)
    rule, losses = Momentum(network, learning), []
    there = statistics(device, dtype)
    for number in range(steps):
        places = (count * number + torch.arange(count)).to(device)
        x = training_patches(images(count).to(device), places, there, AUGMENTATION, 0, 0, dtype, model.patch)
        labels = (torch.arange(count) % 10).to(device)
        dropout = Dropout(0, number, places - count * number)
        measured = step(network, rule, x, labels, rates=learning.rates(0), dropout=dropout, count=count)
        losses.append(measured.loss_sum / count)
    return network, losses


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"normalization": "printed"},
        {"normalization": "caffe", "border": "exact"},
        {"normalization": "one-weird-trick", "columns": 1},
        {"normalization": "batch", "first_weights": "uniform"},
        {"normalization": "none", "activation": "tanh", "pooling": "disjoint"},
        {"kernels": (96, 256, 384, 384, 256, 256), "units": (4096, 4096, 2048), "dropout_scale": "training"},
    ],
    ids=str,
)
def test_steps_in_float64_are_those_of_the_cpu(changes):
    model = dataclasses.replace(NARROW, **changes)
    learning = dataclasses.replace(LEARNING, precision="float64", rate=0.001)
    (ours, losses), (reference, expected) = (learned(device, model, learning) for device in (GPU, CPU))
    assert losses == pytest.approx(expected, rel=1e-9)
    for (name, weight), other in zip(ours.named_parameters(), reference.parameters(), strict=True):
        assert distance(weight, other) < 1e-8, name


@pytest.mark.parametrize(("precision", "allowed"), [("float32", 1e-3), ("bfloat16", 0.2)])
def test_the_whole_network_is_as_near_as_its_precision(precision, allowed):
    learning = dataclasses.replace(LEARNING, precision=precision)
    exact = dataclasses.replace(LEARNING, precision="float64")
    (ours, losses), (reference, expected) = (
        learned(device, PAPER, section, steps=1, count=16) for device, section in ((GPU, learning), (GPU, exact))
    )
    assert losses == pytest.approx(expected, rel=allowed / 10)
    first = AlexNet(PAPER, 10)
    first.draw_first_weights(0)
    moves = [
        torch.cat([(weight.detach().double().cpu() - other.double()).flatten() for weight, other in zip(
            network.parameters(), first.parameters(), strict=True)])
        for network in (ours, reference)
    ]  # fmt: skip
    assert distance(moves[0], moves[1]) < allowed


def test_ten_views_and_their_errors_are_those_of_the_cpu():
    network = AlexNet(NARROW, 10)
    network.draw_first_weights(1)
    network.double().eval()
    labels, rights = torch.arange(8), []
    for device in (CPU, GPU):
        network.to(device)
        with torch.no_grad():
            views = ten_views(images(8).to(device), statistics(device, torch.float64).mean_CHW)
            chances = mean_over_views(network(views.flatten(0, 1)).reshape(8, 10, -1))
        rights.append((chances.cpu(), topk_credit(chances, labels.to(device), 3).cpu()))
    torch.testing.assert_close(rights[1][0], rights[0][0], rtol=1e-5, atol=1e-7)  # means are taken in float32
    assert torch.equal(rights[1][1], rights[0][1])


def test_two_runs_on_a_gpu_differ_by_no_more_than_rounding():
    # they do differ: some gradients are added up in the order in which they come
    runs = [learned(GPU, NARROW, LEARNING) for _ in range(2)]
    assert runs[0][1] == pytest.approx(runs[1][1], rel=1e-5)
    for (name, weight), other in zip(runs[0][0].named_parameters(), runs[1][0].parameters(), strict=True):
        assert distance(weight, other.cpu()) < 1e-5, name
