"""A run's life in MLflow, from the first parameter to the registered model; all of mlflow.

One run stands for one fingerprint: `train` makes it, the later stages find it by its tag and add to it. Only drivers
know of MLflow; what the workers measure they tell their driver.
"""

from __future__ import annotations

if __name__ == "__main__":  # before all that takes long to import
    from pipeline.__main__ import main as enter

    enter("tracking")

import copy
import hashlib
import json
import logging
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import psutil
from filelock import FileLock

from pipeline import machine as machines
from pipeline.machine import Machine
from pipeline.tables import Manifest

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as Record

    from alexnet.model import Classifier, Model

BATCH = 1000
"""Metrics to a request: the most that MLflow takes."""

WEIGHTS = PurePosixPath("extra_files/model.pt")
"""Where model.pt lies in an MLflow model."""

# Read when mlflow is imported, so set before; nobody is told of a run but its own server
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# An exported program keeps its device, and ours is the CPU; where there is a GPU, MLflow would try that
os.environ.setdefault("MLFLOW_DEFAULT_PREDICTION_DEVICE", "cpu")


@dataclass
class Run:
    """The run that is under way: what `run` gives to a stage."""

    uri: str
    run_id: str
    fingerprint: str
    manifest: Manifest | None
    _last: dict[str, int] | None = field(default=None, repr=False, compare=False)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of one step."""
        self.log_all([(step, metrics)])

    def log_all(self, rows: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Writes the metrics of many steps, in their order, each metric only past its last step.

        A resumed training goes again through steps that were written before it was killed. Those are left out, so
        that every metric keeps one value for each step. NaN is written: a run that diverged should show it.
        Raises `OSError` if the server is gone.
        """
        with _plainly(self.uri):
            from mlflow.entities import Metric

            last, now, new = self._lasts(), int(time.time() * 1000), []
            for step, metrics in rows:
                for name, value in metrics.items():
                    if step > last.get(name, -1):
                        new.append(Metric(name, float(value), now, step))
                        last[name] = step
            for start in range(0, len(new), BATCH):
                _client(self.uri).log_batch(self.run_id, metrics=new[start : start + BATCH])

    def score(self, metrics: Mapping[str, float]) -> None:
        """Writes metrics that have no step. One that is measured again is written again only if it changed."""
        with _plainly(self.uri):
            known = _client(self.uri).get_run(self.run_id).data.metrics
        for name, value in metrics.items():
            same = name in known and (known[name] == value or (math.isnan(known[name]) and math.isnan(value)))
            if not same:
                self.log(self._lasts().get(name, -1) + 1, {name: value})

    def _lasts(self) -> dict[str, int]:
        """The last step written, by metric; asked for once, since nobody else writes this run's metrics."""
        if self._last is None:
            record = _client(self.uri).get_run(self.run_id)
            # The public `metrics` has no steps, and a metric's whole history is long
            self._last = {metric.key: metric.step for metric in record.data._metric_objs}
        return self._last

    def tag(self, name: str, words: str) -> None:
        """Writes a tag, in place of what it was."""
        with _plainly(self.uri):
            _client(self.uri).set_tag(self.run_id, name, words)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Adds a file, or what a folder holds, to the run's artifacts, under `folder`."""
        with _plainly(self.uri):
            client, run_id = _client(self.uri), self.run_id
            if path.is_dir():
                client.log_artifacts(run_id, str(path), folder)
            else:
                client.log_artifact(run_id, str(path), folder)

    def model(self, classifier: Classifier, classes: Iterable[tuple[str, str]], weights: bytes) -> str:
        """Adds the network as an MLflow model, with signature and example, and returns its URI `models:/m-…`.

        It takes float32 B×3×224×224 (227 where the network does), RGB from 0 to 255, to probabilities B×K. `classes` are
        pairs of WordNet id and words, by label; they go with the model as `classes.json`. So does model.pt, whose bytes
        `weights` are: what is served is an exported program, with which no training can go on.
        """
        import numpy as np
        import torch

        assert self.manifest is not None, "a model is of some pictures"
        # The exported program keeps the mode, the device and the batch size it was traced with: so a copy, in eval
        # mode, on the CPU, with two pictures and a signature that leaves their number open.
        served, side = copy.deepcopy(classifier).cpu().eval(), classifier.network.model.patch
        rise = np.arange(side, dtype=np.float32) * (255 / max(1, side - 1))
        example = np.broadcast_to(rise, (2, 3, side, side)).copy()
        with torch.inference_mode():
            classes_number = int(served(torch.from_numpy(example)).shape[1])
        with _plainly(self.uri), tempfile.TemporaryDirectory() as folder:
            import mlflow.pytorch
            from mlflow.models import ModelSignature
            from mlflow.types.schema import Schema, TensorSpec

            words = Path(folder) / "classes.json"
            words.write_text(json.dumps([list(pair) for pair in classes], indent=1) + "\n")
            trained = Path(folder) / WEIGHTS.name
            trained.write_bytes(weights)
            kind = np.dtype(np.float32)
            signature = ModelSignature(
                inputs=Schema([TensorSpec(kind, (-1, 3, side, side))]),
                outputs=Schema([TensorSpec(kind, (-1, classes_number))]),
            )
            with warnings.catch_warnings():
                # of weights that lie in memory channels last; tests compare what comes out
                warnings.filterwarnings("ignore", message="No complete tensor found")
                info = mlflow.pytorch.log_model(
                    served,
                    name="model",
                    signature=signature,
                    input_example=example,
                    extra_files=[str(words), str(trained)],
                    pip_requirements=_requirements(),
                    tags={"fingerprint": self.fingerprint, "manifest": self.manifest.digest},
                )
        return str(info.model_uri)

    def publish(
        self, classifier: Classifier, classes: Iterable[tuple[str, str]], weights: bytes, error: float
    ) -> tuple[str, ...]:
        """Registers the network as `candidate`, as `champion` too if it errs less than the one there is.

        `weights` are the bytes of its model.pt: what was registered once is not stored again. `error` is the top-1 error,
        from 0 to 1. Errors on different pictures do not compare: a champion of another manifest stays until a person
        moves the alias. Each kind of network has a registered model of its own, and so have drawn pictures. Returns the
        aliases given.
        """
        assert self.manifest is not None, "a model is of some pictures"
        name, digest = model_name(classifier.network.model, self.manifest), hashlib.sha256(weights).hexdigest()
        tags = {
            "fingerprint": self.fingerprint,
            "manifest": self.manifest.digest,
            "weights": digest,
            "top1_error": repr(error),
        }
        with _plainly(self.uri):
            import mlflow

            client = _client(self.uri)
            known = client.search_model_versions(f"name = '{name}' and tags.weights = '{digest}'")
            if known:
                version = known[0].version
                client.set_model_version_tag(name, version, "top1_error", tags["top1_error"])
            else:
                version = mlflow.register_model(self.model(classifier, classes, weights), name, tags=tags).version
            champion = _champion(client, name)
            aliases = ("candidate", "champion") if beats(tags, champion) else ("candidate",)
            for alias in aliases:
                client.set_registered_model_alias(name, alias, version)
        if champion is not None and champion["manifest"] != tags["manifest"]:
            print(f"{name}@champion was measured on other pictures and stays; this model is {name} version {version}")
        return aliases


