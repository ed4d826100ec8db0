"""§3 against the paper's numbers: Figure 2, 60,965,224 parameters, the geometry of 2012."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from alexnet.model import AlexNet
from alexnet.network import LAYERS, Dropout
from tests.alexnet.test_normalization import equation
from tests.sections import PAPER

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


@pytest.mark.parametrize(
    ("kind", "alpha", "k", "columns"),
    [("printed", 1e-4, 2, 2), ("original", 2e-5, 2, 2), ("one-weird-trick", 2e-5, 2, 2), ("caffe", 2e-5, 1, 1)],
)
def test_layers_1_and_2_are_normalized_as_the_source_has_it(kind, alpha, k, columns):
    """From the patch to what layer 3 sees. Printed: §3.3; the others: layers-145.cfg and layer.py, cuda-convnet2's
    layers-imagenet-1gpu.cfg, bvlc_alexnet's train_val.prototxt."""

    def across_kernels(a):
        return equation(a, columns, alpha, k)

    def across_space(a):
        squares = F.pad(a**2, (2, 2, 2, 2))
        side = a.shape[-1]
        total = sum(squares[..., y : y + side, x : x + side] for y in range(5) for x in range(5))
        return a / (1 + 1e-3 / 25 * total) ** 0.75

    def pool(a):
        return F.max_pool2d(a, 3, 2)

    network = narrow(normalization=kind).eval().double()
    seen = {}
    network.conv3.register_forward_pre_hook(lambda _, ins: seen.update(x=ins[0]))
    network(patches().double())
    conv1, conv2 = network.conv1, network.conv2
    x = F.conv2d(F.pad(patches().double(), (0, 3, 0, 3)), conv1.weight, conv1.bias, stride=4)
    relu_last = kind in ("original", "one-weird-trick")
    x = pool(across_kernels(x)).relu() if relu_last else pool(across_kernels(x.relu()))
    x = across_kernels(F.conv2d(x, conv2.weight, conv2.bias, padding=2, groups=2).relu())
    x = pool(across_space(x) if kind == "original" else x)
    torch.testing.assert_close(seen["x"], x, rtol=1e-12, atol=1e-12)


def test_first_weights_have_the_given_spread_and_bias():
    network = AlexNet(dataclasses.replace(PAPER, width=0.25), 1000)
    network.draw_first_weights(0)
    for place, name in enumerate(LAYERS):
        if name in ("conv6", "bottleneck"):
            continue
        layer = getattr(network, name)
        wanted = PAPER.first_std[place] * (1 if place == 0 else 2)  # 1 / sqrt(.25)
        spread = layer.weight.std().item()
        assert abs(spread / wanted - 1) < 5 / math.sqrt(2 * layer.weight.numel()), name
        assert (layer.bias == PAPER.first_bias[place]).all()


def test_the_network_drops_the_units_of_layers_6_and_7():
    network = narrow(dropout=0.9).train()
    seen = {}
    network.fc7.register_forward_pre_hook(lambda _, ins: seen.update({6: ins[0]}))
    network.fc8.register_forward_pre_hook(lambda _, ins: seen.update({7: ins[0]}))
    network(patches(8), Dropout(0, 0, torch.arange(8)))
    assert all((units == 0).float().mean() > 0.85 for units in seen.values())


def shapes(network, side=224):
    """What every layer gives for one patch."""
    seen = {}
    for name, layer in network.named_children():
        layer.register_forward_hook(lambda _, __, out, name=name: seen.update({name: tuple(out.shape[1:])}))
    network.eval()(torch.zeros(1, 3, side, side))
    return seen


def built(**changes):
    network = AlexNet(dataclasses.replace(PAPER, **changes), 1000)
    network.draw_first_weights(0)
    return network


