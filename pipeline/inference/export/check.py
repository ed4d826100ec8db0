"""The check of what was written: its own reader has to answer real pictures as the network does."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pipeline.inference import inputs
from pipeline.inference.export.formats import Answer
from pipeline.inference.predictor import BATCH, Predictor, Views
from pipeline.runtime import digests
from pipeline.runtime.machines import Machine
from pipeline.shards import artifacts, tables

PICTURES = 100
"""How many real pictures are asked about."""

LARGEST = 1e-4
"""The largest difference of a probability that is taken for rounding."""


def pictures(predictor: Predictor, machine: Machine, folder: Path | None) -> list[Tensor]:
    """`PICTURES` prepared pictures, uint8 3×S×S: of the folder, or, if it is None, of the validation shards here.

    `ValueError` or `OSError`, with what to do, if there are fewer.
    """
    found = _of_shards(predictor, machine) if folder is None else _of_folder(predictor, folder)
    if len(found) < PICTURES:
        where = "the validation pictures in data/shards" if folder is None else str(folder)
        raise ValueError(
            f"{where}: {len(found)} pictures, and an export is checked on {PICTURES}. Name a folder with as many: --check DIR"
        )
    return found


def _of_folder(predictor: Predictor, folder: Path) -> list[Tensor]:
    from alexnet.pictures import Undecodable

    if not folder.is_dir():
        raise FileNotFoundError(f"--check: {folder}: no such folder")
    found: list[Tensor] = []
    for item in inputs.find([str(folder)]).items:
        try:
            found.append(predictor.prepare(inputs.read(item)))
        except (Undecodable, inputs.Unreadable):
            continue
        if len(found) == PICTURES:
            break
    return found


def _of_shards(predictor: Predictor, machine: Machine) -> list[Tensor]:
    from alexnet.pictures import decode

    try:
        manifest = artifacts.manifest(machine)
        folder = artifacts.locate(manifest, machine)
    except (OSError, ValueError) as error:
        raise type(error)(
            f"an export is checked on {PICTURES} real pictures, and the validation pictures are not here ({error}). "
            "Or name a folder of pictures: --check DIR"
        ) from None
    if manifest.side != predictor.preparation.side:
        raise ValueError(
            f"data/shards has pictures of {manifest.side} pixels a side, the network takes {predictor.preparation.side}. "
            f"Name a folder with {PICTURES} pictures: --check DIR"
        )
    found: list[Tensor] = []
    for shard in manifest.shards["val"]:
        if len(found) == PICTURES:
            break
        digests.compare(folder / shard.file, shard.sha256, "resize")
        for group in tables.groups(folder / shard.file, ["image"], "resize"):
            rows = group["image"].to_pylist()[: PICTURES - len(found)]
            found += [decode(row["bytes"]) for row in rows]
    return found


def difference(expected_BK: Tensor, answer: Answer, pictures: list[Tensor]) -> float:
    """The largest difference of a probability; infinite if a probability is not a number, or there are others than expected."""
    size = BATCH["cpu"]
    with torch.no_grad():
        got_BK = torch.cat(
            [answer(torch.stack(pictures[first : first + size])) for first in range(0, len(pictures), size)]
        )
    if got_BK.shape != expected_BK.shape or not bool((got_BK.isfinite() & expected_BK.isfinite()).all()):
        return float("inf")
    return float((got_BK - expected_BK).abs().max())


def expected(predictor: Predictor, pictures: list[Tensor], views: Views) -> Tensor:
    """What the network itself answers: probabilities B×K."""
    return predictor.described(pictures, views)[0]
