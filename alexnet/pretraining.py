"""§7 Unsupervised pretraining: a layer's kernels are cluster centres of patches of its input.

The authors did not use it and expected it to help. Here it is spherical k-means on contrast-normalized, whitened patches:
Coates and Ng, "Learning feature representations with k-means" (2012). Axes: B pictures, C maps, H×W positions, N patches
of D = C·side·side numbers, G groups, K kernels of a group.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet import draws
from alexnet.model import AlexNet

PER_PICTURE = 10
"""Patches taken from one picture, if there are enough pictures: more would repeat the same edges."""

CONTRAST = 0.01
"""Added to each patch's variance, as a fraction of the mean variance, before the division, so that flat patches stay flat.
Coates and Ng add 10, which is about as much for pixels in 0–255, but means nothing for the outputs of a layer."""

EPSILON = 0.1
"""Added to the eigenvalues in whitening. Coates and Ng: .1 for 8×8 patches, .01 for 16×16. With .01 some kernels found in
photographs are pure grain; with .1 few are."""

BLOCK = 4096
"""Patches per block. The block size affects the last bits, so it is a constant."""


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
    """Replaces the kernels of a convolutional layer of a whole network by clusters of its input; the biases stay.

    `views` gives blocks, in any order: indices B, each of 0 … `pictures` - 1 once, and patches B×3×224×224 with the mean
    subtracted. `patches` windows of the layer's input are clustered. The new kernels have the root mean square of the
    weights that they replace. `ValueError` if the layer's input is constant.
    """
    convolution: nn.Conv2d = getattr(network, layer)
    old_KCHW = convolution.weight
    groups, numbers = convolution.groups, old_KCHW[0].numel()
    seen_NGD = torch.empty(patches, groups, numbers)
    for indices_B, views_BCHW in views:
        for index, maps_CHW in zip(indices_B.tolist(), inputs(network, layer, views_BCHW), strict=True):
            own_N = torch.arange(index, patches, pictures)
            windows_ND = windows(maps_CHW, old_KCHW.shape[-1], layer, seed, own_N)
            seen_NGD[own_N] = windows_ND.reshape(-1, groups, numbers)
    centres = []
    for group in range(groups):
        rows, columns = torch.arange(len(old_KCHW) // groups)[:, None], torch.arange(numbers)
        first_KD = draws.normal(f"pretraining, centres of {layer}", seed, group, rows, columns).to(seen_NGD.dtype)
        # the centres become kernels without the whitening matrix: multiplied by it, they would respond, on unwhitened
        # pixels, to little but the finest grain, at half the size
        centres.append(k_means(whitened(of_equal_contrast(seen_NGD[:, group], layer)), first_KD, iterations))
    size = old_KCHW.square().mean().sqrt() * numbers**0.5
    convolution.weight.copy_((torch.cat(centres) * size).reshape(old_KCHW.shape))


class _Reached(BaseException):
    """Ends a forward pass when the layer has been reached."""


def inputs(network: AlexNet, layer: str, views_BCHW: Tensor) -> Tensor:
    """The input of a layer for patches B×3×224×224: B×C×H×W of all its groups, before its padding."""
    layer_inputs: list[Tensor] = []

    def keep(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        layer_inputs.append(arguments[0])
        raise _Reached

    handle = getattr(network, layer).register_forward_pre_hook(keep)
    try:
        network.eval()(views_BCHW)
    except _Reached:
        pass
    finally:
        handle.remove()
    return layer_inputs[0]


def windows(maps_CHW: Tensor, side: int, layer: str, seed: int, numbers_N: Tensor) -> Tensor:
    """Windows of C×side×side, flattened to N×D, each at a position drawn by (seed, layer, number of the window)."""
    y_N, x_N = (
        draws.integers(length - side + 1, f"pretraining, {axis} in {layer}", seed, numbers_N)
        for axis, length in zip("yx", maps_CHW.shape[1:], strict=True)
    )
    windows_CYXHW = maps_CHW.unfold(1, side, 1).unfold(2, side, 1)
    return windows_CYXHW[:, y_N, x_N].movedim(1, 0).flatten(1)


def of_equal_contrast(patches_ND: Tensor, layer: str = "the layer") -> Tensor:
    """Patches minus their mean, divided by their standard deviation, each by itself; N×D → N×D.

    `CONTRAST` is added to the variances. `ValueError` if every patch is constant; `layer` names it in the message.
    """
    variance_N, mean_N = torch.var_mean(patches_ND, dim=1, correction=0)
    if not variance_N.any():
        raise ValueError(f"{layer} has constant input: there is nothing to cluster. Set start.unsupervised to none")
    return (patches_ND - mean_N[:, None]) / (variance_N + CONTRAST * variance_N.mean()).sqrt()[:, None]


def whitened(patches_ND: Tensor, epsilon: float = EPSILON) -> Tensor:
    """Patches multiplied by a symmetric matrix (ZCA) that makes their covariance the identity, up to ε; N×D → N×D."""
    centred_ND = patches_ND - patches_ND.mean(0)
    covariance_DD = torch.zeros(centred_ND.shape[1], centred_ND.shape[1], dtype=torch.float64)
    for block_ND in torch.split(centred_ND, BLOCK):
        covariance_DD += block_ND.double().T @ block_ND.double() / len(centred_ND)
    values_D, vectors_DD = torch.linalg.eigh(covariance_DD)
    zca_DD: Tensor = vectors_DD / (values_D.clamp(min=0) + epsilon).sqrt() @ vectors_DD.T
    return centred_ND @ zca_DD.to(centred_ND.dtype)


def k_means(patches_ND: Tensor, first_KD: Tensor, iterations: int) -> Tensor:
    """Spherical k-means: centres K×D of length 1, starting from `first_KD`.

    A patch belongs to the centre with the largest |dot product|. A new centre is the old one plus the sum of its patches,
    each weighted by its dot product, normalized; a centre without patches stays.
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
