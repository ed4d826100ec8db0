"""A measured run from the outs of a working copy, or of a DVC experiment or git revision."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.comparing import measured
from pipeline.comparing.measured import Cost, MeasuredRun, PictureSet, Points
from pipeline.evaluation.trained import METRICS, OUT
from pipeline.runtime import digests, documents, git, machines, revisions, run_record
from pipeline.shards.manifest import MANIFEST, Manifest

EXPERIMENT = "DVC experiment"
"""The origin of an experiment's run."""

Read = Callable[[str], bytes | None]
"""Reads a file of the working copy or of the revision by its path; None if it is not there."""


def here(folder: Path, name: str = "") -> MeasuredRun:
    """The run whose outs are in a working copy; `ValueError` if a file in it is damaged."""
    file = folder / OUT / "predictions.parquet"
    run = _run(name or folder.resolve().name, "working copy", partial(_file, folder))
    commit = git.commit() if folder.resolve() == Path.cwd().resolve() else ""
    run = dataclasses.replace(run, **_trained(folder))
    return dataclasses.replace(run, commit=commit, predictions=(lambda: file.open("rb")) if file.exists() else None)


def _trained(folder: Path) -> dict[str, Any]:
    """Date, fingerprint and cost of the training that made data/model.pt, as far as the runs' folder has its record."""
    model = folder / "data/model.pt"
    if not model.is_file():
        return {}
    digest = digests.of(model)
    for file in machines.runs(machines.read()).glob(f"*/{run_record.FILE}"):
        if record := run_record.read(file.parent, digest):
            machine = ", ".join(filter(None, (str(record.facts.get(name) or "") for name in ("host", "gpu"))))
            cost = Cost(minutes=record.seconds / 60, images_per_second=record.images_per_second, machine=machine)
            return {"date": record.began, "fingerprint": file.parent.name, "cost": cost}
    return {}


def revision(name: str, commit: str) -> MeasuredRun:
    """The run of an experiment or a revision. What is neither in DVC's cache nor in a remote storage is named in `notes`."""
    experiment = bool(git.output("for-each-ref", f"refs/exps/**/{name}"))
    run = _run(name, EXPERIMENT if experiment else "git revision", partial(revisions.read, commit))
    out = (OUT / "predictions.parquet").as_posix()
    return dataclasses.replace(
        run,
        commit=commit,
        date=git.output("show", "-s", "--format=%cI", commit),
        predictions=partial(revisions.opened, commit, out, "evaluate"),
    )


def _file(folder: Path, path: str) -> bytes | None:
    file = folder / path
    return file.read_bytes() if file.is_file() else None


def _run(name: str, origin: str, read: Read) -> MeasuredRun:
    lock = _yaml(read("dvc.lock"), f"{name}: dvc.lock").get("stages", {})
    document = _yaml(read("params.yaml"), f"{name}: params.yaml")
    recorded = {section: value for stage in lock.values() for section, value in _sections(stage).items()}
    notes = []
    if changed := sorted(key for key, value in measured.flat(recorded).items() if _differs(document, key, value)):
        notes.append(
            f"params.yaml was changed after this run ({', '.join(changed[:5])}): shown are the values of dvc.lock"
        )
    values = {**document, **recorded}
    metrics_bytes = read(str(METRICS))
    metrics = documents.load(metrics_bytes, METRICS, "evaluate") if metrics_bytes else {}
    state = "finished" if metrics else "not evaluated"
    if metrics and (trained := _trained_later(lock)):
        notes.append(trained)
        state, metrics = "not evaluated", {}
    curves = {}
    for table in ("steps", "epochs"):
        data = read(f"data/history/{table}.csv")
        curves[table] = _points(data, f"data/history/{table}.csv") if data else ()
    if not curves["epochs"]:
        notes.append("its curves are not at hand: dvc pull, or dvc exp pull, fetches data/history if it was pushed")
    return MeasuredRun(
        name=name, origin=origin, state=state, params=measured.flat(values), rates=measured.rates(metrics),
        tested=_tested(values, read("data/shards/" + MANIFEST), metrics), steps=curves["steps"], epochs=curves["epochs"],
        notes=tuple(notes),
    )  # fmt: skip


def _yaml(data: bytes | None, where: str) -> dict[str, Any]:
    try:
        document = YAML(typ="safe").load(io.BytesIO(data or b"{}"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{where}: not YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(document, dict):
        raise ValueError(f"{where}: has to be a mapping, is {type(document).__name__}")
    return document


def _sections(stage: Mapping[str, Any]) -> dict[str, Any]:
    sections: dict[str, Any] = stage.get("params", {}).get("params.yaml", {})
    return sections


def _differs(document: Mapping[str, Any], key: str, value: object) -> bool:
    now = measured.flat(document)
    return not key.startswith("report.") and now.get(key, value) != value


def _trained_later(lock: Mapping[str, Any]) -> str:
    """A sentence if the network in dvc.lock is not the one that was evaluated; else empty."""
    made = {out["path"]: out.get("md5") for out in lock.get("train", {}).get("outs", [])}
    tested = {dep["path"]: dep.get("md5") for dep in lock.get("evaluate", {}).get("deps", [])}
    model = "data/model.pt"
    if model in made and model in tested and made[model] != tested[model]:
        return "metrics.json is of an earlier network: run dvc repro evaluate"
    return ""


def _points(data: bytes, file: str) -> Points:
    return documents.rows(data, {"step": float}, Path(file), "train", others=lambda text: float(text or "nan"))


def _tested(document: Mapping[str, Any], data: bytes | None, metrics: Mapping[str, Any]) -> PictureSet:
    split = document.get("results", {}).get("split", "")
    tested = PictureSet(
        split=split,
        made=measured.made(document),
        images=metrics.get("images"),
        classes=metrics.get("classes"),
        source=document.get("source", {}).get("name", ""),
        drawn=True if document.get("source", {}).get("name") == "sample" else None,
    )
    if data is None:
        return tested
    manifest = documents.parse(data, Manifest, Path("data/shards") / MANIFEST, "resize")
    sums = [[each.wnid for each in manifest.classes], [shard.sha256 for shard in manifest.shards.get(split, ())]]
    pictures = hashlib.sha256(json.dumps(sums).encode()).hexdigest()
    return dataclasses.replace(tested, pictures=pictures, manifest=manifest.digest, drawn=manifest.drawn)
