"""§3.3 Local response normalization: across kernels, as printed and as run in 2012; and across space.

    b_i = a_i / (k + scale · Σ_{j near i} a_j²)^β

j runs over the five kernels around i in the same column, at the same position. The paper prints scale = α = 1e-4. Its
authors' code divides α by the size of the window (layer.py), here 5, so the value that was run is 2e-5.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ALPHA, BETA, K, NEIGHBOURS = 1e-4, 0.75, 2.0, 5
"""§3.3: α, β, k and n."""

SPATIAL_ALPHA, SPATIAL_K, SPATIAL_SIDE = 1e-3, 1.0, 5
"""α, k and the side of the window of `cnorm2` in layers-145.cfg."""

Sum = Callable[[Tensor], Tensor]
"""Sums (or averages) a map of squares over the neighbours of each element; the shape stays."""


class AcrossKernels(nn.Module):
    """The normalization of §3.3 inside each column: n = 5, β = .75, and k = 2 (in Caffe, 1)."""

    def __init__(self, columns: int, scale: float, k: float = K) -> None:
        super().__init__()
        self.columns, self.scale, self.k = columns, scale, k

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        """B×C×H×W, C a multiple of the columns → the same shape."""
        band = _band(maps_BCHW.shape[1] // self.columns, maps_BCHW.device, maps_BCHW.dtype)
        weight = band.repeat(self.columns, 1)[:, :, None, None]
        return normalize(maps_BCHW, lambda maps: F.conv2d(maps, weight, groups=self.columns), self.k, self.scale)

    def extra_repr(self) -> str:
        """The arguments, for print."""
        return f"columns={self.columns}, scale={self.scale:g}, k={self.k:g}"


class AcrossSpace(nn.Module):
    """The second normalization of layer 2 in the code of 2012 (`cnorm2` in layers-145.cfg), which the paper omits.

    Over 5×5 positions inside each map: k = 1, α = 1e-3 divided by 25, β = .75.
    """

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        """B×C×H×W → the same shape."""
        return normalize(maps_BCHW, _mean_near, SPATIAL_K, SPATIAL_ALPHA)


def _mean_near(maps_BCHW: Tensor) -> Tensor:
    """The mean over 5×5 positions, zeros outside: the divisor is 25 at the borders too, as in 2012. Columns, then rows."""
    side, half = SPATIAL_SIDE, SPATIAL_SIDE // 2
    return F.avg_pool2d(F.avg_pool2d(maps_BCHW, (side, 1), 1, (half, 0)), (1, side), 1, (0, half))


def normalize(maps: Tensor, total: Sum, k: float, scale: float) -> Tensor:
    """Computes maps / (k + scale · total(maps²))^.75, same shape. `total` must be linear and its own transpose."""
    with torch.autocast(maps.device.type, enabled=False):
        if torch.is_grad_enabled() and maps.requires_grad:
            result: Tensor = _Normalize.apply(maps, total, k, scale)
            return result
        return maps * _power(k + scale * total(maps * maps))


class _Normalize(torch.autograd.Function):
    """A closed-form backward: a third fewer passes over memory than autograd's."""

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
    # base^-.75 by two square roots, several times as fast as a general power
    root = torch.rsqrt(base)
    return root * torch.sqrt(root)


@lru_cache
def _band(kernels: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A symmetric kernels×kernels matrix: 1 where two kernels of a column are within n/2 of each other, else 0."""
    index = torch.arange(kernels, device=device)
    return ((index[:, None] - index[None, :]).abs() <= NEIGHBOURS // 2).to(dtype)
