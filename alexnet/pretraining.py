"""§7 Unsupervised pretraining: the kernels of a layer as clusters of what it sees.

The authors did without and expected it to help. Here it is spherical k-means on patches of equal contrast, whitened: Coates
and Ng, "Learning feature representations with k-means" (2012). In shapes: B pictures, C maps, H×W places, N patches of
D = C·side·side numbers, G groups, K kernels of a group.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet import draws
from alexnet.model import AlexNet

PER_PICTURE = 10
"""Patches of one picture, where there are pictures enough: more would show the same edge again."""

CONTRAST = 0.01
"""Share of the patches' mean variance that is added to the variance of each before it is divided by it: what is flat stays
so. Coates and Ng add 10, which is about as much for pictures of 0–255, but says nothing for the outputs of a layer."""

EPSILON = 0.1
"""Added to the eigenvalues in whitening. Coates and Ng: .1 for patches of 8×8, .01 for 16×16. With .01 some of the kernels
found in photographs are nothing but grain; with .1 few are."""

BLOCK = 4096
"""Patches at a time. It decides the last bits, so it is fixed."""


@torch.no_grad()
def cluster(
    network: AlexNet,
    layer: str,
    views: Iterable[tuple[Tensor, Tensor]],
    *,
    pictures: int,
    patches: int,
    iterations: int,
    seed: int,
) -> None:
    """Gives a convolutional layer of a whole network new kernels, found in what it sees; its biases stay.

    `views` are blocks in any order: places B, and patches B×3×224×224, the mean subtracted. The places are 0 …
    `pictures` - 1, each once. Each kernel gets the root mean square of the weights it replaces, so that only its shape is
    new. `ValueError` if the layer sees the same everywhere.
    """
    convolution: nn.Conv2d = getattr(network, layer)
    old_KCHW = convolution.weight
    groups, numbers = convolution.groups, old_KCHW[0].numel()
    seen_NGD = torch.empty(patches, groups, numbers)
    for places_B, views_BCHW in views:
        for place, maps_CHW in zip(places_B.tolist(), inputs(network, layer, views_BCHW), strict=True):
            own_N = torch.arange(place, patches, pictures)
            windows_ND = windows(maps_CHW, old_KCHW.shape[-1], layer, seed, own_N)
            seen_NGD[own_N] = windows_ND.reshape(-1, groups, numbers)
    found = []
    for group in range(groups):
        rows, columns = torch.arange(len(old_KCHW) // groups)[:, None], torch.arange(numbers)
        first_KD = draws.normal(f"pretraining, centres of {layer}", seed, group, rows, columns).to(seen_NGD.dtype)
        # the centres as they are: the network sees pixels that are not whitened, and behind the whitening's own filter
        # they would show it little but the finest grain, at half the size
        found.append(k_means(whitened(of_equal_contrast(seen_NGD[:, group], layer)), first_KD, iterations))
    size = old_KCHW.square().mean().sqrt() * numbers**0.5
    convolution.weight.copy_((torch.cat(found) * size).reshape(old_KCHW.shape))


class _Reached(BaseException):
    """The layer has been reached, and nothing behind it is wanted."""


def inputs(network: AlexNet, layer: str, views_BCHW: Tensor) -> Tensor:
    """What a layer sees of patches B×3×224×224: B×C×H×W of all its groups, without its own padding."""
    seen: list[Tensor] = []

    def look(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen.append(given[0])
        raise _Reached

    handle = getattr(network, layer).register_forward_pre_hook(look)
    try:
        network.eval()(views_BCHW)
    except _Reached:
        pass
    finally:
        handle.remove()
    return seen[0]


def windows(maps_CHW: Tensor, side: int, layer: str, seed: int, numbers_N: Tensor) -> Tensor:
    """Windows of side×side, N×D, each at a place drawn by (seed, layer, its number)."""
    y_N, x_N = (
        draws.integers(length - side + 1, f"pretraining, {axis} in {layer}", seed, numbers_N)
        for axis, length in zip("yx", maps_CHW.shape[1:], strict=True)
    )
    windows_CYXHW = maps_CHW.unfold(1, side, 1).unfold(2, side, 1)
    return windows_CYXHW[:, y_N, x_N].movedim(1, 0).flatten(1)


def of_equal_contrast(patches_ND: Tensor, layer: str = "the layer") -> Tensor:
    """Each patch less its mean, divided by its standard deviation."""
    variance_N, mean_N = torch.var_mean(patches_ND, dim=1, correction=0)
    if not variance_N.any():
        raise ValueError(f"{layer} sees the same everywhere, and nothing can be clustered. start.unsupervised: none")
    return (patches_ND - mean_N[:, None]) / (variance_N + CONTRAST * variance_N.mean()).sqrt()[:, None]


def whitened(patches_ND: Tensor, epsilon: float = EPSILON) -> Tensor:
    """The patches, turned and stretched so that their covariance is the identity, but for ε; by a symmetric matrix (ZCA)."""
    centred_ND = patches_ND - patches_ND.mean(0)
    covariance_DD = torch.zeros(centred_ND.shape[1], centred_ND.shape[1], dtype=torch.float64)
    for block_ND in torch.split(centred_ND, BLOCK):
        covariance_DD += block_ND.double().T @ block_ND.double() / len(centred_ND)
    values_D, vectors_DD = torch.linalg.eigh(covariance_DD)
    zca_DD: Tensor = vectors_DD / (values_D.clamp(min=0) + epsilon).sqrt() @ vectors_DD.T
    return centred_ND @ zca_DD.to(centred_ND.dtype)


def k_means(patches_ND: Tensor, first_KD: Tensor, iterations: int) -> Tensor:
    """Centres K×D of length 1, from `first_KD` on: a patch belongs to the centre along which it is longest, either way.

    A centre moves towards its patches, each by its length along it, and itself once: so it stays where it has none.
    """
    centres_KD = F.normalize(first_KD, dim=1)
    for _ in range(iterations):
        sums_KD = centres_KD.clone()
        for block_ND in torch.split(patches_ND, BLOCK):
            along_NK = block_ND @ centres_KD.T
            nearest_N1 = along_NK.abs().argmax(1, keepdim=True)
            own_NK = torch.zeros_like(along_NK).scatter_(1, nearest_N1, along_NK.gather(1, nearest_N1))
            sums_KD += own_NK.T @ block_ND
        centres_KD = F.normalize(sums_KD, dim=1)
    return centres_KD
