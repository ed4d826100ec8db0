"""Clusters against made-up ones and a plain loop in float64; what is seen, by whom, and that no order of blocks decides."""

import numpy as np
import pytest
import torch

from alexnet import pretraining
from alexnet.pretraining import cluster, k_means, of_equal_contrast, whitened, windows
from tests.alexnet.test_model import narrow, patches

PICTURES = 6


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(count=4000, numbers=12, seed=0):
    return normal(count, numbers, seed=seed) @ normal(numbers, numbers, seed=seed + 1) + normal(numbers, seed=seed + 2)


def clustered(layer, order=range(PICTURES), size=2, network=None, **changes):
    """A narrow network with new kernels in a layer; the pictures come in this order, `size` at a time."""
    network = network or narrow(**changes)
    views, order = patches(PICTURES), torch.tensor([*order])
    blocks = [(places, views[places]) for places in order.split(size)]
    cluster(network, layer, blocks, pictures=PICTURES, patches=150, iterations=3, seed=0)
    return network


def test_whitened_patches_have_the_identity_for_their_covariance():
    given = correlated()
    made = whitened(given, epsilon=0.0).double()
    np.testing.assert_allclose(np.cov(made.numpy(), rowvar=False, bias=True), np.eye(12), atol=1e-3)
    np.testing.assert_allclose(made.mean(0), np.zeros(12), atol=1e-4)


def test_whitening_stretches_along_the_principal_axes_and_does_not_turn():
    given = correlated()
    values, vectors = np.linalg.eigh(np.cov(given.double().numpy(), rowvar=False, bias=True))
    made = whitened(given, epsilon=0.3).double().numpy()
    zca = vectors @ np.diag(1 / np.sqrt(values + 0.3)) @ vectors.T
    np.testing.assert_allclose(made, (given.double().numpy() - given.double().numpy().mean(0)) @ zca, atol=1e-4)


def test_patches_of_equal_contrast_are_a_loop_s_and_flat_ones_stay_flat():
    given = normal(50, 27) * torch.logspace(-2, 3, 50)[:, None] + 100
    given[7] = 3.0
    mean_variance = np.mean([np.var(row) for row in given.double().numpy()])
    for made, row in zip(of_equal_contrast(given), given.double().numpy(), strict=True):
        expected = (row - row.mean()) / np.sqrt(row.var() + 0.01 * mean_variance)
        np.testing.assert_allclose(made, expected, rtol=1e-3, atol=1e-4)
    assert not of_equal_contrast(given)[7].any()


def test_where_all_is_the_same_nothing_is_clustered():
    with pytest.raises(ValueError, match="conv1 has constant input"):
        cluster(
            narrow(), "conv1", [(torch.arange(2), torch.zeros(2, 3, 224, 224))],
            pictures=2, patches=20, iterations=1, seed=0,
        )  # fmt: skip


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
def test_made_up_clusters_are_found(seed):
    truth = torch.nn.functional.normalize(normal(6, 40, seed=seed), dim=1)
    lots = torch.Generator().manual_seed(seed)
    own = torch.randint(6, (3000,), generator=lots)
    length = torch.randn(3000, generator=lots)  # either way along its direction
    given = length[:, None] * truth[own] + 0.02 * normal(3000, 40, seed=seed + 10)
    found = k_means(given, normal(24, 40, seed=seed + 20), 20)
    cosines = (truth @ found.T).abs().max(dim=1).values
    assert (cosines > 0.99).all(), cosines


def test_k_means_is_a_plain_loop_over_the_patches():
    given, first = normal(300, 9), normal(5, 9, seed=1)
    centres = first.double().numpy() / np.linalg.norm(first.double().numpy(), axis=1, keepdims=True)
    for _ in range(4):
        sums = centres.copy()
        for patch in given.double().numpy():
            lengths = [float(centre @ patch) for centre in centres]
            own = int(np.argmax(np.abs(lengths)))
            sums[own] += lengths[own] * patch
        centres = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    np.testing.assert_allclose(k_means(given, first, 4), centres, atol=1e-5)


