"""A recipe as a DVC experiment in a copy of the working copy: the command that runs it, while params.yaml here stays as it is."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.runtime import added, git, params, revisions
from pipeline.runtime.usage import RECIPES, names

OPEN = "source."
"""Prefix of the keys that may be in a recipe but not in params.yaml, or the reverse: each source has its own keys."""


def contents(name: str | None, source: str | None = None) -> tuple[Path, dict[str, Any]]:
    """A recipe's file (None: params.yaml) and its parameters, with the pictures of `source` if it is given."""
    file = params.PARAMS if name is None else _named(RECIPES, name)
    wanted = params.load(file)
    if source is not None:
        wanted = with_source(wanted, _named(RECIPES / "sources", source))
    return file, wanted


def with_source(wanted: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The parameters, overridden by a file of recipes/sources/: its `source`, and keys that depend on its size."""
    changed = dict(wanted)
    for section, values in params.load(file).items():
        changed[section] = values if section == "source" else {**changed.get(section, {}), **values}
    return changed


def _named(folder: Path, name: str) -> Path:
    if name not in names(folder):
        raise ValueError(f"{folder / name}.yaml: not there; there are {', '.join(names(folder))}")
    return folder / f"{name}.yaml"


def command(file: Path, wanted: Mapping[str, Any], name: str, *targets: str) -> list[str]:
    """The `dvc exp run --temp` that sets each key in which `wanted`, the contents of `file`, differs from params.yaml."""
    revisions.keep_here()
    here = params.load(params.PARAMS)
    changes = differences(params.flat(here), params.flat(added.completed(wanted)), file)
    dvc = str(Path(sys.executable).with_name("dvc"))
    changed = [word for change in changes for word in ("-S", change)]
    return [dvc if os.access(dvc, os.X_OK) else "dvc", "exp", "run", "--temp", "--name", name, *changed, *targets]


def differences(here: Mapping[str, Any], wanted: Mapping[str, Any], file: Path) -> list[str]:
    """The changes from `here` to `wanted`, both flat, as arguments of `dvc exp run -S`.

    Keys of another source are removed (~) or added (+). Apart from those, and from keys in `added`, both must have the
    same keys; else `ValueError`.
    """
    gone, new = ([key for key in some if key not in other] for some, other in ((here, wanted), (wanted, here)))
    new = [key for key in new if not added.means_nothing(key, wanted[key])]
    if strange := sorted(key for key in [*gone, *new] if not key.startswith(OPEN) and key not in added.ADDED):
        raise ValueError(f"{file}: has to have the keys of {params.PARAMS}; differs in {', '.join(strange)}")
    changed = [key for key in wanted if key in here and here[key] != wanted[key]]
    return [
        *(f"{key}={_word(wanted[key])}" for key in changed),
        *(f"~{key}" for key in gone),
        *(f"+{key}={_word(wanted[key])}" for key in new),
    ]


def unused(name: str) -> str:
    """The name, followed by a number if an experiment with this name exists."""
    taken = git.experiments()
    number = 1
    while (unused := name if number == 1 else f"{name}-{number}") in taken:
        number += 1
    return unused


def _word(value: object) -> str:
    """A value in the grammar of `dvc exp run -S`: JSON, except that keys of mappings are not quoted."""
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{_word(each)}' for key, each in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(_word(each) for each in value)}]"
    return json.dumps(value, ensure_ascii=False)
