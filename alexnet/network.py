"""§3 The section `model` of params.yaml, the interface of all networks, and dropout (§4.2).

Axes: B patches, C kernels of both columns, H×W positions, F units, K classes. Layer numbers are the paper's: 1–5
convolutional, 6–8 fully connected. The sixth convolution of §6 comes between layers 5 and 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from alexnet import draws
from alexnet.columns import Link

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "conv6", "fc6", "fc7", "bottleneck", "fc8")
"""All possible layers, in order: the paper's eight, the sixth convolution of §6, and the linear bottleneck before the last
layer of the 2012 network of 21,843 classes (layers-146-2011.cfg)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """params.yaml, `model:` — §3, and the initial weights of §5."""

    network: Literal["alexnet", "vgg16", "resnet50"]
    """alexnet uses all keys below. vgg16 and resnet50 are torchvision's, with their own initial weights, for comparison;
    they use only `deviation`, and vgg16 also `dropout`, `dropout_scale` and `dropout_layers`."""
    columns: Literal[1, 2]
    """Groups of kernels that meet only before layers 3, 6, 7 and 8 and the sixth convolution. The paper: 2, a GPU each."""
    kernels: tuple[int, int, int, int, int, int]
    """Kernels of the six convolutional layers; 0 removes a layer. The paper: 96, 256, 384, 384, 256, 0; with one GPU: 48,
    128, 192, 192, 256, 0; for the larger sets of §6 a sixth layer of 256."""
    units: tuple[int, int, int]
    """Units of layers 6 and 7, and of a linear bottleneck before layer 8; 0 removes a layer. The paper: 4096, 4096, 0; for
    the 21,843 classes of Fall 2011: 4096, 4096, 2048."""
    width: float
    """Fraction of these kernels and units to use, in (0, 1]. Below 1 the initial weights of all layers but the first are
    multiplied by 1/√width, which keeps the size of the activations."""
    border: Literal["overhang", "padded", "exact"]
    """How the 55 windows of layer 1 fit. overhang: 224 pixels, and 3 rows and columns of zeros at the bottom and right, as
    run in 2012. padded: 224 pixels and 2 zeros on every side, as in torchvision. exact: 227 pixels, as in Caffe."""
    deviation: tuple[float, float, float]
    """Divisors of red, green and blue, applied after the mean is subtracted. The paper: 1, raw pixels in 0–255."""
    activation: Literal["relu", "tanh", "sigmoid"]
    """§3.1. The paper: relu."""
    normalization: Literal["printed", "original", "one-weird-trick", "caffe", "batch", "none"]
    """printed: §3.3 as in the paper, after the ReLU. original: as run in 2012, with α divided by 5, before the ReLU in
    layer 1, and with a second normalization across space in layer 2. one-weird-trick: original without the second one.
    caffe: printed with α divided by 5, k = 1, and across the columns. batch: batch normalization before every
    nonlinearity instead."""
    pooling: Literal["overlapping", "disjoint"]
    """§3.4. overlapping: 3×3 windows, stride 2. disjoint: 2×2 windows, stride 2, with the padding of the authors'
    layers-147.cfg, so that layers 3, 4 and 6 see maps of the same size."""
    dropout: float
    """Probability that a unit is dropped in training. The paper: .5."""
    dropout_layers: tuple[int, ...]
    """The layers whose units are dropped; 5 means the outputs of the last pooling. The paper: 6 and 7."""
    dropout_scale: Literal["test", "training"]
    """When units are rescaled. test: multiplied by 1 - dropout in testing, as in §4.2; training: divided by it in training."""
    first_weights: Literal["normal", "uniform"]
    """normal: by the two lists below. uniform: torch's own initialization, ±1/√(inputs of a kernel), also for biases;
    the lists are then not used."""
    first_std: tuple[float, ...]
    """Standard deviation of the initial weights, for each of the ten layers in `LAYERS`. The paper: .01; run in 2012: .03
    in the convolutions from the third on."""
    first_bias: tuple[float, ...]
    """Initial biases, for each of the ten layers in `LAYERS`. The paper: 1 in layers 2, 4, 5, 6 and 7, else 0."""

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
        """Side of the network's input patches, in pixels."""
        return 227 if self.network == "alexnet" and self.border == "exact" else 224

    @property
    def size(self) -> dict[str, int]:
        """Kernels or units of each layer in use except fc8, in order, scaled by `width`; equal in both columns."""
        sizes = zip(LAYERS, (*self.kernels, *self.units), strict=False)
        fraction = self.width / self.columns
        return {name: max(1, round(size * fraction)) * self.columns for name, size in sizes if size}

    @property
    def divisible(self) -> bool:
        """Whether the columns can run in two processes: nothing may cross between them except where `Link` does."""
        return self.network == "alexnet" and self.columns == 2 and self.normalization != "caffe"


