"""Random numbers by key: the same on every device, in any order, for any slice of a batch or a layer.

A number is a pure function of its key, such as (seed, epoch, picture) or (seed, step, layer, row, unit), so that it does
not depend on which process computes it. The function is the finalizer of splitmix64 (Steele, Lea and Flood, 2014),
applied once for each part of the key.
"""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # as a signed number: torch has no unsigned arithmetic
FACTOR_1 = 0xBF58476D1CE4E5B9 - 2**64
FACTOR_2 = 0x94D049BB133111EB - 2**64


def bits(purpose: str, *key: int | Tensor) -> Tensor:
    """63 random bits per key, int64 ≥ 0; the parts of the key are broadcast against each other.

    `purpose` is part of the key: equal numbers under different purposes give independent draws.
    """
    hashed = torch.tensor(zlib.crc32(purpose.encode()), dtype=torch.int64)
    for part in key:
        part = torch.as_tensor(part, dtype=torch.int64)
        hashed = _mix(hashed.to(part.device) + (part + 1) * GOLDEN)
    return _shift(hashed, 1)


def uniform(purpose: str, *key: int | Tensor) -> Tensor:
    """Uniform numbers in [0, 1), float64."""
    return _shift(bits(purpose, *key), 10).to(torch.float64) * 2.0**-53


def integers(below: int, purpose: str, *key: int | Tensor) -> Tensor:
    """Uniform integers in 0 … below - 1, int64; probabilities are exact to 2^-53."""
    return (uniform(purpose, *key) * below).to(torch.int64)


def normal(purpose: str, *key: int | Tensor) -> Tensor:
    """Standard normal numbers, float64, by the Box–Muller method."""
    radius = torch.sqrt(-2 * torch.log1p(-uniform(purpose + " radius", *key)))
    return radius * torch.cos(2 * math.pi * uniform(purpose + " angle", *key))


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * FACTOR_1
    z = (z ^ _shift(z, 27)) * FACTOR_2
    return z ^ _shift(z, 31)


def _shift(z: Tensor, count: int) -> Tensor:
    # a logical shift; torch's own is arithmetic and copies the sign bit
    return (z >> count) & ((1 << (64 - count)) - 1)
