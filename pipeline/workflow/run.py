"""Running the workflow: says which stages will run and how long they took last time; with changes, in a copy as an experiment."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.comparing import comparison
from pipeline.doctor import preflight
from pipeline.runtime import added, durations, git, guard, params, revisions
from pipeline.runtime.printing import say
from pipeline.runtime.progress import clock
from pipeline.workflow import recipe

WORKFLOW = Path("dvc.yaml")

INIT = "git init && git add -A && git commit -m 'as unpacked'"

LONGEST = 48
"""The most characters of an experiment's name that is made from changes."""


@dataclass(frozen=True, slots=True)
class Step:
    """A stage, and why it will run."""

    name: str
    why: str
    """Empty if it is up to date."""


def run(recipe_name: str | None, source: str | None, changes: Sequence[str], dry: bool) -> None:
    """Says what will run, and runs it unless `dry`; the exit code is DVC's."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    revisions.keep_here()
    changed = recipe_name or source or changes
    raise SystemExit(_in_a_copy(recipe_name, source, changes, dry) if changed else _here(dry))


def _here(dry: bool) -> int:
    if dry or not _quiet():
        say("run: here, with params.yaml", *table(plan([])))
    return 0 if dry else _done(["dvc", "repro", *_quiet()]) or _done(["dvc", "metrics", "show"])


def _in_a_copy(recipe_name: str | None, source: str | None, changes: Sequence[str], dry: bool) -> int:
    file, wanted = recipe.contents(recipe_name, source)
    wanted = with_changes(wanted, changes)
    if faults := preflight.judged(added.completed(wanted))[0]:
        raise click.UsageError("\n".join(line.removeprefix(f"{params.PARAMS}: ") for line in faults))
    if not git.commit():
        raise ValueError(f"an experiment needs a git commit, which this folder ({Path.cwd()}) has not. Run: {INIT}")
    name = recipe.unused(title(recipe_name, source, changes))
    command = recipe.command(file, wanted, name)
    if dry or not _quiet():
        changed = [word for flag, word in pairwise(command) if flag == "-S"]
        say(
            f"run: in a copy, as experiment {name}; params.yaml and the results here stay as they are",
            *(f"  {word}" for word in changed),
            *table(plan(keys(changed))),
        )
    code = 0 if dry else _done([*command, *_quiet()])
    if not (dry or code):
        _beside_here(name)
    return code


def _beside_here(name: str) -> None:
    """Prints the comparison of an experiment that is done with the results here, and what can be done with it."""
    try:
        comparison.compare(["here", name])
    except (ValueError, OSError) as error:
        say(f"run: not compared with the results here: {error}")
    say(
        "",
        f"run: experiment {name} is done",
        f"  beside the results here, as a page:  alexnet compare here {name} --html compared.html",
        f"  its params.yaml and results here:    dvc exp apply {name}",
    )


def _quiet() -> list[str]:
    """DVC's option, if the user asked for no progress."""
    return ["--quiet"] if os.environ.get("ALEXNET_QUIET") else []


def _done(command: Sequence[str]) -> int:
    """Runs a command of DVC's and returns its exit code; a signal is passed on."""
    with subprocess.Popen(command) as dvc:
        try:
            return dvc.wait()
        except guard.Stopped:
            dvc.terminate()  # its stage notices, and ends
            raise


# Changes


