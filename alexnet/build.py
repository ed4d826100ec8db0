"""Networks built by name, saved and loaded, and a classifier that includes the mean image."""

from __future__ import annotations

import dataclasses
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from alexnet import sealed
from alexnet.columns import Link
from alexnet.model import AlexNet
from alexnet.network import Model, Network

SAVED = frozenset(("model", "classes", "weights", "facts"))
"""The keys that `save` writes."""


class Classifier(nn.Module):
    """Raw patches to probabilities: a network that subtracts the mean image itself. This is the model that is served."""

    mean_CHW: Tensor

    def __init__(self, network: Network, mean_CHW: Tensor) -> None:
        super().__init__()
        self.network = network
        side = network.model.patch
        top = (mean_CHW.shape[1] - side) // 2
        self.register_buffer("mean_CHW", mean_CHW[:, top : top + side, top : top + side].clone())

    def forward(self, patches_BCHW: Tensor) -> Tensor:
        """Patches B×3×224×224, RGB, 0–255 → probabilities B×K."""
        return torch.softmax(self.network(patches_BCHW - self.mean_CHW), dim=1)


def build(model: Model, classes: int, link: Link | None = None) -> Network:
    """Builds the network that `model.network` names. Call `draw_first_weights` or `load_state_dict` on it next."""
    if model.network == "alexnet":
        return AlexNet(model, classes, link)
    from alexnet.peers import Peer  # torchvision's models take two seconds to import

    return Peer(model, classes)


def save(handle: BinaryIO, network: Network, **facts: Any) -> None:
    """Writes a whole network and facts about it (tensors, numbers, strings, lists of these); equal input, equal bytes."""
    assert network.fraction == 1, "only a whole network is saved"
    weights = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    contents = {"model": _plain(network.model), "classes": network.classes, "weights": weights, "facts": facts}
    sealed.write(handle, contents)


def load(handle: BinaryIO, name: str = "") -> tuple[Network, dict[str, Any]]:
    """Reads a file that `save` wrote: the network, in eval mode on the CPU, and the facts. Runs no code from the file.

    `ValueError` if it is damaged or from another version of this code. `name`: what messages call a handle without a name.
    """
    name = name or str(getattr(handle, "name", "model.pt"))
    try:
        contents = sealed.read(handle, SAVED, name=name)
    except ValueError as error:
        raise ValueError(f"{error}. Restore a whole copy; DVC has one of data/model.pt: dvc checkout --force") from None
    try:
        network = build(Model(**_tuples(contents["model"])), contents["classes"])
        network.load_state_dict(contents["weights"])
    except (AttributeError, KeyError, TypeError, RuntimeError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"{name}: not a network of this version of the code ({type(error).__name__}: {why})") from None
    return network.eval(), contents["facts"]


def _plain(model: Model) -> dict[str, Any]:
    return {key: list(item) if isinstance(item, tuple) else item for key, item in dataclasses.asdict(model).items()}


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(item) if isinstance(item, list) else item for key, item in fields.items()}
