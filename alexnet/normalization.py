"""§3.3 Local response normalization: as printed, as it was run in 2012, across kernels and across space; and fast.

    b_i = a_i / (k + scale · Σ_{j near i} a_j²)^β

The paper prints scale = α = 1e-4. Its authors' code divides α by the number of neighbours (layer.py: for a window of 5
kernels by 5), so what was run is 2e-5. Near are the five kernels around i of the same column, at the same place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ALPHA, BETA, K, NEIGHBOURS = 1e-4, 0.75, 2.0, 5
SPATIAL_ALPHA, SPATIAL_K, SPATIAL_SIDE = 1e-3, 1.0, 5

Sum = Callable[[Tensor], Tensor]


class AcrossKernels(nn.Module):
    """The normalization of §3.3, inside each column: n = 5, β = .75, and k = 2 but in Caffe."""

    def __init__(self, columns: int, scale: float, k: float = K) -> None:
        super().__init__()
        self.columns, self.scale, self.k = columns, scale, k

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        """B×C×H×W, C a multiple of the columns → the same shape."""
        band = _band(maps_BCHW.shape[1] // self.columns, maps_BCHW.device, maps_BCHW.dtype)
        weight = band.repeat(self.columns, 1)[:, :, None, None]
        return normalize(maps_BCHW, lambda maps: F.conv2d(maps, weight, groups=self.columns), self.k, self.scale)

    def extra_repr(self) -> str:
        """For print."""
        return f"columns={self.columns}, scale={self.scale:g}, k={self.k:g}"


class AcrossSpace(nn.Module):
    """What the code of 2012 has over its second layer and the paper does not mention (`cnorm2` in layers-145.cfg).

    Each map by itself, over 5×5 places: k = 1, α = 1e-3 divided by the 25 places, β = .75.
    """

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        """B×C×H×W → the same shape."""
        return normalize(maps_BCHW, _mean_near, SPATIAL_K, SPATIAL_ALPHA)


def _mean_near(maps_BCHW: Tensor) -> Tensor:
    """The mean over 5×5 places, zeros outside: the divisor stays 25 at the borders, as in 2012. First down, then across."""
    side, half = SPATIAL_SIDE, SPATIAL_SIDE // 2
    return F.avg_pool2d(F.avg_pool2d(maps_BCHW, (side, 1), 1, (half, 0)), (1, side), 1, (0, half))


def normalize(maps: Tensor, total: Sum, k: float, scale: float) -> Tensor:
    """Maps / (k + scale · total(maps²))^.75, for a `total` that is linear and its own transpose."""
    with torch.autocast(maps.device.type, enabled=False):
        if torch.is_grad_enabled() and maps.requires_grad:
            result: Tensor = _Normalize.apply(maps, total, k, scale)
            return result
        return maps * _power(k + scale * total(maps * maps))


class _Normalize(torch.autograd.Function):
    """One forward and one closed-form backward: a third fewer passes over memory than autograd takes."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, total: Sum, k: float, scale: float) -> Tensor:
        base = total(maps * maps).mul_(scale).add_(k)
        ctx.save_for_backward(maps, base)
        ctx.total, ctx.scale = total, scale
        return maps * _power(base)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        # d b_j / d a_i = [i=j] s_i^-β - 2 β scale a_i a_j s_j^(-β-1), for j near i
        maps, base = ctx.saved_tensors
        with torch.autocast(maps.device.type, enabled=False):
            passed = gradients[0].to(maps.dtype) * _power(base)
            through = ctx.total(passed * maps / base)
            return torch.addcmul(passed, maps, through, value=-2 * BETA * ctx.scale), None, None, None


def _power(base: Tensor) -> Tensor:
    # base^-.75 by two roots, several times as fast as a power
    root = torch.rsqrt(base)
    return root * torch.sqrt(root)


@lru_cache
def _band(kernels: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Ones where two kernels are near: within n/2 of each other, cut at the ends of the column. Symmetric."""
    place = torch.arange(kernels, device=device)
    return ((place[:, None] - place[None, :]).abs() <= NEIGHBOURS // 2).to(dtype)
