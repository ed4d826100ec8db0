"""Starting a run in MLflow: an existing one with the same fingerprint or a new one, with parameters, tags and data set."""

from __future__ import annotations

import contextlib

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag
from mlflow.entities import Run as Record
from mlflow.exceptions import MlflowException

from pipeline.runtime import owner
from pipeline.tracking import description, pages
from pipeline.tracking.description import Wanted


def begin(client: MlflowClient, wanted: Wanted, ending: set[str]) -> str:
    """Continues an existing run or creates one, and returns its id. `ending`: ids of runs whose end is in an unsent journal."""
    experiment = _experiment(client, wanted)
    _close_abandoned(client, experiment, ending)
    existing = _find(client, experiment, wanted)
    tags = {"fingerprint": wanted.fingerprint, "process": wanted.owner}
    if existing is None:
        new = client.create_run(experiment, run_name=wanted.name, tags=wanted.source | tags)
        run_id, params = new.info.run_id, {}
    else:
        if description.NOTE in existing.data.tags:  # which may have the errors already
            wanted.tags.pop(description.NOTE, None)
        run_id, params = existing.info.run_id, dict(existing.data.params)
        # set before the run is RUNNING, so that another start cannot take it for abandoned
        client.set_tag(run_id, "process", wanted.owner)
        client.update_run(run_id, status="RUNNING")
    _describe(client, run_id, params, wanted)
    with contextlib.suppress(MlflowException):  # of a server that lets nobody change an experiment's tags
        pages.update(client, client.get_experiment(experiment))
    return str(run_id)


def _experiment(client: MlflowClient, wanted: Wanted) -> str:
    """Returns the experiment's id; creates the experiment if it does not exist."""
    name = wanted.experiment
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name, artifact_location=wanted.artifacts))
        except MlflowException:
            experiment = client.get_experiment_by_name(name)  # another process was faster
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise ValueError(f"MLflow's experiment '{name}' is deleted. Restore it, or set MLFLOW_EXPERIMENT_NAME")
    return str(experiment.experiment_id)


def _find(client: MlflowClient, experiment: str, wanted: Wanted) -> Record | None:
    """The latest run that this stage may continue; None if there is none."""
    if wanted.run_id:
        return client.get_run(wanted.run_id)
    same = f"tags.fingerprint = '{wanted.fingerprint}'"
    for record in client.search_runs([experiment], same, order_by=["attributes.start_time DESC"]):
        process = record.data.tags.get("process", "")
        if record.info.status == "RUNNING" and process != wanted.owner and owner.lives(process):
            continue  # the same training in another working copy
        unfinished = record.info.status != "FINISHED" and record.data.tags.get("stage", wanted.stage) == wanted.stage
        if wanted.adopt or unfinished:
            return record
    return None


def _close_abandoned(client: MlflowClient, experiment: str, ending: set[str]) -> None:
    """Sets to KILLED all RUNNING runs whose process on this machine is dead, whatever their fingerprints."""
    for record in client.search_runs([experiment], "attributes.status = 'RUNNING'"):
        abandoned = owner.lives(record.data.tags.get("process", "")) is False
        if abandoned and record.info.run_id not in ending:
            client.set_terminated(record.info.run_id, "KILLED")


def _describe(client: MlflowClient, run_id: str, params: dict[str, str], wanted: Wanted) -> None:
    """Writes tags, the data set, and the parameters that are not among the run's `params` yet."""
    words = wanted.params
    # MLflow's parameters cannot be changed. If one differs, which is possible only after training, a tag has the new value
    new = [Param(key, value) for key, value in words.items() if key not in params]
    changed = {f"now.{key}": value for key, value in words.items() if params.get(key, value[:6000]) != value[:6000]}
    for start in range(0, len(new), 100):
        client.log_batch(run_id, params=new[start : start + 100])
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in {**wanted.tags, **changed}.items()])
    if wanted.pictures is not None:
        context = [InputTag("mlflow.data.context", "training")]
        client.log_inputs(run_id, [DatasetInput(Dataset(**wanted.pictures), context)])
