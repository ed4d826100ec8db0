"""§3 What a network is: the section `model` of params.yaml, the interface of all networks, and dropout (§4.2).

In shapes: B patches, C kernels of both columns, H×W positions, F units, K classes. Layer numbers are the paper's, 1–5
convolutional and 6–8 fully connected; the sixth convolution of §6 stands between 5 and 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from alexnet import draws
from alexnet.columns import Link

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "conv6", "fc6", "fc7", "bottleneck", "fc8")
"""All layers that there can be, in order. The paper's eight, the sixth convolution of §6, and the linear bottleneck that
the network of 21,843 classes had before its last layer in 2012 (layers-146-2011.cfg)."""


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
    fraction: float
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

    def local_part(self, whole: dict[str, Tensor]) -> dict[str, Tensor]:
        """The part of each tensor that this process holds. `whole`: the tensors of the whole network, named as in its state."""
        return whole

    @property
    def replicated(self) -> set[str]:
        """The names in its state of what each column has whole."""
        return set(self.state_dict())


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
