"""§3 The network: Figure 2 on one screen, and its variants.

Sizes are for 224×224 patches of 3 colours, whose mean is subtracted, on the scale 0–255. In shapes: B patches, C kernels
of both columns, H×W places, K classes. Layer numbers are the paper's, 1–5 convolutional and 6–8 fully connected.
"""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet import draws
from alexnet.columns import Link, Together
from alexnet.normalization import ALPHA, NEIGHBOURS, AcrossKernels, AcrossSpace

PATCH = 224
"""Side of what the network sees, in pixels."""

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
"""The eight layers, in order."""

UNDIVIDED = ("fc8.weight", "fc8.bias")
"""What each column computes whole, so that nothing has to cross behind it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """params.yaml, `model:` — §3 and the first weights of §5."""

    columns: Literal[1, 2]
    """Groups of kernels that meet only before layers 3, 6, 7 and 8. The paper: 2, a GPU each."""
    width: float
    """Share of the paper's kernels and units in every layer, in (0, 1]. Below 1 the first weights of all layers but
    the first grow by 1/√width, so that the signal keeps its size."""
    normalization: Literal["printed", "original", "none"]
    """printed: §3.3 as in the paper, after the relu. original: as run in 2012, α divided by 5, before the relu in
    layer 1, and a second one across space in layer 2."""
    dropout: float
    """Chance of each unit of layers 6 and 7 to be left out in training. The paper: .5."""
    dropout_scale: Literal["test", "training"]
    """Where the units are scaled to make up for it: test, by the share kept, as in §4.2; training, by its inverse."""
    first_std: tuple[float, ...]
    """Standard deviation of the first weights, for each of the eight layers. The paper: .01; run in 2012: .03 in
    layers 3, 4 and 5."""
    first_bias: tuple[float, ...]
    """First biases, for each of the eight layers. The paper: 1 in layers 2, 4, 5, 6 and 7, else 0."""

    def __post_init__(self) -> None:
        if not 0 < self.width <= 1:
            raise ValueError(f"width has to be in (0, 1], is {self.width}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout has to be in [0, 1), is {self.dropout}")
        for name in ("first_std", "first_bias"):
            if len(getattr(self, name)) != len(LAYERS):
                raise ValueError(
                    f"{name} has to have a number for each of the 8 layers, has {len(getattr(self, name))}"
                )
        if min(self.first_std) < 0:
            raise ValueError(f"first_std has to be 0 or more, is {min(self.first_std)}")


@dataclass(frozen=True, slots=True)
class Dropout:
    """The units left out in one step, by (seed, step, row of the whole batch, unit): the same wherever they are held."""

    seed: int
    step: int
    rows_B: Tensor
    """Each patch's row in the whole batch, int64."""

    def kept(self, layer: int, units: range, chance: float) -> Tensor:
        """B×units, true with probability 1 - chance."""
        rows = self.rows_B[:, None]
        columns = torch.arange(units.start, units.stop, device=rows.device)
        return draws.uniform("dropout", self.seed, self.step, layer, rows, columns) >= chance


