"""§3.2 The two columns on two processes: what crosses between them, and its gradient.

Each process holds half of the kernels. Before the third convolution and the fully connected layers each process sends the
other its maps; nowhere else does anything cross. In one process that holds both columns, crossing does nothing.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor


class Link(Protocol):
    """The connection between the columns in this process and the others."""

    held: slice
    """The columns that this process holds."""

    def cross(self, maps: Tensor) -> Tensor:
        """B×C… of this process's columns → B×C'… of all columns, in order, before a layer divided between them."""

    def cross_last(self, units: Tensor) -> Tensor:
        """B×C… of this process's columns → B×C'… of all columns, before a layer that every process computes whole."""


class Together:
    """All columns in this process (`groups=2`): nothing has to cross."""

    def __init__(self, columns: int) -> None:
        self.held = slice(0, columns)

    def cross(self, maps: Tensor) -> Tensor:
        """Returns the maps unchanged."""
        return maps

    def cross_last(self, units: Tensor) -> Tensor:
        """Returns the units unchanged."""
        return units


class Apart:
    """One of two columns in this process; the other is in the process of rank `peer` in the default group."""

    def __init__(self, column: int, peer: int) -> None:
        if column not in (0, 1):
            raise ValueError(f"the paper's network has columns 0 and 1, not {column}")
        self.column, self.peer = column, peer
        self.held = slice(column, column + 1)

    def cross(self, maps: Tensor) -> Tensor:
        """Exchanges maps; backward, exchanges the gradients that each process has for the other's maps."""
        result: Tensor = _Cross.apply(maps, self, True)
        return result

    def cross_last(self, units: Tensor) -> Tensor:
        """Exchanges units; backward, nothing crosses, since both processes compute the same gradient of all units."""
        result: Tensor = _Cross.apply(units, self, False)
        return result

    def swap(self, sent: Tensor) -> Tensor:
        """Sends a tensor to the peer and returns the tensor of the same shape that the peer sends."""
        sent = sent.contiguous()
        received = torch.empty_like(sent)
        both = [dist.P2POp(dist.isend, sent, self.peer), dist.P2POp(dist.irecv, received, self.peer)]
        for work in dist.batch_isend_irecv(both):
            work.wait()
        return received


class _Cross(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, link: Apart, sum_backward: bool) -> Tensor:
        ctx.link, ctx.sum_backward = link, sum_backward
        own = own.movedim(1, -1)  # free: the maps are channels-last in memory
        halves = [own, link.swap(own)]
        return torch.cat(halves if link.column == 0 else halves[::-1], dim=-1).movedim(-1, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        link: Apart = ctx.link
        halves = gradients[0].movedim(1, -1).chunk(2, dim=-1)
        own = halves[link.column]
        if ctx.sum_backward:
            own = own + link.swap(halves[1 - link.column])
        return own.movedim(-1, 1), None, None


def gather(parts: dict[str, Tensor], link: Link, whole: Container[str]) -> dict[str, Tensor]:
    """Concatenates, in both processes, tensors whose rows are divided between the columns.

    Tensors named in `whole` are held whole by both; `RuntimeError` if the two copies differ.
    """
    if not isinstance(link, Apart):
        return {name: part.detach() for name, part in parts.items()}
    tensors = {}
    for name, part in parts.items():
        own = part.detach()
        other = link.swap(own)
        if name not in whole:
            tensors[name] = torch.cat([own, other] if link.column == 0 else [other, own])
        elif torch.equal(own, other):
            tensors[name] = own
        else:
            raise RuntimeError(
                f"{name}: both columns compute it, with different results. Are their devices of one kind?"
            )
    return tensors