def with_changes(wanted: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """The parameters with each `section.key=value`, a value as in YAML; `click.UsageError` for a key that there is not."""
    changed = copy.deepcopy(dict(wanted))
    known = {*params.flat(wanted), *added.ADDED}
    for word in changes:
        key, equals, value = word.partition("=")
        if not equals:
            raise click.UsageError(f"-S {word}: has to be section.key=value, such as learning.rate=0.02")
        if key not in known:
            raise click.UsageError(f"-S {word}: {params.PARAMS} has no key '{key}'{_nearest(key, known)}")
        try:
            parsed = YAML(typ="safe").load(value)
        except YAMLError:
            raise click.UsageError(f"-S {word}: the value is not YAML. Quote what has : or [ in it") from None
        *above, last = key.split(".")
        inner: dict[str, Any] = changed
        for part in above:
            inner = inner[part]
        inner[last] = parsed
    return changed


def _nearest(key: str, known: set[str]) -> str:
    by_end = {name.rpartition(".")[2]: name for name in sorted(known)}
    near = get_close_matches(key, sorted(known), n=1, cutoff=0.6)
    if not near:
        near = [by_end[end] for end in get_close_matches(key.rpartition(".")[2], by_end, n=1, cutoff=0.6)]
    return (
        f", did you mean '{near[0]}'?"
        if near
        else f"; its sections are {', '.join(sorted({each.split('.')[0] for each in known}))}"
    )


def title(recipe_name: str | None, source: str | None, changes: Sequence[str]) -> str:
    """A name for the experiment: the recipe's, the source's, and the changes', as far as they fit."""
    words = [word.rpartition("=")[0].rpartition(".")[2] + "-" + word.partition("=")[2] for word in changes]
    name = re.sub(r"[^\w.-]+|\.(?!\d)", "-", "-".join(filter(None, [recipe_name, source, *words])))
    name = re.sub("-+", "-", name).strip("-.")
    return name[:LONGEST].strip(".-") or "changed"


def keys(changed: Sequence[str]) -> list[str]:
    """The keys of params.yaml that `dvc exp run -S` is told to change, add (+) or remove (~)."""
    return [word.lstrip("+~").partition("=")[0] for word in changed]


# What will run


def plan(changed: Sequence[str]) -> list[Step]:
    """Each stage in its order, and why it will run; `changed`: keys of params.yaml whose values will be others than here."""
    stages = params.load(WORKFLOW)["stages"]
    now, steps, made = _status(), list[Step](), dict[str, str]()
    for name, stage in stages.items():
        why = next((f"{key} changes" for each in stage.get("params", []) for key in changed if _in(key, each)), "")
        why = why or now.get(name, "")
        for dep in stage.get("deps", []):
            why = why or next((f"after {by}" for out, by in made.items() if _in(dep, out, "/")), "")
        steps.append(Step(name, why))
        if why:
            outs = (*stage.get("outs", []), *stage.get("metrics", []))
            made |= {(out if isinstance(out, str) else next(iter(out))): name for out in outs}
    return steps


def _in(name: str, whole: str, between: str = ".") -> bool:
    """Whether a key is a section or in it; or a file an out or in it."""
    return name == whole or name.startswith(f"{whole}{between}")


def _status() -> dict[str, str]:
    """Stage → what has changed of it since it last ran, from `dvc status`; nothing for one that is up to date."""
    asked = subprocess.run(["dvc", "status", "--json"], capture_output=True, text=True, check=False)
    if asked.returncode:
        advice = "" if git.commit() else f". Without git: {INIT}, or make repro"
        raise OSError(f"dvc status: {_first_error(asked.stderr)}{advice}")
    return {name: _reason(entries) for name, entries in json.loads(asked.stdout).items()}


def _first_error(stderr: str) -> str:
    """What DVC says is wrong, without its offer of help: the line ERROR, else the first two."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ").removeprefix("unexpected error - ") for line in lines if "ERROR: " in line]
    return " ".join(errors[:1] or lines[:2] or ["failed"]).rstrip(".")


def _reason(entries: Sequence[Any]) -> str:
    for entry in entries:
        if isinstance(entry, Mapping):
            for kind, files in entry.items():
                name = next(iter(files), "") if isinstance(files, Mapping) else ""
                state = files[name] if isinstance(files, Mapping) and name else "changed"
                if isinstance(state, Mapping):  # params.yaml, with its keys
                    name, state = next(iter(state.items()))
                return f"{name}: {state}" if name else str(kind)
    return "changed"


def table(steps: Sequence[Step]) -> Iterator[str]:
    """A line for each stage, with how long it took last time; then the sum."""
    last, total, unknown, others = durations.last(), 0.0, False, False
    for step in steps:
        took = last.get(step.name)
        time = "" if took is None else f"last time {clock(took.seconds)}{'' if took.same_params else ', other params'}"
        yield f"  {step.name:9} {'runs' if step.why else 'up to date':11} {time:32} {step.why}".rstrip()
        if step.why:
            total, unknown = total + (took.seconds if took else 0.0), unknown or took is None
            others = others or bool(took and not took.same_params)
    if total:
        more = " and the stages that have not run yet" if unknown else ""
        yield f"  {clock(total)}{more}, if each takes as long as last time{' with other params' if others else ''}"
    elif unknown:
        yield "  how long is not known: none of these has run here yet"
