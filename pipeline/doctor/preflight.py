"""Checks all of params.yaml, machine.yaml, and the free memory and disk space, before any stage begins.

Nothing here decides a byte, and none of it becomes a stage's param or dep. The classes of the sections are in modules that
take up to two seconds to import. Therefore a section that passed is noted in work/checked, by a hash of its values and of
its code: only the first stage after a change imports them, and torch only after a change of what is said in `CODE`.
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

from pipeline.doctor import room
from pipeline.doctor.room import NetworkSize
from pipeline.runtime import added, digests, files, machines, params, stage
from pipeline.runtime.machines import Machine
from pipeline.tracking import runs

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
    "report": "pipeline.evaluation.reporting.section:Report",
}
"""Section of params.yaml → module and name of its class, or of a tuple of classes that it may have."""

PACKAGE = Path(__file__).parents[1]

ALEXNET = PACKAGE.with_name("alexnet")

WITH_TORCH = ("model", "start", "augmentation", "learning")
"""Sections whose modules import torch."""

CODE = (ALEXNET, PACKAGE / "training", PACKAGE / "runtime", Path(__file__))
"""The code that decides whether these pass."""

KEPT = 200
"""Most notes of sections that passed; more than a study has variants."""


def check(name: str) -> None:
    """Checks everything before stage `name`; `ParamsError` with all faults, one a line."""
    faults: list[str] = []
    machine = _machine(faults)
    document, network = _params(faults)
    faults += room.faults(name, document, network, machine)
    if faults:
        raise params.ParamsError("\n".join(dict.fromkeys(faults)))


def _machine(faults: list[str]) -> Machine:
    try:
        machine = machines.read()
        _addresses(machine)
    except ValueError as error:
        faults.append(str(error))
        return Machine()
    return machine


def _addresses(machine: Machine) -> None:
    """`ValueError` for an impossible address of a cluster or a tracking server."""
    machines.ray_address(machine)
    try:
        runs.address(machine)
    except ValueError as error:
        said = str(error)
        if machine.tracking == "auto":
            raise ValueError(f"MLFLOW_TRACKING_URI: {said.removeprefix('tracking: ')}") from None
        raise ValueError(f"machine.yaml: {said}") from None


def _params(faults: list[str]) -> tuple[Mapping[str, Any], NetworkSize | None]:
    """The contents of params.yaml, and the size of its network, None if the file has faults."""
    try:
        document = added.completed(params.load(params.PARAMS))
    except params.ParamsError as error:
        faults.append(str(error))
        return {}, None
    problems, network = judged(document)
    faults += problems
    return document, None if problems else network


def judged(document: Mapping[str, Any]) -> tuple[list[str], NetworkSize | None]:
    """The faults of the contents of a params.yaml, and the size of the network, if its section has none."""
    problems, good, network = list[str](), dict[str, Any](), None
    all_code, code_of_torch = _code(PACKAGE, ALEXNET), _code(*CODE)
    for name in [*KINDS, *(name for name in document if name not in KINDS)]:
        if name not in KINDS:
            problems.append(f"{params.PARAMS}: unknown section '{name}'{params.nearest(name, KINDS)}")
        elif name not in document:
            problems.append(f"{params.PARAMS}: section '{name}' is missing{params.nearest(name, document)}")
        else:
            try:
                size = _checked(name, document[name], code_of_torch if name in WITH_TORCH else all_code)
                good[name], network = document[name], size or network
            except params.ParamsError as error:
                problems += str(error).splitlines()
    return [*problems, *_between(good, network)], network


def _checked(name: str, section: Any, code: str) -> NetworkSize | None:
    """Checks a section, unless a note says that it passed; for `model`, the network's size. `ParamsError` for its faults."""
    digest = hashlib.sha256(f"{code} {json.dumps(section, sort_keys=True, default=str)}".encode()).hexdigest()[:16]
    note = machines.home() / stage.WORK / "checked" / f"{name}-{digest}.json"
    with contextlib.suppress(FileNotFoundError, ValueError):  # no note, or a damaged one
        noted = json.loads(digests.unstamped(note))
        return NetworkSize(**noted) if noted else None
    read = params.check(section, _kind(name), params.PARAMS, name)
    network = _size(read) if name == "model" else None
    _write(note, dataclasses.asdict(network) if network else {})
    return network


def _code(*places: Path) -> str:
    """sha256 of the code in these folders and files: a note holds while it does not change."""
    digest = hashlib.sha256()
    for place in places:
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _write(note: Path, noted: Mapping[str, int]) -> None:
    # a full disk is reported by `room`; without a note the next stage checks again
    with contextlib.suppress(OSError):
        for old in sorted(note.parent.glob("*.json"), key=lambda file: file.stat().st_mtime)[: -KEPT + 1]:
            old.unlink(missing_ok=True)
        with files.atomic(note) as made:
            made.write_text(digests.stamped(json.dumps(noted)))


def _kind(name: str) -> Any:
    """The class or classes of a section; imports only its module."""
    module, kind = KINDS[name].split(":")
    return getattr(import_module(module), kind)


def _between(good: Mapping[str, Any], network: NetworkSize | None) -> list[str]:
    """Contradictions between sections that have no fault of their own."""
    faults = []
    if network and "resize" in good and good["resize"]["side"] < network.patch:
        faults.append(
            f"{params.PARAMS}: resize.side: {good['resize']['side']} pixels are stored, and the network's patches have "
            f"{network.patch}. Set at least {network.patch}"
        )
    drawn = "source" in good and good["source"]["name"] == "sample"
    if drawn and "results" in good and good["results"]["split"] == "test":
        faults.append(f"{params.PARAMS}: results.split: test, but the sample has only train and val. Set val")
    return faults


def _size(model: Model) -> NetworkSize:
    """Measures the network's size by building it and passing one patch through it."""
    import torch

    from alexnet.build import build
    from alexnet.features import features_and_logits

    network, saved, kept = build(model, 1000).eval(), dict[int, int](), []
    weights = {tensor.untyped_storage().data_ptr() for tensor in network.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)  # kept alive, so that no later tensor gets the same address
        return tensor

    patch = torch.zeros(1, 3, model.patch, model.patch)
    features, _ = features_and_logits(network, patch)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(patch)
    return NetworkSize(
        parameters=sum(tensor.numel() for tensor in network.parameters()),
        features=features.shape[-1],
        saved=sum(saved.values()),
        patch=model.patch,
    )
