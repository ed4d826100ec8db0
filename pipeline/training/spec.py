"""The specification of a training: everything that decides its result, and the fingerprint of that."""

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
from pipeline.shards.manifest import Manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """params.yaml, `start:` — first weights that replace the random ones of `model`."""

    network: str
    """none, or a trained network to start from: a model.pt, a run's checkpoint.pt, an MLflow model as
    models:/alexnet@champion, models:/alexnet/3, models:/m-… or runs:/…/model, or another program's file with a state_dict of
    this shape. The paper: one trained on Fall 2011 (§6)."""
    layers: Literal["fitting"] | tuple[str, ...]
    """The layers to take over from `network`; the others begin with random weights. fitting: all layers of equal shape, the
    last one only if both networks have the same classes."""
    unsupervised: Literal["none", "kmeans"]
    """kmeans: the kernels of the first layers are cluster centres of patches of these layers' inputs. The paper: none (§7)."""
    unsupervised_layers: int
    """1: layer 1; 2: layers 1 and 2, the latter from the output of the clustered layer 1."""
    unsupervised_patches: int
    """Number of patches to cluster for each layer. 100,000 take 3 GB of the driver's memory for layer 2 at full width."""
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
    """The weights that replace random ones at the start of a training."""

    digest: str
    """SHA-256 of the file that `start.network` names, or "none". The fingerprint contains it instead of the name."""
    weights: dict[str, Tensor]
    """Name in the state_dict → whole tensor; the other weights are random."""
    summary: str
    """A line for the user: the layers that are taken over, and why the others are not; empty if all are random."""


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
        """The sections model, start, augmentation and learning, as in params.yaml."""
        return {
            name: dataclasses.asdict(getattr(self, name)) for name in ("model", "start", "augmentation", "learning")
        }

    @property
    def fingerprint(self) -> str:
        """The name of the run: 16 hexadecimal digits of the SHA-256 of parameters and data."""
        sections = self.params
        sections["start"]["network"] = self.first.digest  # the bytes count, not the name
        decides = [sections, self.manifest.digest, self.mean_digest]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def classes(self) -> list[list[str]]:
        """WordNet id and words of each class, in the order of the labels, as checkpoints and model.pt contain them."""
        return [[synset.wnid, synset.words] for synset in self.manifest.classes]