def test_centres_have_length_1_and_one_without_patches_stays():
    first = torch.eye(8)[:3] * 7
    found = k_means(normal(5000, 8) * torch.tensor([1.0, 1, 0, 0, 0, 0, 0, 0]), first, 5)
    np.testing.assert_allclose(found.norm(dim=1), np.ones(3), rtol=1e-6)
    assert torch.equal(found[2], torch.eye(8)[2])
    assert not torch.equal(found[0], torch.eye(8)[0])


def test_windows_are_cut_at_any_place_alike():
    maps = torch.arange(2 * 9 * 7).reshape(2, 9, 7)
    cut = windows(maps, 3, "conv2", 0, torch.arange(3000)).reshape(-1, 2, 3, 3)
    places = cut[:, 0, 0, 0]
    for window, place in zip(cut[:50], places[:50].tolist(), strict=True):
        y, x = divmod(place, 7)
        assert torch.equal(window, maps[:, y : y + 3, x : x + 3])
    counts = torch.bincount(places, minlength=63).reshape(9, 7)
    assert not counts[7:].any()
    assert not counts[:, 5:].any()
    expected = 3000 / 35
    assert ((counts[:7, :5] - expected).square() / expected).sum() < 65  # chi square of 34, its 99.9 % point
    assert torch.equal(windows(maps, 3, "conv2", 0, torch.arange(9, 20)).reshape(-1, 2, 3, 3), cut[9:20])


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["conv1", "conv2"])
@pytest.mark.parametrize("normalization", ["original", "printed"])
def test_a_layer_s_inputs_are_what_it_gets_in_a_whole_pass(layer, normalization):
    network, seen = narrow(normalization=normalization).eval(), []
    handle = getattr(network, layer).register_forward_hook(lambda _, given, __: seen.append(given[0]))
    behind = network.conv3.register_forward_hook(lambda *_: seen.append("behind"))
    network(patches(2))
    assert len(seen) == 2
    handle.remove()
    assert torch.equal(pretraining.inputs(network, layer, patches(2)), seen[0])
    assert len(seen) == 2, "layers behind it were computed"
    behind.remove()
    assert not getattr(network, layer)._forward_pre_hooks


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["conv1", "conv2"])
def test_no_order_of_the_blocks_decides(layer):
    one, other = clustered(layer), clustered(layer, order=[3, 0, 5, 1, 2, 4], size=4)
    assert torch.equal(getattr(one, layer).weight, getattr(other, layer).weight)


@pytest.mark.parametrize("layer", ["conv1", "conv2"])
@pytest.mark.parametrize("columns", [1, 2])
def test_only_the_shape_of_the_kernels_is_new(layer, columns):
    before, after = narrow(columns=columns), clustered(layer, columns=columns)
    changed = {
        name for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(old, new)
    }  # fmt: skip
    assert changed == {f"{layer}.weight"}
    old, new = (getattr(network, layer).weight.detach().double() for network in (before, after))
    asked = 0.01 / (1 if layer == "conv1" else (1 / 16) ** 0.5)
    sizes = new.square().flatten(1).mean(1).sqrt()
    np.testing.assert_allclose(sizes, torch.full_like(sizes, old.square().mean().sqrt()), rtol=1e-5)
    np.testing.assert_allclose(sizes, torch.full_like(sizes, asked), rtol=0.03)


def test_kernels_of_a_column_come_from_what_that_column_sees():
    plain, changed = clustered("conv2").conv2.weight, narrow()
    with torch.no_grad():
        changed.conv1.weight[3:] *= -1  # the second column's
    changed = clustered("conv2", network=changed).conv2.weight
    assert torch.equal(plain[:8], changed[:8])
    assert not torch.equal(plain[8:], changed[8:])


def test_another_seed_draws_other_windows_and_centres():
    views, found = patches(PICTURES), []
    for seed in (0, 1):
        network = narrow()
        cluster(network, "conv1", [(torch.arange(6), views)], pictures=6, patches=150, iterations=3, seed=seed)
        found.append(network.conv1.weight)
    assert not torch.equal(*found)
