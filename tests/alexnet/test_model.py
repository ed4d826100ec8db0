"""§3 against the paper's numbers: Figure 2, 60,965,224 parameters, the geometry of 2012; and what is saved."""

import dataclasses
import io
import math

import pytest
import torch
import torch.nn.functional as F

from alexnet.model import AlexNet, Classifier, Dropout, Model, load, save

PAPER = Model(
    columns=2,
    width=1.0,
    normalization="original",
    dropout=0.5,
    dropout_scale="test",
    first_std=(0.01, 0.01, 0.03, 0.03, 0.03, 0.01, 0.01, 0.01),
    first_bias=(0, 1, 0, 1, 1, 1, 1, 0),
)
NARROW = dataclasses.replace(PAPER, width=1 / 16)


def narrow(seed=0, **changes):
    network = AlexNet(dataclasses.replace(NARROW, **changes), 10)
    network.draw_first_weights(seed)
    return network


def patches(count=2, seed=0):
    return 50 * torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def full():
    return AlexNet(PAPER, 1000)


def test_parameters_of_the_paper_layer_by_layer(full):
    counts = [
        sum(p.numel() for p in getattr(full, name).parameters())
        for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
    ]
    assert counts == [34_944, 307_456, 885_120, 663_936, 442_624, 37_752_832, 16_781_312, 4_097_000]
    assert sum(p.numel() for p in full.parameters()) == 60_965_224


def test_neurons_of_figure_2_but_for_its_misprint(full):
    neurons = {}
    for name, layer in full.named_children():
        layer.register_forward_hook(lambda _, __, out, name=name: neurons.update({name: out[0].numel()}))
    full.eval()(torch.zeros(1, 3, 224, 224))
    # the caption has 253,440 for layer 1; 55·55·96 are 290,400
    assert [neurons[name] for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")] == [
        290_400,
        186_624,
        64_896,
        64_896,
        43_264,
        4096,
        4096,
        1000,
    ]


def test_the_last_window_hangs_over_three_zero_rows_and_columns():
    network = narrow().eval()
    seen = {}
    network.conv1.register_forward_hook(lambda _, __, out: seen.update(out=out))
    x = patches(1)
    network(x)
    padded = torch.zeros(1, 3, 227, 227)
    padded[:, :, :224, :224] = x
    assert seen["out"].shape[-2:] == (55, 55)
    torch.testing.assert_close(seen["out"], F.conv2d(padded, network.conv1.weight, network.conv1.bias, stride=4))


@pytest.mark.parametrize("layer", ["conv2", "conv4", "conv5"])
def test_a_kernel_of_one_column_never_sees_the_other_column(layer):
    network = narrow()
    conv = getattr(network, layer)
    seen = torch.zeros(1, conv.in_channels, 13, 13, requires_grad=True)
    conv(seen)[:, : conv.out_channels // 2].sum().backward()
    assert seen.grad[:, : conv.in_channels // 2].abs().max() > 0
    assert seen.grad[:, conv.in_channels // 2 :].abs().max() == 0


def test_layer_3_sees_both_columns():
    network = narrow()
    seen = torch.zeros(1, network.conv3.in_channels, 13, 13, requires_grad=True)
    network.conv3(seen)[:, : network.conv3.out_channels // 2].sum().backward()
    assert (seen.grad.abs().amax((0, 2, 3)) > 0).all()


def test_layer_1_normalizes_before_the_relu_in_2012_and_after_it_in_print():
    weights = narrow(normalization="printed").state_dict()
    outputs = {}
    for kind in ("printed", "original"):
        network = AlexNet(dataclasses.replace(NARROW, normalization=kind), 10).eval()
        network.load_state_dict(weights)
        seen = {}
        network.norm1.register_forward_pre_hook(lambda _, ins, seen=seen: seen.update(lowest=ins[0].min()))
        outputs[kind] = network(patches())
        assert (seen["lowest"] < 0) == (kind == "original")
    assert not torch.allclose(outputs["printed"], outputs["original"])


def test_first_weights_have_the_given_spread_and_bias():
    network = AlexNet(dataclasses.replace(PAPER, width=0.25), 1000)
    network.draw_first_weights(0)
    for place, name in enumerate(("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")):
        layer = getattr(network, name)
        wanted = PAPER.first_std[place] * (1 if place == 0 else 2)  # 1 / sqrt(.25)
        spread = layer.weight.std().item()
        assert abs(spread / wanted - 1) < 5 / math.sqrt(2 * layer.weight.numel()), name
        assert (layer.bias == PAPER.first_bias[place]).all()


def test_dropout_leaves_out_half_in_training_and_halves_in_testing():
    network = narrow().train()
    units = torch.ones(512, 256)
    kept = network._dropped(7, units, Dropout(0, 0, torch.arange(512)))
    assert set(kept.unique().tolist()) == {0, 1}
    assert abs(kept.mean() - 0.5) < 0.01
    assert (network.eval()._dropped(7, units, None) == 0.5).all()


def test_the_network_drops_the_units_of_layers_6_and_7():
    network = narrow(dropout=0.9).train()
    seen = {}
    network.fc7.register_forward_pre_hook(lambda _, ins: seen.update({6: ins[0]}))
    network.fc8.register_forward_pre_hook(lambda _, ins: seen.update({7: ins[0]}))
    network(patches(8), Dropout(0, 0, torch.arange(8)))
    assert all((units == 0).float().mean() > 0.85 for units in seen.values())


def test_inverted_and_printed_dropout_expect_the_same_of_the_next_layer():
    units = torch.ones(4096, 64)
    for scale in ("test", "training"):
        network = narrow(dropout_scale=scale)
        trained = network.train()._dropped(6, units, Dropout(0, 0, torch.arange(4096))).mean()
        tested = network.eval()._dropped(6, units, None).mean()
        assert abs(trained - tested) < 0.01, scale


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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 0.0}, r"width has to be in \(0, 1\], is 0.0"),
        ({"dropout": 1.0}, r"dropout has to be in \[0, 1\), is 1.0"),
        ({"first_std": (0.01,)}, "first_std has to have a number for each of the 8 layers, has 1"),
    ],
)
def test_impossible_values_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(PAPER, **change)
