"""A convolutional network of four layers, and a run of its training down to a given error (§3.1).

There is no regularization: no weight decay, no dropout, no augmentation. The mean picture is subtracted. Letters of shapes:
N training pictures, B pictures of a batch, M pictures to measure on, C colours, H×W pixels, K classes.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet import draws, errors
from pipeline.runtime import files
from pipeline.sources.cifar10 import CLASSES, SIDE
from studies.figure_1.pictures import Cifar

Activation = Literal["relu", "tanh"]
Start = Literal["scaled", "original"]
ACTIVATIONS: tuple[Activation, ...] = ("relu", "tanh")
STARTS: tuple[Start, ...] = ("scaled", "original")
"""Rules for first weights and pixels, the same for both activations.

scaled: pixels are divided by their standard deviation, and the weights' standard deviation preserves that of the signal
through the activation (torch.nn.init.calculate_gain), so that neither activation has an advantage. original: pixels from 0
to 255 and weights with `ORIGINAL_STD`, as in a network for CIFAR-10 of 2012.
"""

ORIGINAL_STD = (0.0001, 0.01, 0.04, 0.01)
"""Standard deviations by layer, from the authors' CIFAR-10 example with 13 % test error (layers-conv-local-13pct.cfg)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """params.yaml, `training:` — the parameters that all runs share."""

    kernels: tuple[int, ...]
    """Number of kernels of each of the three convolutional layers."""
    batch_size: int
    """Pictures per update. The paper: 128."""
    momentum: float
    """The paper: .9."""
    precision: Literal["float32", "bfloat16"]
    """Precision of the convolutions and products; weights and velocities are float32 in both."""
    target: float
    """The training error to reach. The paper: .25."""
    measured: int
    """Number of training pictures on which the error is measured after each epoch; always the same pictures."""

    def __post_init__(self) -> None:
        if len(self.kernels) != 3 or min(self.kernels) < 1:
            raise ValueError(f"kernels has to be three numbers of at least 1, is {list(self.kernels)}")
        for name in ("batch_size", "measured"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} has to be at least 1, is {getattr(self, name)}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum has to be in [0, 1), is {self.momentum}")
        if not 0 < self.target < 1:
            raise ValueError(f"target has to be in (0, 1), is {self.target}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """The parameters that distinguish runs."""

    start: Start
    activation: Activation
    rate: float
    """Learning rate, constant."""
    seed: int
    """Seed of the first weights and of the pictures' order; both activations use the same random numbers."""

    def __str__(self) -> str:
        return f"{self.start} {self.activation}, rate {self.rate:g}, seed {self.seed}"


@dataclass(frozen=True, slots=True)
class Epoch:
    """A run's errors (0 to 1) after an epoch; epoch 0 is before the first step. NaN: the run diverged, or no measurement."""

    epoch: int
    running_error: float
    """Error over the epoch's batches, each before its update: on average, that of the weights half an epoch earlier."""
    training_error: float
    """Error on the `measured` pictures, with the weights at the end of the epoch."""


def epochs_to(target: float, epochs: list[float], errors: list[float]) -> float:
    """The first epoch with an error at or below `target`, by linear interpolation; infinite if the target is not reached."""
    below = np.flatnonzero(np.asarray(errors) <= target)
    if not len(below):
        return math.inf
    last = int(below[0])
    if last == 0:
        return epochs[0]
    share = (errors[last - 1] - target) / (errors[last - 1] - errors[last])
    return epochs[last - 1] + share * (epochs[last] - epochs[last - 1])


def epochs_to_target(target: float, history: list[Epoch]) -> float:
    """Epochs to the target by the training error measured after each epoch."""
    return epochs_to(target, [row.epoch for row in history], [row.training_error for row in history])


def epochs_to_target_running(target: float, history: list[Epoch]) -> float:
    """Epochs to the target by the running error, which is counted at the middle of its epoch."""
    return epochs_to(target, [row.epoch - 0.5 for row in history[1:]], [row.running_error for row in history[1:]])


def network(training: Training, setting: Setting) -> nn.Sequential:
    """Three convolutional layers and a fully connected one, B×3×32×32 → B×10 logits.

    The first layer has a stride, as in the paper, which halves the work. The activation follows the pooling, which gives
    the same result with less work, since both are monotonic.
    """
    k1, k2, k3 = training.kernels
    activation = nn.ReLU if setting.activation == "relu" else nn.Tanh
    # fmt: off
    made = nn.Sequential(
        nn.Conv2d(3,  k1, 5, stride=2, padding=2),                  activation(),  # 32 × 16 × 16
        nn.Conv2d(k1, k2, 3, padding=1),           nn.MaxPool2d(2), activation(),  # 64 × 8 × 8
        nn.Conv2d(k2, k3, 3, padding=1),           nn.MaxPool2d(2), activation(),  # 128 × 4 × 4
        nn.Flatten(), nn.Linear(k3 * (SIDE // 8) ** 2, CLASSES),              # 10
    )
    # fmt: on
    weighted = [layer for layer in made if isinstance(layer, (nn.Conv2d, nn.Linear))]
    with torch.no_grad():
        for number, layer in enumerate(weighted):
            weight = layer.weight
            if setting.start == "scaled":
                gain = nn.init.calculate_gain("linear" if isinstance(layer, nn.Linear) else setting.activation)
                std = gain / math.sqrt(weight[0].numel())
            else:
                std = ORIGINAL_STD[number]
            drawn = draws.normal("figure 1 weights", setting.seed, number, torch.arange(weight.numel()))
            weight.copy_(drawn.reshape(weight.shape) * std)
            assert layer.bias is not None
            layer.bias.zero_()
    return made.to(memory_format=torch.channels_last)


class Run:
    """A run, which can be continued. Its checkpoint in `folder` is named by a hash of everything that decides the run."""

    def __init__(self, training: Training, setting: Setting, cifar: Cifar, folder: Path) -> None:
        self.training, self.setting, self.cifar = training, setting, cifar
        decides = [asdict(training), asdict(setting), cifar.sha256, _code(), torch.__version__]
        name = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
        self.checkpoint = folder / f"{name}.pt"
        self.history: list[Epoch] = []
        self.unit = cifar.spread if setting.start == "scaled" else 1.0
        bits_N = draws.bits("figure 1 measured", torch.arange(len(cifar.labels_N)))
        self.measured_M = bits_N.argsort()[: training.measured]

    def advance(self, epochs: int) -> list[Epoch]:
        """Trains until `epochs` are done, the run diverges, or both errors reach the target; returns the history so far."""
        state = self._load()
        if self._over(epochs):
            return self.history
        self.network = network(self.training, self.setting)
        # at a constant learning rate and without weight decay, torch's rule equals the paper's (§5)
        self.rule = torch.optim.SGD(self.network.parameters(), self.setting.rate, momentum=self.training.momentum)
        if state:
            self.network.load_state_dict(state["network"])
            self.rule.load_state_dict(state["rule"])
        else:
            self.history = [Epoch(0, math.nan, self._measure())]
        while not self._over(epochs):
            began = time.monotonic()
            running = self._learn(len(self.history))
            error = math.nan if math.isnan(running) else self._measure()
            self.history.append(Epoch(len(self.history), running, error))
            self._save()
            seconds = time.monotonic() - began
            print(
                f"{self.setting}, epoch {len(self.history) - 1}: training error {error:.2%}, "
                f"running {running:.2%}, {seconds:.1f} s",
                flush=True,
            )
        return self.history

    def _over(self, epochs: int) -> bool:
        if not self.history:
            return False
        diverged = math.isnan(self.history[-1].training_error)
        target, history = self.training.target, self.history
        both = max(epochs_to_target(target, history), epochs_to_target_running(target, history))
        return len(self.history) > epochs or diverged or math.isfinite(both)

    def _logits(self, rows_B: Tensor) -> Tensor:
        pictures_BHWC = (self.cifar.pictures_NHWC[rows_B].float() - self.cifar.mean_HWC) / self.unit
        with torch.autocast("cpu", torch.bfloat16, enabled=self.training.precision == "bfloat16"):
            logits_BK: Tensor = self.network(pictures_BHWC.permute(0, 3, 1, 2))  # channels last in memory
        return logits_BK.float()

    def _learn(self, epoch: int) -> float:
        """Trains for one epoch; returns the running error, or NaN as soon as the loss is not finite."""
        pictures = len(self.cifar.labels_N)
        right = 0.0
        order_N = draws.bits("figure 1 order", self.setting.seed, epoch, torch.arange(pictures)).argsort()
        for rows_B in order_N.split(self.training.batch_size):  # type: ignore[no-untyped-call]
            labels_B = self.cifar.labels_N[rows_B]
            logits_BK = self._logits(rows_B)
            loss = F.cross_entropy(logits_BK, labels_B)
            if not math.isfinite(loss.item()):
                return math.nan
            self.rule.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.rule.step()
            right += errors.topk_credit(logits_BK.detach(), labels_B, 1).sum().item()
        return 1 - right / pictures

    @torch.inference_mode()
    def _measure(self) -> float:
        right = 0.0
        for rows_B in self.measured_M.split(1000):  # type: ignore[no-untyped-call]
            right += errors.topk_credit(self._logits(rows_B), self.cifar.labels_N[rows_B], 1).sum().item()
        return 1 - right / len(self.measured_M)

    def _load(self) -> dict[str, Any]:
        if not self.checkpoint.exists():
            return {}
        state: dict[str, Any] = torch.load(self.checkpoint, weights_only=True)
        self.history = [Epoch(*row) for row in state["history"]]
        return state

    def _save(self) -> None:
        history = [(row.epoch, row.running_error, row.training_error) for row in self.history]
        state = {"network": self.network.state_dict(), "rule": self.rule.state_dict(), "history": history}
        with files.atomic(self.checkpoint) as made:
            torch.save(state, made)


def _code() -> str:
    """SHA-256 of the modules that decide a run; after an edit of one of them, runs start again."""
    here = Path(__file__)
    modules = [here, here.with_name("pictures.py"), Path(draws.__file__), Path(errors.__file__)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in modules)).hexdigest()
