"""The versions of code and libraries that decide a training: those recorded in a checkpoint, and those that run now."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.runtime import params

LIBRARIES = ("torch", "simplejpeg")
"""The libraries that do the arithmetic and decode the pictures."""


@dataclass(frozen=True, slots=True)
class Code:
    """The versions of the code: files of this repository, and libraries."""

    files: Mapping[str, str]
    """Path → sha256."""
    libraries: Mapping[str, str]
    """Name → version."""

    @property
    def digest(self) -> str:
        """An id of this code: 16 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.record(), sort_keys=True).encode()).hexdigest()[:16]

    def record(self) -> dict[str, dict[str, str]]:
        """The code as plain values, for a checkpoint; `of` reads them back."""
        return {"files": dict(self.files), "libraries": dict(self.libraries)}


def of(record: Any) -> Code | None:
    """The code in a checkpoint's record; None if it has none, as in runs from before code was recorded."""
    if not (isinstance(record, dict) and isinstance(record.get("files"), dict)):
        return None
    return Code(record["files"], record["libraries"])


@cache
def here() -> Code:
    """The code that runs here: the code deps of `train` in dvc.yaml, and the libraries."""
    root = Path(__file__).resolve().parents[2]
    deps = params.load(root / "dvc.yaml")["stages"]["train"]["deps"]
    files = {dep: hashlib.sha256((root / dep).read_bytes()).hexdigest() for dep in deps if dep.endswith(".py")}
    return Code(files, {name: version(name) for name in LIBRARIES})


def version(library: str) -> str:
    """A library's version without its local part, such as +cpu: a training may resume on another kind of device."""
    return metadata.version(library).partition("+")[0]


def differences(before: Code, now: Code) -> str:
    """The files and libraries that differ, in one line; empty if none do."""
    names = sorted(before.files.keys() | now.files.keys())
    files = [name for name in names if before.files.get(name) != now.files.get(name)]
    libraries = [
        f"{name} {before.libraries.get(name, 'not recorded')}, here {now.libraries.get(name, 'not recorded')}"
        for name in sorted(before.libraries.keys() | now.libraries.keys())
        if before.libraries.get(name) != now.libraries.get(name)
    ]
    more = [f"{len(files) - 3} more files"] if len(files) > 3 else []
    return "; ".join([*files[:3], *more, *libraries])


def resumed_by_other_code(record: Any, at: str, run: Path, policy: str, say: Callable[[str], None]) -> str:
    """Returns the note for MLflow if the run in `run` was begun by other code than this; empty if it was not.

    `record`: the code recorded in the run's checkpoint, or at its end. `at`: how far the run is, in words. `policy`:
    machine.yaml's `other_code`. `say` prints a line. Raises `ValueError` if the policy is to refuse.
    """
    before, now = of(record), here()
    if before is None:
        say(f"{run} was begun before runs recorded their code, and is continued from {at}")
        return f"{now.digest} from {at}, after code that was not recorded"
    if not (others := differences(before, now)):
        return ""
    if policy == "refuse":
        raise ValueError(
            f"{run} was begun by other code than this, and is at {at}. Different: {others}\n"
            f"To begin anew: rm -r {run}\n"
            "To continue it all the same: other_code: continue in machine.yaml, and MLflow will say so"
        )
    say(f"{run} was begun by other code, and is continued from {at}. Different: {others}")
    return f"{now.digest} from {at}, after {before.digest}. Different: {others}"
