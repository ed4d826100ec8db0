"""A run's checkpoints: written whole or not at all, and read only if they are as they were written."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alexnet import sealed
from pipeline.runtime import files

FILE = "checkpoint.pt"

KEPT = 2
"""Number of checkpoints to keep: the newest, and one to fall back to."""

UNSEALED = frozenset(("fingerprint", "classes", "weights", "velocity", "progress"))
"""Keys of a checkpoint that is older than its digest and its record of the code."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ChangedError(OSError):
    """A checkpoint that the driver found whole is missing or different on a worker's node."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole checkpoint, without its tensors."""

    folder: Path
    step: int
    """Updates made so far."""
    epoch: int
    """Epochs ended so far."""
    code: Any
    """The record of the code that wrote it; None in checkpoints older than that record."""


def every(run: Path) -> list[Path]:
    """The folders of a run's checkpoints, newest first, whole or damaged."""
    return sorted(run.glob("checkpoint-*"), reverse=True)


def newest_whole_checkpoint(run: Path, fingerprint: str, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest whole checkpoint of a run; None if it has none. Damaged ones are named through `say`, and left in place.

    `ValueError` if a checkpoint belongs to another run, or if there are checkpoints but none is whole.
    """
    _refuse_others(run, fingerprint)
    folders = every(run)
    for folder in folders:
        try:
            contents = read(folder)
            return Checkpoint(folder, contents["progress"]["step"], contents["progress"]["epoch"], contents.get("code"))
        except (ValueError, OSError) as error:
            say(f"{error}. It is left as it is, and not gone on from")
    if folders:
        raise ValueError(
            f"{run}: none of its checkpoints is whole ({len(folders)} there). Bring one back from a copy; or, to begin anew "
            f"at step 0, remove them: rm -r {run}/checkpoint-*"
        )
    return None


def read(folder: Path) -> dict[str, Any]:
    """Reads a checkpoint's contents to the CPU, without running code of the file. `ValueError` if it is damaged."""
    with (folder / FILE).open("rb") as handle:
        contents = sealed.read(handle, UNSEALED)
    if not contents.keys() >= UNSEALED:
        raise ValueError(f"{folder / FILE}: no checkpoint of a training")
    return contents


def write(run: Path, contents: dict[str, Any]) -> Path:
    """Writes a checkpoint into the run's folder and returns the checkpoint's folder. Never overwrites another one."""
    progress = contents["progress"]
    name = f"checkpoint-{progress['step']:09d}-{progress['epoch']:04d}"
    made = run / f"part-{name}"
    try:
        made.mkdir(exist_ok=True)
        with (made / FILE).open("wb") as handle:
            sealed.write(handle, contents)
            handle.flush()
            os.fsync(handle.fileno())
        folder = _free(run / name)
        made.rename(folder)
        _sync(run)
    except OSError as error:
        with contextlib.suppress(OSError):
            files.discard(made)
        raise _unwritten(run, error) from None
    return folder


def thin_out(known: list[Path]) -> None:
    """Removes all but the last `KEPT` folders from the disk and from the list."""
    while len(known) > KEPT:
        files.discard(known.pop(0))


def clear(run: Path) -> None:
    """Removes what a killed process left half-written, and Ray's own list of checkpoints, which nothing reads."""
    for part in [*run.glob("part-checkpoint-*"), *run.glob(f"*{files.UNFINISHED}")]:
        files.discard(part)
    (run / "checkpoint_manager_snapshot.json").unlink(missing_ok=True)


def _free(folder: Path) -> Path:
    """The folder; or if it exists, the first free name with a number appended: what is there is damaged and kept."""
    number, free = 0, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}.{number}")
    return free


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unwritten(run: Path, error: OSError) -> OSError:
    if error.errno in NO_ROOM:
        why = f"no room for a checkpoint ({error.strerror}). Make room there, or name a larger disk as machine.yaml's storage"
    else:
        why = f"a checkpoint cannot be written: {error.strerror or error}"
    return OSError(error.errno, f"{run}: {why}") if error.errno else OSError(f"{run}: {why}")


def _refuse_others(run: Path, fingerprint: str) -> None:
    for folder in every(run):
        with contextlib.suppress(
            Exception
        ):  # a damaged file can raise anything in torch's reader; see `newest_whole_checkpoint`
            whose = torch.load(folder / FILE, weights_only=True, mmap=True)["fingerprint"]  # without the tensors
            if whose == fingerprint or read(folder)["fingerprint"] == fingerprint:
                continue
            break
    else:
        return
    raise ValueError(
        f"{folder}: belongs to run {whose}, this is {fingerprint}. "
        "Move it away, or bring back its parameters and pictures"
    )
