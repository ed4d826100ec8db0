"""What a training is: one value with everything that decides its result, and the fingerprint that names it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from alexnet.augmentation import Augmentation
from alexnet.dataset import Mean
from alexnet.learning import Learning
from alexnet.network import Model
from pipeline.shards.tables import Manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """params.yaml, `start:` — what takes the place of the first weights that `model` asks for."""

    network: str
    """none, or a trained network to go on from: a model.pt, a run's checkpoint.pt, or an MLflow model as
    models:/alexnet@champion, models:/alexnet/3, models:/m-… or runs:/…/model. The paper: one trained on Fall 2011 (§6)."""
    layers: Literal["fitting"] | tuple[str, ...]
    """Which of its layers are taken over; the others are drawn. fitting: each layer that has the same shapes here, but the
    last one only if it tells the same classes apart."""
    unsupervised: Literal["none", "kmeans"]
    """kmeans: the kernels of the first layers are clusters of what these layers see. The paper: none (§7)."""
    unsupervised_layers: int
    """1: of layer 1; 2: of layer 2 as well, from what then comes out of layer 1."""
    unsupervised_patches: int
    """Patches to be clustered for each layer. 100,000 take 3 GB of the driver's memory in layer 2 at full width."""
    unsupervised_iterations: int
    """Iterations of k-means. After 10 the centres hold 95 % of the energy that they hold after 40 (layer 1, photographs)."""

    def __post_init__(self) -> None:
        if self.unsupervised_layers not in (1, 2):
            raise ValueError(f"unsupervised_layers has to be 1 or 2, is {self.unsupervised_layers}")
        for name in ("unsupervised_patches", "unsupervised_iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} has to be at least 1, is {getattr(self, name)}")
        if not self.layers:
            raise ValueError("layers has to name a layer, or to be 'fitting', is []")
        if self.network != "none" and self.unsupervised != "none":
            raise ValueError(
                f"the first layers come from network ({self.network}) or are unsupervised ({self.unsupervised}), not both"
            )


@dataclass(frozen=True, kw_only=True)
class FirstWeights:
    """The weights that a training begins with in place of drawn ones."""

    digest: str
    """SHA-256 of the file of the network that `start.network` names; "none" without one. The fingerprint has it in place of
    the name."""
    weights: dict[str, Tensor]
    """Whole tensors by name, as in the network's state; those that are not named are drawn."""
    said: str
    """Which layers begin with what, and why not the others; empty if all are drawn."""


@dataclass(frozen=True, kw_only=True)
class TrainingSpec:
    """Everything that decides the result of a training."""

    model: Model
    start: Start
    augmentation: Augmentation
    learning: Learning
    manifest: Manifest
    mean: Mean
    mean_digest: str
    """SHA-256 of the file of the mean."""
    first: FirstWeights

    @property
    def params(self) -> dict[str, Any]:
        """The four sections of params.yaml, nested."""
        return {
            name: dataclasses.asdict(getattr(self, name)) for name in ("model", "start", "augmentation", "learning")
        }

    @property
    def fingerprint(self) -> str:
        """The name of the run: 16 hexadecimal digits of the hash of parameters and data."""
        sections = self.params
        sections["start"]["network"] = self.first.digest  # whatever it is called, and wherever it lies
        decides = [sections, self.manifest.digest, self.mean_digest]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def classes(self) -> list[list[str]]:
        """WordNet id and words of each class, in the order of the labels: what a checkpoint and a network's file say."""
        return [[synset.wnid, synset.words] for synset in self.manifest.classes]
