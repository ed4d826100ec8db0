"""Runs a recipe as a DVC experiment, in a copy: the working copy and its params.yaml stay as they are.

Run:    make repro RECIPE=paper   (python -m pipeline.recipe paper)
Reads:  recipes/paper.yaml
Writes: a DVC experiment, listed by `dvc exp show`, and what every stage writes
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline import params

RECIPES = Path("recipes")


def main() -> None:
    """Starts the experiment and waits for it; the exit code is DVC's."""
    if len(sys.argv) != 2:
        raise SystemExit(f"usage: python -m pipeline.recipe NAME, with NAME one of: {', '.join(names())}")
    try:
        command = experiment(sys.argv[1])
    except (ValueError, OSError) as error:
        raise SystemExit(f"recipe: {error}") from None
    print("recipe:", " ".join(command))
    raise SystemExit(subprocess.run(command, check=False).returncode)


def names() -> list[str]:
    """The recipes there are."""
    return sorted(file.stem for file in RECIPES.glob("*.yaml"))


def experiment(name: str) -> list[str]:
    """The command that runs a recipe: `dvc exp run` with each key in which it differs from params.yaml."""
    file = RECIPES / f"{name}.yaml"
    if name not in names():
        raise ValueError(f"{file}: there is no such recipe; there are {', '.join(names())}")
    wanted, here = params.load(file), params.load(params.PARAMS)
    if missing := set(flat(here)) ^ set(flat(wanted)):
        raise ValueError(f"{file}: has to have the keys of {params.PARAMS}; differs in {', '.join(sorted(missing))}")
    now = flat(here)
    changes = [f"{key}={_word(value)}" for key, value in flat(wanted).items() if now[key] != value]
    dvc = str(Path(sys.executable).with_name("dvc"))
    settings = [word for change in changes for word in ("-S", change)]
    return [dvc if os.access(dvc, os.X_OK) else "dvc", "exp", "run", "--temp", "--name", _unused(name), *settings]


def flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """The leaves of nested mappings, by their path with dots."""
    return dict(_leaves(tree, above))


def _leaves(tree: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _unused(name: str) -> str:
    """The recipe's name, or with a number behind it if an experiment is called so already."""
    git = ["git", "for-each-ref", "--format=%(refname:lstrip=-1)", "refs/exps"]
    taken = subprocess.run(git, check=True, capture_output=True, text=True).stdout.split()
    number = 1
    while (unused := name if number == 1 else f"{name}-{number}") in taken:
        number += 1
    return unused


def _word(value: object) -> str:
    """A value in the grammar of `dvc exp run -S`: JSON without blanks, which both read alike."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


if __name__ == "__main__":
    main()
