"""The commands that pages say to type: the lines of their shell blocks, and commands in the text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]

PROGRAMS = ("alexnet", "make", "dvc", "python", "pytest", "ray", "eval")
"""Programs whose name at the beginning of `code` makes it a command, if words follow it."""

LEFT_OUT = ("docs/faults.md", "docs/inside.md", "docs/paper.md", "docs/supply.md")
"""Pages whose `code` is quoted, not typed: messages, names of modules. Their shell blocks count."""


def pages() -> Iterator[Path]:
    """README.md, CONTRIBUTING.md and docs/; a study's commands are those of the commit that was measured."""
    yield from (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))


def commands(text: str, in_text: bool = True) -> Iterator[str]:
    """The commands of a page in Markdown, without comments; `a && b` is two."""
    blocks = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.M | re.S)
    for kind, block in blocks.findall(text):
        if kind == "sh":
            yield from _parts(block)
    if in_text:
        for code in re.findall(r"`([^`\n]+)`", blocks.sub("", text)):
            program, _, words = code.partition(" ")
            if program in PROGRAMS and words:
                yield from _parts(code)


def _parts(block: str) -> Iterator[str]:
    for line in block.replace("\\\n", " ").splitlines():
        for part in re.split(r" && ", re.sub(r"(^|\s+)#.*$", "", line)):
            if part.strip():
                yield " ".join(part.split())
