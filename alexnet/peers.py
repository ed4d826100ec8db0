"""Later networks, for comparison: VGG-16 and ResNet-50; and converting weights from and to torchvision's AlexNet."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from alexnet import draws
from alexnet.columns import Together
from alexnet.model import AlexNet
from alexnet.network import Dropout, Model, Network, dropped

TORCHVISION = {
    "conv1": "features.0",
    "conv2": "features.3",
    "conv3": "features.6",
    "conv4": "features.8",
    "conv5": "features.10",
    "fc6": "classifier.1",
    "fc7": "classifier.4",
    "fc8": "classifier.6",
}
"""Names of our layers → names of the same layers in torchvision's alexnet."""


class Peer(Network):
    """torchvision's VGG-16 (Simonyan and Zisserman 2014) or ResNet-50 (He et al. 2015), in one process.

    The initial weights are torchvision's own, seeded. VGG-16 is configuration D without batch normalization; dropout in its
    layers 6 and 7 is keyed as in AlexNet.
    """

    deviation_CHW: Tensor

    def __init__(self, model: Model, classes: int) -> None:
        super().__init__()
        self.model, self.classes, self.link, self.fraction = model, classes, Together(1), 1.0
        self.body = self._initialized(0)
        self.register_buffer("deviation_CHW", torch.tensor(model.deviation)[:, None, None], persistent=False)
        self.to(memory_format=torch.channels_last)

    def _initialized(self, seed: int) -> nn.Module:
        constructor = {"vgg16": models.vgg16, "resnet50": models.resnet50}[self.model.network]
        with torch.device("cpu"):  # also where the network itself is built without values, on the device `meta`
            drawn = int(draws.bits(f"first weights of {self.model.network}", seed))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(drawn)
            body: nn.Module = constructor(weights=None, num_classes=self.classes)
        return body

    def draw_first_weights(self, seed: int) -> None:
        """Sets torchvision's own initial weights, drawn from the seed."""
        self.body.load_state_dict(self._initialized(seed).state_dict())

    def features(self, patches_BCHW: Tensor, dropout: Dropout | None = None) -> Tensor:
        """Patches → activations of the last hidden layer: B×4096 for VGG-16, B×2048 for ResNet-50."""
        x = (patches_BCHW / self.deviation_CHW).contiguous(memory_format=torch.channels_last)
        body: Any = self.body
        if isinstance(body, models.ResNet):
            x = body.maxpool(body.relu(body.bn1(body.conv1(x))))
            x = body.layer4(body.layer3(body.layer2(body.layer1(x))))
            pooled: Tensor = body.avgpool(x)
            return pooled.flatten(1)
        x = body.avgpool(body.features(x)).flatten(1)
        for layer, linear in ((6, body.classifier[0]), (7, body.classifier[3])):
            x = torch.relu(linear(x))
            if layer in self.model.dropout_layers:
                x = dropped(self, layer, x, 0, dropout)
        return x

    def classify(self, features_BF: Tensor) -> Tensor:
        """Activations of the last hidden layer → logits B×K."""
        body: Any = self.body
        logits: Tensor = (body.fc if isinstance(body, models.ResNet) else body.classifier[6])(features_BF)
        return logits

    def first_layer(self) -> Tensor:
        """The kernels of the first convolution: 64×3×3×3 in VGG-16, 64×3×7×7 in ResNet-50."""
        return self._convolutions()[0].weight.detach()

    @property
    def last_maps(self) -> nn.Module:
        """The last convolution."""
        return self._convolutions()[-1]

    def _convolutions(self) -> list[nn.Conv2d]:
        return [module for module in self.body.modules() if isinstance(module, nn.Conv2d)]


def to_torchvision(network: AlexNet) -> dict[str, Tensor]:
    """The weights of a network of recipes/torchvision.yaml as a state_dict for torchvision's `alexnet`.

    torchvision's network gives the same logits for patches already divided by `deviation`. `ValueError` if `network` has
    another architecture.
    """
    model = network.model
    same = (
        model.columns, model.width, model.kernels, model.units, model.border, model.normalization, model.activation,
        model.pooling, model.dropout_scale,
    )  # fmt: skip
    sizes = (64, 192, 384, 256, 256, 0), (4096, 4096, 0)
    if same != (1, 1.0, *sizes, "padded", "none", "relu", "overlapping", "training"):
        raise ValueError(f"torchvision's alexnet has another architecture than {model}")
    state = network.state_dict()
    return {
        f"{theirs}.{kind}": state[f"{ours}.{kind}"]
        for ours, theirs in TORCHVISION.items()
        for kind in ("weight", "bias")
    }


def from_torchvision(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict of torchvision's `alexnet`, such as its published weights, under our names of the layers."""
    return {
        f"{ours}.{kind}": weights[f"{theirs}.{kind}"]
        for ours, theirs in TORCHVISION.items()
        for kind in ("weight", "bias")
    }
