"""A run's journal: everything for MLflow is first written as a line to a file, and kept until MLflow has it.

A stage appends and never waits; the process `sender` reads the lines. After a kill only the last line can be torn; it is
ignored. A journal is a folder with the run's id, the lines, copies of files, and the offset up to which all is sent.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.runtime import files, owner, redaction

ROWS = "rows.jsonl"
"""The stage's lines."""

SYSTEM = "system.jsonl"
"""System metrics, which the sender measures; a separate file, so that each file has one writer."""

Record = dict[str, Any]


@dataclass
class Journal:
    """Writes a journal."""

    folder: Path
    _torn: bool = False

    @classmethod
    def begin(cls, root: Path, about: Mapping[str, Any]) -> Journal:
        """Creates a journal below `root`. `about`: the id of its run (`run_id`), its server (`to`) and its `stage`."""
        folder = root / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}"
        with files.atomic(folder) as made:
            made.mkdir()
            (made / "about.json").write_text(json.dumps({**about, "owner": owner.identity()}, indent=1))
            for name in (ROWS, SYSTEM):
                (made / name).touch()
        return cls(folder)

    def write(self, record: Record, name: str = ROWS) -> None:
        """Appends a line with the time. A failure, such as a full disk, is reported once and raises nothing."""
        line = json.dumps({"time": int(time.time() * 1000), **record}) + "\n"
        try:
            with (self.folder / name).open("ab", buffering=0) as file:
                data = (b"\n" if self._torn else b"") + line.encode()
                self._torn = file.write(data) != len(data)
        except OSError as error:
            if not self._torn:
                print(f"{self.folder}: {redaction.redact(str(error))}: some values are not kept", file=sys.stderr)
            self._torn = True

    def keep(self, path: Path) -> str:
        """Copies a file or a folder into the journal, and returns the copy's path in it; `OSError` if there is no room."""
        return self._kept(path.name, lambda copy: (shutil.copytree if path.is_dir() else shutil.copyfile)(path, copy))

    def keep_bytes(self, name: str, data: bytes) -> str:
        """Writes a file into the journal, and returns its path in it; `OSError` if there is no room."""
        return self._kept(name, lambda copy: copy.write_bytes(data))

    def _kept(self, name: str, write: Callable[[Path], object]) -> str:
        inside = f"files/{uuid.uuid4().hex[:8]}/{name}"
        copy = self.folder / inside
        try:
            copy.parent.mkdir(parents=True)
            write(copy)
        except OSError as error:
            raise OSError(
                f"{copy}: {error.strerror or error}: MLflow gets a copy of {name}, and needs room for it"
            ) from None
        return inside


@dataclass
class Reader:
    """Reads a journal, and records what is sent."""

    folder: Path

    @property
    def about(self) -> dict[str, Any]:
        """The journal's run, server, stage and writer; empty if a crash of the machine has torn the file."""
        with suppress(OSError):
            return _record((self.folder / "about.json").read_bytes())
        return {}

    def unsent(self, name: str, most: int = 1000) -> list[tuple[int, Record]]:
        """The next unsent lines, at most `most`, each with the offset of its end in the file."""
        lines: list[tuple[int, Record]] = []
        offset = self._sent().get(name, 0)
        with (self.folder / name).open("rb") as file:
            file.seek(offset)
            for line in file:
                if len(lines) == most or not line.endswith(b"\n"):
                    break
                offset += len(line)
                lines.append((offset, _record(line)))
        return lines

    def _sent(self) -> dict[str, int]:
        # if the file is torn, all is sent again, which `delivery` reduces to the values that MLflow lacks
        file = self.folder / "sent.json"
        return _record(file.read_bytes()) if file.exists() else {}

    def sent(self, name: str, offset: int) -> None:
        """Records that all lines of the file `name` before `offset` are sent."""
        with files.atomic(self.folder / "sent.json") as made:
            made.write_text(json.dumps(self._sent() | {name: offset}))

    def put_aside(self, record: Record, why: str) -> None:
        """Writes a record that MLflow refuses, and the reason, to refused.jsonl."""
        with (self.folder / "refused.jsonl").open("a") as file:
            file.write(json.dumps({"why": why, **record}) + "\n")

    @property
    def refused(self) -> int:
        """The number of lines that MLflow refused."""
        file = self.folder / "refused.jsonl"
        return len(file.read_text().splitlines()) if file.exists() else 0

    @property
    def over(self) -> bool:
        """Whether no process writes to it any more: the run has ended, or its process has died."""
        return self.ended or owner.lives(self.about["owner"]) is False

    @property
    def ended(self) -> bool:
        """Whether the last line is the end of the run."""
        with (self.folder / ROWS).open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 4096))
            lines = file.read().splitlines(keepends=True)
        return bool(lines) and lines[-1].endswith(b"\n") and "end" in _record(lines[-1])

    def left(self) -> str:
        """The unsent lines in words: the number of values, and which other kinds of lines there are."""
        lines = [record for name in (SYSTEM, ROWS) for _, record in self.unsent(name, most=10**9)]
        values = sum(len(record.get("metrics") or record.get("score") or ()) for record in lines)
        others = {"artifact": "artifacts", "publish": "the model", "tag": "tags", "end": "the run's end"}
        words = [f"{values:,} values"] * bool(values)
        return ", ".join(words + [word for key, word in others.items() if any(key in record for record in lines)])

    def remove(self) -> None:
        """Removes the journal after all is sent; refused records stay."""
        if not self.refused:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        for path in self.folder.iterdir():
            if path.name == "about.json" or path.name == "refused.jsonl":
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def pending(root: Path) -> list[Reader]:
    """The journals below `root`, the oldest first."""
    readers = [Reader(rows.parent) for rows in sorted(root.glob(f"*/{ROWS}")) if rows.parent.suffix != files.UNFINISHED]
    return [reader for reader in readers if reader.about]


def _record(line: bytes) -> Record:
    """The line's record; an empty one if a full disk or a crash has torn the line."""
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
