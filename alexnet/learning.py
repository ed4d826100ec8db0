"""§5 The update rule, the falling rate and one step of learning."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from alexnet.errors import credits
from alexnet.model import PATCH, AlexNet, Dropout

Reduce = Callable[[list[Tensor]], None]
"""Adds up tensors in place over the replicas that share a step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Learning:
    """params.yaml, `learning:` — §5."""

    seed: int
    """Of the first weights, the order of the pictures, the patches, the colour and the dropout."""
    batch_size: int
    """Pictures per update, over all workers together. The paper: 128."""
    epochs: int
    """Times through the training set. The paper: about 90."""
    rate: float
    """The learning rate ε at the start. The paper: .01."""
    bias_rate: float
    """What the biases' rate is of the weights'. The paper: 1; run in 2012: 2."""
    rate_falls: tuple[int, ...]
    """The epochs, counted from 0, at whose start the rate is divided by `rate_divisor`. The paper: three times."""
    rate_divisor: float
    """The paper: 10."""
    momentum: float
    """The paper: .9."""
    decay: float
    """Weight decay. The paper: .0005."""
    bias_decay: float
    """Of the biases. The paper does not set them apart; run in 2012: 0."""
    precision: Literal["float32", "bfloat16", "float64"]
    """Of the arithmetic; bfloat16 keeps weights and velocities in float32."""
    order: Literal["shuffled", "cyclic"]
    """shuffled: anew for each epoch. cyclic: as stored, each time the same, as run in 2012."""
    log_steps: int
    """Steps whose mean loss and error make a point of the learning curve."""
    streams: int
    """Places in the stored order that are read at once when it is shuffled: many mix better, few read longer runs."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs", "log_steps", "streams"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} has to be at least 1, is {getattr(self, name)}")
        for name in ("rate", "bias_rate", "decay", "bias_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} has to be 0 or more, is {getattr(self, name)}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum has to be in [0, 1), is {self.momentum}")
        if self.rate_divisor < 1:
            raise ValueError(f"rate_divisor has to be at least 1, is {self.rate_divisor}")
        if list(self.rate_falls) != sorted(set(self.rate_falls)):
            raise ValueError(f"rate_falls has to rise, is {list(self.rate_falls)}")

    def rate_in(self, epoch: int) -> float:
        """The weights' rate in an epoch, counted from 0."""
        return self.rate / self.rate_divisor ** sum(epoch >= fall for fall in self.rate_falls)


class Momentum:
    """v ← μ v - λ ε w - ε g;  w ← w + v.

    ε stands inside the velocity, as printed and as run (weights.cu): after the rate has fallen, the old velocity works on
    for some ten steps. torch.optim.SGD has it outside, which is the same only while the rate does not change.
    """

    def __init__(self, network: AlexNet, learning: Learning) -> None:
        self.network, self.learning = network, learning
        self.velocity = {name: torch.zeros_like(weight) for name, weight in network.named_parameters()}

    @torch.no_grad()
    def update(self, rate: float) -> None:
        """One update from the gradients in the network's parameters, at the weights' rate ε."""
        for name, weight in self.network.named_parameters():
            is_bias = name.endswith("bias")
            epsilon = rate * (self.learning.bias_rate if is_bias else 1)
            decay = self.learning.bias_decay if is_bias else self.learning.decay
            assert weight.grad is not None
            velocity = self.velocity[name].mul_(self.learning.momentum)
            velocity.add_(weight, alpha=-decay * epsilon).add_(weight.grad, alpha=-epsilon)
            weight.add_(velocity)


@dataclass(frozen=True, slots=True)
class Measured:
    """What a step saw: sums over the whole batch, of all replicas."""

    loss_sum: float
    right: float
    count: int


def step(
    network: AlexNet,
    rule: Momentum,
    patches_BCHW: Tensor,
    labels_B: Tensor,
    *,
    rate: float,
    dropout: Dropout,
    count: int,
    reduce: Reduce | None = None,
) -> Measured:
    """One step: the loss averaged over the batch of `count` pictures, of which these are this replica's, and its update.

    A replica without a picture in this batch takes part with none. Raises `FloatingPointError` if the loss is no number
    any more; then nothing was updated.
    """
    network.train()
    network.zero_grad(set_to_none=True)
    if here := len(labels_B):
        weight = 1 / count
    else:
        # the columns and replicas exchange all the same: a black patch that counts for nothing
        weight, dropout = 0.0, replace(dropout, rows_B=labels_B.new_zeros(1))
        patches_BCHW = next(network.parameters()).new_zeros(1, 3, PATCH, PATCH)
        labels_B = labels_B.new_zeros(1)
    with precision(rule.learning, patches_BCHW.device):
        logits_BK = network(patches_BCHW, dropout)
    logits_BK = logits_BK.to(next(network.parameters()).dtype)
    loss_sum = F.cross_entropy(logits_BK, labels_B, reduction="sum")
    (loss_sum * weight).backward()  # type: ignore[no-untyped-call]
    right = credits(logits_BK.detach(), labels_B, 1).sum()
    sums = torch.stack([loss_sum.detach().double(), right]) * (here > 0)
    if reduce is not None:
        reduce([sums] + [weight.grad for weight in network.parameters() if weight.grad is not None])
    loss, credit = sums.tolist()
    if loss != loss or loss == float("inf"):
        raise FloatingPointError(
            f"the loss is {loss} in step {dropout.step}, at rate {rate:g}. A smaller learning.rate may keep it finite"
        )
    rule.update(rate)
    return Measured(loss, credit, count)


def precision(learning: Learning, device: torch.device) -> torch.autocast | nullcontext[None]:
    """The arithmetic's context: precision is a context, not a branch."""
    if learning.precision == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()
