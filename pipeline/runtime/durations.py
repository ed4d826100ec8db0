"""How long each stage took when it last ran to its end, in a file in work/ that is no out."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

FILE = Path("work/durations.jsonl")

PARAMS = Path("params.yaml")


@dataclass(frozen=True, slots=True)
class Duration:
    """A stage's last time."""

    seconds: float
    same_params: bool
    """Whether it ran with the params.yaml that is here now."""


def record(stage: str, seconds: float) -> None:
    """Adds a line for a stage that ran to its end; without room for it nothing is recorded, and the stage has ended well."""
    line = json.dumps({"stage": stage, "seconds": round(seconds, 1), "params": _digest(PARAMS)})
    with contextlib.suppress(OSError):
        file = Path(os.environ.get("DVC_ROOT") or "") / FILE  # an experiment's copy is removed
        file.parent.mkdir(exist_ok=True)
        with file.open("a", encoding="utf-8") as lines:
            lines.write(line + "\n")


def last() -> dict[str, Duration]:
    """The last time of each stage, as far as recorded; damaged lines are passed over."""
    found, here = dict[str, Duration](), _digest(PARAMS)
    with contextlib.suppress(OSError):
        for line in FILE.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                found[str(row["stage"])] = Duration(float(row["seconds"]), row["params"] == here)
    return found


def _digest(file: Path) -> str:
    with contextlib.suppress(OSError):
        return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    return ""
