"""The predictor: a trained network's model.pt and the bytes of pictures → classes with probabilities, as `evaluate` gets them."""

# This file is stored in MLflow's models, which are used without this repository: it imports alexnet, torch and numpy alone

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from alexnet import build, names
from alexnet.appearance import Appearance, measure
from alexnet.augmentation import CENTRE, centre_view, ten_views
from alexnet.errors import mean_over_views
from alexnet.features import of_views
from alexnet.network import Network
from alexnet.pictures import Undecodable, decode
from alexnet.preparation import MEGAPIXELS, Preparation

Views = Literal[10, 1]
"""How many views of a picture are averaged: the ten of §4.1, or the centre patch alone."""

BATCH = {"cpu": 16, "cuda": 128}
"""Pictures per forward pass, each with all its views: as many as `evaluate` takes, since the batch size affects the last bits."""

LARGEST = 2**25
"""The most bytes of a picture file that a server takes; a photograph has some 10 MB."""

OLD = (
    "was written by older code, which did not say how pictures are prepared for the network. In the working copy that trained "
    "it, set other_code: continue in machine.yaml, and run: dvc repro train. It trains nothing anew while runs/ has the run's "
    "last checkpoint"
)


@dataclass(frozen=True, slots=True)
class Guess:
    """A class that a picture may show."""

    wnid: str
    """WordNet id of the class."""
    name: str
    """The class's short, distinct name, as in the tables of `evaluate`; to be escaped where it is shown."""
    probability: float
    """From 0 to 1."""


