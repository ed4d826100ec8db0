"""All of params.yaml, machine.yaml and the machine's room are checked before any stage works, whichever stage it is.

Nothing here decides a byte, and nothing of it becomes a stage's param or dep. The sections' classes live in modules that
take up to two seconds to import. So a section that was found good is noted under work/, by a hash of its values and of all
code: only the first stage after a change imports them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipeline import room
from pipeline.room import Network
from pipeline.runtime import added, digests, files, machine, params, stage
from pipeline.runtime.machine import Machine

if TYPE_CHECKING:
    from alexnet.network import Model

KINDS = {
    "source": "pipeline.download:SOURCES",
    "resize": "pipeline.resize:Resize",
    "model": "alexnet.network:Model",
    "start": "pipeline.training.spec:Start",
    "augmentation": "alexnet.augmentation:Augmentation",
    "learning": "alexnet.learning:Learning",
    "results": "pipeline.evaluation.results:Results",
    "report": "pipeline.report:Report",
}
"""Where the class of each section of params.yaml is, or the classes that it may have."""

KEPT = 200
"""Notes of sections that were found good: more than a comparison has variants."""


def check(name: str) -> None:
    """`ParamsError` that lists all faults, one a line, before the stage `name` does anything."""
    faults: list[str] = []
    settings = _machine(faults)
    document, network = _params(faults)
    faults += room.faults(name, document, network, settings)
    if faults:
        raise params.ParamsError("\n".join(dict.fromkeys(faults)))


def _machine(faults: list[str]) -> Machine:
    try:
        settings = machine.read()
        _addresses(settings)
    except ValueError as error:
        faults.append(str(error))
        return Machine()
    return settings


def _addresses(settings: Machine) -> None:
    """`ValueError` for an address that no cluster or tracking server can have."""
    machine.ray_address(settings)
    if "://" in settings.tracking and not settings.tracking.startswith("sqlite:") and _port(settings.tracking) == 0:
        raise ValueError(f"machine.yaml: tracking: {settings.tracking}: has no port that can be")


def _port(address: str) -> int | None:
    """The port of an address: None if it names none, 0 if it names one that cannot be."""
    try:
        return urlsplit(address).port
    except ValueError:
        return 0


def _params(faults: list[str]) -> tuple[Mapping[str, Any], Network | None]:
    """The file, and how large its network is; None where the file has faults."""
    try:
        document = added.completed(params.load(params.PARAMS))
    except params.ParamsError as error:
        faults.append(str(error))
        return {}, None
    found, good, code, network = list[str](), dict[str, Any](), _code(), None
    for name in [*KINDS, *(name for name in document if name not in KINDS)]:
        if name not in KINDS:
            found.append(f"{params.PARAMS}: unknown section '{name}'{params.nearest(name, KINDS)}")
        elif name not in document:
            found.append(f"{params.PARAMS}: section '{name}' is missing{params.nearest(name, document)}")
        else:
            try:
                size = _checked(name, document[name], code)
                good[name], network = document[name], size or network
            except params.ParamsError as error:
                found += str(error).splitlines()
    found += _between(good, network)
    faults += found
    return document, None if found else network


def _checked(name: str, section: Any, code: str) -> Network | None:
    """`ParamsError` for a section's faults; of `model`, how large the network is. What is noted is not checked again."""
    digest = hashlib.sha256(f"{code} {json.dumps(section, sort_keys=True, default=str)}".encode()).hexdigest()[:16]
    note = machine.home() / stage.WORK / "checked" / f"{name}-{digest}.json"
    with contextlib.suppress(FileNotFoundError, ValueError):  # a damaged note is none
        noted = json.loads(digests.unstamped(note))
        return Network(**noted) if noted else None
    read = params.check(section, _kind(name), params.PARAMS, name)
    network = _size(read) if name == "model" else None
    _write(note, dataclasses.asdict(network) if network else {})
    return network


def _code() -> str:
    """SHA-256 of all code of ours: what was found good stays so as long as it does not change."""
    digest, here = hashlib.sha256(), Path(__file__).parent
    for file in sorted([*here.rglob("*.py"), *here.with_name("alexnet").glob("*.py")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _write(note: Path, noted: Mapping[str, int]) -> None:
    # a disk without room is told of by `room`; without a note the next stage checks once more
    with contextlib.suppress(OSError):
        for old in sorted(note.parent.glob("*.json"), key=lambda file: file.stat().st_mtime)[: -KEPT + 1]:
            old.unlink(missing_ok=True)
        with files.atomic(note) as made:
            made.write_text(digests.stamped(json.dumps(noted)))


def _kind(name: str) -> Any:
    """The class of a section, or the classes that it may have; its module alone is imported."""
    module, kind = KINDS[name].split(":")
    return getattr(import_module(module), kind)


def _between(good: Mapping[str, Any], network: Network | None) -> list[str]:
    """Faults that no section has by itself, among those that have none."""
    faults = []
    if network and "resize" in good and good["resize"]["side"] < network.patch:
        faults.append(
            f"{params.PARAMS}: resize.side: {good['resize']['side']} pixels are stored, and the network sees "
            f"{network.patch} of them. Set at least that"
        )
    drawn = "source" in good and good["source"]["name"] == "sample"
    if drawn and "results" in good and good["results"]["split"] == "test":
        faults.append(f"{params.PARAMS}: results.split: test, but the sample has train and val alone. Set val")
    return faults


def _size(model: Model) -> Network:
    """Builds the network once and shows it a picture."""
    import torch

    from alexnet.build import build
    from alexnet.features import features_and_logits

    network, saved, kept = build(model, 1000).eval(), dict[int, int](), []
    weights = {tensor.untyped_storage().data_ptr() for tensor in network.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)  # else the next one could get its place
        return tensor

    patch = torch.zeros(1, 3, model.patch, model.patch)
    features, _ = features_and_logits(network, patch)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(patch)
    return Network(
        parameters=sum(tensor.numel() for tensor in network.parameters()),
        features=features.shape[-1],
        saved=sum(saved.values()),
        patch=model.patch,
    )
