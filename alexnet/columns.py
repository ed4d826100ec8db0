"""§3.2 The two columns on two processes: what crosses between them, and its gradient.

Each process holds one half of the kernels. Before the third convolution and the fully-connected layers each sends the
other its maps; elsewhere nothing crosses. In one process that holds both columns, crossing is doing nothing.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor


class Link(Protocol):
    """How the columns held here reach the others."""

    held: slice
    """Which of the columns this process holds."""

    def cross(self, maps: Tensor) -> Tensor:
        """B×C… of the columns here → B×C'… of all columns, in their order. Every process uses them differently."""

    def cross_last(self, units: Tensor) -> Tensor:
        """Likewise, before a layer that every process computes whole."""


class Together:
    """All columns in this process (`groups=2`): nothing has to cross."""

    def __init__(self, columns: int) -> None:
        self.held = slice(0, columns)

    def cross(self, maps: Tensor) -> Tensor:
        """The maps as they are."""
        return maps

    def cross_last(self, units: Tensor) -> Tensor:
        """The units as they are."""
        return units


class Apart:
    """One of two columns, the other in the process with rank `peer` (of the default group)."""

    def __init__(self, column: int, peer: int) -> None:
        if column not in (0, 1):
            raise ValueError(f"the paper's network has columns 0 and 1, not {column}")
        self.column, self.peer = column, peer
        self.held = slice(column, column + 1)

    def cross(self, maps: Tensor) -> Tensor:
        """Gives and takes maps; backward, gives and takes the gradients that each has of the other's."""
        result: Tensor = _Cross.apply(maps, self, True)
        return result

    def cross_last(self, units: Tensor) -> Tensor:
        """Gives and takes units; backward nothing crosses, since both sides have the same gradient of all of them."""
        result: Tensor = _Cross.apply(units, self, False)
        return result


class _Cross(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, link: Apart, sum_backward: bool) -> Tensor:
        ctx.link, ctx.sum_backward = link, sum_backward
        own = own.movedim(1, -1)  # channels last is how the maps lie in memory, so that this costs nothing
        halves = [own, _swap(own, link.peer)]
        return torch.cat(halves if link.column == 0 else halves[::-1], dim=-1).movedim(-1, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        link: Apart = ctx.link
        halves = gradients[0].movedim(1, -1).chunk(2, dim=-1)
        own = halves[link.column]
        if ctx.sum_backward:
            own = own + _swap(halves[1 - link.column], link.peer)
        return own.movedim(-1, 1), None, None


def gather(parts: dict[str, Tensor], link: Link, whole: Container[str]) -> dict[str, Tensor]:
    """Tensors divided by rows between the columns, put together, in both processes; those named in `whole` are so already.

    Raises `RuntimeError` if the columns disagree about one that both compute whole.
    """
    if not isinstance(link, Apart):
        return {name: part.detach() for name, part in parts.items()}
    tensors = {}
    for name, part in parts.items():
        own = part.detach()
        other = _swap(own, link.peer)
        if name not in whole:
            tensors[name] = torch.cat([own, other] if link.column == 0 else [other, own])
        elif torch.equal(own, other):
            tensors[name] = own
        else:
            raise RuntimeError(f"{name}: both columns compute it and do not agree. Are their devices of one kind?")
    return tensors


def _swap(given: Tensor, peer: int) -> Tensor:
    """Sends `given` to the peer and returns what it sends, of the same shape."""
    given = given.contiguous()
    taken = torch.empty_like(given)
    for work in dist.batch_isend_irecv([dist.P2POp(dist.isend, given, peer), dist.P2POp(dist.irecv, taken, peer)]):
        work.wait()
    return taken