@contextmanager
def run(
    machine: Machine,
    fingerprint: str,
    params: Mapping[str, Any],
    manifest: Manifest | None,
    stage: str,
    *,
    adopt: bool = False,
) -> Iterator[Run]:
    """The MLflow run of `fingerprint`, under way while the block runs; ends FINISHED, FAILED or KILLED.

    An unfinished run of the same stage goes on; one that FINISHED goes on only if `adopt`, as for the stages after
    `train`. Otherwise there is a new one. `params` may be nested; each is logged once. `manifest`: of the pictures, where
    they are at hand. Raises `OSError` if the
    tracking server does not answer, before any work is done.
    """
    uri = address(machine)
    with _plainly(uri):
        record = _begin(uri, fingerprint, stage, adopt)
    status = "FINISHED"
    try:
        with _plainly(uri):
            _describe(uri, record, params, manifest, _tags(fingerprint, stage, manifest))
        yield Run(uri, record.info.run_id, fingerprint, manifest)
    except BaseException as error:
        # Stopped is a SystemExit: told to end, which is no fault of the run
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        raise
    finally:
        with _plainly(uri) if status == "FINISHED" else _quietly():
            import mlflow

            mlflow.end_run(status)


def address(machine: Machine) -> str:
    """The tracking URI: machine.yaml's, else `MLFLOW_TRACKING_URI`, else `mlflow.db` in the storage or working copy.

    A path in it is made absolute: MLflow resolves it where the process happens to be, and Ray moves its workers.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") if machine.tracking == "auto" else machine.tracking
    if not uri:
        return f"sqlite:///{machines.base(machine) / 'mlflow.db'}"
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{machines.home() / uri.removeprefix('sqlite:///')}"
    if not urlsplit(uri).scheme or uri.startswith("file:"):
        raise ValueError(
            f"tracking: {uri} is a folder, which MLflow {_version()} no longer takes. "
            "Give a server's address (http://host:5000) or a database (sqlite:////path/mlflow.db)"
        )
    return uri


def weights(machine: Machine, model: str) -> bytes:
    """The model.pt of an MLflow model: models:/name@alias, models:/name/3, models:/m-… or runs:/…/model.

    Raises `OSError` if there is none, or the tracking server does not answer.
    """
    uri = address(machine)
    with _plainly(uri), _impatient(), tempfile.TemporaryDirectory() as folder:
        import mlflow

        _hush()
        mlflow.set_tracking_uri(uri)
        # all of it, since of the names of a model not each takes a path behind it
        file = Path(mlflow.artifacts.download_artifacts(model, dst_path=folder)) / WEIGHTS
        if not file.is_file():
            raise OSError(
                f"MLflow at {_public(uri)}: {model} has no model.pt, as `evaluate` adds it. Give the file itself"
            )
        return file.read_bytes()


def model_name(model: Model, manifest: Manifest) -> str:
    """The registered model's name: alexnet, vgg16 or resnet50, and -drawn behind it for drawn pictures."""
    return f"{model.network}-drawn" if manifest.drawn else model.network


