"""A run's folder: its lock, the results of a finished run, and their delivery to data/."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import socket
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alexnet.augmentation import mean_to_subtract
from alexnet.build import build, save
from pipeline.runtime import digests, files, machines, params, stage, waiting
from pipeline.training import checkpoints, history
from pipeline.training.spec import TrainingSpec

MODEL = Path("data/model.pt")
HISTORY = Path("data/history")

RESULTS = ("model.pt", *history.TABLES)
"""The files of a finished run."""


Looks = Callable[[], dict[str, Any] | None]
"""Measures the training pictures' appearance, which takes seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """finished.json: the mark of a finished run, with the digests of its results."""

    id: str
    """A random id: it distinguishes two runs with the same fingerprint."""
    digests: dict[str, str]
    """File of the results → SHA-256."""
    code: Any
    """The record of the code that finished the run; None in runs older than that record."""

    def text(self) -> str:
        """The contents of finished.json, including a digest of themselves."""
        fields = dataclasses.asdict(self)
        return json.dumps({**fields, "digest": _digest(json.dumps(fields, sort_keys=True))}, indent=1)

    @classmethod
    def read(cls, file: Path) -> Finished:
        """Reads finished.json; `ValueError` if it is damaged. An older file has neither a digest of itself nor `code`."""
        try:
            fields = json.loads(file.read_bytes())
            seal = fields.pop("digest", None)
            if seal is None and fields.keys() == {"id", "digests"}:
                fields["code"] = None
            elif seal != _digest(json.dumps(fields, sort_keys=True)):
                raise ValueError("its digest is another")
            finished = cls(**fields)
            if not isinstance(finished.id, str) or finished.digests.keys() != set(RESULTS):
                raise TypeError("other names")
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{file}: damaged ({type(error).__name__})") from None
        return finished


@contextmanager
def locked(folder: Path, limit: float) -> Iterator[None]:
    """Locks the run's folder while the block runs.

    Waits for a process that holds the lock, with a message; `TimeoutError` after `limit` seconds.
    """
    owner = folder.with_suffix(".owner")
    whose = owner.read_text().strip() if owner.is_file() else "another process"
    with waiting.locked(folder.with_suffix(".lock"), "train", f"{folder}, which {whose} is at work in", limit):
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        yield


def reusable(folder: Path, spec: TrainingSpec, looks: Looks) -> Finished | None:
    """The finished run in the folder if its results can be used; None if the run has to be trained.

    A run whose results were already delivered to this working copy is removed: when DVC runs the stage again, the results
    are to be made anew. The model.pt of older code, which lacks facts, is first written anew from the last checkpoint.
    """
    run = read_finished(folder)
    if run is not None and not _has_all_facts(folder / "model.pt"):
        return _with_all_facts(folder, spec, looks)
    if run is not None and is_delivered(folder, run):
        print(f"train: {folder} was finished and had its results here; it is removed, and made anew")
        shutil.rmtree(folder)
        return None
    return run


def _has_all_facts(model: Path) -> bool:
    facts: dict[str, Any] = torch.load(model, weights_only=True, mmap=True)["facts"]  # without the tensors
    return {"preparation", "appearance"} <= facts.keys()


def _with_all_facts(folder: Path, spec: TrainingSpec, looks: Looks) -> Finished | None:
    """The finished run after its results were written anew from its last checkpoint; None if that is gone, or not the end."""
    last = checkpoints.newest_whole_checkpoint(folder, spec.fingerprint, say)
    if last is None or last.epoch < spec.learning.epochs:
        return None
    say(
        f"{folder}/model.pt does not say how pictures are prepared, or look; it is written anew from the last checkpoint"
    )
    finish(checkpoints.read(last.folder), spec, folder, looks())
    return read_finished(folder)


def finish(contents: dict[str, Any], spec: TrainingSpec, folder: Path, appearance: dict[str, Any] | None) -> None:
    """Writes the model and the history from the last checkpoint's contents, and finally finished.json.

    `appearance`: that of the training pictures, as `looks.of_training` gives it.
    """
    network = build(spec.model, len(spec.manifest.classes))
    network.load_state_dict(contents["weights"])
    with files.atomic(folder / "model.pt") as made, made.open("wb") as handle:
        save(
            handle,
            network,
            fingerprint=spec.fingerprint,
            classes=spec.classes,
            drawn=spec.manifest.drawn,
            manifest=spec.manifest.digest,
            mean=mean_to_subtract(torch.from_numpy(spec.mean.image_CHW), spec.augmentation),
            mean_kind=spec.augmentation.mean,
            preparation=spec.manifest.preparation.plain,
            appearance=appearance,
        )
    for name in history.TABLES:
        history.write(contents["progress"][name.removesuffix(".csv")], folder / name)
    sums = {name: digests.of(folder / name) for name in RESULTS}
    with files.atomic(folder / "finished.json") as made:
        made.write_text(Finished(id=uuid.uuid4().hex, digests=sums, code=contents.get("code")).text())


def read_finished(folder: Path) -> Finished | None:
    """Reads finished.json and verifies the results; None if the run is not finished, and with a message if it is damaged."""
    file = folder / "finished.json"
    if not file.exists():
        return None
    try:
        run = Finished.read(file)
    except (ValueError, OSError) as error:
        say(f"{error}; what it names is made again from the last checkpoint")
        return None
    for name, digest in run.digests.items():
        if not (folder / name).exists() or digests.of(folder / name) != digest:
            say(f"{folder / name}: gone, or not what the run made; it is made again from the last checkpoint")
            return None
    return run


def deliver(folder: Path) -> None:
    """Copies a finished run's results to data/, where DVC expects them."""
    with files.atomic(MODEL) as file:
        shutil.copyfile(folder / "model.pt", file)
    with files.atomic(HISTORY) as made:
        made.mkdir()
        for name in history.TABLES:
            shutil.copyfile(folder / name, made / name)
        digests.seal(made)
    run = Finished.read(folder / "finished.json")
    mark = _mark(folder)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.write_text(f"{run.id} {_digest(run.id)}\n")
    last = history.read(folder)[-1]
    print(f"train: {last['epoch'] + 1:.0f} epochs, top-1 error on the centre patches {last['val_top1_error']:.1%}")


def is_delivered(folder: Path, run: Finished) -> bool:
    """Whether this run's results were delivered to this working copy, and are recorded in dvc.lock."""
    if not (_id_in(_mark(folder)) == run.id and Path("dvc.lock").exists()):
        return False
    outs = params.load(Path("dvc.lock"))["stages"].get("train", {}).get("outs", [])
    with (folder / "model.pt").open("rb") as handle:
        md5 = hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    return any(out["path"] == str(MODEL) and out.get("md5") == md5 for out in outs)


def say(line: str) -> None:
    """Prints a line to stderr, after the stage's name."""
    print(f"train: {line}", file=sys.stderr, flush=True)


def _mark(folder: Path) -> Path:
    return machines.home() / stage.WORK / "delivered" / folder.name


def _id_in(mark: Path) -> str:
    """The run's id in a mark of delivery; empty if there is no mark or, with a message, if it is damaged."""
    if not mark.is_file():
        return ""
    run, _, digest = mark.read_bytes().decode(errors="replace").strip().partition(" ")
    if digest not in ("", _digest(run)):  # older marks have no digest
        say(f"{mark}: damaged; the run's results are taken over as if they had never been here")
        return ""
    return run


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
