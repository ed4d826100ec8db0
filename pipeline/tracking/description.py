"""A run's description in MLflow: parameters, data set, user, code and machine."""

from __future__ import annotations

import getpass
import json
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from alexnet.names import cut
from pipeline.runtime import git, owner, params, redaction
from pipeline.tracking import database

NAMED = 3
"""The most changed parameters that a run's name has."""

NOTE = "mlflow.note.content"
"""MLflow's tag for a description."""

COLUMNS = {
    "image": "binary",
    "label": "long",
    "wnid": "string",
    "id": "string",
    "width": "integer",
    "height": "integer",
    "sha256": "string",
}
"""The columns of the shards, by MLflow's names of types."""

LONGEST = 120
"""Most characters of a run's name."""


class Pictures(Protocol):
    """The manifest of a run's pictures."""

    @property
    def drawn(self) -> bool:
        """Whether a program drew them."""

    @property
    def digest(self) -> str:
        """Their digest, 64 hexadecimal digits."""

    @property
    def shards(self) -> Mapping[str, Any]:
        """Split → its shards."""

    def rows(self, split: str) -> int:
        """The number of pictures in a split."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The run that a stage asks for, in plain values, since it is sent to another process."""

    experiment: str
    artifacts: str | None
    """URI of the folder for the artifacts of a new experiment; None if a server decides."""
    name: str
    fingerprint: str
    stage: str
    adopt: bool
    """Whether to continue a run that is FINISHED."""
    run_id: str | None
    """The id of the run to continue, whatever its fingerprint; None to search by fingerprint."""
    owner: str
    params: dict[str, str]
    tags: dict[str, str]
    source: dict[str, str]
    """MLflow's own tags for user and source."""
    pictures: dict[str, str] | None
    """The data set: name, digest, source, schema and profile; None if it is unknown."""

    @property
    def plain(self) -> dict[str, Any]:
        """The fields as a dict, for JSON."""
        return asdict(self)


def wanted(
    uri: str, fingerprint: str, section: Mapping[str, Any], manifest: Pictures | None, stage: str, adopt: bool
) -> Wanted:
    """Describes the run that a stage asks for. `section`: its parameters, nested; `adopt`: whether to continue a FINISHED run."""
    file, commit, name = database.path(uri), git.commit(), run_name(section)
    described = {NOTE: note(name, manifest)} if stage == "train" else {}
    return Wanted(
        experiment=experiment(),
        # a server decides where it stores artifacts; for a database MLflow's default is the current folder
        artifacts=None if file is None else (file.parent / database.ARTIFACTS).as_uri(),
        name=name,
        fingerprint=fingerprint,
        stage=stage,
        adopt=adopt,
        run_id=os.environ.get("MLFLOW_RUN_ID") or None,
        owner=owner.identity(),
        params=words(section),
        tags=_tags(fingerprint, stage, manifest, commit) | described,
        source=_source(commit),
        pictures=None if manifest is None else pictures(manifest),
    )


