"""The trained network as an MLflow model: served, registered, and made champion."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import math
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
import torch
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import DataType, ParamSchema, ParamSpec
from mlflow.types.schema import Array, ColSpec, Schema

from alexnet.build import load
from alexnet.codec import encode_jpeg
from pipeline.tracking import packing

WEIGHTS = PurePosixPath("data/model.pt")
"""The path of model.pt in an MLflow model."""

WEIGHTS_BEFORE = PurePosixPath("extra_files/model.pt")
"""The same, in models that older code logged."""

PACKAGES = ("torch", "numpy", "pandas", "pillow", "simplejpeg")
"""What the served model imports, besides MLflow; torchvision has the other kinds of networks."""

MEASURED = frozenset({"top1_error", "top1_low", "top1_high", "guessing"})
"""The tags of a version that a new evaluation of equal weights replaces."""

UNKNOWN = (("top1_low", "0"), ("top1_high", "1"))
"""The ends of an unknown interval."""


@dataclass(frozen=True, slots=True)
class Published:
    """A network in MLflow's registry."""

    aliases: list[str]
    note: str
    """A message for the user, or ""."""
    version: str
    model_id: str | None
    """The id of the logged model, m-…."""


Working = Callable[[], AbstractContextManager[None]]
"""A context manager for computation in this process, whose time does not count as waiting for a server."""


def publish(
    client: MlflowClient, run_id: str, weights: bytes, name: str, tags: Mapping[str, str], working: Working
) -> Published:
    """Registers the network, and gives it the aliases that its error and its interval allow: see `deserved`.

    `tags`: `fingerprint`, `manifest`, `top1_error`, and if known `top1_low`, `top1_high` and `guessing`. Equal weights are
    stored once.
    """
    digest = hashlib.sha256(weights).hexdigest()
    tags = {**tags, "weights": digest}
    known = client.search_model_versions(f"name = '{name}' and tags.weights = '{digest}'")
    if known:
        version, model = known[0].version, str(known[0].source)
        for key in MEASURED & tags.keys():
            client.set_model_version_tag(name, version, key, tags[key])
    else:
        about = {key: tags[key] for key in ("fingerprint", "manifest", "weights")}
        model = _served(client, run_id, about) or serve(client, run_id, weights, about, working)
        with contextlib.redirect_stderr(io.StringIO()):  # the stage prints the version itself
            version = mlflow.register_model(model, name, tags=dict(tags)).version
    champion = _champion(client, name)
    again = champion and (champion["version"], champion["manifest"]) == (str(version), tags["manifest"])
    aliases, why = deserved(tags, None if again else champion)  # the champion is not compared with itself
    for alias in aliases:
        client.set_registered_model_alias(name, alias, version)
    return Published(aliases, f"{name} version {version}: {why}" if why else "", str(version), _model_id(model))


def _model_id(uri: str) -> str | None:
    """The id in a logged model's URI, models:/m-…; None for another URI, as of a model that a person registered."""
    word = uri.removeprefix("models:/")
    return word if word.startswith("m-") else None


def serve(client: MlflowClient, run_id: str, weights: bytes, tags: dict[str, str], working: Working) -> str:
    """Adds the network to the run as an MLflow model, with signature and example, and returns its URI `models:/m-…`.

    The model is `pipeline.inference.served`: it takes pictures as people have them, and needs no code of this repository but
    that which is packed with it. It contains model.pt, the bytes `weights`; no pickle is read when it is loaded.
    """
    with tempfile.TemporaryDirectory() as folder:
        with working():
            contents = packed(weights, Path(folder))
        run = client.get_run(run_id)
        # MLflow links the metrics of the named step to the model, without their data set; no metric has this step
        step = 1 + max((metric.step for metric in run.data._metric_objs), default=0)
        mlflow.set_experiment(experiment_id=run.info.experiment_id)
        mlflow.start_run(run_id=run_id, log_system_metrics=False)
        try:
            info = mlflow.pyfunc.log_model(name="model", tags=tags, step=step, **contents)
        finally:
            mlflow.end_run("RUNNING")
    return str(info.model_uri)


def packed(weights: bytes, folder: Path) -> dict[str, Any]:
    """What MLflow saves of a network, as the arguments of `mlflow.pyfunc.save_model`; the files are written to `folder`.

    `ValueError` if `weights` are not the bytes of a model.pt.
    """
    kind = load(io.BytesIO(weights))[0].model.network
    trained = folder / WEIGHTS.name
    trained.write_bytes(weights)
    package, loader = packing.pack(folder)
    return {
        "loader_module": loader,
        "data_path": str(trained),
        "code_paths": [str(package)],
        "signature": signature(),
        "input_example": example(),
        "pip_requirements": _requirements(kind),
    }


def signature() -> ModelSignature:
    """What the served model returns, and its params.

    It has no schema of inputs: MLflow's kinds of columns and tensors cannot say "bytes of a file, or text, or an array", and
    MLflow would refuse whatever they do not say. `served` checks its input itself.
    """
    words, numbers = Array(DataType.string), Array(DataType.double)
    columns = {"wnid": words, "name": words, "probability": numbers, "warnings": words}
    return ModelSignature(
        outputs=Schema([ColSpec(kind, name) for name, kind in columns.items()]),
        params=ParamSchema([ParamSpec("top", DataType.long, 5), ParamSpec("views", DataType.long, 10)]),
    )


