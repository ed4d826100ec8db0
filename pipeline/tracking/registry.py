"""The trained network as an MLflow model: served, registered, and made champion."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import tempfile
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature

    from alexnet.build import Classifier

WEIGHTS = PurePosixPath("extra_files/model.pt")
"""Where model.pt lies in an MLflow model."""


Working = Callable[[], AbstractContextManager[None]]
"""A context for work in this process, which does not wait for a server."""


def publish(
    client: MlflowClient, run_id: str, weights: bytes, name: str, tags: Mapping[str, str], working: Working
) -> tuple[list[str], str]:
    """Registers the network as `candidate`, and as `champion` too if its error is lower than the present champion's.

    Equal weights are stored once. Errors on different pictures cannot be compared: a champion of another manifest stays until
    a person moves the alias. Returns the aliases, and a line for the user or nothing.
    """
    import mlflow

    digest = hashlib.sha256(weights).hexdigest()
    tags = {**tags, "weights": digest}
    known = client.search_model_versions(f"name = '{name}' and tags.weights = '{digest}'")
    if known:
        version = known[0].version
        client.set_model_version_tag(name, version, "top1_error", tags["top1_error"])
    else:
        about = {key: tags[key] for key in ("fingerprint", "manifest", "weights")}
        model = _served(client, run_id, about) or serve(client, run_id, weights, about, working)
        with contextlib.redirect_stderr(io.StringIO()):  # it says what our caller says
            version = mlflow.register_model(model, name, tags=dict(tags)).version
    champion = _champion(client, name)
    aliases = ["candidate", "champion"] if beats(tags, champion) else ["candidate"]
    for alias in aliases:
        client.set_registered_model_alias(name, alias, version)
    if champion is not None and champion["manifest"] != tags["manifest"]:
        return (
            aliases,
            f"{name}@champion was measured on other pictures and stays; this model is {name} version {version}",
        )
    return aliases, ""


def serve(client: MlflowClient, run_id: str, weights: bytes, tags: dict[str, str], working: Working) -> str:
    """Adds the network to the run as an MLflow model, with signature and example, and returns its URI `models:/m-…`.

    It takes float32 B×3×224×224 (227 where the network does), RGB from 0 to 255, to probabilities B×K. The classes go with
    it by label, as `classes.json`, in pairs of WordNet id and words. So does model.pt, whose bytes `weights` are: what is
    served is an exported program, with which no training can go on.
    """
    with working():
        import mlflow.pytorch

        served, classes, example, signature = _prepared(weights)
    mlflow.set_experiment(experiment_id=client.get_run(run_id).info.experiment_id)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        words = Path(folder) / "classes.json"
        words.write_text(json.dumps([list(pair) for pair in classes], indent=1) + "\n")
        trained = Path(folder) / WEIGHTS.name
        trained.write_bytes(weights)
        # of weights that lie in memory channels last; tests compare what comes out
        warnings.filterwarnings("ignore", message="No complete tensor found")
        mlflow.start_run(run_id=run_id, log_system_metrics=False)
        try:
            info = mlflow.pytorch.log_model(
                served,
                name="model",
                signature=signature,
                input_example=example,
                extra_files=[str(words), str(trained)],
                pip_requirements=_requirements(),
                tags=tags,
            )
        finally:
            mlflow.end_run("RUNNING")
    return str(info.model_uri)


def _prepared(weights: bytes) -> tuple[Classifier, list[list[str]], NDArray[np.float32], ModelSignature]:
    """The network to be served, its classes, an input example, and its signature."""
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Schema, TensorSpec

    from alexnet.build import Classifier, load

    network, facts = load(io.BytesIO(weights))
    # The exported program keeps the mode, the device and the batch size it was traced with: so in eval mode, on the CPU,
    # with two pictures and a signature that leaves their number open.
    served, side = Classifier(network, facts["mean"]).cpu().eval(), network.model.patch
    rise = np.arange(side, dtype=np.float32) * (255 / max(1, side - 1))
    example = np.broadcast_to(rise, (2, 3, side, side)).copy()
    with torch.inference_mode():
        classes_number = int(served(torch.from_numpy(example)).shape[1])
    kind = np.dtype(np.float32)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(kind, (-1, 3, side, side))]),
        outputs=Schema([TensorSpec(kind, (-1, classes_number))]),
    )
    return served, facts["classes"], example, signature


def _served(client: MlflowClient, run_id: str, tags: dict[str, str]) -> str | None:
    """The run's stored model of these weights, if it was not registered yet; else None."""
    experiment = client.get_run(run_id).info.experiment_id
    words = f"source_run_id = '{run_id}' AND tags.weights = '{tags['weights']}' AND status = 'READY'"
    found = client.search_logged_models([experiment], filter_string=words, max_results=1)
    return str(found[0].model_uri) if found else None


def fetch(model: str, folder: Path) -> Path | None:
    """Downloads an MLflow model by any of its names, and returns its model.pt; None if it has none."""
    import mlflow

    # all of it, since of the names of a model not each takes a path behind it
    file = Path(mlflow.artifacts.download_artifacts(model, dst_path=str(folder))) / WEIGHTS
    return file if file.is_file() else None


def beats(tags: Mapping[str, str], champion: Mapping[str, str] | None) -> bool:
    """Whether a model with these tags becomes champion: a lower error on the same pictures."""
    if champion is None:
        return not math.isnan(float(tags["top1_error"]))
    same = tags["manifest"] == champion["manifest"]
    return same and float(tags["top1_error"]) < float(champion["top1_error"])


def _champion(client: MlflowClient, name: str) -> dict[str, Any] | None:
    """The tags of the present champion, None if there is none."""
    from mlflow.exceptions import MlflowException

    try:
        version = client.get_model_version_by_alias(name, "champion")
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise  # a server that is away has not said that there is none
        return None
    return {"manifest": "", "top1_error": "nan", **version.tags}


def _requirements() -> list[str]:
    """The served model's packages. Listed here, since MLflow takes longer to find them than for all the rest."""
    return [f"{package}=={metadata.version(package).partition('+')[0]}" for package in ("torch", "numpy")]
