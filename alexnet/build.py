"""A network built by its name, saved, loaded, and with the mean inside for those who have only pictures."""

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
"""What `save` writes, beside its digest."""


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
    from alexnet.peers import Peer  # torchvision's models take two seconds to import

    return Peer(model, classes)


def save(handle: BinaryIO, network: Network, **facts: Any) -> None:
    """Writes a whole network and facts about it (tensors, numbers, words and lists of them); equal bytes for equal."""
    assert network.fraction == 1, "only a whole network is saved"
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
