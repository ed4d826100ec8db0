"""§3 The network: Figure 2 on one screen, and its variants.

Sizes are for 224×224 patches of 3 colours, whose mean is subtracted, on the scale 0–255. In shapes: B patches, C kernels
of both columns, H×W places, K classes. Layer numbers are the paper's, 1–5 convolutional and 6–8 fully connected; the sixth
convolution of §6 stands between 5 and 6.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet import draws, sealed
from alexnet.columns import Link, Together
from alexnet.normalization import ALPHA, NEIGHBOURS, AcrossKernels, AcrossSpace

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "conv6", "fc6", "fc7", "bottleneck", "fc8")
"""All layers that there can be, in order. The paper's eight, the sixth convolution of §6, and the linear bottleneck that
the network of 21,843 classes had before its last layer in 2012 (layers-146-2011.cfg)."""

UNDIVIDED = ("fc8.weight", "fc8.bias")
"""What each column computes whole, so that nothing has to cross behind it."""

SAVED = frozenset(("model", "classes", "weights", "facts"))
"""What `save` writes, beside its digest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """params.yaml, `model:` — §3 and the first weights of §5."""

    network: Literal["alexnet", "vgg16", "resnet50"]
    """alexnet: all that follows. vgg16, resnet50: torchvision's, with its own first weights, for comparison; of what
    follows they heed `deviation` alone, and vgg16 `dropout`, `dropout_scale` and `dropout_layers`."""
    columns: Literal[1, 2]
    """Groups of kernels that meet only before layers 3, 6, 7 and 8 and the sixth convolution. The paper: 2, a GPU each."""
    kernels: tuple[int, int, int, int, int, int]
    """Kernels of the six convolutional layers; 0: there is no such layer. The paper: 96, 256, 384, 384, 256, 0; with one
    GPU: 48, 128, 192, 192, 256, 0; for the larger sets of §6 a sixth of 256."""
    units: tuple[int, int, int]
    """Units of layers 6 and 7, and of a linear bottleneck before layer 8; 0: there is no such layer. The paper: 4096,
    4096, 0; for the 21,843 classes of Fall 2011: 4096, 4096, 2048."""
    width: float
    """Share of these kernels and units to have, in (0, 1]. Below 1 the first weights of all layers but the first grow by
    1/√width, so that the signal keeps its size."""
    border: Literal["overhang", "padded", "exact"]
    """How 55 windows of layer 1 fit. overhang: 224 pixels, and 3 rows and columns of zeros at the right and the bottom,
    as run in 2012; padded: 224 and 2 zeros all around, as in torchvision; exact: 227 pixels, as in Caffe."""
    deviation: tuple[float, float, float]
    """Red, green and blue are divided by these once the mean is subtracted. The paper: 1, raw pixels on 0–255."""
    activation: Literal["relu", "tanh", "sigmoid"]
    """§3.1. The paper: relu."""
    normalization: Literal["printed", "original", "one-weird-trick", "caffe", "batch", "none"]
    """printed: §3.3 as in the paper, after the relu. original: as run in 2012, α divided by 5, before the relu in
    layer 1, and a second one across space in layer 2. one-weird-trick: as original, without that. caffe: as printed,
    α divided by 5, k = 1, and across the columns. batch: batch normalization before every nonlinearity instead."""
    pooling: Literal["overlapping", "disjoint"]
    """§3.4. overlapping: 3×3 every 2. disjoint: 2×2 every 2, with the paddings that the authors' layers-147.cfg has then,
    so that layers 3, 4 and 6 see maps of the same size."""
    dropout: float
    """Chance of a unit to be left out in training. The paper: .5."""
    dropout_layers: tuple[int, ...]
    """The layers whose units are left out; 5: those of the last pooling. The paper: 6 and 7."""
    dropout_scale: Literal["test", "training"]
    """Where the units are scaled to make up for it: test, by the share kept, as in §4.2; training, by its inverse."""
    first_weights: Literal["normal", "uniform"]
    """normal: the two lists below. uniform: torch's own, ±1/√(inputs of a kernel), biases too; the lists say nothing."""
    first_std: tuple[float, ...]
    """Standard deviation of the first weights, for each of the ten layers that there can be (`LAYERS`). The paper: .01;
    run in 2012: .03 in the convolutions from the third on."""
    first_bias: tuple[float, ...]
    """First biases, likewise. The paper: 1 in layers 2, 4, 5, 6 and 7, else 0."""

    def __post_init__(self) -> None:
        if not 0 < self.width <= 1:
            raise ValueError(f"width has to be in (0, 1], is {self.width}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout has to be in [0, 1), is {self.dropout}")
        if not set(self.dropout_layers) <= {5, 6, 7}:
            raise ValueError(f"dropout_layers can have 5, 6 and 7, is {list(self.dropout_layers)}")
        for name in ("first_std", "first_bias"):
            if len(getattr(self, name)) != len(LAYERS):
                raise ValueError(
                    f"{name} has to have a number for each of {', '.join(LAYERS)}, has {len(getattr(self, name))}"
                )
        if min(self.first_std) < 0:
            raise ValueError(f"first_std has to be 0 or more, is {min(self.first_std)}")
        if min(self.deviation) <= 0:
            raise ValueError(f"deviation has to be more than 0, is {min(self.deviation)}")
        if self.kernels[0] < 1:
            raise ValueError(f"kernels has to have a first layer, is {list(self.kernels)}")
        for name in ("kernels", "units"):
            if any(size < 0 or size % self.columns for size in getattr(self, name)):
                raise ValueError(
                    f"{name} has to be 0 or more and divide among {self.columns} columns, is {list(getattr(self, name))}"
                )

    @property
    def patch(self) -> int:
        """Side of what the network sees, in pixels."""
        return 227 if self.network == "alexnet" and self.border == "exact" else 224

    @property
    def size(self) -> dict[str, int]:
        """Kernels or units of each layer that there is but the last, in order, by the width the same in each column."""
        sizes = zip(LAYERS, (*self.kernels, *self.units), strict=False)
        share = self.width / self.columns
        return {name: max(1, round(size * share)) * self.columns for name, size in sizes if size}

    @property
    def divisible(self) -> bool:
        """Whether the columns can be in two processes: nothing may cross between them in other places."""
        return self.network == "alexnet" and self.columns == 2 and self.normalization != "caffe"


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


