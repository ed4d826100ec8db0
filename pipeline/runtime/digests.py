"""The sha256 of outs: written to SHA256SUMS beside them, and compared when they are read."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from pipeline.runtime import files
from pipeline.runtime.paths import AnyPath

SUMS = "SHA256SUMS"
"""The file of the digests, in coreutils' format: `sha256sum -c SHA256SUMS` in its folder checks them too."""

_LINE = re.compile(rb"([0-9a-f]{64})  (.+)")


def of(file: AnyPath) -> str:
    """The sha256 of a file, in hexadecimal."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def seal(folder: AnyPath, known: Mapping[str, str] | None = None) -> None:
    """Writes SHA256SUMS for all files below `folder`, and for `known`: name → digest, of files that may be elsewhere."""
    sums = dict(known or {})
    for name, _ in files.listed(folder):
        if name != SUMS and name not in sums:
            sums[name] = of(folder / name)
    _write(folder, sums)


def add(file: AnyPath) -> None:
    """Adds a file to the SHA256SUMS of its folder, or replaces its line; the other lines stay."""
    sums = recorded(file.parent) if (file.parent / SUMS).exists() else {}
    _write(file.parent, {**sums, file.name: of(file)})


def _write(folder: AnyPath, sums: Mapping[str, str]) -> None:
    with files.atomic(folder / SUMS) as temporary:
        temporary.write_text("".join(f"{sums[name]}  {name}\n" for name in sorted(sums)), encoding="utf-8")


def check(file: AnyPath, stage: str, sealed: AnyPath | None = None) -> None:
    """Compares a file with the digest that `stage` wrote. `sealed`: the folder of SHA256SUMS, if not the file's own.

    Raises `FileNotFoundError` if the file or SHA256SUMS is missing, `ValueError` if the file differs; both name the command
    that makes it again.
    """
    if not file.exists():
        raise FileNotFoundError(f"{file}: not there. Run: dvc repro {stage}")
    compare(file, _recorded(file, stage, sealed), stage)


def read(file: AnyPath, stage: str, sealed: AnyPath | None = None) -> bytes:
    """Returns the bytes of a file after comparing them with the digest that `stage` wrote; raises like `check`."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: not there. Run: dvc repro {stage}") from None
    _agree(file, hashlib.sha256(data).hexdigest(), _recorded(file, stage, sealed), stage)
    return data


def compare(file: AnyPath, recorded: str, stage: str) -> None:
    """Raises `ValueError` with the command to run if the sha256 of a file is not the recorded one; reads it in pieces."""
    try:
        actual = of(file)
    except OSError as error:
        raise OSError(f"{file}: gone or damaged: {error}. {again(stage)}") from None
    _agree(file, actual, recorded, stage)


def _agree(file: AnyPath, actual: str, recorded: str, stage: str) -> None:
    if actual != recorded:
        raise ValueError(
            f"{file}: not as '{stage}' wrote it: its sha256 is {actual[:16]}…, was {recorded[:16]}…. {again(stage)}"
        )


def again(stage: str) -> str:
    """The sentence with the command that makes the outs of this stage again, and of no other."""
    return f"Run: dvc repro --force --single-item {stage}"


def recorded(folder: AnyPath) -> dict[str, str]:
    """The digests in a folder's SHA256SUMS, by file name; `FileNotFoundError` if there is none."""
    return parse((folder / SUMS).read_bytes())


def parse(data: bytes) -> dict[str, str]:
    """The digests in the text of a SHA256SUMS, by file name; lines of any other form are ignored."""
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
    """The text below a first line with its sha256, for a file without SHA256SUMS."""
    return f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def unstamped(file: AnyPath) -> str:
    """The text of a `stamped` file, without the first line; `ValueError` if it was changed."""
    digest, _, text = file.read_bytes().partition(b"\n")
    if hashlib.sha256(text).hexdigest().encode() != digest:
        raise ValueError(f"{file}: damaged, or of older code")
    return text.decode()


def mark(file: Path) -> None:
    """Writes the digest of a file to FILE.sha256 beside it, for `marked`."""
    with files.atomic(_mark(file)) as temporary:
        temporary.write_text(of(file))


def marked(file: Path) -> bool:
    """Whether the file exists and is unchanged since `mark`."""
    try:
        return _mark(file).read_bytes() == of(file).encode()
    except FileNotFoundError:
        return False


def _mark(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")
