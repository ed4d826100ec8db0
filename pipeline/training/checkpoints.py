"""A run's checkpoints: written atomically, verified by their digest when read."""

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
"""The keys of a checkpoint from before checkpoints had a digest and a record of the code."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The errors of a full disk: no space, quota exceeded, file too large."""


class ChangedError(OSError):
    """A checkpoint that the driver found whole is missing or damaged when a worker reads it."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole checkpoint's folder and progress, without its tensors."""

    folder: Path
    step: int
    """Number of updates made."""
    epoch: int
    """Number of epochs completed."""
    code: Any
    """The record of the code that wrote it; None in checkpoints older than that record."""


def all_folders(run: Path) -> list[Path]:
    """The folders of all checkpoints of a run, newest first, whole or damaged."""
    return sorted(run.glob("checkpoint-*"), reverse=True)


def newest_whole_checkpoint(run: Path, fingerprint: str, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest whole checkpoint of a run; None if the run has no checkpoint. `say` reports damaged ones, which are kept.

    `ValueError` if a checkpoint belongs to another run, or if all checkpoints are damaged.
    """
    _check_fingerprint(run, fingerprint)
    folders = all_folders(run)
    for folder in folders:
        try:
            contents = read(folder)
            return Checkpoint(folder, contents["progress"]["step"], contents["progress"]["epoch"], contents.get("code"))
        except (ValueError, OSError) as error:
            say(f"{error}. It is kept, and not resumed from")
    if folders:
        raise ValueError(
            f"{run}: none of its checkpoints is whole ({len(folders)} there). Bring one back from a copy; or, to begin anew "
            f"at step 0, remove them: rm -r {run}/checkpoint-*"
        )
    return None


def read(folder: Path) -> dict[str, Any]:
    """Reads a checkpoint's contents to the CPU; no code in the file is run. `ValueError` if it is damaged."""
    with (folder / FILE).open("rb") as handle:
        contents = sealed.read(handle, UNSEALED)
    if not contents.keys() >= UNSEALED:
        raise ValueError(f"{folder / FILE}: no checkpoint of a training")
    return contents


def write(run: Path, contents: dict[str, Any]) -> Path:
    """Writes a checkpoint into a run's folder and returns the checkpoint's folder. Never overwrites a checkpoint."""
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


def thin_out(folders: list[Path]) -> None:
    """Removes all but the last `KEPT` folders, oldest first, from the disk and from the list."""
    while len(folders) > KEPT:
        files.discard(folders.pop(0))


def clear(run: Path) -> None:
    """Removes files that a killed process left half-written, and Ray's own list of checkpoints, which nothing reads."""
    for part in [*run.glob("part-checkpoint-*"), *run.glob(f"*{files.UNFINISHED}")]:
        files.discard(part)
    (run / "checkpoint_manager_snapshot.json").unlink(missing_ok=True)


def _free(folder: Path) -> Path:
    """The folder or, if it exists, the first free name with a number: an existing one holds a damaged checkpoint."""
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


def _check_fingerprint(run: Path, fingerprint: str) -> None:
    """`ValueError` if a checkpoint belongs to another run; damaged ones are skipped."""
    for folder in all_folders(run):
        with contextlib.suppress(Exception):  # torch's reader can raise anything for a damaged file
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
