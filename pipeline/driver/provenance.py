"""The code and libraries that decide a training: as recorded in a checkpoint, and as installed here."""

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
"""The libraries with the arithmetic and the pictures' codec."""


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
    """What MLflow is told where this code is not the code that began the run in `run`; empty where it is.

    `record`: what the run's checkpoint, or its end, says of its code. `at`: how far the run is, in words. `policy`:
    machine.yaml's other_code. `ValueError` if that refuses.
    """
    before, now = of(record), here()
    if before is None:
        say(f"{run} was begun before runs recorded their code, and is gone on with from {at}")
        return f"{now.digest} from {at}, after code that was not recorded"
    if not (others := differences(before, now)):
        return ""
    if policy == "refuse":
        raise ValueError(
            f"{run} was begun by other code than this, and is at {at}. Other is: {others}\n"
            f"To begin anew: rm -r {run}\n"
            "To go on with it all the same: other_code: continue in machine.yaml, and MLflow will say so"
        )
    say(f"{run} was begun by other code, and is gone on with from {at}. Other is: {others}")
    return f"{now.digest} from {at}, after {before.digest}. Other is: {others}"