class AlexNet(nn.Module):
    """The network, or the half of it that `link` says is held here. 60,965,224 parameters at full width, 1000 classes."""

    def __init__(self, model: Model, classes: int, link: Link | None = None) -> None:
        super().__init__()
        self.model, self.classes = model, classes
        self.link = link or Together(model.columns)
        columns = len(range(*self.link.held.indices(model.columns)))
        self.share = columns / model.columns
        k1, k2, k3, k4, k5, k6, k7 = (_scaled(size, model) for size in (96, 256, 384, 384, 256, 4096, 4096))

        # fmt: off
        self.conv1 = self._conv(3,  k1, 11, stride=4)                                     # 96 × 55 × 55
        self.norm1 = self._norm(columns)
        self.conv2 = self._conv(k1, k2,  5, padding=2, groups=model.columns)              # 256 × 27 × 27
        self.norm2 = self._norm(columns)
        self.conv3 = self._conv(k2, k3,  3, padding=1)                                    # 384 × 13 × 13
        self.conv4 = self._conv(k3, k4,  3, padding=1, groups=model.columns)              # 384 × 13 × 13
        self.conv5 = self._conv(k4, k5,  3, padding=1, groups=model.columns)              # 256 × 13 × 13
        self.fc6 = nn.Linear(k5 * 6 * 6, round(k6 * self.share))                          # 4096
        self.fc7 = nn.Linear(k6,         round(k7 * self.share))                          # 4096
        self.fc8 = nn.Linear(k7,         classes)                                         # 1000, whole on each side
        # fmt: on
        space = AcrossSpace() if model.normalization == "original" else nn.Identity()
        self.norm2_space: nn.Module = space
        self.to(memory_format=torch.channels_last)

    def forward(self, patches_BCHW: Tensor, dropout: Dropout | None = None) -> Tensor:
        """Patches B×3×224×224 → logits B×K. In training mode `dropout` says what to leave out."""
        features = self.features(patches_BCHW, dropout)
        logits: Tensor = self.fc8(self.link.cross_last(features))
        return logits

    def features(self, patches_BCHW: Tensor, dropout: Dropout | None = None) -> Tensor:
        """The units of layer 7 held here, B×4096 for the whole network: what §6.1 compares pictures by."""
        # 224 is no 4·54 + 11: the code of 2012 lets the last window hang over, and reads zeros there (layer.py)
        x = F.pad(patches_BCHW, (0, 3, 0, 3)).contiguous(memory_format=torch.channels_last)
        if self.model.normalization == "original":
            x = torch.relu(_pool(self.norm1(self.conv1(x))))
        else:
            x = _pool(self.norm1(torch.relu(self.conv1(x))))
        x = _pool(self.norm2_space(self.norm2(torch.relu(self.conv2(x)))))
        x = torch.relu(self.conv3(self.link.cross(x)))
        x = torch.relu(self.conv4(x))
        x = _pool(torch.relu(self.conv5(x)))
        x = self._dropped(6, torch.relu(self.fc6(self.link.cross(x).flatten(1))), dropout)
        return self._dropped(7, torch.relu(self.fc7(self.link.cross(x))), dropout)

    def first_layer(self) -> Tensor:
        """The kernels of layer 1, C×3×11×11, those of the first column first: Figure 3."""
        return self.conv1.weight.detach()

    @torch.no_grad()
    def draw_first_weights(self, seed: int) -> None:
        """§5: weights from a normal distribution, biases as given; of the whole network, whatever is held here."""
        for place, name in enumerate(LAYERS):
            layer = getattr(self, name)
            std = self.model.first_std[place] / (1 if place == 0 else self.model.width**0.5)
            rows, shape = self._rows(name)
            generator = torch.Generator().manual_seed(int(draws.bits(f"first weights of {name}", seed)))
            whole = torch.randn(shape, generator=generator, dtype=torch.float32).mul_(std)
            layer.weight.copy_(whole[rows])
            layer.bias.fill_(self.model.first_bias[place])

    def part(self, whole: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of tensors of the whole network, named as its parameters, the rows that are held here."""
        return {name: tensor[self._rows(name.split(".")[0])[0]] for name, tensor in whole.items()}

    def _rows(self, name: str) -> tuple[slice, tuple[int, ...]]:
        shape: tuple[int, ...] = getattr(self, name).weight.shape
        if f"{name}.weight" in UNDIVIDED or self.share == 1:
            return slice(0, shape[0]), shape
        first = self.link.held.start * shape[0]
        return slice(first, first + shape[0]), (round(shape[0] / self.share), *shape[1:])

    def _conv(self, ins: int, outs: int, side: int, stride: int = 1, padding: int = 0, groups: int = 1) -> nn.Conv2d:
        # a layer whose columns do not meet sees only the maps held here; one whose columns meet sees all
        seen = round(ins * self.share) if groups > 1 else ins
        groups = round(groups * self.share) if groups > 1 else 1
        return nn.Conv2d(seen, round(outs * self.share), side, stride, padding, groups=groups)

    def _norm(self, columns: int) -> nn.Module:
        match self.model.normalization:
            case "printed":
                return AcrossKernels(columns, ALPHA)
            case "original":
                return AcrossKernels(columns, ALPHA / NEIGHBOURS)
            case "none":
                return nn.Identity()

    def _dropped(self, layer: int, units_BN: Tensor, dropout: Dropout | None) -> Tensor:
        """§4.2"""
        chance = self.model.dropout
        if not self.training:
            return units_BN * (1 - chance) if self.model.dropout_scale == "test" else units_BN
        assert dropout is not None, "in training, say which units to leave out"
        held = units_BN.shape[1]
        first = self.link.held.start * held if self.share < 1 else 0
        kept = dropout.kept(layer, range(first, first + held), chance)
        if self.model.dropout_scale == "training":
            units_BN = units_BN / (1 - chance)
        return units_BN * kept


class Classifier(nn.Module):
    """Raw patches to probabilities: the mean is subtracted inside. What is served to those who have only pictures."""

    mean_CHW: Tensor

    def __init__(self, network: AlexNet, mean_CHW: Tensor) -> None:
        super().__init__()
        self.network = network
        top = (mean_CHW.shape[1] - PATCH) // 2
        self.register_buffer("mean_CHW", mean_CHW[:, top : top + PATCH, top : top + PATCH].clone())

    def forward(self, patches_BCHW: Tensor) -> Tensor:
        """B×3×224×224, RGB, 0–255 → probabilities B×K."""
        return torch.softmax(self.network(patches_BCHW - self.mean_CHW), dim=1)


def save(handle: BinaryIO, network: AlexNet, **facts: Any) -> None:
    """Writes a whole network and facts about it (tensors, numbers, words and lists of them); equal bytes for equal."""
    assert network.share == 1, "only a whole network is saved"
    weights = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    contents = {"model": _plain(network.model), "classes": network.classes, "weights": weights, "facts": facts}
    # to memory first: given a path, torch would store its stem inside, and a pipe cannot be sought
    buffer = io.BytesIO()
    torch.save(contents, buffer)
    handle.write(buffer.getvalue())


def load(handle: BinaryIO) -> tuple[AlexNet, dict[str, Any]]:
    """Reads what `save` wrote: the network, in evaluation mode on the CPU, and the facts. Runs no code of the file."""
    contents = torch.load(handle, weights_only=True, map_location="cpu")
    network = AlexNet(Model(**_tuples(contents["model"])), contents["classes"])
    network.load_state_dict(contents["weights"])
    return network.eval(), contents["facts"]


def _plain(model: Model) -> dict[str, Any]:
    return {key: list(item) if isinstance(item, tuple) else item for key, item in dataclasses.asdict(model).items()}


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(item) if isinstance(item, list) else item for key, item in fields.items()}


def _scaled(size: int, model: Model) -> int:
    """The paper's number of kernels or units, by the width, the same in each column."""
    return max(1, round(size * model.width / model.columns)) * model.columns


def _pool(maps: Tensor) -> Tensor:
    """§3.4: the largest of 3×3 places, every 2: the windows overlap."""
    return F.max_pool2d(maps, 3, 2)
