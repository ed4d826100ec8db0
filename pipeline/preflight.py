"""All of params.yaml, machine.yaml and the machine's room are checked before any stage works, whichever stage it is.

Nothing here decides a byte, and nothing of it becomes a stage's param or dep. The sections' classes live in modules that
take seconds to import. So what was found good is noted under work/, by a hash of the file and of all code: only the first
stage after a change imports them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline import added, machine, params, room, stage
from pipeline.machine import Machine

SECTIONS = ("source", "resize", "model", "start", "augmentation", "learning", "results", "report")

KEPT = 50
"""Notes of files that were found good: as many as a comparison has runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """How large the network of params.yaml is."""

    parameters: int
    features: int
    """Numbers that `evaluate` keeps of a picture."""
    saved: int
    """Bytes that the backward pass needs of one picture, in float32."""


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
    note = machine.home() / stage.WORK / "checked" / f"{_digest()}.json"
    if note.exists():
        return document, Network(**json.loads(note.read_text()))
    found, network = _faults(document)
    faults += found
    if network is not None:
        _write(note, network)
    return document, network


def _digest() -> str:
    """Of the file and of all code of ours: what was found good stays so as long as neither changes."""
    digest, here = hashlib.sha256(params.PARAMS.read_bytes()), Path(__file__).parent
    for file in sorted([*here.rglob("*.py"), *here.with_name("alexnet").glob("*.py")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _write(note: Path, network: Network) -> None:
    note.parent.mkdir(parents=True, exist_ok=True)
    for old in sorted(note.parent.glob("*.json"), key=lambda file: file.stat().st_mtime)[: -KEPT + 1]:
        old.unlink(missing_ok=True)
    part = note.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(dataclasses.asdict(network)))
    part.replace(note)


def _faults(document: Mapping[str, Any]) -> tuple[list[str], Network | None]:
    """Every fault of the sections, and how large the network is where there is none."""
    faults, read = [], {}
    for name in [*SECTIONS, *(name for name in document if name not in SECTIONS)]:
        if name not in SECTIONS:
            faults.append(f"{params.PARAMS}: unknown section '{name}'{params.nearest(name, SECTIONS)}")
        elif name not in document:
            faults.append(f"{params.PARAMS}: section '{name}' is missing{params.nearest(name, document)}")
        else:
            try:
                read[name] = params.check(document[name], _kind(name), params.PARAMS, name)
            except params.ParamsError as error:
                faults += str(error).splitlines()
    faults += _between(read)
    return faults, None if faults else _size(read)


def _kind(name: str) -> Any:
    """The class of a section, or the classes that it may have."""
    if name == "source":
        from pipeline.download import SOURCES

        return SOURCES
    from alexnet.augmentation import Augmentation
    from alexnet.learning import Learning
    from alexnet.model import Model
    from pipeline.report import Report
    from pipeline.resize import Resize
    from pipeline.results import Results
    from pipeline.start import Start

    kinds = (Resize, Model, Start, Augmentation, Learning, Results, Report)
    return next(kind for kind in kinds if kind.__name__.lower() == name)


def _between(read: Mapping[str, Any]) -> list[str]:
    """Faults that no section has by itself."""
    faults = []
    if {"resize", "model"} <= read.keys() and read["resize"].side < read["model"].patch:
        faults.append(
            f"{params.PARAMS}: resize.side: {read['resize'].side} pixels are stored, and the network sees "
            f"{read['model'].patch} of them. Set at least that"
        )
    if {"source", "results"} <= read.keys() and (read["source"].name, read["results"].split) == ("sample", "test"):
        faults.append(f"{params.PARAMS}: results.split: test, but the sample has train and val alone. Set val")
    return faults


def _size(read: Mapping[str, Any]) -> Network:
    """Builds the network once and shows it a picture."""
    import torch

    from alexnet.features import features_and_logits
    from alexnet.model import build

    network, saved, kept = build(read["model"], 1000).eval(), dict[int, int](), []
    weights = {tensor.untyped_storage().data_ptr() for tensor in network.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)  # else the next one could get its place
        return tensor

    patch = torch.zeros(1, 3, network.model.patch, network.model.patch)
    features, _ = features_and_logits(network, patch)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(patch)
    return Network(
        parameters=sum(tensor.numel() for tensor in network.parameters()),
        features=features.shape[-1],
        saved=sum(saved.values()),
    )
