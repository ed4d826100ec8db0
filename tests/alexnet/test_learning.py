"""§5 against its three lines, written as a loop in float64, across a fall of the rate; and one step."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from alexnet.learning import Momentum, RateChange, Rates, plateaus, step
from alexnet.model import AlexNet
from alexnet.network import Dropout
from tests.alexnet.test_model import NARROW, narrow, patches
from tests.sections import LEARNING


def double(network):
    return network.double()


def train(network, steps=5, learning=LEARNING, count=4):
    rule = Momentum(network, learning)
    measured = []
    for number in range(steps):
        x = patches(count, seed=number).to(next(network.parameters()).dtype)
        labels = torch.arange(count) % 10
        dropout = Dropout(learning.seed, number, torch.arange(count))
        measured.append(step(network, rule, x, labels, rates=learning.rates(number), dropout=dropout, count=count))
    return measured


def test_the_rate_falls_at_the_given_epochs():
    assert [LEARNING.rates(epoch).last for epoch in range(5)] == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.0001])


@pytest.mark.slow
def test_five_steps_are_the_rule_as_printed_across_two_falls_of_the_rate():
    network, reference = double(narrow()), double(narrow())
    train(network)
    velocity = {name: torch.zeros_like(weight) for name, weight in reference.named_parameters()}
    for number in range(5):
        reference.train()
        logits = reference(patches(4, seed=number).double(), Dropout(0, number, torch.arange(4)))
        gradients = torch.autograd.grad(F.cross_entropy(logits, torch.arange(4) % 10), list(reference.parameters()))
        for (name, weight), gradient in zip(reference.named_parameters(), gradients, strict=True):
            bias = name.endswith("bias")
            epsilon = [0.01, 0.01, 0.001, 0.001, 0.0001][number] * (2 if bias else 1)
            decay = 0 if bias else 0.0005
            v = 0.9 * velocity[name] - decay * epsilon * weight.detach() - epsilon * gradient
            velocity[name] = v
            weight.data += v
    for (name, weight), expected in zip(network.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-12, atol=1e-15, msg=name)


def test_torch_sgd_is_another_rule_once_the_rate_has_fallen():
    weights = [torch.nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in range(2)]
    sgd = torch.optim.SGD([weights[0]], lr=0.01, momentum=0.9)
    network = torch.nn.Module()
    network.w = weights[1]
    rule = Momentum(network, dataclasses.replace(LEARNING, decay=0.0))
    moves = []
    for rate in (0.01, 0.01, 0.001):
        before = [weight.item() for weight in weights]
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        sgd.param_groups[0]["lr"] = rate
        sgd.step()
        rule.update(Rates(rate, 1))
        moves.append([weight.item() - old for weight, old in zip(weights, before, strict=True)])
    assert moves[1][0] == pytest.approx(moves[1][1])
    # with the rate inside, the velocity of two steps, -.019, works on
    assert moves[2] == pytest.approx([-0.00271, -0.0181])


def test_with_the_rate_outside_it_is_torch_s_rule_across_a_fall():
    network, theirs = double(narrow()), double(narrow())
    rule = Momentum(network, dataclasses.replace(LEARNING, velocity="without rate", bias_decay=0.0005, bias_rate=1.0))
    sgd = torch.optim.SGD(theirs.parameters(), lr=1.0, momentum=0.9, weight_decay=0.0005)
    generator = torch.Generator().manual_seed(0)
    for rate in (0.01, 0.01, 0.001, 0.001):
        for ours, other in zip(network.parameters(), theirs.parameters(), strict=True):
            ours.grad = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
            other.grad = ours.grad.clone()
        rule.update(Rates(rate, 1.0))
        sgd.param_groups[0]["lr"] = rate
        sgd.step()
    for ours, other in zip(network.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-12, atol=1e-15)


def test_the_rate_falls_when_the_error_has_stalled():
    learning = dataclasses.replace(LEARNING, rate_falls=(), plateau_epochs=3, plateau_falls=2)

    def by_hand(errors):
        falls, last = 0, 0  # the epoch of the last fall or low
        for now in range(len(errors)):
            if errors[now] < min(errors[:now], default=float("inf")):
                last = now
            elif now - last == 3 and falls < 2:
                falls, last = falls + 1, now
        return falls

    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        errors = (torch.rand(20, generator=generator) * torch.linspace(1, 0.6, 20)).tolist()
        assert [plateaus(errors[:end], learning) for end in range(21)] == [by_hand(errors[:end]) for end in range(21)]
    stalled = [0.5, 0.4, 0.4, 0.4, 0.4, 0.39, 0.39, 0.39, 0.39]
    rates = [learning.rates(epoch, stalled[:epoch]).last for epoch in range(10)]
    assert rates == pytest.approx([0.01] * 5 + [0.001] * 4 + [0.0001])


def test_without_a_plateau_no_error_changes_the_rate():
    assert LEARNING.rates(0, [0.5] * 90).last == LEARNING.rate


def test_a_change_holds_for_its_layers_from_its_epoch_on():
    changes = (
        RateChange(epoch=3, layers=("conv1",), weights=0.5, biases=None),
        RateChange(epoch=1, layers=(), weights=0.25, biases=0.125),
        RateChange(epoch=4, layers=("conv1", "fc8"), weights=None, biases=0.0),
    )
    learning = dataclasses.replace(LEARNING, rate_falls=(), rate_changes=changes)
    names = ("conv1.weight", "conv1.bias", "conv2.weight", "fc8.bias", "conv1_batch.weight")
    assert [[learning.rates(epoch).of(name) for name in names] for epoch in range(5)] == [
        [0.01, 0.02, 0.01, 0.02, 0.01],
        [0.25, 0.125, 0.25, 0.125, 0.25],
        [0.25, 0.125, 0.25, 0.125, 0.25],
        [0.5, 0.125, 0.25, 0.125, 0.5],
        [0.5, 0.0, 0.25, 0.0, 0.5],
    ]


def test_at_rate_0_a_layer_stays_without_decay_too():
    network = narrow()
    rule = Momentum(network, dataclasses.replace(LEARNING, decay=0.1))
    for weight in network.parameters():
        weight.grad = torch.ones_like(weight)
    rule.update(Rates(0.01, 2))
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    frozen = (RateChange(epoch=0, layers=("conv1",), weights=0.0, biases=None),)
    rule.update(Rates(0.01, 2, frozen))
    moved = {name for name, weight in network.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == set(before) - {"conv1.weight"}


def test_decay_pulls_weights_and_leaves_biases():
    network = narrow()
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    rule = Momentum(network, dataclasses.replace(LEARNING, decay=0.1, bias_decay=0.0))
    for weight in network.parameters():
        weight.grad = torch.zeros_like(weight)
    rule.update(Rates(0.01, 2))
    for name, weight in network.named_parameters():
        expected = before[name] * (1 if name.endswith("bias") else 1 - 0.1 * 0.01)
        torch.testing.assert_close(weight, expected)


def test_two_replicas_that_share_a_batch_learn_what_one_does():
    # one after the other: each replica's gradients, added up as the reduction would
    whole = double(narrow())
    train(whole, steps=1)
    parts = double(narrow())
    x, labels = patches(4, seed=0).double(), torch.arange(4) % 10
    gradients, sums = [], []

    def keep(tensors):
        sums.append(tensors[0].clone())
        gradients.append([tensor.clone() for tensor in tensors[1:]])
        for tensor in tensors[1:]:
            tensor.zero_()

    for rows in (torch.tensor([0, 1, 2]), torch.tensor([3])):
        frozen = Momentum(parts, dataclasses.replace(LEARNING, decay=0.0))
        step(
            parts,
            frozen,
            x[rows],
            labels[rows],
            rates=Rates(0.01, 2),
            dropout=Dropout(0, 0, rows),
            count=4,
            reduce=keep,
        )
    for weight, *summands in zip(parts.parameters(), *gradients, strict=True):
        weight.grad = sum(summands)
    Momentum(parts, LEARNING).update(Rates(0.01, 2))
    for ours, expected in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-15)
    assert sum(sums)[0] > 0


def test_a_replica_without_a_picture_adds_nothing():
    network = double(narrow())
    given = []
    step(
        network, Momentum(network, LEARNING), torch.empty(0), torch.empty(0, dtype=torch.int64), rates=Rates(0.0, 2),
        dropout=Dropout(0, 0, torch.empty(0, dtype=torch.int64)), count=4, reduce=given.extend,
    )  # fmt: skip
    assert len(given) == 1 + len(list(network.parameters()))
    assert all((tensor == 0).all() for tensor in given)


def test_a_loss_that_is_no_number_stops_before_the_update():
    network = narrow()
    before = network.fc8.weight.detach().clone()
    network.fc8.bias.data[0] = float("inf")
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) in step 0, at rate 0.01"):
        train(network, steps=1)
    assert torch.equal(network.fc8.weight, before)


@pytest.mark.slow
def test_eight_pictures_are_learned_by_heart():
    network = AlexNet(dataclasses.replace(NARROW, width=1 / 8, dropout=0.0), 4)
    network.draw_first_weights(0)
    rule = Momentum(network, LEARNING)
    x, labels = patches(8), torch.arange(8) % 4
    for number in range(150):
        measured = step(
            network, rule, x, labels, rates=Rates(0.003, 2), dropout=Dropout(0, number, torch.arange(8)), count=8
        )
        if measured.right == 8:
            return
    pytest.fail(f"after 150 steps {measured.right:.0f} of 8 are right")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"momentum": 1.0}, r"momentum has to be in \[0, 1\), is 1.0"),
        ({"rate_falls": (4, 2)}, r"rate_falls has to rise, is \[4, 2\]"),
        ({"batch_size": 0}, "batch_size has to be at least 1, is 0"),
        ({"rate": -1.0}, "rate has to be 0 or more, is -1.0"),
        ({"held_out": 1.0}, r"held_out has to be in \[0, 1\), is 1.0"),
        ({"watched": "held_out", "plateau_epochs": 3}, "held_out has to be more than 0 where watched is 'held_out'"),
    ],
)
def test_impossible_values_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(LEARNING, **change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers": ("conv9",)}, "layers has to be of conv1, .*; has 'conv9'"),
        ({"weights": -1.0}, "weights has to be 0 or more"),
    ],
)
def test_impossible_changes_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(RateChange(epoch=0, layers=(), weights=0.1, biases=0.1), **change)
