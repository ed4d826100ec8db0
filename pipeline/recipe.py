"""Runs a recipe as a DVC experiment in a copy of the working copy; params.yaml here does not change.

Run:    make repro RECIPE=paper SOURCE=ilsvrc2012   (python -m pipeline.recipe paper --source ilsvrc2012)
Reads:  recipes/paper.yaml, and recipes/sources/ilsvrc2012.yaml, which overrides parts of it
Writes: a DVC experiment, listed by `dvc exp show`, and the outs of every stage
"""

from __future__ import annotations

if __name__ == "__main__":  # before the slow imports
    from pipeline.__main__ import main as enter

    enter("recipe")

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.runtime import added, git, guard, params
from pipeline.runtime.usage import RECIPES, names

SITE = Path(".dvc/site")

OPEN = "source."
"""Prefix of the keys that may be in a recipe but not in params.yaml, or the reverse: each source has its own keys."""


def main(name: str | None, source: str | None) -> None:
    """Runs the experiment; the exit code is DVC's."""
    try:
        command = experiment(name, source)
    except (ValueError, OSError) as error:
        raise SystemExit(f"recipe: {error}") from None
    print("recipe:", " ".join(command))
    with subprocess.Popen(command) as dvc:
        try:
            raise SystemExit(dvc.wait())
        except guard.Stopped:
            dvc.terminate()  # its stage notices, and ends
            raise


def experiment(name: str | None, source: str | None = None) -> list[str]:
    """The command that runs a recipe (None: params.yaml), with the pictures of `source` if it is given."""
    file = params.PARAMS if name is None else _named(RECIPES, name)
    wanted = params.load(file)
    if source is not None:
        wanted = with_source(wanted, _named(RECIPES / "sources", source))
    return command(file, wanted, unused("-".join(filter(None, (name, source))) or "params"))


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
    keep_here()
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


def keep_here() -> None:
    """Makes DVC keep its databases in this working copy: they contain pickles, and the default folder is world-writable.

    The path is absolute, since DVC changes its folder for `exp run --temp`, and can therefore not be in .dvc/config.
    """
    if not os.environ.get("DVC_SITE_CACHE_DIR"):
        os.environ["DVC_SITE_CACHE_DIR"] = str(SITE.absolute())


def unused(name: str) -> str:
    """The name, followed by a number if an experiment with this name exists."""
    taken = git.output("for-each-ref", "--format=%(refname:lstrip=-1)", "refs/exps").split()
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
