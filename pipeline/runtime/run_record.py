"""The record of a run: when, where and by which code it was trained, and where its time went. No out, and it decides nothing."""

from __future__ import annotations

import json
import os
import platform
import re
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from pipeline.runtime.clock import PARTS

FILE = "record.jsonl"
"""In the run's folder: a line for what began, for each worker that leads, for each epoch, and for what ended."""

TRAINING = ("waiting", "computing", "exchanging")
"""The parts of the clock in which pictures are learned from."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A finished run's record."""

    began: str
    """Time at which the training first began, ISO 8601 with the offset of its time zone."""
    seconds: float
    """Seconds of all sessions that came to their end, or were stopped in order."""
    sessions: int
    unended: int
    """Sessions that were killed, whose seconds are not known."""
    facts: Mapping[str, Any]
    """Facts on the last session, its code and its machine, by name."""
    epochs: Sequence[Mapping[str, float]]
    """Per epoch: its index, pictures learned from, and the leading process's seconds of each of the clock's parts."""

    def total(self, *parts: str) -> float:
        """Seconds of the clock's parts in all epochs that were measured."""
        return sum(float(row[part]) for row in self.epochs for part in parts)

    @property
    def images_per_second(self) -> float | None:
        """Pictures learned from in a second, without validation and checkpoints; None if nothing was measured."""
        seconds = self.total(*TRAINING)
        return sum(row["images"] for row in self.epochs) / seconds if seconds > 0 else None


def append(folder: Path, what: str, facts: Mapping[str, Any]) -> None:
    """Adds a line to the record; without room for it nothing is recorded, and the run goes on."""
    line = json.dumps({"what": what, **facts}, ensure_ascii=True) + "\n"
    with suppress(OSError):
        handle = os.open(folder / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)


def hardware(gpu: str = "") -> dict[str, Any]:
    """The name of this machine, of its processor and of the GPU that is used, and its memory in bytes."""
    processor = platform.processor() or platform.machine()
    with suppress(OSError):
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(errors="replace"), re.M)
        processor = names[0].strip() if names else processor
    return {"host": socket.gethostname(), "processor": processor, "gpu": gpu, "memory": psutil.virtual_memory().total}


def read(folder: Path, model: str | None = None) -> RunRecord | None:
    """The record of the run in a folder; None if it has none, or made another model.pt than that of this sha256, if given.

    Damaged lines are passed over.
    """
    rows = _rows(folder / FILE)
    began = [row for row in rows if row["what"] == "began"]
    ended = [row for row in rows if row["what"] == "ended"]
    if not began or not any(model in (None, row.get("model")) for row in ended):
        return None
    facts: dict[str, Any] = {}
    for row in rows:
        facts |= row if row["what"] in ("began", "worker") else {}
    epochs = [row for row in rows if row["what"] == "epoch" and _numbers(row, ("epoch", "images", *PARTS))]
    return RunRecord(
        began=str(began[0].get("at", "")),
        seconds=sum(float(row["seconds"]) for row in ended if _numbers(row, ("seconds",))),
        sessions=len(began),
        unended=max(0, len(began) - len(ended)),
        facts=facts,
        epochs=epochs,
    )


def _rows(file: Path) -> list[dict[str, Any]]:
    found = []
    with suppress(OSError):
        for line in file.read_bytes().decode(errors="replace").splitlines():
            with suppress(ValueError, RecursionError):
                row = json.loads(line)
                if isinstance(row, dict) and isinstance(row.get("what"), str):
                    found.append(row)
    return found


def _numbers(row: Mapping[str, Any], names: Sequence[str]) -> bool:
    return all(isinstance(row.get(name), int | float) for name in names)
