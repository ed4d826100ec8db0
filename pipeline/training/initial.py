"""First weights that are not random: another network's (§6), or kernels clustered from the pictures (§7)."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet import pretraining, sealed
from alexnet.augmentation import centre_view, mean_to_subtract
from alexnet.build import SAVED, build
from alexnet.model import AlexNet
from alexnet.network import LAYERS, Model
from pipeline.runtime import machines
from pipeline.runtime.machines import Machine
from pipeline.runtime.paths import AnyPath
from pipeline.runtime.progress import Progress
from pipeline.shards.batches import Order, Pictures, batches, held_out
from pipeline.shards.manifest import Manifest
from pipeline.tracking import addresses, runs
from pipeline.training import checkpoints, foreign, naming
from pipeline.training.spec import FirstWeights, Start, TrainingSpec

SUFFIXES = frozenset((".pt", ".pth", ".ckpt", ".safetensors", ".bin"))
"""How the names of files of weights end, for the advice about a folder."""

TORCHVISION = {
    "border": "padded",
    "deviation": (58.395, 57.12, 57.375),
    "activation": "relu",
    "normalization": "none",
    "pooling": "overlapping",
}
"""Settings of torchvision's alexnet that no shape shows: another value gives other responses with the same weights."""

VIEWS = 64
"""Batch size for the first layers' responses. It is fixed, since it affects their rounding."""


def read_pretrained(section: Start, model: Model, manifest: Manifest, machine: Machine) -> FirstWeights:
    """Reads the network that `start.network` names, and takes over the layers that `start.layers` asks for.

    `ValueError` or `OSError` if the network cannot be read, or if a requested layer does not fit.
    """
    if section.unsupervised != "none" and model.network != "alexnet":
        raise ValueError(f"params.yaml: start.unsupervised: is for model.network 'alexnet', not '{model.network}'")
    if section.network == "none":
        layers = LAYERS[: section.unsupervised_layers] if section.unsupervised == "kmeans" else ()
        patches = f"{section.unsupervised_patches:,} patches each, clustered"
        return FirstWeights(digest="none", weights={}, summary=f"{' and '.join(layers)} of {patches}" if layers else "")
    where, data = _file(section.network, machine)
    with torch.device("meta"):
        ours = build(model, len(manifest.classes)).state_dict()
    try:
        source = _source(data, where, ours, model, manifest)
    except ValueError as error:
        raise ValueError(f"params.yaml: start.network: {error}") from None
    try:
        if source.looks and section.layers == "fitting":
            _check_first_layer(source, ours)
        weights, left = choose_weights(source.weights, ours, section.layers, same_classes=source.same_classes)
        if source.looks:
            weights = _checked(weights, ours)
    except ValueError as error:
        key = "network" if section.layers == "fitting" else "layers"
        raise ValueError(f"params.yaml: start.{key}: {where}: {error}") from None
    names = ", ".join(dict.fromkeys(map(_layer, weights)))
    others = "".join(f"; {layer} random: {why}" for layer, why in left.items())
    notes = _notes(source, weights, model) if source.looks else ""
    summary = f"{names} of {where} ({source.words}){others}{notes}"
    return FirstWeights(digest=hashlib.sha256(data).hexdigest(), weights=weights, summary=summary)


@dataclass(frozen=True, slots=True)
class Source:
    """A network to start from."""

    weights: Mapping[str, Tensor]
    """Its state_dict, under this project's names."""
    words: str
    """What it is: "run" and the run's fingerprint, or whose names it had."""
    same_classes: bool
    """Whether its last layer may be taken over. A file without names of classes leaves that to the number of classes."""
    looks: str
    """What the names in another program's file look like; empty if `train` wrote the file."""


def _file(network: str, machine: Machine) -> tuple[str, bytes]:
    """The name and the bytes of the file that `start.network` names. `OSError` or `ValueError` if it cannot be read."""
    if network.startswith(addresses.OF_MODELS):
        return network, runs.weights(machine, network)
    if "://" in network:
        raise ValueError(f"params.yaml: start.network: {network}: is an address. Fetch the file, and write its path")
    file = machines.home() / Path(network).expanduser()
    if file.is_dir():
        inside = sorted(str(path) for path in (*file.glob("*"), *file.glob("*/*")) if path.suffix in SUFFIXES)
        named = f", such as {inside[0]}" if inside else ""
        raise ValueError(f"params.yaml: start.network: {file}: is a folder. Write the path of the file in it{named}")
    if not file.is_file():
        raise FileNotFoundError(
            f"params.yaml: start.network: {file}: no such file. It has to be a model.pt, such as data/model.pt "
            "of another working copy, a run's checkpoint.pt, a state_dict of torchvision's, or an MLflow model, such as "
            "models:/alexnet@champion"
        )
    if file.stat().st_size > foreign.LARGEST:
        raise ValueError(
            f"params.yaml: start.network: {file}: has {file.stat().st_size:,} bytes, more than {foreign.LARGEST:,}. "
            "Save the network's state_dict alone"
        )
    return str(file), file.read_bytes()


