"""The trained network for testing: reading it, comparing its classes with the pictures', and short names of classes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet.names import of_classes
from pipeline.runtime.paths import AnyPath
from pipeline.shards import tables
from pipeline.shards.manifest import Manifest
from pipeline.shards.tables import Synset

if TYPE_CHECKING:
    from alexnet.network import Network

MODEL = Path("data/model.pt")
OUT = Path("data/evaluation")
METRICS = Path("metrics.json")


def read_model(file: Path) -> bytes:
    """The bytes of the trained network; `FileNotFoundError`, with the command to run, if the file is missing."""
    if not file.exists():
        raise FileNotFoundError(f"{file}: not there. Run: dvc repro train")
    return file.read_bytes()


def load(model: bytes, manifest: Manifest, split: str) -> tuple[Network, dict[str, Any]]:
    """The network, and the facts saved with it.

    `ValueError` if its classes are not those of the pictures, or if the split has no pictures.
    """
    from alexnet import build

    network, facts = build.load(io.BytesIO(model))
    theirs = [wnid for wnid, _ in facts["classes"]]
    ours = [synset.wnid for synset in manifest.classes]
    if theirs != ours:
        where = next((k for k, pair in enumerate(zip(theirs, ours, strict=False)) if pair[0] != pair[1]), -1)
        differ = (
            f"class {where} is {theirs[where]} and {ours[where]}"
            if where >= 0
            else "one list is the beginning of the other"
        )
        raise ValueError(
            f"{MODEL} has {len(theirs)} classes, data/shards has {len(ours)}: {differ}. Run: dvc repro train"
        )
    filled = [name for name in manifest.shards if manifest.rows(name)]
    if split not in filled:
        raise ValueError(
            f"params.yaml: results: split: {split}, but data/shards has no picture in {split}, only in "
            f"{', '.join(filled)}. Set another split, or a source that has it and run: dvc repro"
        )
    return network, facts


def check_labels(manifest: Manifest, split: str, folder: AnyPath) -> None:
    """`ValueError` if a picture of the split has no valid label; the index promises labels for train and val only."""
    for shard in manifest.shards[split]:
        for label in tables.read(folder / shard.file, ["label"], "resize")["label"].to_pylist():
            if not 0 <= label < len(manifest.classes):
                raise ValueError(
                    f"{folder / shard.file}: a picture has the label {label}, and there are {len(manifest.classes)} "
                    f"classes: without labels errors cannot be counted. Set params.yaml: results: split: val"
                )


def names(classes: Sequence[Synset]) -> list[str]:
    """A distinct short name per class, as `alexnet.names.of_classes` gives it."""
    return of_classes([(synset.wnid, synset.words) for synset in classes])
