"""§3 The network: Figure 2 on one screen, and its variants.

Sizes are for 3×224×224 patches with the mean subtracted, pixels in 0–255. Axes: B patches, C kernels of both columns, H×W
positions, F features, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet import draws
from alexnet.columns import Link, Together
from alexnet.network import LAYERS, Dropout, Model, Network, dropped
from alexnet.normalization import ALPHA, NEIGHBOURS, AcrossKernels, AcrossSpace

REPLICATED = ("fc8.weight", "fc8.bias")
"""The parameters of layer 8, which every column computes whole, so that nothing has to cross after it."""


class AlexNet(Network):
    """The network, or the half of it that `link` assigns to this process. 60,965,224 parameters for 1000 classes."""

    conv1: nn.Conv2d
    bottleneck: nn.Linear
    deviation_CHW: Tensor

    def __init__(self, model: Model, classes: int, link: Link | None = None) -> None:
        super().__init__()
        self.model, self.classes = model, classes
        self.link = link or Together(model.columns)
        self.fraction = len(range(*self.link.held.indices(model.columns))) / model.columns
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
        self.fc8 = nn.Linear(units, classes)                                               # 1000, whole in each process
        # fmt: on
        self.norm1, self.norm2, self.norm2_space = _normalizations(model, round(model.columns * self.fraction))
        self.register_buffer("deviation_CHW", torch.tensor(model.deviation)[:, None, None], persistent=False)
        self.to(memory_format=torch.channels_last)

    def features(self, patches_BCHW: Tensor, dropout: Dropout | None = None) -> Tensor:
        """Patches → the activations of layer 7 in this process, B×4096 in a whole network (§6.1)."""
        x = patches_BCHW
        if self.model.deviation != (1, 1, 1):
            x = x / self.deviation_CHW
        if self.model.border == "overhang":
            # 224 is not 4·54 + 11: the code of 2012 lets the last window overhang, and reads zeros there (layer.py)
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
        """Activations of layer 7 in this process → logits B×K."""
        x = features_BF
        if "bottleneck" in self.model.size:
            x = self.bottleneck(self.link.cross(x))  # linear: no activation follows
        logits: Tensor = self.fc8(self.link.cross_last(x))
        return logits

    def first_layer(self) -> Tensor:
        """The kernels of layer 1, C×3×11×11, the first column's first: Figure 3."""
        return self.conv1.weight.detach()

    @property
    def columns(self) -> int:
        """Number of columns of the whole network, also where this process holds one of them."""
        return self.model.columns

    @property
    def last_maps(self) -> nn.Module:
        """The last convolution: the last module whose outputs have positions in the picture."""
        convolutions = [module for module in self.children() if isinstance(module, nn.Conv2d)]
        return convolutions[-1]

    @torch.no_grad()
    def draw_first_weights(self, seed: int) -> None:
        """§5: initial weights and biases by `model.first_weights`; half a network gets its half of the whole one's draws."""
        for index, name in enumerate(LAYERS):
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
            std = self.model.first_std[index] / (1 if index == 0 else self.model.width**0.5)
            layer.weight.copy_(torch.randn(shape, generator=generator, dtype=torch.float32).mul_(std)[rows])
            layer.bias.fill_(self.model.first_bias[index])

    def local_part(self, whole: dict[str, Tensor]) -> dict[str, Tensor]:
        """The part of each tensor that this process holds. `whole`: tensors of the whole network, named as in its state_dict."""
        held = {name: tensor for name, tensor in self.state_dict().items() if name in whole}
        return {name: whole[name][self._rows(name, tensor)[0]] for name, tensor in held.items()}

    @property
    def replicated(self) -> set[str]:
        """Names in the state_dict of the tensors that every column holds whole."""
        return {name for name, tensor in self.state_dict().items() if name in REPLICATED or not tensor.dim()}

    def _rows(self, name: str, held: Tensor) -> tuple[Any, int]:
        """The rows of the whole tensor that this process holds, and how many rows the whole tensor has."""
        if not held.dim():
            return ..., 0
        rows = len(held)
        if name.startswith("fc8") or self.fraction == 1:
            return slice(0, rows), rows
        first = self.link.held.start * rows
        return slice(first, first + rows), round(rows / self.fraction)

    def _conv(
        self, name: str, maps: tuple[int, int], side: int, padding: int, stride: int = 1, divided: bool = False
    ) -> tuple[int, int]:
        """Adds a convolution, if the model has this layer. `maps`: (kernels, side) of its input; returns those of its output.

        `divided`: the columns do not meet before this layer.
        """
        size = self.model.size
        if name not in size:
            return maps
        # a divided layer sees only the maps of this process; any other sees all
        ins = round(maps[0] * self.fraction) if divided else maps[0]
        groups = round(self.model.columns * self.fraction) if divided else 1
        outs = round(size[name] * self.fraction)
        self.add_module(name, nn.Conv2d(ins, outs, side, stride, padding, groups=groups))
        if self.model.normalization == "batch":
            self.add_module(f"{name}_batch", nn.BatchNorm2d(outs))
        return size[name], (maps[1] + 2 * padding - side) // stride + 1

    def _full(self, name: str, ins: int) -> int:
        """Adds a fully connected layer of `ins` inputs, if the model has this layer; returns its number of units."""
        size = self.model.size
        if name not in size:
            return ins
        outs = round(size[name] * self.fraction)
        self.add_module(name, nn.Linear(ins, outs))
        if self.model.normalization == "batch" and name != "bottleneck":
            self.add_module(f"{name}_batch", nn.BatchNorm1d(outs))
        return size[name]

    def _through(self, name: str, x: Tensor, meet: bool = False) -> Tensor:
        """A layer and its nonlinearity, or x unchanged if the model has no such layer. `meet`: the columns meet before it."""
        if name not in self.model.size:
            return x
        if meet:
            x = self.link.cross(x)
        return self._active(name, getattr(self, name)(x.flatten(1) if name.startswith("fc") else x))

    def _active(self, name: str, x: Tensor) -> Tensor:
        """§3.1 The nonlinearity, after batch normalization if the model has that."""
        if self.model.normalization == "batch":
            x = getattr(self, f"{name}_batch")(x)
        active: Tensor = getattr(torch, self.model.activation)(x)
        return active

    def _pool(self, maps: Tensor) -> Tensor:
        """§3.4 Max-pooling: overlapping 3×3 windows with stride 2, or disjoint 2×2 windows."""
        return F.max_pool2d(maps, *self.pool, ceil_mode=True)

    def _pooled(self, maps: tuple[int, int]) -> tuple[int, int]:
        """(kernels, side) of maps after `_pool`."""
        return maps[0], -(-(maps[1] - self.pool[0]) // self.pool[1]) + 1

    def _dropped(self, layer: int, units: Tensor, dropout: Dropout | None) -> Tensor:
        """§4.2 Dropout, if the model has this layer and drops its units."""
        if layer not in self.model.dropout_layers or (layer > 5 and f"fc{layer}" not in self.model.size):
            return units
        units_BN = units.flatten(1)
        first = self.link.held.start * units_BN.shape[1] if self.fraction < 1 else 0
        return dropped(self, layer, units_BN, first, dropout)


def _normalizations(model: Model, columns: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    """§3.3 The normalization of layer 1, of layer 2, and the one across space that followed layer 2's in 2012."""

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
