"""Starting a run in MLflow: found by its fingerprint or new, with its parameters, tags and data set."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pipeline.runtime import owner

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as Record


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The run that a stage asks for, as plain values: it is sent to another process."""

    experiment: str
    artifacts: str | None
    """Folder for the artifacts of a new experiment; None if a server decides."""
    name: str
    fingerprint: str
    stage: str
    adopt: bool
    """Whether to continue a run that is FINISHED."""
    run_id: str | None
    """The run to continue, whatever its fingerprint."""
    owner: str
    params: dict[str, str]
    tags: dict[str, str]
    source: dict[str, str]
    """MLflow's own tags for user and source."""
    pictures: dict[str, str] | None
    """The data set: name, digest, source and profile."""

    @property
    def plain(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return asdict(self)


def begin(client: MlflowClient, wanted: Wanted, ending: set[str]) -> str:
    """Starts the run, found or new, and returns its id. `ending`: ids of runs whose end is in a journal."""
    experiment = _experiment(client, wanted)
    _close_abandoned(client, experiment, ending)
    found = _find(client, experiment, wanted)
    tags = {"fingerprint": wanted.fingerprint, "process": wanted.owner}
    if found is None:
        made = client.create_run(experiment, run_name=wanted.name, tags=wanted.source | tags)
        run_id, known = made.info.run_id, {}
    else:
        run_id, known = found.info.run_id, dict(found.data.params)
        # Before it is RUNNING, or another start could take it for abandoned
        client.set_tag(run_id, "process", wanted.owner)
        client.update_run(run_id, status="RUNNING")
    _describe(client, run_id, known, wanted)
    return str(run_id)


def _experiment(client: MlflowClient, wanted: Wanted) -> str:
    """The experiment's id; made if it is not there."""
    from mlflow.exceptions import MlflowException

    name = wanted.experiment
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=wanted.artifacts))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another was faster
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise ValueError(f"MLflow's experiment '{name}' is deleted. Restore it, or set MLFLOW_EXPERIMENT_NAME")
    return str(found.experiment_id)


def _find(client: MlflowClient, experiment: str, wanted: Wanted) -> Record | None:
    """The latest run that this stage may go on with."""
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
    """Ends as KILLED the runs that dead processes of this machine left RUNNING, whatever their fingerprints."""
    for record in client.search_runs([experiment], "attributes.status = 'RUNNING'"):
        abandoned = owner.lives(record.data.tags.get("process", "")) is False
        if abandoned and record.info.run_id not in ending:
            client.set_terminated(record.info.run_id, "KILLED")


def _describe(client: MlflowClient, run_id: str, known: dict[str, str], wanted: Wanted) -> None:
    """Writes the parameters that the run lacks, tags, and the data set."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

    words = wanted.params
    # MLflow lets nobody change a parameter. Only a stage after training can, and then a tag tells the later value
    new = [Param(key, value) for key, value in words.items() if key not in known]
    changed = {f"now.{key}": value for key, value in words.items() if known.get(key, value[:6000]) != value[:6000]}
    for start in range(0, len(new), 100):
        client.log_batch(run_id, params=new[start : start + 100])
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in {**wanted.tags, **changed}.items()])
    if wanted.pictures is not None:
        context = [InputTag("mlflow.data.context", "training")]
        client.log_inputs(run_id, [DatasetInput(Dataset(**wanted.pictures), context)])
