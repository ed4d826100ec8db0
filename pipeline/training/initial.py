"""What the training begins with in place of drawn weights: another network's (§6), or kernels found in the pictures (§7)."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet import pretraining, sealed
from alexnet.augmentation import Augmentation, centre_view, mean_to_subtract
from alexnet.build import SAVED, build
from alexnet.dataset import Mean
from alexnet.learning import Learning
from alexnet.model import AlexNet
from alexnet.network import LAYERS, Model
from pipeline.runtime import machine
from pipeline.runtime.machine import Machine
from pipeline.runtime.paths import AnyPath
from pipeline.runtime.progress import Progress
from pipeline.shards.batches import Order, Pictures, batches, held_out
from pipeline.shards.tables import Manifest
from pipeline.tracking import runs
from pipeline.training import checkpoints

VIEWS = 64
"""Pictures that go through the first layers at once. It decides their last bits, so it is fixed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """params.yaml, `start:` — what takes the place of the first weights that `model` asks for."""

    network: str
    """none, or a trained network to go on from: a model.pt, a run's checkpoint.pt, or an MLflow model as
    models:/alexnet@champion, models:/alexnet/3, models:/m-… or runs:/…/model. The paper: one trained on Fall 2011 (§6)."""
    layers: Literal["fitting"] | tuple[str, ...]
    """Which of its layers are taken over; the others are drawn. fitting: each that has the same shapes here, but the last
    one only if it tells the same classes apart."""
    unsupervised: Literal["none", "kmeans"]
    """kmeans: the kernels of the first layers are clusters of what these layers see. The paper: none (§7)."""
    unsupervised_layers: int
    """1: of layer 1; 2: of layer 2 as well, from what then comes out of layer 1."""
    unsupervised_patches: int
    """To be clustered, for each layer. 100,000 take 3 GB of the driver's memory in layer 2 at full width."""
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
class Origin:
    """The network that `start.network` names, read."""

    digest: str
    """SHA-256 of its file; "none" if there is none. In the run's fingerprint it stands for the name."""
    weights: dict[str, Tensor]
    """Those that are taken over, whole."""
    said: str
    """Which layers begin with what, and why not the others; nothing if all are drawn."""


def origin(section: Start, model: Model, manifest: Manifest, settings: Machine) -> Origin:
    """Reads the network and chooses what is taken over; `ValueError` or `OSError` if that cannot be."""
    if section.unsupervised != "none" and model.network != "alexnet":
        raise ValueError(f"params.yaml: start.unsupervised: is for model.network 'alexnet', not '{model.network}'")
    if section.network == "none":
        layers = LAYERS[: section.unsupervised_layers] if section.unsupervised == "kmeans" else ()
        patches = f"{section.unsupervised_patches:,} patches each, clustered"
        return Origin(digest="none", weights={}, said=f"{' and '.join(layers)} of {patches}" if layers else "")
    if section.network.startswith(("models:/", "runs:/")):
        where, data = section.network, runs.weights(settings, section.network)
    else:
        file = machine.home() / section.network
        if not file.is_file():
            raise FileNotFoundError(
                f"params.yaml: start.network: {file}: no such file. It has to be a model.pt, such as data/model.pt "
                "of another working copy, a run's checkpoint.pt, or an MLflow model, such as models:/alexnet@champion"
            )
        where, data = str(file), file.read_bytes()
    try:
        # not model.load: this code need not be able to build that network, of which it takes some layers
        contents = sealed.read(io.BytesIO(data), SAVED, checkpoints.UNSEALED, name=where)
    except ValueError as error:
        raise ValueError(f"params.yaml: start.network: {error}") from None
    try:
        theirs, facts = contents["weights"], contents.get("facts", contents)  # a checkpoint says its facts itself
        run = facts["fingerprint"]
        same = [wnid for wnid, _ in facts["classes"]] == [synset.wnid for synset in manifest.classes]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        fault = type(error).__name__
        raise ValueError(f"params.yaml: start.network: {where}: no network of ours ({fault})") from None
    with torch.device("meta"):
        ours = build(model, len(manifest.classes)).state_dict()
    try:
        weights, left = chosen(theirs, ours, section.layers, same_classes=same)
    except ValueError as error:
        raise ValueError(f"params.yaml: start.layers: {where}: {error}") from None
    names = ", ".join(dict.fromkeys(map(_layer, weights)))
    others = "".join(f"; {layer} drawn: {why}" for layer, why in left.items())
    said = f"{names} of {where} (run {run}){others}"
    return Origin(digest=hashlib.sha256(data).hexdigest(), weights=weights, said=said)


