"""Trained networks by the names that people have for them: a file, an MLflow model or run, a DVC experiment, a git revision."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.runtime import git, machines
from pipeline.runtime.machines import Machine
from pipeline.tracking import addresses

MODEL = Path("data/model.pt")

LARGEST = 2**32
"""The most bytes of a model.pt: VGG-16's has half a gigabyte."""

RUN = re.compile(r"[0-9a-f]{32}|[0-9a-f]{16}")
"""An id of a run in MLflow, or a run's fingerprint."""


@dataclass(frozen=True, slots=True)
class Found:
    """The bytes of a network's model.pt, and where they were found."""

    data: bytes
    where: str


def read(name: str, machine: Machine) -> Found:
    """The network that a user names. `ValueError` or `OSError` that says what was looked for, where, and what there is.

    A name is, in this order: MLflow's name of a model; an existing file, or a folder with a model.pt; the fingerprint of a run
    in the runs' folder; an experiment or a revision; and the id, the fingerprint or the name of a run in MLflow. Nothing is
    imported from a file, and the caller has to check the digest in the bytes, as `alexnet.build.load` does.
    """
    if name.startswith(addresses.OF_MODELS):
        return Found(_from_mlflow(name, machine), name)
    if "://" in name:
        raise ValueError(f"{name}: is an address. Fetch the file, and give its path")
    file = Path(name).expanduser()
    if file.exists():
        return _of_file(file)
    local = machines.runs(machine) / name / "model.pt"
    if RUN.fullmatch(name) and local.is_file():
        return _of_file(local)
    revision = _of_revision(name)
    if revision is None and (file.suffix == MODEL.suffix or len(file.parts) > 1):
        raise FileNotFoundError(f"{file}: no such file here ({Path.cwd()}). {_default(file)}\n{KINDS}")
    return revision or _of_run(name, machine)


KINDS = (
    "A network is a model.pt, such as data/model.pt of a working copy; an MLflow model, such as models:/alexnet@champion; a "
    "run's id, name or fingerprint; an experiment (dvc exp list), or a revision (git log)"
)


def _default(file: Path) -> str:
    return "Run: dvc repro train" if file == MODEL else ""


def _of_file(file: Path) -> Found:
    if file.is_dir():
        inside = file / MODEL.name
        if not inside.is_file():
            raise FileNotFoundError(f"{file}: is a folder without a {MODEL.name}. {KINDS}")
        file = inside
    if (size := file.stat().st_size) > LARGEST:
        raise ValueError(f"{file}: has {size:,} bytes, more than {LARGEST:,}: not a {MODEL.name}")
    return Found(file.read_bytes(), str(file))


def _of_revision(name: str) -> Found | None:
    """The out of `train` in an experiment or a revision; None if there is none of that name."""
    from pipeline.runtime import revisions

    if not git.is_known(name):
        return None
    with revisions.opened(name, MODEL, "train") as handle:
        return Found(handle.read(LARGEST), f"{MODEL} of {name}")


def _of_run(name: str, machine: Machine) -> Found:
    try:
        return Found(_from_mlflow(name, machine), f"the run {name} in MLflow")
    except (ValueError, OSError) as error:
        there = [
            _some("files here", sorted(path.name for path in Path().glob("*.pt"))),
            _some("runs with a model.pt in " + str(machines.runs(machine)), _local(machine)),
            _some("experiments", git.experiments()),
        ]
        raise type(error)(
            f"{name}: no file here, no experiment, no revision; and {error}\nThere are: {'; '.join(there)}\n{KINDS}"
        ) from None


def _from_mlflow(name: str, machine: Machine) -> bytes:
    from pipeline.tracking import runs  # it takes a second, and most networks are files

    return runs.weights(machine, name)


def _local(machine: Machine) -> list[str]:
    return sorted(file.parent.name for file in machines.runs(machine).glob("*/model.pt"))


def _some(what: str, names: list[str]) -> str:
    """The first few names of a list, for a message."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{what}: {', '.join(names[:3])}{more}" if names else f"no {what}"
