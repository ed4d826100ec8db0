"""§5 The update rule, the falling rate and one step of learning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from alexnet.errors import topk_credit
from alexnet.network import LAYERS, Dropout, Network

Reduce = Callable[[list[Tensor]], None]
"""Adds up tensors in place over the replicas that share a step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RateChange:
    """From an epoch on, other rates for some layers: what no common fall can say."""

    epoch: int
    """At its start, counted from 0."""
    layers: tuple[str, ...]
    """The layers, by their names in `LAYERS`; none: all of them."""
    weights: float | None
    """The rate of their weights; none: as it was. 0: they stay as they are, without decay too."""
    biases: float | None
    """The rate of their biases, likewise."""

    def __post_init__(self) -> None:
        if self.epoch < 0:
            raise ValueError(f"epoch has to be 0 or more, is {self.epoch}")
        for layer in self.layers:
            if layer not in LAYERS:
                raise ValueError(f"layers has to be of {', '.join(LAYERS)}; has {layer!r}")
        for name in ("weights", "biases"):
            rate = getattr(self, name)
            if rate is not None and rate < 0:
                raise ValueError(f"{name} has to be 0 or more, is {rate}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Learning:
    """params.yaml, `learning:` — §5."""

    seed: int
    """Seed of the first weights, the order of the pictures, the patches, the colour and the dropout."""
    batch_size: int
    """Pictures per update, over all workers together. The paper: 128."""
    epochs: int
    """Times through the training set. The paper: about 90."""
    rate: float
    """The learning rate ε at the start. The paper: .01."""
    bias_rate: float
    """What the biases' rate is of the weights'. The paper: 1; run in 2012: 2."""
    rate_falls: tuple[int, ...]
    """The epochs, counted from 0, at whose start the rate is divided by `rate_divisor`. Run in 2012: by hand, three times
    (layer-params-145-2010.cfg)."""
    rate_divisor: float
    """The paper: 10."""
    plateau_epochs: int
    """The rate falls as well when the watched top-1 error has found no new low for so many epochs, as printed; 0: never."""
    plateau_falls: int
    """It does so this often at most. The paper: three times."""
    watched: Literal["validation", "held_out"]
    """The pictures whose error is watched."""
    held_out: float
    """Share of the training pictures that is never learned from, in [0, 1), so that it can be watched."""
    rate_changes: tuple[RateChange, ...]
    """Exceptions for single layers, which hold whatever falls afterwards; of two for a layer the later one."""
    momentum: float
    """The paper: .9."""
    velocity: Literal["with rate", "without rate"]
    """with rate: it is inside the velocity, as printed and as run. without rate: outside, as in torch.optim.SGD."""
    decay: float
    """Weight decay. The paper: .0005."""
    bias_decay: float
    """Weight decay of the biases. The paper does not set them apart; run in 2012: 0."""
    precision: Literal["float32", "bfloat16", "float64"]
    """Precision of the arithmetic; bfloat16 keeps weights and velocities in float32."""
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
        for name in ("rate", "bias_rate", "decay", "bias_decay", "plateau_epochs", "plateau_falls"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} has to be 0 or more, is {getattr(self, name)}")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out has to be in [0, 1), is {self.held_out}")
        if self.plateau_epochs and self.watched == "held_out" and not self.held_out:
            raise ValueError("held_out has to be more than 0 where watched is 'held_out', is 0")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum has to be in [0, 1), is {self.momentum}")
        if self.rate_divisor < 1:
            raise ValueError(f"rate_divisor has to be at least 1, is {self.rate_divisor}")
        if list(self.rate_falls) != sorted(set(self.rate_falls)):
            raise ValueError(f"rate_falls has to rise, is {list(self.rate_falls)}")

    def rates(self, epoch: int, errors: Sequence[float] = ()) -> Rates:
        """The rates in an epoch, counted from 0, after `errors`: the watched error at the end of each one before it."""
        falls = sum(epoch >= fall for fall in self.rate_falls) + plateaus(errors, self)
        changes = [change for change in self.rate_changes if epoch >= change.epoch]
        common = self.rate / self.rate_divisor**falls
        return Rates(common, self.bias_rate, tuple(sorted(changes, key=lambda change: change.epoch)))