def _source(data: bytes, where: str, ours: Mapping[str, Tensor], model: Model, manifest: Manifest) -> Source:
    """The network in a file, whoever wrote it. `ValueError` if there is none, or none that could fit."""
    if not data[-sealed.LENGTH :].startswith(sealed.MARK):
        contents = foreign.read(data, where)
        if contents.keys() not in (SAVED, checkpoints.UNSEALED):
            found = foreign.state_dict(contents, where)
            try:
                weights, whose = naming.under_our_names(found, ours, model.network)
            except naming.OtherNetworkError as error:
                raise ValueError(f"{where}: {error}") from None
            return Source(weights, whose or "a state_dict", same_classes=True, looks=naming.looks_like(found))
    # not build.load: this code need not be able to build the other network, since it only takes some layers
    contents = sealed.read(io.BytesIO(data), SAVED, checkpoints.UNSEALED, name=where)
    try:
        facts = contents.get("facts", contents)  # a checkpoint has the facts at its top level
        same = [wnid for wnid, _ in facts["classes"]] == [synset.wnid for synset in manifest.classes]
        return Source(contents["weights"], f"run {facts['fingerprint']}", same_classes=same, looks="")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{where}: not a network that `train` wrote ({type(error).__name__})") from None


def _check_first_layer(source: Source, ours: Mapping[str, Tensor]) -> None:
    """`ValueError` if the first layer does not fit: what later layers respond to would then mean nothing here."""
    first = _layer(next(iter(ours)))
    if why := _misfit(first, source.weights, ours, same_classes=True):
        raise ValueError(f"{source.looks}. {first} does not fit: {why}")


def _checked(weights: dict[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of another program in our number format; `ValueError` if they are not finite numbers with a point."""
    for name, tensor in weights.items():
        if tensor.is_floating_point() != ours[name].is_floating_point():
            raise ValueError(f"{name} has numbers of another kind ({tensor.dtype}). {foreign.ADVICE}")
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} has values that are infinite or no numbers. Take an earlier checkpoint")
    return {name: tensor.to(ours[name].dtype).contiguous() for name, tensor in weights.items()}


def _notes(source: Source, weights: Mapping[str, Tensor], model: Model) -> str:
    """What a user has to know of a network of another program, which names neither its classes nor its settings."""
    notes, last = "", LAYERS[-1]
    if f"{last}.bias" in weights:
        notes = f"; its {len(weights[f'{last}.bias'])} outputs are taken for the classes here, in their order"
    if source.words == "torchvision's alexnet":
        other = [f"{name} {wanted}" for name, wanted in TORCHVISION.items() if getattr(model, name) != wanted]
        notes += f"; it was trained with model.{', model.'.join(other)}: see recipes/torchvision.yaml" if other else ""
    return notes


def choose_weights(
    theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], layers: str | tuple[str, ...], *, same_classes: bool
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights to take over from another network, and layer → reason for each layer that is not taken over.

    `theirs` and `ours` are state_dicts. `layers`: "fitting", or layers by name. `ValueError` if a named layer does not exist
    or does not fit, or if no layer fits.
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
    """The reason why a layer cannot be taken over; empty if it can."""
    for name in dict.fromkeys(name for name in (*ours, *theirs) if _layer(name) == layer):
        theirs_is, ours_is = (naming.shape(weights.get(name)) for weights in (theirs, ours))
        if theirs_is != ours_is:
            return f"{name} is {theirs_is} in that network and {ours_is} in this one"
    return "" if same_classes or layer != LAYERS[-1] else "that network has other classes"


def _layer(name: str) -> str:
    return name.partition(".")[0]


def with_clusters(spec: TrainingSpec, shards: AnyPath) -> TrainingSpec:
    """The spec, with clustered kernels as first weights if `start.unsupervised` asks for them."""
    if spec.start.unsupervised == "none":
        return spec
    kernels = cluster_first_kernels(spec, Pictures(shards, spec.manifest.shards["train"]))
    return dataclasses.replace(spec, first=dataclasses.replace(spec.first, weights=kernels))


def cluster_first_kernels(spec: TrainingSpec, train: Pictures) -> dict[str, Tensor]:
    """Clusters patches into the kernels of the first layers, as `start.unsupervised` asks; returns them by state_dict name.

    The patches come from training pictures only, never from those held out, with the training mean subtracted. Equal
    arguments give equal bits.
    """
    section = spec.start
    # the first stored pictures are a random choice: `resize` stored all pictures in random order
    learned_N = np.flatnonzero(~held_out(len(train), spec.learning))
    learned_N = learned_N[: -(-section.unsupervised_patches // pretraining.PER_PICTURE)]
    mean_CHW = mean_to_subtract(torch.from_numpy(spec.mean.image_CHW), spec.augmentation)
    network = AlexNet(spec.model, len(spec.manifest.classes))
    network.draw_first_weights(spec.learning.seed)
    layers = LAYERS[: section.unsupervised_layers]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more threads would round differently, which can move a patch to another cluster
    try:
        for layer in layers:
            pretraining.cluster(
                network,
                layer,
                _views(train, learned_N, mean_CHW, spec.model.patch, threads, layer),
                pictures=len(learned_N),
                patches=section.unsupervised_patches,
                iterations=section.unsupervised_iterations,
                seed=spec.learning.seed,
            )
    finally:
        torch.set_num_threads(threads)
    weights = network.state_dict()
    return {f"{layer}.weight": weights[f"{layer}.weight"] for layer in layers}


def _views(
    train: Pictures, chosen_N: NDArray[np.int64], mean_CHW: Tensor, side: int, threads: int, layer: str
) -> Iterator[tuple[Tensor, Tensor]]:
    with Progress(f"train: clusters for {layer}", len(chosen_N), "images") as progress:
        for batch in batches(train, Order(chosen_N, np.zeros_like(chosen_N)), VIEWS, threads=threads):
            yield batch.positions_B, centre_view(batch.images_BCHW, mean_CHW, side)
            progress.add(batch.count)
