"""Finding measured runs by the names that people type: a folder, a study, an experiment, a revision, a run in MLflow."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from alexnet.names import cut
from pipeline.comparing import logged, outs, studied
from pipeline.comparing.measured import MeasuredRun
from pipeline.evaluation.trained import METRICS
from pipeline.runtime import git

HERE = ("here", ".")


def runs(names: Sequence[str]) -> list[MeasuredRun]:
    """The runs that names mean: each one run, or those of a study. `ValueError`, with what to type, for a name that means none.

    `here` is this working copy; STUDY:VARIANT one variant of a study. Otherwise a folder comes first, then a study, an experiment
    or a git revision, and a run in MLflow by its id, fingerprint or name. MLflow is asked once for all names, also for what the
    experiments among them cost.
    """
    found = {name: _nearby(name) for name in dict.fromkeys(names)}
    asked = [name for name, those in found.items() if not those or those[0].origin == outs.EXPERIMENT]
    logs = dict(zip(asked, logged.find(asked), strict=True)) if asked else {}
    for name, log in logs.items():
        if those := found[name]:
            found[name] = [_with_cost(those[0], log)]
        elif log is not None:
            found[name] = [log]
        else:
            raise ValueError(
                f"{cut(name, 100)}: no folder with {METRICS}, study, experiment, revision or run in MLflow is called "
                f"so{_nearest(name)} See: alexnet runs, dvc exp list, ls studies"
            )
    return [run for name in dict.fromkeys(names) for run in found[name]]


def _nearby(name: str) -> list[MeasuredRun]:
    """The runs that a name means without MLflow; none if it means none."""
    if name in HERE:
        return [outs.here(Path(), "here")]
    study, _, variant = name.partition(":")
    if folder := studied.folder(name) or studied.folder(study):
        return studied.runs(folder, "" if studied.folder(name) else variant)
    if (Path(name) / "params.yaml").is_file():
        return [outs.here(Path(name))]
    if (studied.STUDIES / name / "program.py").is_file():
        raise ValueError(f"{name}: a study with a program of its own: studies/{name}/README.md has its results")
    commit = git.commit_of(name)
    return [outs.revision(name, commit)] if commit else []


def _nearest(name: str) -> str:
    """The end of the sentence: the study or experiment that was probably meant, if one is similar."""
    known = [file.parent.name for file in studied.STUDIES.glob("*/README.md")] + git.experiments()
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else "."


def _with_cost(run: MeasuredRun, log: MeasuredRun | None) -> MeasuredRun:
    """An experiment's run with what its run in MLflow records besides."""
    if log is None:
        return run
    return dataclasses.replace(run, cost=log.cost, date=log.date, fingerprint=log.fingerprint)