def plateaus(errors: Sequence[float], learning: Learning) -> int:
    """How often the errors, one for each epoch, have stalled: `plateau_epochs` in a row without a new low."""
    lowest, since, falls = float("inf"), 0, 0
    for error in errors:
        since = 0 if error < lowest else since + 1
        lowest = min(lowest, error)
        if since == learning.plateau_epochs > 0 and falls < learning.plateau_falls:
            since, falls = 0, falls + 1
    return falls


@dataclass(frozen=True, slots=True)
class Rates:
    """The learning rates ε of one step."""

    common: float
    """The weights' rate, but for the changes."""
    bias: float
    """Ratio of the biases' rate to the weights'."""
    changes: tuple[RateChange, ...] = ()
    """In the order in which they came to hold."""

    @property
    def last(self) -> float:
        """The rate of layer 8's weights, shown where a single rate is shown. In 2012 it was the last to fall."""
        return self.of("fc8.weight")

    def of(self, parameter: str) -> float:
        """The rate of a parameter, by its name, such as `conv1.weight`."""
        layer, _, kind = parameter.rpartition(".")
        is_bias = kind == "bias"
        rate = self.common * (self.bias if is_bias else 1)
        for change in self.changes:
            other = change.biases if is_bias else change.weights
            if other is not None and (not change.layers or layer.removesuffix("_batch") in change.layers):
                rate = other
        return rate


class Momentum:
    """v ← μ v - λ ε w - ε g;  w ← w + v.

    ε stands inside the velocity, as printed and as run (weights.cu): after the rate has fallen, the old velocity works on
    for some ten steps. torch.optim.SGD has it outside, v ← μ v + λ w + g;  w ← w - ε v, which is the same only while the
    rate does not change; `learning.velocity` chooses. Where ε is 0 nothing moves, as in 2012.
    """

    def __init__(self, network: Network, learning: Learning) -> None:
        self.network, self.learning = network, learning
        self.velocity = {name: torch.zeros_like(weight) for name, weight in network.named_parameters()}

    @torch.no_grad()
    def update(self, rates: Rates) -> None:
        """One update from the gradients in the network's parameters."""
        inside = self.learning.velocity == "with rate"
        for name, weight in self.network.named_parameters():
            epsilon = rates.of(name)
            if epsilon == 0:
                continue
            decay = self.learning.bias_decay if name.endswith("bias") else self.learning.decay
            scale = epsilon if inside else 1.0
            assert weight.grad is not None
            velocity = self.velocity[name].mul_(self.learning.momentum)
            velocity.add_(weight, alpha=-decay * scale).add_(weight.grad, alpha=-scale)
            weight.add_(velocity, alpha=1.0 if inside else epsilon)


@dataclass(frozen=True, slots=True)
class Measured:
    """What a step saw: sums over the whole batch, of all replicas."""

    loss_sum: float
    right: float
    count: int


def step(
    network: Network,
    rule: Momentum,
    patches_BCHW: Tensor,
    labels_B: Tensor,
    *,
    rates: Rates,
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
        patches_BCHW = next(network.parameters()).new_zeros(1, 3, network.model.patch, network.model.patch)
        labels_B = labels_B.new_zeros(1)
    with precision(rule.learning, patches_BCHW.device):
        logits_BK = network(patches_BCHW, dropout)
    logits_BK = logits_BK.to(next(network.parameters()).dtype)
    loss_sum = F.cross_entropy(logits_BK, labels_B, reduction="sum")
    (loss_sum * weight).backward()  # type: ignore[no-untyped-call]
    right = topk_credit(logits_BK.detach(), labels_B, 1).sum()
    sums = torch.stack([loss_sum.detach().double(), right]) * (here > 0)
    if reduce is not None:
        reduce([sums] + [weight.grad for weight in network.parameters() if weight.grad is not None])
    loss, credit = sums.tolist()
    if loss != loss or loss == float("inf"):
        raise FloatingPointError(
            f"the loss is {loss} in step {dropout.step}, at rate {rates.last:g}. A smaller learning.rate may keep it finite"
        )
    rule.update(rates)
    return Measured(loss, credit, count)


def precision(learning: Learning, device: torch.device) -> torch.autocast | nullcontext[None]:
    """The arithmetic's context: precision is a context, not a branch."""
    if learning.precision == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()