def beats(tags: Mapping[str, str], champion: Mapping[str, str] | None) -> bool:
    """Whether a model of these tags takes the champion's place: fewer errors on the same pictures."""
    if champion is None:
        return not math.isnan(float(tags["top1_error"]))
    same = tags["manifest"] == champion["manifest"]
    return same and float(tags["top1_error"]) < float(champion["top1_error"])


def flat(params: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Nested parameters under dotted names, as words: `{"learning": {"rate": 0.01}}` is `learning.rate` = 0.01."""
    found: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{above}{key}.")
        else:
            found[f"{above}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return found


# How a run begins


def _begin(uri: str, fingerprint: str, stage: str, adopt: bool) -> Record:
    """Starts MLflow's current run, found or new."""
    import mlflow

    _hush()
    mlflow.set_tracking_uri(uri)
    with _only_one(uri), _impatient():
        client = _client(uri)
        experiment = _experiment(client, uri)
        _close_abandoned(client, experiment)
        found = _find(client, experiment, fingerprint, stage, adopt)
        system = os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true").lower() not in ("false", "0")
        mlflow.set_experiment(experiment_id=experiment)
        name = f"{os.environ.get('DVC_EXP_NAME') or 'alexnet'}-{fingerprint[:8]}"
        tags = {"fingerprint": fingerprint, "process": _process()}
        if found is None:
            return mlflow.start_run(run_name=name, tags=tags, log_system_metrics=system)
        # Before it is RUNNING, or another start could take it for abandoned
        client.set_tag(found.info.run_id, "process", tags["process"])
        return mlflow.start_run(run_id=found.info.run_id, log_system_metrics=system)


def _experiment(client: MlflowClient, uri: str) -> str:
    """The experiment's id; made if it is not there."""
    from mlflow.exceptions import MlflowException

    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "alexnet"
    found = client.get_experiment_by_name(name)
    if found is None:
        # A server knows where it keeps artifacts; with a database they would land in the current folder
        beside = uri.startswith("sqlite:///")
        place = (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri() if beside else None
        try:
            return str(client.create_experiment(name, artifact_location=place))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another was faster
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise ValueError(f"MLflow's experiment '{name}' is deleted. Restore it, or set MLFLOW_EXPERIMENT_NAME")
    return str(found.experiment_id)


def _find(client: MlflowClient, experiment: str, fingerprint: str, stage: str, adopt: bool) -> Record | None:
    """The latest run that this stage may go on with."""
    given = os.environ.get("MLFLOW_RUN_ID")
    if given:
        return client.get_run(given)
    wanted = f"tags.fingerprint = '{fingerprint}'"
    for record in client.search_runs([experiment], wanted, order_by=["attributes.start_time DESC"]):
        mine = record.data.tags.get("process") == _process()
        if record.info.status == "RUNNING" and _owner_lives(record) and not mine:
            continue  # the same training in another working copy
        unfinished = record.info.status != "FINISHED" and record.data.tags.get("stage", stage) == stage
        if adopt or unfinished:
            return record
    return None


def _close_abandoned(client: MlflowClient, experiment: str) -> None:
    """Ends as KILLED what a dead process of this machine left RUNNING, whatever its fingerprint."""
    for record in client.search_runs([experiment], "attributes.status = 'RUNNING'"):
        if _owner_lives(record) is False:
            client.set_terminated(record.info.run_id, "KILLED")


def _process() -> str:
    """This process, in words that no other process has: with its start, since numbers are used again."""
    return f"{socket.gethostname()} {os.getpid()} {psutil.Process().create_time():.2f}"


def _owner_lives(record: Record) -> bool | None:
    """Whether the process that started the run is there; None if it was one of another machine."""
    host, _, process = record.data.tags.get("process", "").partition(" ")
    if host != socket.gethostname():
        return None
    number, _, began = process.partition(" ")
    try:
        return f"{psutil.Process(int(number)).create_time():.2f}" == began
    except (psutil.Error, ValueError):
        return False


def _describe(
    uri: str, record: Record, params: Mapping[str, Any], manifest: Manifest | None, tags: Mapping[str, str]
) -> None:
    """Parameters that the run does not have, tags, and the data set."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

    client, words = _client(uri), flat(params)
    # MLflow lets nobody change a parameter. Only a stage after training can, and then a tag tells the later value
    known = record.data.params
    new = [Param(key, value) for key, value in words.items() if key not in known]
    changed = {f"now.{key}": value for key, value in words.items() if known.get(key, value[:6000]) != value[:6000]}
    for start in range(0, len(new), 100):
        client.log_batch(record.info.run_id, params=new[start : start + 100])
    client.log_batch(record.info.run_id, tags=[RunTag(key, value) for key, value in {**tags, **changed}.items()])

    if manifest is None:
        return
    pictures = {split: manifest.rows(split) for split in sorted(manifest.shards)}
    data = Dataset(
        name="drawn pictures" if manifest.drawn else "pictures",
        digest=manifest.digest[:32],  # the column is short; the tag `manifest` has all 64
        source_type="code",
        source=json.dumps({"tags": {"manifest": manifest.digest}}),
        profile=json.dumps(pictures),
    )
    context = [InputTag("mlflow.data.context", "training")]
    client.log_inputs(record.info.run_id, [DatasetInput(data, context)])


def _tags(fingerprint: str, stage: str, manifest: Manifest | None) -> dict[str, str]:
    tags = {
        "fingerprint": fingerprint,
        "stage": stage,
        "manifest": manifest.digest if manifest else "",
        "host": socket.gethostname(),
        "process": _process(),
        "gpu": _gpu(),
        "dvc.stage": os.environ.get("DVC_STAGE", ""),
        "dvc.exp_name": os.environ.get("DVC_EXP_NAME", ""),
        "ray.job_id": _ray_job(),
    }
    commit = _git("rev-parse", "HEAD")
    if commit:
        tags["git.commit"] = commit
        tags["git.dirty"] = str(bool(_git("status", "--porcelain", "--untracked-files=no"))).lower()
    return {name: value for name, value in tags.items() if value}


def _git(*words: str) -> str:
    try:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _gpu() -> str:
    # Not torch.cuda: asking it for a name takes up memory of the GPU for as long as this process lives
    try:
        import pynvml
    except ImportError:
        return ""
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return ", ".join(str(pynvml.nvmlDeviceGetName(handle)) for handle in handles)
    except pynvml.NVMLError:
        return ""


def _ray_job() -> str:
    # What `ray job submit` tells the driver that it starts; it is there before the driver has joined the cluster
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    return str((config.get("metadata") or {}).get("job_submission_id", ""))


# How MLflow is spoken to


def _client(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).parent.is_dir():
        raise ValueError(
            f"{uri}: no such folder on {socket.gethostname()}. A database file serves one machine; "
            "for several, run `mlflow server` and set tracking in machine.yaml"
        )
    return MlflowClient(uri)


def _only_one(uri: str) -> AbstractContextManager[object]:
    """Holds off others while a database may be made: four processes that find none spoil each other's tables."""
    if not uri.startswith("sqlite:///"):
        return nullcontext()
    file = Path(uri.removeprefix("sqlite:///"))
    file.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{file}.lock")


@contextmanager
def _impatient() -> Iterator[None]:
    """Lets a server that is not there fail in seconds; later on MLflow may wait, as it does by itself."""
    wished = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
    before = {name: os.environ.get(name) for name in wished}
    os.environ.update({name: value for name, value in wished.items() if before[name] is None})
    try:
        yield
    finally:
        for name in wished:
            if before[name] is None:
                os.environ.pop(name, None)


@contextmanager
def _plainly(uri: str) -> Iterator[None]:
    """Turns MLflow's exceptions into an `OSError` that says which server, without its password."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise OSError(f"MLflow at {_public(uri)}: {str(error).replace(uri, _public(uri))}") from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Lets the error that is already under way through, not one about telling the server."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        print(f"the run could not be ended in MLflow: {type(error).__name__}", file=sys.stderr)


def _public(uri: str) -> str:
    parts = urlsplit(uri)
    if not parts.hostname or "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _hush() -> None:
    """Keeps the log to what a reader of a stage can use, unless MLflow's own setting says otherwise."""
    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)


def _champion(client: MlflowClient, name: str) -> dict[str, str] | None:
    """The tags of the present champion, None if there is none."""
    from mlflow.exceptions import MlflowException

    try:
        version = client.get_model_version_by_alias(name, "champion")
    except MlflowException:
        return None
    return {"manifest": "", "top1_error": "nan", **version.tags}


def _requirements() -> list[str]:
    """What the served model needs. Given outright: to let MLflow find out takes longer than all the rest."""
    from importlib.metadata import version

    return [f"{package}=={version(package).partition('+')[0]}" for package in ("torch", "numpy")]


def _version() -> str:
    from importlib.metadata import version

    return version("mlflow")


def main() -> None:
    """Prints where the runs are, for `make ui`."""
    print(address(machines.read()))
