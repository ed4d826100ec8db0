"""Runs a recipe as a DVC experiment, in a copy: the working copy and its params.yaml stay as they are.

Run:    make repro RECIPE=paper SOURCE=ilsvrc2012   (python -m pipeline.recipe paper --source ilsvrc2012)
Reads:  recipes/paper.yaml; recipes/sources/ilsvrc2012.yaml for what it changes in it
Writes: a DVC experiment, listed by `dvc exp show`, and what every stage writes
"""

from __future__ import annotations

if __name__ == "__main__":  # before all that takes long to import
    from pipeline.__main__ import main as enter

    enter("recipe")

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.runtime import added, commands, guard, params
from pipeline.runtime.commands import RECIPES, names

SITE = Path(".dvc/site")

OPEN = "source."
"""Begins the keys that a recipe may have and params.yaml not, or the other way: each source has its own."""


def main() -> None:
    """Starts the experiment and waits for it; the exit code is DVC's."""
    asked = commands.recipe().parse_args()
    try:
        command = experiment(asked.recipe, asked.source)
    except (ValueError, OSError) as error:
        raise SystemExit(f"recipe: {error}") from None
    print("recipe:", " ".join(command))
    with subprocess.Popen(command) as dvc:
        try:
            raise SystemExit(dvc.wait())
        except guard.Stopped:
            dvc.terminate()  # its stage sees that it has gone, and ends
            raise


def experiment(name: str | None, source: str | None = None) -> list[str]:
    """The command that runs a recipe, or params.yaml, maybe on other pictures."""
    file = params.PARAMS if name is None else _named(RECIPES, name)
    wanted = params.load(file)
    if source is not None:
        wanted = with_source(wanted, _named(RECIPES / "sources", source))
    return command(file, wanted, unused("-".join(filter(None, (name, source))) or "params"))


def with_source(wanted: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The parameters with the `source` of a file in recipes/sources/, and what else of them its size asks for."""
    changed = dict(wanted)
    for section, values in params.load(file).items():
        changed[section] = values if section == "source" else {**changed.get(section, {}), **values}
    return changed


def _named(folder: Path, name: str) -> Path:
    if name not in names(folder):
        raise ValueError(f"{folder / name}.yaml: not there; there are {', '.join(names(folder))}")
    return folder / f"{name}.yaml"


def command(file: Path, wanted: Mapping[str, Any], name: str, *targets: str) -> list[str]:
    """`dvc exp run` in a copy, with each key in which `wanted`, which comes from `file`, differs from params.yaml."""
    keep_here()
    here = params.load(params.PARAMS)
    changes = differences(flat(here), flat(added.completed(wanted)), file)
    dvc = str(Path(sys.executable).with_name("dvc"))
    settings = [word for change in changes for word in ("-S", change)]
    return [dvc if os.access(dvc, os.X_OK) else "dvc", "exp", "run", "--temp", "--name", name, *settings, *targets]


def differences(here: Mapping[str, Any], wanted: Mapping[str, Any], file: Path) -> list[str]:
    """What turns the leaves that are here into those of a recipe, in the grammar of `dvc exp run -S`.

    Another source has other keys: those that are too many are removed, those that are missing added. Everywhere else a
    recipe has to have the keys of params.yaml, or `ValueError`; but either may be older than a key of `added`.
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


def flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """The leaves of nested mappings, by their path with dots."""
    return dict(_leaves(tree, above))


def _leaves(tree: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def keep_here() -> None:
    """Lets DVC keep its databases, which hold pickles, in this working copy: its own place is one where all may write.

    An absolute path, since DVC changes its folder for `exp run --temp`; so it cannot stand in .dvc/config.
    """
    if not os.environ.get("DVC_SITE_CACHE_DIR"):
        os.environ["DVC_SITE_CACHE_DIR"] = str(SITE.absolute())


def unused(name: str) -> str:
    """The recipe's name, or with a number behind it if an experiment is called so already."""
    git = ["git", "for-each-ref", "--format=%(refname:lstrip=-1)", "refs/exps"]
    taken = subprocess.run(git, check=True, capture_output=True, text=True).stdout.split()
    number = 1
    while (unused := name if number == 1 else f"{name}-{number}") in taken:
        number += 1
    return unused


def _word(value: object) -> str:
    """A value in the grammar of `dvc exp run -S`, which is JSON but for the keys of mappings."""
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{_word(each)}' for key, each in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(_word(each) for each in value)}]"
    return json.dumps(value, ensure_ascii=False)
