"""Reading runs back from MLflow: parameters, errors, tags, curves and files, as plain values. Nothing is written."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

FILES = ("evaluation/metrics.json",)
"""Artifacts of a run that are read with it; they are small."""

MOST = 200
"""The most runs that are looked through for a name."""

CURVES = ("train/", "val/", "held_out/", "rate", "epoch")
"""How the names of the metrics begin that have a value for many steps."""

Record = dict[str, Any]


def last(client: MlflowClient, experiment: str, number: int) -> list[Record]:
    """The newest trainings of an experiment, newest first, and the champions wherever they are, without curves; no ensembles."""
    champions = _champions(client)
    runs = _search(client, experiment, "tags.stage != 'ensemble'", number)
    listed = {run.info.run_id for run in runs}
    for run_id in champions.keys() - listed:
        with suppress(MlflowException):  # a deleted run leaves its model
            runs.append(client.get_run(run_id))
    return [
        _plain(client, run) | {"champion": champions.get(run.info.run_id, ""), "listed": run.info.run_id in listed}
        for run in runs
    ]


def named(client: MlflowClient, experiment: str, name: str) -> list[Record]:
    """The newest run with this id, fingerprint or name, with its curves, then the ids of others that have it.

    The name may be the run's own or its DVC experiment's; of an id or a fingerprint, a beginning of eight characters suffices.
    """
    quoted = name.replace("'", "")
    keys = ("attributes.run_name", "tags.`dvc.exp_name`", "tags.fingerprint", "attributes.run_id")
    exact = [f"{key} = '{quoted}'" for key in keys]
    runs = next((found for query in exact if (found := _search(client, experiment, query, MOST))), [])
    if not runs and len(name) >= 8:
        runs = [
            run
            for run in _search(client, experiment, "", MOST)
            if run.info.run_id.startswith(name) or run.data.tags.get("fingerprint", "").startswith(name)
        ]
    return [_plain(client, run) | {"curves": _curves(client, run)} for run in runs[:1]] + [
        {"run_id": run.info.run_id} for run in runs[1:]
    ]


def _search(client: MlflowClient, experiment: str, query: str, number: int) -> list[Run]:
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return []
    order = ["attributes.start_time DESC", "attributes.run_id"]
    return list(client.search_runs([found.experiment_id], query, max_results=number, order_by=order))


def _champions(client: MlflowClient) -> dict[str, str]:
    """Id of the run → name of the registered model whose champion it made."""
    champions: dict[str, str] = {}
    for model in client.search_registered_models(max_results=100):
        with suppress(MlflowException):  # it has no champion
            champions[str(client.get_model_version_by_alias(model.name, "champion").run_id)] = str(model.name)
    return champions


def _plain(client: MlflowClient, run: Run) -> Record:
    profiles = [each.dataset for each in run.inputs.dataset_inputs] if run.inputs else []
    return {
        "run_id": run.info.run_id,
        "name": run.info.run_name,
        "status": run.info.status,
        "start": run.info.start_time,
        "end": run.info.end_time,
        "params": dict(run.data.params),
        "metrics": {name: _value(value) for name, value in run.data.metrics.items() if not name.startswith("system/")},
        "tags": {name: value for name, value in run.data.tags.items() if not name.startswith("mlflow.log")},
        "pictures": [{"name": each.name, "profile": each.profile} for each in profiles],
        "files": _files(client, run) if any(name.endswith("/top1_error") for name in run.data.metrics) else {},
    }


def _files(client: MlflowClient, run: Run) -> dict[str, str]:
    files: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in FILES:
            with suppress(
                MlflowException, OSError
            ):  # an older run, or a server without its artifacts: it has fewer facts
                files[name] = Path(client.download_artifacts(run.info.run_id, name, folder)).read_text(encoding="utf-8")
    return files


def _curves(client: MlflowClient, run: Run) -> dict[str, list[tuple[int, float | str]]]:
    names: Iterable[str] = (name for name in run.data.metrics if name.startswith(CURVES))
    return {
        name: [(each.step, _value(each.value)) for each in client.get_metric_history(run.info.run_id, name)]
        for name in names
    }


def _value(value: float) -> float | str:
    """The value as JSON has it: NaN and infinity are text."""
    return value if json.dumps(value)[-1].isdigit() else str(value)
