"""Which code and which libraries decide a training: what a checkpoint says of them, and what is here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.runtime import params

LIBRARIES = ("torch", "torchvision")
"""The arithmetic, and the codec of the pictures."""


@dataclass(frozen=True, slots=True)
class Code:
    """Files of this repository and versions of libraries, by name."""

    files: Mapping[str, str]
    """SHA-256."""
    libraries: Mapping[str, str]

    @property
    def digest(self) -> str:
        """Names this code: 16 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.record(), sort_keys=True).encode()).hexdigest()[:16]

    def record(self) -> dict[str, dict[str, str]]:
        """The code as plain values, for a checkpoint; `of` reads them back."""
        return {"files": dict(self.files), "libraries": dict(self.libraries)}


def of(record: Any) -> Code | None:
    """The code that a checkpoint's record names; None if it names none, as in runs that are older than the record."""
    if not (isinstance(record, dict) and isinstance(record.get("files"), dict)):
        return None
    return Code(record["files"], record["libraries"])


@cache
def here() -> Code:
    """The code that runs here: what dvc.yaml names as the code of `train`, and the libraries."""
    root = Path(__file__).resolve().parents[2]
    deps = params.load(root / "dvc.yaml")["stages"]["train"]["deps"]
    files = {dep: hashlib.sha256((root / dep).read_bytes()).hexdigest() for dep in deps if dep.endswith(".py")}
    return Code(files, {name: version(name) for name in LIBRARIES})


def version(library: str) -> str:
    """A library's version without what it was built for: a training may go on from a CPU on a GPU."""
    return metadata.version(library).partition("+")[0]


def differences(before: Code, now: Code) -> str:
    """The files and libraries that differ, in a few words; empty if none do."""
    names = sorted(before.files.keys() | now.files.keys())
    files = [name for name in names if before.files.get(name) != now.files.get(name)]
    libraries = [
        f"{name} {before.libraries.get(name, 'not recorded')}, here {now.libraries.get(name, 'not recorded')}"
        for name in sorted(before.libraries.keys() | now.libraries.keys())
        if before.libraries.get(name) != now.libraries.get(name)
    ]
    more = [f"{len(files) - 3} more files"] if len(files) > 3 else []
    return "; ".join([*files[:3], *more, *libraries])