class Network(nn.Module):
    """What is trained, tested and shown: AlexNet, or one of its peers."""

    model: Model
    classes: int
    link: Link
    share: float
    """Fraction of the columns that this process holds: 1 or 1/2."""

    def forward(self, patches_BCHW: Tensor, dropout: Dropout | None = None) -> Tensor:
        """Patches B×3×224×224 → logits B×K. In training mode `dropout` says what to leave out."""
        return self.classify(self.features(patches_BCHW, dropout))

    def features(self, patches_BCHW: Tensor, dropout: Dropout | None = None) -> Tensor:
        """The units of the last hidden layer held here, B×4096 for the whole network: §6.1 compares pictures by them."""
        raise NotImplementedError

    def classify(self, features_BF: Tensor) -> Tensor:
        """The units of the last hidden layer held here → logits B×K."""
        raise NotImplementedError

    def first_layer(self) -> Tensor:
        """The kernels of layer 1, C×3×11×11, those of the first column first: Figure 3."""
        raise NotImplementedError

    @property
    def columns(self) -> int:
        """Groups of its kernels, in this process or in several."""
        return 1

    @property
    def last_maps(self) -> nn.Module:
        """The last convolution: its outputs are the last that have a place in the picture."""
        raise NotImplementedError

    def draw_first_weights(self, seed: int) -> None:
        """§5: weights and biases to begin with."""
        raise NotImplementedError

    def part(self, whole: dict[str, Tensor]) -> dict[str, Tensor]:
        """The part of each tensor that this process holds. `whole`: the tensors of the whole network, named as in its state."""
        return whole

    @property
    def undivided(self) -> set[str]:
        """The names in its state of what each column has whole."""
        return set(self.state_dict())


