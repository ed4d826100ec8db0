"""How a program is used: the head of its module's docstring, read without importing it; argparse for scripts elsewhere"""

from __future__ import annotations

import argparse
import ast
from pathlib import Path

RECIPES = Path("recipes")


def names(folder: Path) -> list[str]:
    """The names of the recipes, or the sources, in a folder, sorted."""
    return sorted(file.stem for file in folder.glob("*.yaml"))


def existing_path(word: str) -> Path:
    """An argument type: the path of an existing file or folder."""
    if not Path(word).exists():
        raise argparse.ArgumentTypeError(f"{word}: no such file here ({Path.cwd()})")
    return Path(word)


def parser_at(file: str | Path, program: str) -> argparse.ArgumentParser:
    """A parser whose help is the head of a module's docstring, read without importing it; options cannot be abbreviated."""
    return argparse.ArgumentParser(
        prog=program,
        description=head(Path(file)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def head(file: Path) -> str:
    """A module's docstring up to its second empty line: its purpose, and Run, Reads, Writes, Takes, Expect."""
    return "\n\n".join((ast.get_docstring(ast.parse(file.read_bytes())) or "").split("\n\n")[:2])