@pytest.mark.slow
def test_the_network_on_one_gpu_keeps_the_last_convolution_and_the_full_layers():
    network = built(columns=1, kernels=(48, 128, 192, 192, 256, 0))
    assert [shapes(network)[name][0] for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7")] == [
        48, 128, 192, 192, 256, 4096, 4096,
    ]  # fmt: skip
    # by hand: kernels times (inputs · side² + 1)
    convolutions = (
        48 * (3 * 121 + 1) + 128 * (48 * 25 + 1) + 192 * (128 * 9 + 1) + 192 * (192 * 9 + 1) + 256 * (192 * 9 + 1)
    )
    assert sum(weight.numel() for weight in network.parameters()) == convolutions + 37_752_832 + 16_781_312 + 4_097_000


@pytest.mark.parametrize("place", [1, 2, 3, 4])
def test_a_convolution_that_is_removed_leaves_the_maps_their_size(place):
    kernels = [96, 256, 384, 384, 256, 0]
    kernels[place] = 0
    seen = shapes(built(kernels=tuple(kernels), width=1 / 16))
    assert f"conv{place + 1}" not in seen
    assert [seen[name][1] for name in ("conv1", "conv3", "conv4", "conv5") if name in seen] == [55, 13, 13, 13][
        : 4 - (place > 1)
    ]
    assert seen["fc8"] == (1000,)


@pytest.mark.parametrize("units", [(0, 4096, 0), (4096, 0, 0), (0, 0, 0)])
def test_a_full_layer_can_be_removed(units):
    network = built(units=units, width=1 / 16)
    before = 256 * 6 * 6 // 16 if units == (0, 0, 0) else 256
    assert network.fc8.in_features == before
    assert network.eval().features(patches(1)).shape == (1, before)


def test_the_sixth_convolution_sees_both_columns_behind_the_last_pooling():
    network = built(kernels=(96, 256, 384, 384, 256, 256), width=1 / 16)
    assert shapes(network)["conv6"] == (16, 6, 6)
    assert network.conv6.weight.shape == (16, 16, 3, 3)


def test_the_bottleneck_is_linear():
    network = built(units=(4096, 4096, 2048), width=1 / 16)
    features = torch.randn(2, 256)
    expected = network.fc8(network.bottleneck(features))
    torch.testing.assert_close(network.classify(features), expected)
    torch.testing.assert_close(network.classify(-features), 2 * network.classify(0 * features) - expected)


def test_disjoint_pooling_has_the_sizes_of_layers_147_cfg():
    network = built(pooling="disjoint", width=1 / 16)
    sizes = []
    pool = network._pool
    network._pool = lambda maps: sizes.append((maps.shape[-1], pool(maps).shape[-1])) or pool(maps)
    seen = shapes(network)
    assert sizes == [(55, 28), (26, 13), (11, 6)]
    assert [seen[name][-1] for name in ("conv2", "conv3", "conv4", "conv5")] == [26, 13, 13, 11]


def test_overlapping_pooling_is_the_largest_of_3_by_3_every_2():
    maps = torch.randn(1, 2, 13, 13)
    loop = torch.stack(
        [
            torch.stack([maps[:, :, y : y + 3, x : x + 3].amax((2, 3)) for x in range(0, 11, 2)], -1)
            for y in range(0, 11, 2)
        ],
        2,
    )
    assert torch.equal(narrow()._pool(maps), loop)


@pytest.mark.parametrize(("border", "side", "padding"), [("padded", 224, 2), ("exact", 227, 0)])
def test_55_windows_fit_in_other_ways(border, side, padding):
    network = narrow(border=border)
    assert network.model.patch == side
    seen = {}
    network.conv1.register_forward_hook(lambda _, ins, out: seen.update(out=out))
    x = torch.randn(1, 3, side, side)
    network.eval()(x)
    assert seen["out"].shape[-1] == 55
    expected = F.conv2d(F.pad(x, (padding,) * 4), network.conv1.weight, network.conv1.bias, stride=4)
    torch.testing.assert_close(seen["out"], expected)


