"""The parameters in which a run differs from the recipe nearest to it, and from the paper; the others are folded on the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.runtime import added, params, redaction

RECIPES = Path("recipes")

PAPER = "paper"
"""The recipe that is the paper as printed."""

APART = ("source", "report")
"""Sections that are not compared: each source has its own keys, and `report` changes no result."""

NONE = "–"
"""In place of a value that a recipe does not have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A parameter in which the run differs from a recipe; values as text."""

    key: str
    here: str
    recipe: str
    paper: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Differences:
    """What differs from the nearest recipe or from the paper."""

    recipe: str
    """Name of the recipe with the fewest differences."""
    rows: list[Difference]
    compared: int
    """Number of parameters that were compared."""

    @property
    def from_recipe(self) -> int:
        """Number of parameters that differ from the recipe."""
        return sum(row.here != row.recipe for row in self.rows)


def recipes(folder: Path = RECIPES) -> dict[str, dict[str, Any]]:
    """The recipes by name; `FileNotFoundError` if the paper's is not there."""
    files = sorted(folder.glob("*.yaml"))
    if folder / f"{PAPER}.yaml" not in files:
        raise FileNotFoundError(f"{folder / PAPER}.yaml: not there. Run: git checkout {folder}")
    return {file.stem: params.load(file) for file in files}


def differences(document: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> Differences:
    """Compares the contents of params.yaml with recipes, by value: 1 and 1.0 are the same. The paper's recipe wins a tie."""
    here = _flat(document)
    flat = {name: _flat(other) for name, other in others.items()}
    counts = {
        name: sum(key not in other or other[key] != value for key, value in here.items())
        for name, other in flat.items()
    }
    nearest = min(counts, key=lambda name: (counts[name], name != PAPER, name))
    recipe, paper = flat[nearest], flat[PAPER]
    rows = [
        Difference(
            key=key, here=redaction.word(value), recipe=_word(recipe, key, value), paper=_word(paper, key, value)
        )
        for key, value in here.items()
        if any(key not in other or other[key] != value for other in (recipe, paper))
    ]
    return Differences(recipe=nearest, rows=rows, compared=len(here))


def _flat(document: Mapping[str, Any]) -> dict[str, Any]:
    return params.flat({name: values for name, values in added.completed(document).items() if name not in APART})


def _word(other: Mapping[str, Any], key: str, value: object) -> str:
    """The other's value as text, spelled as here if it is the same."""
    if key not in other:
        return NONE
    return redaction.word(value if other[key] == value else other[key])
