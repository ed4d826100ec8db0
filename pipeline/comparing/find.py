"""Finding measured runs by the names that people type: a folder, a study, an experiment, a revision, a run in MLflow."""

from __future__ import annotations

from pathlib import Path

from alexnet.names import cut
from pipeline.comparing import logged, outs, revisions, studied
from pipeline.comparing.measured import MeasuredRun
from pipeline.evaluation.trained import METRICS

HERE = ("here", ".")


def runs(name: str) -> list[MeasuredRun]:
    """The runs that a name means: those of a study, or one. `ValueError`, with what to type, if it means none.

    `here` is this working copy; STUDY:VARIANT one variant of a study. Otherwise a folder comes first, then a study, an experiment
    or a git revision, and a run in MLflow by its id, fingerprint or name.
    """
    if name in HERE:
        return [outs.here(Path(), "here")]
    study, _, variant = name.partition(":")
    if folder := studied.folder(name) or studied.folder(study):
        return studied.runs(folder, "" if studied.folder(name) else variant)
    if (Path(name) / "params.yaml").is_file():
        return [outs.here(Path(name))]
    if (studied.STUDIES / name / "program.py").is_file():
        raise ValueError(f"{name}: a study with a program of its own: studies/{name}/README.md has its results")
    if commit := revisions.commit(name):
        return [outs.revision(name, commit)]
    if run := logged.find(name):
        return [run]
    raise ValueError(
        f"{cut(name, 100)}: no folder with {METRICS}, study, experiment, revision or run in MLflow is called so. "
        "See: alexnet runs, dvc exp list, ls studies"
    )