class AlexNet(Network):
    """The network, or the half of it that `link` says is held here. 60,965,224 parameters at full width, 1000 classes."""

    conv1: nn.Conv2d
    bottleneck: nn.Linear
    deviation_CHW: Tensor

    def __init__(self, model: Model, classes: int, link: Link | None = None) -> None:
        super().__init__()
        self.model, self.classes = model, classes
        self.link = link or Together(model.columns)
        self.share = len(range(*self.link.held.indices(model.columns))) / model.columns
        self.pool = (3, 2) if model.pooling == "overlapping" else (2, 2)
        first = 2 if model.border == "padded" else 0
        second, fifth = (2, 1) if model.pooling == "overlapping" else (1, 0)

        # fmt: off
        maps = (3, model.patch + 3 * (model.border == "overhang"))
        maps = self._conv("conv1", maps, 11, padding=first, stride=4)                      # 96 × 55 × 55
        maps = self._conv("conv2", self._pooled(maps), 5, padding=second, divided=True)    # 256 × 27 × 27
        maps = self._conv("conv3", self._pooled(maps), 3, padding=1)                       # 384 × 13 × 13
        maps = self._conv("conv4", maps, 3, padding=1, divided=True)                       # 384 × 13 × 13
        maps = self._conv("conv5", maps, 3, padding=fifth, divided=True)                   # 256 × 13 × 13
        maps = self._conv("conv6", self._pooled(maps), 3, padding=1)                       # 256 × 6 × 6, in §6
        units = self._full("fc6", maps[0] * maps[1] ** 2)                                  # 4096
        units = self._full("fc7", units)                                                   # 4096
        units = self._full("bottleneck", units)                                            # 2048, in §6
        self.fc8 = nn.Linear(units, classes)                                               # 1000, whole on each side
        # fmt: on
        self.norm1, self.norm2, self.norm2_space = _normalizations(model, round(model.columns * self.share))
        self.register_buffer("deviation_CHW", torch.tensor(model.deviation)[:, None, None], persistent=False)
        self.to(memory_format=torch.channels_last)

    def features(self, patches_BCHW: Tensor, dropout: Dropout | None = None) -> Tensor:
        """The units of layer 7 held here, B×4096 for the whole network: what §6.1 compares pictures by."""
        x = patches_BCHW
        if self.model.deviation != (1, 1, 1):
            x = x / self.deviation_CHW
        if self.model.border == "overhang":
            # 224 is no 4·54 + 11: the code of 2012 lets the last window hang over, and reads zeros there (layer.py)
            x = F.pad(x, (0, 3, 0, 3))
        x = self.conv1(x.contiguous(memory_format=torch.channels_last))
        if self.model.normalization in ("original", "one-weird-trick"):
            x = self._active("conv1", self._pool(self.norm1(x)))
        else:
            x = self._pool(self.norm1(self._active("conv1", x)))
        x = self._pool(self.norm2_space(self.norm2(self._through("conv2", x))))
        x = self._through("conv3", x, meet=True)
        x = self._through("conv4", x)
        x = self._pool(self._through("conv5", x))
        x = self._through("conv6", x, meet=True)
        x = self._dropped(5, x, dropout)
        x = self._dropped(6, self._through("fc6", x, meet=True), dropout)
        return self._dropped(7, self._through("fc7", x, meet=True), dropout).flatten(1)

    def classify(self, features_BF: Tensor) -> Tensor:
        """The units of layer 7 held here → logits B×K."""
        x = features_BF
        if "bottleneck" in self.model.size:
            x = self.bottleneck(self.link.cross(x))  # linear: nothing follows it
        logits: Tensor = self.fc8(self.link.cross_last(x))
        return logits

    def first_layer(self) -> Tensor:
        """The kernels of layer 1, C×3×11×11, those of the first column first: Figure 3."""
        return self.conv1.weight.detach()

    @property
    def columns(self) -> int:
        """Groups of its kernels, in this process or in several."""
        return self.model.columns

    @property
    def last_maps(self) -> nn.Module:
        """The last convolution: its outputs are the last that have a place in the picture."""
        convolutions = [module for module in self.children() if isinstance(module, nn.Conv2d)]
        return convolutions[-1]

    @torch.no_grad()
    def draw_first_weights(self, seed: int) -> None:
        """§5: weights and biases as `first_weights` says, drawn for the whole network, whatever is held here."""
        for place, name in enumerate(LAYERS):
            if name not in self.model.size and name != "fc8":
                continue
            layer = getattr(self, name)
            rows, count = self._rows(name, layer.weight)
            generator = torch.Generator().manual_seed(int(draws.bits(f"first weights of {name}", seed)))
            shape = (count, *layer.weight.shape[1:])
            if self.model.first_weights == "uniform":
                bound = layer.weight[0].numel() ** -0.5
                for tensor, whole in ((layer.weight, shape), (layer.bias, (count,))):
                    tensor.copy_((2 * torch.rand(whole, generator=generator) - 1).mul_(bound)[rows])
                continue
            std = self.model.first_std[place] / (1 if place == 0 else self.model.width**0.5)
            layer.weight.copy_(torch.randn(shape, generator=generator, dtype=torch.float32).mul_(std)[rows])
            layer.bias.fill_(self.model.first_bias[place])

    def part(self, whole: dict[str, Tensor]) -> dict[str, Tensor]:
        """The part of each tensor that this process holds. `whole`: the tensors of the whole network, named as in its state."""
        held = {name: tensor for name, tensor in self.state_dict().items() if name in whole}
        return {name: whole[name][self._rows(name, tensor)[0]] for name, tensor in held.items()}

    @property
    def undivided(self) -> set[str]:
        """The names in its state of what each column has whole."""
        return {name for name, tensor in self.state_dict().items() if name in UNDIVIDED or not tensor.dim()}

    def _rows(self, name: str, held: Tensor) -> tuple[Any, int]:
        """Where the rows held here lie in the whole tensor, and how many rows that has."""
        if not held.dim():
            return ..., 0
        rows = len(held)
        if name.startswith("fc8") or self.share == 1:
            return slice(0, rows), rows
        first = self.link.held.start * rows
        return slice(first, first + rows), round(rows / self.share)

    def _conv(
        self, name: str, maps: tuple[int, int], side: int, padding: int, stride: int = 1, divided: bool = False
    ) -> tuple[int, int]:
        """Adds a convolution to (kernels, side of the maps) before it, if there is such a layer; gives those behind it."""
        size = self.model.size
        if name not in size:
            return maps
        # a layer whose columns do not meet sees only the maps held here; one whose columns meet sees all
        ins = round(maps[0] * self.share) if divided else maps[0]
        groups = round(self.model.columns * self.share) if divided else 1
        outs = round(size[name] * self.share)
        self.add_module(name, nn.Conv2d(ins, outs, side, stride, padding, groups=groups))
        if self.model.normalization == "batch":
            self.add_module(f"{name}_batch", nn.BatchNorm2d(outs))
        return size[name], (maps[1] + 2 * padding - side) // stride + 1

    def _full(self, name: str, ins: int) -> int:
        """Likewise a fully-connected layer, to the number of units."""
        size = self.model.size
        if name not in size:
            return ins
        outs = round(size[name] * self.share)
        self.add_module(name, nn.Linear(ins, outs))
        if self.model.normalization == "batch" and name != "bottleneck":
            self.add_module(f"{name}_batch", nn.BatchNorm1d(outs))
        return size[name]

    def _through(self, name: str, x: Tensor, meet: bool = False) -> Tensor:
        """A layer and its nonlinearity; where there is no such layer, x as it is."""
        if name not in self.model.size:
            return x
        if meet:
            x = self.link.cross(x)
        return self._active(name, getattr(self, name)(x.flatten(1) if name.startswith("fc") else x))

    def _active(self, name: str, x: Tensor) -> Tensor:
        """§3.1"""
        if self.model.normalization == "batch":
            x = getattr(self, f"{name}_batch")(x)
        active: Tensor = getattr(torch, self.model.activation)(x)
        return active

    def _pool(self, maps: Tensor) -> Tensor:
        """§3.4: the largest of 3×3 places, every 2, so that the windows overlap; or of 2×2."""
        return F.max_pool2d(maps, *self.pool, ceil_mode=True)

    def _pooled(self, maps: tuple[int, int]) -> tuple[int, int]:
        return maps[0], -(-(maps[1] - self.pool[0]) // self.pool[1]) + 1

    def _dropped(self, layer: int, units: Tensor, dropout: Dropout | None) -> Tensor:
        """§4.2"""
        if layer not in self.model.dropout_layers or (layer > 5 and f"fc{layer}" not in self.model.size):
            return units
        units_BN = units.flatten(1)
        first = self.link.held.start * units_BN.shape[1] if self.share < 1 else 0
        return dropped(self, layer, units_BN, first, dropout)


def dropped(network: Network, layer: int, units_BN: Tensor, first: int, dropout: Dropout | None) -> Tensor:
    """§4.2: the units of a layer, from number `first` on, some left out in training, all scaled in testing."""
    model = network.model
    if not network.training:
        return units_BN * (1 - model.dropout) if model.dropout_scale == "test" else units_BN
    assert dropout is not None, "in training, say which units to leave out"
    kept = dropout.kept(layer, range(first, first + units_BN.shape[1]), model.dropout)
    if model.dropout_scale == "training":
        units_BN = units_BN / (1 - model.dropout)
    return units_BN * kept


def _normalizations(model: Model, columns: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    """§3.3 of layer 1 and of layer 2, and what 2012 had behind that."""

    def across_kernels() -> nn.Module:
        match model.normalization:
            case "printed":
                return AcrossKernels(columns, ALPHA)
            case "original" | "one-weird-trick":
                return AcrossKernels(columns, ALPHA / NEIGHBOURS)
            case "caffe":
                return AcrossKernels(1, ALPHA / NEIGHBOURS, k=1.0)
            case "none" | "batch":
                return nn.Identity()

    space = AcrossSpace() if model.normalization == "original" else nn.Identity()
    if "conv2" not in model.size:
        return across_kernels(), nn.Identity(), nn.Identity()
    return across_kernels(), across_kernels(), space


class Classifier(nn.Module):
    """Raw patches to probabilities: the mean is subtracted inside. What is served to those who have only pictures."""

    mean_CHW: Tensor

    def __init__(self, network: Network, mean_CHW: Tensor) -> None:
        super().__init__()
        self.network = network
        side = network.model.patch
        top = (mean_CHW.shape[1] - side) // 2
        self.register_buffer("mean_CHW", mean_CHW[:, top : top + side, top : top + side].clone())

    def forward(self, patches_BCHW: Tensor) -> Tensor:
        """B×3×224×224, RGB, 0–255 → probabilities B×K."""
        return torch.softmax(self.network(patches_BCHW - self.mean_CHW), dim=1)


def build(model: Model, classes: int, link: Link | None = None) -> Network:
    """The network that `model.network` names; its first weights are still to be drawn."""
    if model.network == "alexnet":
        return AlexNet(model, classes, link)
    from alexnet.peers import Peer  # it knows this module

    return Peer(model, classes)


def save(handle: BinaryIO, network: Network, **facts: Any) -> None:
    """Writes a whole network and facts about it (tensors, numbers, words and lists of them); equal bytes for equal."""
    assert network.share == 1, "only a whole network is saved"
    weights = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    contents = {"model": _plain(network.model), "classes": network.classes, "weights": weights, "facts": facts}
    sealed.write(handle, contents)


def load(handle: BinaryIO, name: str = "") -> tuple[Network, dict[str, Any]]:
    """Reads what `save` wrote: the network, in evaluation mode on the CPU, and the facts. Runs no code of the file.

    `ValueError` if it is damaged, or of another version of this code. `name` stands for it where the handle has none.
    """
    name = name or str(getattr(handle, "name", "model.pt"))
    try:
        contents = sealed.read(handle, SAVED, name=name)
    except ValueError as error:
        raise ValueError(
            f"{error}. Bring back a whole copy: DVC has one of data/model.pt, dvc checkout --force"
        ) from None
    try:
        network = build(Model(**_tuples(contents["model"])), contents["classes"])
        network.load_state_dict(contents["weights"])
    except (AttributeError, KeyError, TypeError, RuntimeError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"{name}: no network of this version of the code ({type(error).__name__}: {why})") from None
    return network.eval(), contents["facts"]


def _plain(model: Model) -> dict[str, Any]:
    return {key: list(item) if isinstance(item, tuple) else item for key, item in dataclasses.asdict(model).items()}


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(item) if isinstance(item, list) else item for key, item in fields.items()}
