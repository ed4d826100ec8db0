"""The model card: where a network comes from, what it was measured to do, its limits, its licence, and five lines that use it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.evaluation.trained import METRICS, MODEL
from pipeline.inference.export.formats import Name
from pipeline.inference.predictor import Predictor, Views
from pipeline.runtime import params
from pipeline.runtime.machines import Machine
from pipeline.shards import artifacts

LOCK = Path("dvc.lock")

SECTIONS = ("source", "model", "augmentation", "learning")
"""Sections of params.yaml that a card shows."""

FILTERS = {"bilinear": "BILINEAR", "bicubic": "BICUBIC", "area": "BOX"}
"""Our filters and Pillow's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What this working copy recorded of a network; what it did not record of this very network is empty."""

    sections: Mapping[str, Any] = field(default_factory=dict)
    """Sections of params.yaml with which it was trained."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """The contents of metrics.json."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Split → pictures."""


def recorded(data: bytes, manifest_digest: str, machine: Machine) -> Record:
    """The record of the network whose model.pt has these bytes, and whose pictures have this digest."""
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()  # DVC's name of a file
    stages = params.load(LOCK).get("stages", {}) if LOCK.exists() else {}
    sections: dict[str, Any] = {}
    if _md5(stages, "train", "outs", MODEL) == md5:
        for stage in ("download", "resize", "train"):
            for values in stages.get(stage, {}).get("params", {}).values():
                sections |= values
    metrics = {}
    if _md5(stages, "evaluate", "deps", MODEL) == md5 and METRICS.exists():
        text = METRICS.read_bytes()
        if hashlib.md5(text, usedforsecurity=False).hexdigest() == _md5(stages, "evaluate", "outs", METRICS):
            metrics = json.loads(text)
    return Record(sections=sections, metrics=metrics, counts=_counts(manifest_digest, machine))


def _md5(stages: Mapping[str, Any], stage: str, kind: str, file: Path) -> str:
    entries = stages.get(stage, {}).get(kind, [])
    return next((str(entry.get("md5")) for entry in entries if entry["path"] == file.as_posix()), "")


def _counts(digest: str, machine: Machine) -> dict[str, int]:
    try:
        manifest = artifacts.manifest(machine)
    except (OSError, ValueError):
        return {}
    return {split: manifest.rows(split) for split in manifest.shards} if manifest.digest == digest else {}


def text(name: Name, predictor: Predictor, views: Views, record: Record, checked: str) -> str:
    """The card, in Markdown. `checked`: the sentence about the check."""
    network = predictor.network
    count = sum(weight.numel() for weight in network.parameters())
    kind = "drawn by a program" if predictor.drawn else "photographs"
    parts = {
        f"{network.model.network}, run {predictor.fingerprint}": f"{count:,} parameters, {network.classes:,} classes "
        f"(`classes.json`, in the order of the probabilities). {checked}",
        "Use": _use(name, predictor, views),
        "Data": _data(record, kind),
        "Parameters": _parameters(record),
        "Errors": _errors(record),
        "Limits": _limits(predictor, kind),
        "Licence": "The code is under the MIT licence. The weights are derived from the pictures: they may be used as the "
        "licence of the data allows, which this file does not know.",
    }
    first, *rest = parts.items()
    return "\n\n".join([f"# {first[0]}\n\n{first[1]}", *(f"## {head}\n\n{body}" for head, body in rest)]) + "\n"


def _data(record: Record, kind: str) -> str:
    source = record.sections.get("source", {}).get("name", "not recorded where this was exported")
    counts = ", ".join(f"{count:,} in {split}" for split, count in record.counts.items() if count)
    return f"Source: {source}. Pictures: {counts or 'not recorded where this was exported'}; {kind}."


def _parameters(record: Record) -> str:
    known = {section: record.sections[section] for section in SECTIONS if section in record.sections}
    if not known:
        return (
            "Those of the training were not recorded where this was exported; the network's are in `preparation.json`."
        )
    return f"```json\n{json.dumps(known, indent=1, default=str)}\n```"


def _errors(record: Record) -> str:
    if not record.metrics:
        return "Not known: no evaluation of this very network was recorded where it was exported."
    rows = [
        f"| {views.replace('_', ' ')} | {top} | {100 * rates[f'top{top}_error']:.2f} % | "
        f"{100 * rates[f'top{top}_low']:.2f} – {100 * rates[f'top{top}_high']:.2f} % |"
        for views in ("ten_views", "centre")
        if (rates := record.metrics.get(views))
        for top in (1, 5)
    ]
    head = ["| views | top | error | 95 % interval |", "| --- | --- | --- | --- |"]
    return "\n".join([f"On {record.metrics.get('images', 0):,} pictures:", "", *head, *rows])