class Predictor:
    """A trained network in eval mode, with everything that an answer needs besides the picture."""

    def __init__(self, network: Network, facts: dict[str, Any], name: str = "model.pt") -> None:
        """`facts`: those that `load` returned with the network; `ValueError` if they lack one that an answer needs."""
        if "preparation" not in facts:
            raise ValueError(f"{name}: {OLD}")
        try:
            self.preparation = Preparation.of(facts["preparation"])
            self.classes: list[tuple[str, str]] = [(str(wnid), str(words)) for wnid, words in facts["classes"]]
            self.mean_CHW: Tensor = facts["mean"]
            self.mean_kind = facts["mean_kind"]
            self.drawn = bool(facts["drawn"])
            self.fingerprint = str(facts["fingerprint"])
            looks = facts.get("appearance")  # None, too, if there were few training pictures
            self.appearance = None if looks is None else Appearance.read(looks)
            side = self.preparation.side
            if tuple(self.mean_CHW.shape) != (3, side, side) or len(self.classes) != network.classes:
                raise ValueError("mean and classes are not those of the network")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{name}: not a network that `train` wrote ({type(error).__name__}: {error})") from None
        self.network = network
        self.names = names.of_classes(self.classes)

    @classmethod
    def load(cls, data: bytes, name: str = "model.pt", device: str = "cpu") -> Predictor:
        """Reads the bytes of a model.pt; runs no code from them. `name` is for messages; `device`: cpu or cuda.

        `ValueError` if they are damaged, of another version of this code, or of older code, which left out the preparation.
        """
        network, facts = build.load(io.BytesIO(data), name)
        predictor = cls(network, facts, name)
        predictor.network = network.to(device)
        predictor.mean_CHW = predictor.mean_CHW.to(device)
        return predictor

    def prepare(self, data: bytes) -> Tensor:
        """The bytes of a picture file → what the network is shown, uint8 3×S×S. `Undecodable`, with the reason, if rejected."""
        return self.preparation.prepare(data)

    def see(self, data: bytes) -> tuple[Tensor, list[str]]:
        """As `prepare`, with what makes an answer doubtful: damage, and a look unlike the training pictures."""
        picture_CHW, damage = self.preparation.accept(data)
        shown_CHW, warnings = self.see_pixels(picture_CHW)
        return shown_CHW, [*([f"damaged: {damage}"] if damage else []), *warnings]

    def see_pixels(self, picture_CHW: Tensor) -> tuple[Tensor, list[str]]:
        """As `see`, of a decoded picture of any size, uint8 3×H×W. `Undecodable` if it has too many pixels."""
        height, width = picture_CHW.shape[1:]
        if height * width > 1e6 * self.preparation.max_megapixels:
            raise Undecodable(
                f"too many pixels: {width} x {height} ({MEGAPIXELS}: {self.preparation.max_megapixels:g})"
            )
        shown_CHW = decode(self.preparation.store(picture_CHW))
        warning = self.unlike(shown_CHW)
        return shown_CHW, [warning] if warning else []

    def unlike(self, picture_CHW: Tensor) -> str:
        """A warning if a prepared picture looks unlike the training pictures, such as a drawing among photographs; else ""."""
        if self.appearance is None:
            return ""
        distance, limit = self.appearance.distance(measure(picture_CHW)), self.appearance.limit
        if distance <= limit:
            return ""
        kind = "drawn by a program" if self.drawn else "photographs"
        return f"unlike the training pictures, which were {kind} (distance {distance:.1f}, limit {limit:.1f})"

    def answer(self, pictures: Sequence[Tensor], views: Views = 10, top: int = 5) -> list[list[Guess]]:
        """The `top` most probable classes of each prepared picture, the best first; all if the network has fewer.

        Equal probabilities are ordered by class. `ValueError` if the network's answer to a picture is not a number.
        """
        return self.guesses(self.described(pictures, views)[0], top)

    def guesses(self, probabilities_BK: Tensor, top: int = 5) -> list[list[Guess]]:
        """The `top` most probable classes of each row of probabilities, as `answer` gives them."""
        if top < 1:
            raise ValueError(f"top has to be at least 1, is {top}")
        if not bool(torch.isfinite(probabilities_BK).all()):
            raise ValueError("the network answers with no numbers (NaN): its training diverged")
        order_BT = probabilities_BK.argsort(dim=1, descending=True, stable=True)[:, :top]
        rows = zip(order_BT.tolist(), probabilities_BK.gather(1, order_BT).tolist(), strict=True)
        return [
            [Guess(self.classes[label][0], self.names[label], share) for label, share in zip(*row, strict=True)]
            for row in rows
        ]

    def described(self, pictures: Sequence[Tensor], views: Views = 10) -> tuple[Tensor, Tensor]:
        """Probabilities B×K, and features B×F of the centre patch, of prepared pictures, uint8 3×S×S; float32 on the CPU."""
        if views not in get_args(Views):
            raise ValueError(f"views has to be 10 or 1, is {views}")
        side = self.preparation.side
        for picture_CHW in pictures:
            if picture_CHW.dtype != torch.uint8 or tuple(picture_CHW.shape) != (3, side, side):
                raise ValueError(
                    f"a prepared picture has uint8 3 x {side} x {side}, this has {picture_CHW.dtype} "
                    f"{' x '.join(map(str, picture_CHW.shape))}"
                )
        size = BATCH[self.mean_CHW.device.type]
        parts = [self._batch(pictures[first : first + size], views) for first in range(0, len(pictures), size)]
        none = torch.empty(0, len(self.classes)), torch.empty(0, 0)
        return (torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])) if parts else none

    def _batch(self, pictures: Sequence[Tensor], views: Views) -> tuple[Tensor, Tensor]:
        images_BCHW = torch.stack(list(pictures)).to(self.mean_CHW.device)
        side = self.network.model.patch
        views_BVCHW = (
            ten_views(images_BCHW, self.mean_CHW, side, self.mean_kind)
            if views == 10
            else centre_view(images_BCHW, self.mean_CHW, side)[:, None]
        )
        features_BVF, logits_BVK = of_views(self.network, views_BVCHW)
        return mean_over_views(logits_BVK).cpu(), features_BVF[:, CENTRE if views == 10 else 0].cpu()
