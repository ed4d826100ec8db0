"""What MLflow's pages of registered models and their versions say, in Markdown: pictures, errors, changes, and how to use one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.tracking import description
from pipeline.tracking.description import Pictures

if TYPE_CHECKING:
    from mlflow import MlflowClient

OURS = "description"
"""The tag with the digest of a description that was written here; one that a person changed has another digest, and stays."""

NUMBER = "{version}"
"""Stands for the number of a version, which is known when MLflow has registered it."""

USE = """\
```python
import mlflow.pyfunc
network = mlflow.pyfunc.load_model("{uri}")
network.predict(open("picture.jpg", "rb").read())
```

Or: `alexnet predict picture.jpg --model {uri}`, and over HTTP `alexnet serve --model {uri}`, then
`curl --data-binary @picture.jpg http://127.0.0.1:8000/predict`."""

MODEL = """\
Networks of the workflow that learned from {kind}. `champion` has the fewest errors, beyond its 95 % interval; `candidate` is the
newest that is not clearly worse. A picture is the bytes of a file, their base64, a `pathlib.Path` or an array of pixels,
H x W x 3; the answer has the five most probable classes.

{use}"""


def of_model(name: str, manifest: Pictures) -> str:
    """The description of a registered model."""
    kind = "pictures that a program drew, not photographs" if manifest.drawn else "photographs"
    return MODEL.format(kind=kind, use=USE.format(uri=f"models:/{name}@champion"))


def of_version(name: str, manifest: Pictures, errors: Mapping[str, float]) -> str:
    """The description of a version, with `NUMBER` for its number. `errors`: metrics.json's `ten_views`; empty if unknown."""
    lines = description.facts(manifest, errors or None)
    return "\n".join([*lines, "", USE.format(uri=f"models:/{name}/{NUMBER}")])


def write(client: MlflowClient, name: str, version: str, texts: Mapping[str, str]) -> None:
    """Writes the descriptions `model` and `version` to MLflow, but over none that a person wrote."""
    model, one = client.get_registered_model(name), client.get_model_version(name, version)
    if (text := texts["model"]) and _is_free(model, text):
        client.update_registered_model(name, description=text)
        client.set_registered_model_tag(name, OURS, _digest(text))
    if (text := texts["version"].replace(NUMBER, version)) and _is_free(one, text):
        client.update_model_version(name, version, description=text)
        client.set_model_version_tag(name, version, OURS, _digest(text))


def _is_free(entity: Any, text: str) -> bool:
    """Whether a description is missing, or was written here and is another one than `text`."""
    old = entity.description or ""
    return not old or (old != text and entity.tags.get(OURS) == _digest(old))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
