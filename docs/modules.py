"""The page of modules: the public classes and functions of `alexnet/` and of `pipeline/inference/`, by autodoc."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]

PACKAGES = ("alexnet", "pipeline/inference")


def names() -> Iterator[str]:
    """The modules, by package and name."""
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            if parts[-1] != "__init__":
                yield ".".join(parts)


def text() -> str:
    """A heading and autodoc's directive for each module."""
    directive = (
        "## {0}\n\n```{{eval-rst}}\n.. automodule:: {0}\n   :members:\n   :exclude-members: __init__, __new__\n```"
    )
    return "\n\n".join(directive.format(name) for name in names())