def experiment() -> str:
    """The name of MLflow's experiment."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or "alexnet"


def run_name(section: Mapping[str, Any]) -> str:
    """A name that a person recognizes: the experiment or the source, what differs from the commit, and the seed.

    Such as `sample, learning.rate 0.02, seed 0`. `section`: the run's parameters, nested; if it has no `learning`, the seed is
    that of params.yaml. An ensemble is named after its `members`.
    """
    if members := section.get("members"):
        return cut(redaction.redact(f"ensemble of {', '.join(map(str, members))}"), LONGEST)
    here = params.load(params.PARAMS) if params.PARAMS.exists() else {}
    name = os.environ.get("DVC_EXP_NAME") or here.get("source", {}).get("name") or "alexnet"
    changed = [f"{key} {value}" for key, value in _changed(here).items() if key != "learning.seed"]
    more = [f"{len(changed) - NAMED} more changes"] if len(changed) > NAMED else []
    seed = (section.get("learning") or here.get("learning") or {}).get("seed")
    seeds = [] if seed is None else [f"seed {seed}"]
    return cut(redaction.redact(", ".join([name, *changed[:NAMED], *more, *seeds])), LONGEST)


def note(name: str, manifest: Pictures | None, errors: Mapping[str, float] | None = None) -> str:
    """The description of a run for its page, in Markdown. `name`: as `run_name` gives it.

    `errors`: metrics.json's `ten_views`, error rates from 0 to 1 with the ends of their 95 % intervals; None before `evaluate`.
    """
    lines = [f"**{_code(name)}**", "", *facts(manifest, errors)]
    lines += [
        "",
        "The report is under *Artifacts*, `report/index.html`. Beside other runs: `alexnet runs`, `alexnet compare`",
    ]
    return redaction.redact("\n".join(lines))


def facts(manifest: Pictures | None, errors: Mapping[str, float] | None) -> list[str]:
    """Lines of Markdown: errors with their intervals, the pictures, the commit, and the parameters that differ from it."""
    if errors is None:
        lines = ["- not evaluated yet"]
    else:
        lines = [
            f"- top-{top} error **{errors[f'top{top}_error']:.2%}** "
            f"({errors[f'top{top}_low']:.2%} to {errors[f'top{top}_high']:.2%}), ten views"
            for top in (1, 5)
        ]
    if manifest is not None:
        counts = ", ".join(f"{manifest.rows(split):,} {split}" for split in manifest.shards if manifest.rows(split))
        lines.append(f"- {'drawn by a program, not photographed' if manifest.drawn else 'pictures'}: {counts}")
    if commit := git.commit():
        lines.append(f"- commit {_code(commit[:12])}")
    here = params.load(params.PARAMS) if params.PARAMS.exists() else {}
    lines += [f"- changed from the commit: {_code(f'{key}: {value}')}" for key, value in _changed(here).items()]
    return [redaction.redact(line) for line in lines]


def _code(text: str) -> str:
    """Text from people as code in Markdown, in which nothing has a meaning."""
    return f"`{cut(text.replace('`', chr(39)), LONGEST)}`"


def changed() -> dict[str, str]:
    """The parameters of params.yaml, by dotted key, whose values are not those of the checked-out commit."""
    return _changed(params.load(params.PARAMS)) if params.PARAMS.exists() else {}


def _changed(here: Mapping[str, Any]) -> dict[str, str]:
    """The parameters, by dotted key, whose values are not those of the checked-out commit; none if it has no params.yaml."""
    try:
        committed = YAML(typ="safe", pure=True).load(git.output("show", f"HEAD:./{params.PARAMS}")) or {}
    except YAMLError:
        committed = {}
    if not isinstance(committed, dict) or not committed:
        return {}
    before = words(committed)
    return {key: value for key, value in words(here).items() if before.get(key) != value}


def words(section: Mapping[str, Any]) -> dict[str, str]:
    """Parameters as MLflow stores them: `{"learning": {"rate": 0.01}}` becomes `{"learning.rate": "0.01"}`.

    Secrets in the values, such as a login in an address, are removed.
    """
    return {key: redaction.word(value) for key, value in params.flat(section).items()}


def pictures(manifest: Pictures) -> dict[str, str]:
    """The fields of MLflow's Dataset."""
    here = params.load(params.PARAMS) if params.PARAMS.exists() else {}
    source = words({"source": here.get("source") or {}})
    return {
        "name": "drawn pictures" if manifest.drawn else "pictures",
        "digest": manifest.digest[:32],  # the column is short; the tag `manifest` has all 64
        "source_type": "code",
        "source": json.dumps(
            {"tags": {"mlflow.source.name": "dvc repro resize", "manifest": manifest.digest, **source}}
        ),
        "schema": json.dumps({"mlflow_colspec": [{"name": name, "type": kind} for name, kind in COLUMNS.items()]}),
        "profile": json.dumps({split: manifest.rows(split) for split in sorted(manifest.shards)}),
    }


def _source(commit: str) -> dict[str, str]:
    """MLflow's own tags for user and source, without the git remote's address, which may have a token in it."""
    tags = {
        "mlflow.user": _user(),
        "mlflow.source.name": redaction.redact(sys.argv[0]),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": commit,
    }
    return {name: value for name, value in tags.items() if value}


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # in a container whose user has no name
        return ""


def _tags(fingerprint: str, stage: str, manifest: Pictures | None, commit: str) -> dict[str, str]:
    tags = {
        "fingerprint": fingerprint,
        "stage": stage,
        "manifest": manifest.digest if manifest else "",
        "host": socket.gethostname(),
        "process": owner.identity(),
        "gpu": _gpu(),
        "dvc.stage": os.environ.get("DVC_STAGE", ""),
        "dvc.exp_name": os.environ.get("DVC_EXP_NAME", ""),
        "ray.job_id": _ray_job(),
        "git.commit": commit or "no git",
    }
    if commit:
        tags["git.dirty"] = str(bool(git.output("status", "--porcelain", "--untracked-files=no"))).lower()
    return {name: redaction.redact(value) for name, value in tags.items() if value}


def _gpu() -> str:
    # not torch.cuda, which would take GPU memory for as long as this process lives
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
    # `ray job submit` sets this variable for its driver, which can read it before it has joined the cluster
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    return str((config.get("metadata") or {}).get("job_submission_id", ""))