@dataclass(frozen=True, slots=True)
class Dropout:
    """The dropout mask of one step, keyed by (seed, step, row in the whole batch, unit), whichever process holds the unit."""

    seed: int
    step: int
    rows_B: Tensor
    """Each patch's row in the whole batch, int64."""

    def kept(self, layer: int, units: range, chance: float) -> Tensor:
        """The mask, bool B×units: true, with probability 1 - chance, where the unit is kept."""
        rows = self.rows_B[:, None]
        columns = torch.arange(units.start, units.stop, device=rows.device)
        return draws.uniform("dropout", self.seed, self.step, layer, rows, columns) >= chance


class Network(nn.Module):
    """The interface of a network: AlexNet, or one of its peers."""

    model: Model
    classes: int
    """Number of classes, K."""
    link: Link
    fraction: float
    """Fraction of the columns that this process holds: 1 or 1/2."""

    def forward(self, patches_BCHW: Tensor, dropout: Dropout | None = None) -> Tensor:
        """Patches B×3×224×224 → logits B×K. `dropout` is needed in training mode only."""
        return self.classify(self.features(patches_BCHW, dropout))

    def features(self, patches_BCHW: Tensor, dropout: Dropout | None = None) -> Tensor:
        """Patches → activations of the last hidden layer, B×4096 in a whole network, half of them in half a network (§6.1)."""
        raise NotImplementedError

    def classify(self, features_BF: Tensor) -> Tensor:
        """Activations from `features` → logits B×K."""
        raise NotImplementedError

    def first_layer(self) -> Tensor:
        """The kernels of layer 1, C×3×11×11, the first column's first: Figure 3."""
        raise NotImplementedError

    @property
    def columns(self) -> int:
        """Number of columns of the whole network, also where this process holds one of them."""
        return 1

    @property
    def last_maps(self) -> nn.Module:
        """The last convolution: the last module whose outputs have positions in the picture."""
        raise NotImplementedError

    def draw_first_weights(self, seed: int) -> None:
        """§5: sets weights and biases to their initial values."""
        raise NotImplementedError

    def local_part(self, whole: dict[str, Tensor]) -> dict[str, Tensor]:
        """The part of each tensor that this process holds. `whole`: tensors of the whole network, named as in its state_dict."""
        return whole

    @property
    def replicated(self) -> set[str]:
        """Names in the state_dict of the tensors that every column holds whole."""
        return set(self.state_dict())


def dropped(network: Network, layer: int, units_BN: Tensor, first: int, dropout: Dropout | None) -> Tensor:
    """§4.2 Dropout of a layer's units, the first of which has number `first` in the whole layer; B×N → B×N.

    In training, units are set to 0 by `dropout`; where they are rescaled is `model.dropout_scale`.
    """
    model = network.model
    if not network.training:
        return units_BN * (1 - model.dropout) if model.dropout_scale == "test" else units_BN
    assert dropout is not None, "training mode needs a Dropout"
    kept = dropout.kept(layer, range(first, first + units_BN.shape[1]), model.dropout)
    if model.dropout_scale == "training":
        units_BN = units_BN / (1 - model.dropout)
    return units_BN * kept
