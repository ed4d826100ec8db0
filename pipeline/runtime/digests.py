"""Outs are sealed: SHA256SUMS beside them has their sha256, which has to agree when they are read."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from pipeline.runtime import files
from pipeline.runtime.paths import AnyPath

SUMS = "SHA256SUMS"
"""In the format of coreutils: `sha256sum -c SHA256SUMS` in the folder checks it too."""

_LINE = re.compile(rb"([0-9a-f]{64})  (.+)")


def of(file: AnyPath) -> str:
    """sha256 of a file, in hexadecimal."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def seal(folder: AnyPath, known: Mapping[str, str] | None = None) -> None:
    """Writes SHA256SUMS over all files below `folder`, and over `known`, name → digest, whose files may lie elsewhere."""
    sums = dict(known or {})
    for name, _ in files.listed(folder):
        if name != SUMS and name not in sums:
            sums[name] = of(folder / name)
    _write(folder, sums)


def add(file: AnyPath) -> None:
    """Adds a file to the SHA256SUMS of its folder; the other lines stay."""
    there = (file.parent / SUMS).exists()
    _write(file.parent, {**(recorded(file.parent) if there else {}), file.name: of(file)})


def _write(folder: AnyPath, sums: Mapping[str, str]) -> None:
    with files.atomic(folder / SUMS) as made:
        made.write_text("".join(f"{sums[name]}  {name}\n" for name in sorted(sums)), encoding="utf-8")


def check(file: AnyPath, stage: str, sealed: AnyPath | None = None) -> None:
    """`ValueError` with what to run if a file is not as `stage` wrote it; `sealed`: the folder of SHA256SUMS, if not its own."""
    if not file.exists():
        raise FileNotFoundError(f"{file}: not there. Run: dvc repro {stage}")
    compare(file, _recorded(file, stage, sealed), stage)


def read(file: AnyPath, stage: str, sealed: AnyPath | None = None) -> bytes:
    """The bytes of a file that is as `stage` wrote it; errors like those of `check`."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: not there. Run: dvc repro {stage}") from None
    _agree(file, hashlib.sha256(data).hexdigest(), _recorded(file, stage, sealed), stage)
    return data


def compare(file: AnyPath, recorded: str, stage: str) -> None:
    """`ValueError` with what to run if the sha256 of a file is not the recorded one; it is read in pieces."""
    try:
        found = of(file)
    except OSError as error:
        raise OSError(f"{file}: gone or damaged: {error}. {again(stage)}") from None
    _agree(file, found, recorded, stage)


def _agree(file: AnyPath, found: str, recorded: str, stage: str) -> None:
    if found != recorded:
        raise ValueError(
            f"{file}: not as '{stage}' wrote it: its sha256 is {found[:16]}…, was {recorded[:16]}…. {again(stage)}"
        )


def again(stage: str) -> str:
    """The command that makes the outs of one stage again, and no others."""
    return f"Run: dvc repro --force --single-item {stage}"


def recorded(folder: AnyPath) -> dict[str, str]:
    """The digests in a folder's SHA256SUMS, by name; `FileNotFoundError` if it is not there."""
    return parse((folder / SUMS).read_bytes())


def parse(data: bytes) -> dict[str, str]:
    """The digests in a SHA256SUMS, by name; other lines are left out."""
    lines = map(_LINE.fullmatch, data.splitlines())
    return {os.fsdecode(line[2]): line[1].decode() for line in lines if line}


def _recorded(file: AnyPath, stage: str, sealed: AnyPath | None) -> str:
    folder = sealed or file.parent
    name = os.path.relpath(str(file), str(folder)) if sealed else file.name
    try:
        sums = recorded(folder)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{folder / SUMS}: not there, so {file} cannot be checked: older code wrote it. {again(stage)}"
        ) from None
    if name not in sums:
        raise ValueError(f"{folder / SUMS}: has no line for {name}. {again(stage)}")
    return sums[name]


def stamped(text: str) -> str:
    """A text with its own sha256 as a first line, for a file without SHA256SUMS."""
    return f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def unstamped(file: AnyPath) -> str:
    """The text of a `stamped` file; `ValueError` if it was changed."""
    digest, _, text = file.read_bytes().partition(b"\n")
    if hashlib.sha256(text).hexdigest().encode() != digest:
        raise ValueError(f"{file}: damaged, or of older code")
    return text.decode()


def mark(file: Path) -> None:
    """Writes the digest of a file in work/ beside it, for `marked`."""
    with files.atomic(_mark(file)) as made:
        made.write_text(of(file))


def marked(file: Path) -> bool:
    """Whether the file is there, unchanged since it was marked."""
    try:
        return _mark(file).read_bytes() == of(file).encode()
    except FileNotFoundError:
        return False


def _mark(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")