def chosen(
    theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], layers: str | tuple[str, ...], *, same_classes: bool
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights of another network that are taken over, and for each layer that does not fit the reason.

    `ValueError` if a layer that is asked for by name does not fit or is not there, or if none fits.
    """
    here = list(dict.fromkeys(map(_layer, ours)))
    unfit = {layer: why for layer in here if (why := _misfit(layer, theirs, ours, same_classes))}
    wanted = here if layers == "fitting" else list(layers)
    if unknown := [layer for layer in wanted if layer not in here]:
        raise ValueError(f"no layer '{unknown[0]}' here; there are {', '.join(here)}")
    if layers == "fitting":
        wanted = [layer for layer in here if layer not in unfit]
    faults = {layer: unfit[layer] for layer in wanted if layer in unfit}
    if faults or not wanted:
        raise ValueError("; ".join(f"{layer} does not fit: {why}" for layer, why in (faults or unfit).items()))
    weights = {name: theirs[name] for name in ours if _layer(name) in wanted}
    left = {layer: unfit.get(layer, "not asked for") for layer in here if layer not in wanted}
    return weights, left


def _misfit(layer: str, theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], same_classes: bool) -> str:
    """Why a layer cannot be taken over; nothing if it can."""
    for name in dict.fromkeys(name for name in (*ours, *theirs) if _layer(name) == layer):
        there, here = (_shape(weights.get(name)) for weights in (theirs, ours))
        if there != here:
            return f"{name} is {there} there and {here} here"
    return "" if same_classes or layer != LAYERS[-1] else "it tells other classes apart"


def _layer(name: str) -> str:
    return name.partition(".")[0]


def _shape(weight: Tensor | None) -> str:
    return "absent" if weight is None else "×".join(map(str, weight.shape)) or "a number"


def found(
    section: Start,
    model: Model,
    augmentation: Augmentation,
    learning: Learning,
    manifest: Manifest,
    mean: Mean,
    shards: AnyPath,
) -> dict[str, Tensor]:
    """The kernels of the first layers as `start.unsupervised` asks for, by name; a pure function of its arguments.

    They are those of the pictures that are learned from, less what the network will not see of them either.
    """
    if section.unsupervised == "none":
        return {}
    pictures = Pictures(shards, manifest.shards["train"])
    # the first as stored are as good as any: they were shuffled before
    learned = np.flatnonzero(~held_out(len(pictures), learning))
    learned = learned[: -(-section.unsupervised_patches // pretraining.PER_PICTURE)]
    mean_CHW = mean_to_subtract(torch.from_numpy(mean.image_CHW), augmentation)
    network = AlexNet(model, len(manifest.classes))
    network.draw_first_weights(learning.seed)
    layers = LAYERS[: section.unsupervised_layers]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them would move the last bits, by which a patch can change its cluster
    try:
        for layer in layers:
            pretraining.cluster(
                network,
                layer,
                _views(pictures, learned, mean_CHW, model.patch, threads, layer),
                pictures=len(learned),
                patches=section.unsupervised_patches,
                iterations=section.unsupervised_iterations,
                seed=learning.seed,
            )
    finally:
        torch.set_num_threads(threads)
    weights = network.state_dict()
    return {f"{layer}.weight": weights[f"{layer}.weight"] for layer in layers}


def _views(
    pictures: Pictures, chosen: NDArray[np.int64], mean_CHW: Tensor, side: int, threads: int, layer: str
) -> Iterator[tuple[Tensor, Tensor]]:
    with Progress(f"train: clusters for {layer}", len(chosen), "images") as progress:
        for batch in batches(pictures, Order(chosen, np.zeros_like(chosen)), VIEWS, threads=threads):
            yield batch.positions_B, centre_view(batch.images_BCHW, mean_CHW, side)
            progress.add(batch.count)