def _limits(predictor: Predictor, kind: str) -> str:
    more = " It was trained on drawn pictures: of photographs it knows nothing." if predictor.drawn else ""
    return (
        f"It knows the {predictor.network.classes:,} classes of its training and no other: to any picture it answers with one of "
        f"them. Its training pictures were {kind}.{more} The intervals cover the choice of the tested pictures, not the seed. "
        "Not for decisions about people."
    )


def _use(name: Name, predictor: Predictor, views: Views) -> str:
    side = predictor.preparation.side
    average = "the ten views of each picture" if views == 10 else "the centre of each picture"
    about = {
        "onnx": f"In: `pictures`, uint8 N×{side}×{side}×3, RGB. Out: `probabilities`, float32 N×K. Mean image, softmax and"
        f" {average} are inside.",
        "torch-export": f"In: uint8 N×{side}×{side}×3, RGB. Out: probabilities, float32 N×K. Mean image, softmax and"
        f" {average} are inside.",
        "safetensors": "Weights alone, under this project's names: the mean image (`mean.npy`) is subtracted before. These lines "
        "show the centre of the picture, and run in a working copy of this project.",
        "torchvision": "Weights alone, under torchvision's names: the mean image (`mean.npy`) is subtracted, the rest divided by"
        " `deviation` before. These lines show the centre of the picture.",
    }[name]
    lines = "\n".join(_lines(name, predictor))
    return (
        f"{about}\n\n```python\n{lines}\n```\n\nPillow's resampling is near to that of the training, and not the same: "
        "`preparation.json` says how pictures were stored there."
    )


def _lines(name: Name, predictor: Predictor) -> list[str]:
    """Five lines, the first of them imports: the file picture.jpg → the name of its class."""
    made, side, patch = predictor.preparation, predictor.preparation.side, predictor.network.model.patch
    low = (side - patch) // 2
    shape = f"({side}, {side}), PIL.Image.Resampling.{FILTERS[made.filter]})"
    opened = 'PIL.Image.open("picture.jpg").convert("RGB")'
    prepared = f"PIL.ImageOps.fit({opened}, {shape}" if made.fit == "crop" else f"{opened}.resize({shape}"
    named = 'print(json.loads(pathlib.Path("classes.json").read_text("utf-8"))[int(answer.argmax())]["name"], float(answer.max()))'  # noqa: E501
    tensors = f'patches = (torch.tensor(pixels).permute(2, 0, 1) - torch.tensor(numpy.load("mean.npy")))[None, :, {low}:{low + patch}, {low}:{low + patch}]'  # noqa: E501
    head = {
        "onnx": "import json, numpy, pathlib, onnxruntime, PIL.Image, PIL.ImageOps",
        "torch-export": "import json, numpy, pathlib, torch, PIL.Image, PIL.ImageOps",
        "safetensors": "import json, numpy, pathlib, torch, PIL.Image, PIL.ImageOps, safetensors.torch, pipeline.inference.export.formats as formats",  # noqa: E501
        "torchvision": "import json, numpy, pathlib, torch, torchvision, PIL.Image, PIL.ImageOps",
    }[name]
    model = predictor.network.model
    body = {
        "onnx": [
            'session = onnxruntime.InferenceSession("model.onnx")',
            'answer = session.run(None, {"pictures": pixels[None]})[0][0]',
        ],
        "torch-export": [
            'network = torch.export.load("model.pt2").module()',
            "answer = network(torch.tensor(pixels[None]))[0]",
        ],
        "safetensors": [
            'network = formats.built(json.loads(pathlib.Path("preparation.json").read_text("utf-8")), safetensors.torch.load_file("model.safetensors"))',  # noqa: E501
            f"{tensors}; answer = network(patches).softmax(1)[0]",
        ],
        "torchvision": [
            f"network = torchvision.models.{model.network}(num_classes={predictor.network.classes}).eval().requires_grad_(False); "  # noqa: E501
            'network.load_state_dict(torch.load("weights.pth", weights_only=True))',
            f"{tensors}; answer = network(patches / torch.tensor({list(model.deviation)})[:, None, None]).softmax(1)[0]",
        ],
    }[name]
    return [head, f"pixels = numpy.array({prepared})", *body, named]