def example() -> pd.DataFrame:
    """An input of the served model: a frame with a small JPEG, as base64, which is what JSON can hold."""
    rise = np.arange(64, dtype=np.uint8) * 4
    pixels_CHW = np.stack(np.broadcast_arrays(rise[:, None], rise[None], rise[::-1, None]))
    return pd.DataFrame({"image": [base64.b64encode(encode_jpeg(torch.from_numpy(pixels_CHW), 75)).decode()]})


def _served(client: MlflowClient, run_id: str, tags: dict[str, str]) -> str | None:
    """The URI of the run's stored model with these weights; None if there is none."""
    experiment = client.get_run(run_id).info.experiment_id
    words = f"source_run_id = '{run_id}' AND tags.weights = '{tags['weights']}'"
    # MLflow's database finds no model by the word of its status, which it stores as a number
    models = client.search_logged_models([experiment], filter_string=words)
    return next((str(model.model_uri) for model in models if model.status == LoggedModelStatus.READY), None)


def of_run(client: MlflowClient, name: str) -> str:
    """The URI of the network that a run logged last. `name`: the run's id, its fingerprint or its name; the latest run counts.

    `ValueError` if there is no such run, with the names of the latest ones, or if it logged no network.
    """
    experiments = [each.experiment_id for each in client.search_experiments()]
    quote = '"' if "'" in name else "'"
    keys = () if '"' in name else ("attributes.run_id", "tags.fingerprint", "attributes.run_name")
    order = ["attributes.start_time DESC"]
    runs = [
        run
        for key in keys
        for run in client.search_runs(experiments, f"{key} = {quote}{name}{quote}", max_results=20, order_by=order)
    ]
    for run in runs:
        # MLflow's database finds no model by the word of its status, which it stores as a number
        words, newest = f"source_run_id = '{run.info.run_id}'", [{"field_name": "creation_time", "ascending": False}]
        models = client.search_logged_models([run.info.experiment_id], words, order_by=newest)
        if ready := next((model for model in models if model.status == LoggedModelStatus.READY), None):
            return str(ready.model_uri)
    if runs:
        raise ValueError(f"the run {runs[0].info.run_name} ({runs[0].info.run_id}) has no network: `evaluate` adds it")
    latest = [str(run.info.run_name) for run in client.search_runs(experiments, max_results=3, order_by=order)]
    raise ValueError(
        f"no run has the id, the fingerprint or the name '{name}'; the latest: {', '.join(latest) or 'none'}"
    )


def fetch(model: str, folder: Path) -> Path | None:
    """Downloads an MLflow model, by any form of its URI, to `folder`, and returns its model.pt; None if it has none."""
    # the whole model, since not every form of a model's URI can be followed by a path
    top = Path(mlflow.artifacts.download_artifacts(model, dst_path=str(folder)))
    return next((file for file in (top / WEIGHTS, top / WEIGHTS_BEFORE) if file.is_file()), None)


def deserved(tags: Mapping[str, str], champion: Mapping[str, str] | None) -> tuple[list[str], str]:
    """The aliases of a model with these tags beside the champion's tags (None: no champion), and why not both, or "".

    Its 95 % interval decides: none if it contains or exceeds the error of guessing, or lies wholly above the champion's
    error; both if it lies wholly below; `candidate` between, or if the champion was measured on other pictures, whose errors
    do not compare. An unknown interval is 0 to 1.
    """
    error, low, high = (float(tags.get(key, other)) for key, other in (("top1_error", "nan"), *UNKNOWN))
    said = f"its top-1 error of {error:.1%} ({low:.1%} to {high:.1%})"
    guessing = float(tags.get("guessing", "nan"))
    if math.isnan(error) or high >= guessing:
        return [], f"no alias, since {said} cannot be told from guessing"
    if champion is None:
        return ["candidate", "champion"], ""
    if tags["manifest"] != champion["manifest"]:
        return ["candidate"], "candidate; the champion was measured on other pictures and stays until a person moves it"
    best = float(champion["top1_error"])
    if low > best:
        return [], f"no alias, since {said} is clearly above the champion's, {best:.1%}"
    if high < best:
        return ["candidate", "champion"], ""
    return ["candidate"], f"candidate; {said} cannot be told from the champion's, {best:.1%}, which stays"


def _champion(client: MlflowClient, name: str) -> dict[str, Any] | None:
    """The tags of the present champion; None if there is none."""
    try:
        version = client.get_model_version_by_alias(name, "champion")
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise  # the server did not answer, so there may be one
        return None
    return {"manifest": "", "top1_error": "nan", **version.tags, "version": str(version.version)}


def _requirements(kind: str) -> list[str]:
    """The served model's packages; listed here because MLflow's own search for them takes longer than all the rest."""
    packages = [*PACKAGES, *(["torchvision"] if kind != "alexnet" else [])]
    return [f"{package}=={metadata.version(package).partition('+')[0]}" for package in packages]
