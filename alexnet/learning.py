"""§5 The update rule, the learning rate schedule, and one training step."""

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
"""Sums tensors over the replicas of a step, in place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RateChange:
    """Separate learning rates for some layers, from an epoch on."""

    epoch: int
    """The first epoch of these rates, counted from 0."""
    layers: tuple[str, ...]
    """The layers, by their names in `LAYERS`. Empty: all layers."""
    weights: float | None
    """The learning rate of their weights. null: unchanged. 0: the weights stay fixed, without decay too."""
    biases: float | None
    """The learning rate of their biases. null: unchanged. 0: the biases stay fixed."""

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
    """Seed of the initial weights, the order of the pictures, the patches, the colour and the dropout."""
    batch_size: int
    """Pictures per update, over all replicas together. The paper: 128."""
    epochs: int
    """Passes over the training set. The paper: about 90."""
    rate: float
    """The initial learning rate ε. The paper: .01."""
    bias_rate: float
    """Ratio of the biases' learning rate to the weights'. The paper: 1; run in 2012: 2."""
    rate_falls: tuple[int, ...]
    """Epochs, counted from 0, at whose start the rate is divided by `rate_divisor`. In 2012 this was done by hand, three
    times (layer-params-145-2010.cfg)."""
    rate_divisor: float
    """The factor by which the rate falls. The paper: 10."""
    plateau_epochs: int
    """The rate also falls when the watched top-1 error has had no new minimum for this many epochs, as printed; 0: never."""
    plateau_falls: int
    """Most falls of that kind. The paper: three."""
    watched: Literal["validation", "held_out"]
    """The pictures whose error is watched."""
    held_out: float
    """Fraction of the training pictures, in [0, 1), that is held out of training so that its error can be watched."""
    rate_changes: tuple[RateChange, ...]
    """Separate rates for single layers. They are not divided by later falls; the later of two changes of a layer holds."""
    momentum: float
    """The paper: .9."""
    velocity: Literal["with rate", "without rate"]
    """with rate: the rate is inside the velocity, as printed and as run. without rate: outside, as in torch.optim.SGD."""
    decay: float
    """Weight decay. The paper: .0005."""
    bias_decay: float
    """Weight decay of the biases. The paper does not treat them separately; run in 2012: 0."""
    precision: Literal["float32", "bfloat16", "float64"]
    """Precision of the arithmetic. bfloat16 keeps weights and velocities in float32."""
    order: Literal["shuffled", "cyclic"]
    """shuffled: a new order for each epoch. cyclic: the stored order in every epoch, as run in 2012."""
    log_steps: int
    """Steps per point of the learning curve, whose loss and error are averaged."""
    streams: int
    """Streams that read the shuffled order side by side, each from its own part: more mix better, fewer read longer runs."""

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
        """The learning rates in an epoch, counted from 0. `errors`: the watched error at the end of each earlier epoch."""
        falls = sum(epoch >= fall for fall in self.rate_falls) + plateaus(errors, self)
        changes = [change for change in self.rate_changes if epoch >= change.epoch]
        common = self.rate / self.rate_divisor**falls
        return Rates(common, self.bias_rate, tuple(sorted(changes, key=lambda change: change.epoch)))


def plateaus(errors: Sequence[float], learning: Learning) -> int:
    """How often the errors, one per epoch, have gone `plateau_epochs` in a row without a new minimum."""
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
    """The weights' learning rate in all layers without a change of their own."""
    bias: float
    """Ratio of the biases' learning rate to the weights'."""
    changes: tuple[RateChange, ...] = ()
    """The changes in force, in the order of their epochs."""

    @property
    def last(self) -> float:
        """The rate of layer 8's weights, which logs and curves show. In 2012 it was the last to fall."""
        return self.of("fc8.weight")

    def of(self, parameter: str) -> float:
        """The learning rate of a parameter, by its name, such as `conv1.weight`."""
        layer, _, kind = parameter.rpartition(".")
        is_bias = kind == "bias"
        rate = self.common * (self.bias if is_bias else 1)
        for change in self.changes:
            other = change.biases if is_bias else change.weights
            if other is not None and (not change.layers or layer.removesuffix("_batch") in change.layers):
                rate = other
        return rate


class Momentum:
    """The optimizer of §5: v ← μ v - λ ε w - ε g;  w ← w + v, for momentum μ, weight decay λ, learning rate ε, gradient g.

    ε is inside the velocity, as printed and as run (weights.cu): after the rate has fallen, the old velocity still acts for
    some ten steps. torch.optim.SGD has ε outside, v ← μ v + λ w + g;  w ← w - ε v, which is the same only while the rate is
    constant. `learning.velocity` chooses. A parameter whose ε is 0 does not change, as in 2012.
    """

    def __init__(self, network: Network, learning: Learning) -> None:
        self.network, self.learning = network, learning
        self.velocity = {name: torch.zeros_like(weight) for name, weight in network.named_parameters()}

    @torch.no_grad()
    def update(self, rates: Rates) -> None:
        """Updates the network's parameters from their gradients, in place."""
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
    """Sums over a step's whole batch, from all replicas."""

    loss_sum: float
    """Sum of the cross-entropies."""
    right: float
    """Sum of the top-1 credits (`errors.topk_credit`)."""
    count: int
    """Pictures in the batch."""


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
    """One training step: forward, backward and update, for the mean cross-entropy over a batch of `count` pictures.

    `patches_BCHW`, `labels_B`: this replica's part of the batch, possibly empty. `reduce` sums over the replicas. Raises
    `FloatingPointError`, before any update, if the loss is NaN or infinite.
    """
    network.train()
    network.zero_grad(set_to_none=True)
    if own_count := len(labels_B):
        weight = 1 / count
    else:
        # a replica without pictures still has to exchange tensors with the others: a black patch of weight 0
        weight, dropout = 0.0, replace(dropout, rows_B=labels_B.new_zeros(1))
        patches_BCHW = next(network.parameters()).new_zeros(1, 3, network.model.patch, network.model.patch)
        labels_B = labels_B.new_zeros(1)
    with precision(rule.learning, patches_BCHW.device):
        logits_BK = network(patches_BCHW, dropout)
    logits_BK = logits_BK.to(next(network.parameters()).dtype)
    loss_sum = F.cross_entropy(logits_BK, labels_B, reduction="sum")
    (loss_sum * weight).backward()  # type: ignore[no-untyped-call]
    right = topk_credit(logits_BK.detach(), labels_B, 1).sum()
    sums = torch.stack([loss_sum.detach().double(), right]) * (own_count > 0)
    if reduce is not None:
        reduce([sums] + [weight.grad for weight in network.parameters() if weight.grad is not None])
    loss, credit = sums.tolist()
    if loss != loss or loss == float("inf"):
        raise FloatingPointError(
            f"the loss is {loss} in step {dropout.step}, at rate {rates.last:g}. Try a smaller learning.rate"
        )
    rule.update(rates)
    return Measured(loss, credit, count)


def precision(learning: Learning, device: torch.device) -> torch.autocast | nullcontext[None]:
    """The context in which the forward pass runs at `learning.precision`."""
    if learning.precision == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()
