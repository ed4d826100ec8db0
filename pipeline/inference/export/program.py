"""`alexnet export`: a trained network as a folder for other programs, written whole after it answered as the network does."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from pipeline.inference import networks
from pipeline.runtime import digests, files, machines
from pipeline.runtime.printing import say

MARK = "preparation.json"
"""The file by which a folder is known as one that was exported."""


def main(folder: Path, to: Any, model: str, views: str, check: Path | None, force: bool) -> None:
    """Writes the network to `folder`, and prints the largest difference of probabilities that the check found.

    `ValueError` or `OSError`, and nothing is written, if the folder exists, a package is missing, the network does not fit the
    format, there are fewer than 100 pictures, or what was written answers otherwise.
    """
    export(folder, to=to, model=model, views=int(views), check=check, force=force)


def export(
    folder: Path,
    *,
    to: Any,
    model: str = str(networks.MODEL),
    views: Any = 10,
    check: Path | None = None,
    force: bool = False,
) -> float:
    """As `main`; returns the largest difference."""
    folder = folder.absolute()
    _check_place(folder, force)
    from pipeline.inference.export import formats  # with what follows it imports torch

    formats.require(to)
    machine = machines.read()
    network = networks.read(model, machine)
    return _written(folder, to, network, views, check, machine)


def _written(
    folder: Path, to: Any, network: networks.Found, views: Any, pictures_in: Path | None, machine: Any
) -> float:
    from pipeline.inference.export import card, check, formats
    from pipeline.inference.predictor import Predictor

    predictor = Predictor.load(network.data, network.where)
    formats.check_fit(to, predictor.network)
    pictures = check.pictures(predictor, machine, pictures_in)
    expected = check.expected(predictor, pictures, views)
    record = card.recorded(network.data, _manifest(network.data), machine)
    with files.atomic(folder) as partial:
        partial.mkdir()
        _write_beside(partial, predictor, views)
        formats.FORMATS[to].write(predictor, views, partial / formats.FORMATS[to].file)
        largest = check.difference(expected, formats.FORMATS[to].read(partial, views), pictures)
        if not largest <= check.LARGEST:
            raise ValueError(
                f"--to {to}: what was written gives other probabilities than the network: by as much as {largest:.2g} "
                f"on {len(pictures)} pictures, and {check.LARGEST:g} is allowed. Nothing was written. Is the network sound "
                "(alexnet predict)? If so, this is a fault of the export: please report it"
            )
        checked = f"Its answers to {len(pictures)} pictures differ by at most {largest:.2g} from those of the network."
        (partial / "README.md").write_text(card.text(to, predictor, views, record, checked), encoding="utf-8")
        digests.seal(partial)
    say(f"{folder}: {to}, checked on {len(pictures)} pictures; largest difference of probabilities: {largest:.2g}")
    return largest


def _check_place(folder: Path, force: bool) -> None:
    """`ValueError` or `UsageError`, before any work, if the folder cannot be written."""
    if not (folder.exists() or folder.is_symlink()):
        return
    if not force:
        raise click.UsageError(f"{folder}: exists. Name another folder, or replace it: --force")
    if not folder.is_dir() or folder.is_symlink() or not ((folder / MARK).is_file() or not any(folder.iterdir())):
        raise ValueError(f"{folder}: was not written by an export, having no {MARK}: --force does not replace it")


def _manifest(data: bytes) -> str:
    """The digest of the pictures with which a network was trained; empty if its file does not say."""
    import io

    from alexnet import build

    return str(build.load(io.BytesIO(data))[1].get("manifest", ""))


def _write_beside(folder: Path, predictor: Any, views: Any) -> None:
    """Writes what a network needs beside its weights: preparation, classes and the mean image."""
    import numpy as np

    from pipeline.inference.export import formats

    model = predictor.network.model
    about = {
        "preparation": predictor.preparation.plain,
        "mean": formats.MEAN,
        "mean_kind": predictor.mean_kind,
        "deviation": list(model.deviation),
        "patch": model.patch,
        "views": views,
        "classes": predictor.network.classes,
        "run": predictor.fingerprint,
        "model": dataclasses.asdict(model),
    }
    classes = [
        {"id": wnid, "words": words, "name": name}
        for (wnid, words), name in zip(predictor.classes, predictor.names, strict=True)
    ]
    for file, document in ((formats.PREPARATION, about), (formats.CLASSES, classes)):
        (folder / file).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    np.save(folder / formats.MEAN, predictor.mean_CHW.cpu().numpy())