@pytest.mark.parametrize("kind", ["relu", "tanh", "sigmoid"])
def test_the_nonlinearity_is_the_one_asked_for(kind):
    network = narrow(activation=kind, normalization="none").eval()
    seen = {}
    network.conv3.register_forward_hook(lambda _, __, out: seen.update(before=out))
    network.conv4.register_forward_pre_hook(lambda _, ins: seen.update(after=ins[0]))
    network(patches())
    expected = {"relu": lambda x: x.clamp(min=0), "tanh": lambda x: 2 / (1 + (-2 * x).exp()) - 1,
                "sigmoid": lambda x: 1 / (1 + (-x).exp())}[kind](seen["before"])  # fmt: skip
    torch.testing.assert_close(seen["after"], expected)


def test_caffe_s_normalization_crosses_the_columns_and_so_keeps_them_together():
    assert not dataclasses.replace(NARROW, normalization="caffe").divisible
    assert NARROW.divisible
    norm = narrow(normalization="caffe").norm1
    maps = torch.zeros(1, 6, 1, 1, dtype=torch.float64)
    maps[0, 2:4] = 100  # the last of the first column, the first of the second
    expected = 100 / (1 + 1e-4 / 5 * 2 * 100**2) ** 0.75
    assert norm(maps)[0, 2].item() == pytest.approx(expected, rel=1e-12)


def test_one_weird_trick_has_the_order_of_2012_without_the_second_normalization():
    weights = narrow(normalization="original").state_dict()
    network = AlexNet(dataclasses.replace(NARROW, normalization="one-weird-trick"), 10).eval()
    network.load_state_dict(weights)
    assert isinstance(network.norm2_space, torch.nn.Identity)
    seen = {}
    network.norm1.register_forward_pre_hook(lambda _, ins: seen.update(lowest=ins[0].min()))
    network(patches())
    assert seen["lowest"] < 0


def test_without_normalization_there_is_none_of_the_three():
    network = narrow(normalization="none").eval()
    x = patches(1)
    maps = F.max_pool2d(F.conv2d(F.pad(x, (0, 3, 0, 3)), network.conv1.weight, network.conv1.bias, 4).relu(), 3, 2)
    maps = F.max_pool2d(F.conv2d(maps, network.conv2.weight, network.conv2.bias, padding=2, groups=2).relu(), 3, 2)
    seen = {}
    network.conv3.register_forward_pre_hook(lambda _, ins: seen.update(maps=ins[0]))
    network(x)
    torch.testing.assert_close(seen["maps"], maps)


def test_batch_normalization_is_before_every_nonlinearity_and_over_the_whole_batch():
    network = narrow(normalization="batch", dropout=0.0).train()
    seen = {}
    for name in ("conv1_batch", "conv4_batch", "fc7_batch"):
        getattr(network, name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    network(patches(8), Dropout(0, 0, torch.arange(8)))
    for name, out in seen.items():
        dims = (0, 2, 3) if name.startswith("conv") else (0,)
        assert out.mean(dims).abs().max() < 1e-4, name
        torch.testing.assert_close(out.var(dims, correction=0), torch.ones(out.shape[1]), rtol=0.01, atol=0.02)


def test_pixels_are_divided_by_the_deviation():
    raw, scaled = narrow(normalization="none").eval(), narrow(normalization="none", deviation=(2.0, 4.0, 8.0)).eval()
    x = patches()
    divided = x / torch.tensor([2.0, 4.0, 8.0])[:, None, None]
    torch.testing.assert_close(scaled(x), raw(divided))


def test_units_before_layer_6_can_be_left_out_too():
    network = narrow(dropout=0.9, dropout_layers=(5, 6)).train()
    seen = {}
    for name in ("fc6", "fc7", "fc8"):
        getattr(network, name).register_forward_pre_hook(lambda _, ins, name=name: seen.update({name: ins[0]}))
    network(patches(8), Dropout(0, 0, torch.arange(8)))
    nothing = {name: (units == 0).float().mean() for name, units in seen.items()}
    assert nothing["fc6"] > 0.85 and nothing["fc7"] > 0.85 and nothing["fc8"] < 0.8


def test_the_last_maps_are_those_of_the_last_convolution():
    network = narrow()
    assert network.last_maps is network.conv5
    network = narrow(kernels=(96, 256, 384, 384, 256, 256))
    assert network.last_maps is network.conv6
