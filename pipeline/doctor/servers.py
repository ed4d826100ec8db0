"""Looks at what is elsewhere: the Ray cluster, its nodes and its dashboard, MLflow's server, the object store."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import requests

from pipeline.doctor.finding import Finding, State
from pipeline.runtime import machines, paths, redaction
from pipeline.runtime.machines import Machine
from pipeline.runtime.paths import S3Path
from pipeline.tracking import database, runs

ANSWER = 4.0
"""Seconds that a server may take to answer."""

JOIN = 10.0
"""Seconds that joining a cluster and asking each node for its versions may take."""


def cluster() -> Sequence[Finding]:
    """The Ray cluster that machine.yaml or the environment names: whether it answers, and takes this machine's token."""
    try:
        address = machines.ray_address(machines.read())
    except ValueError as error:
        return [Finding("ray", "fault", str(error), "Set RAY_ADDRESS or machine.yaml: ray_address to host:6379")]
    version = metadata.version("ray")
    if address is None:
        return [Finding("ray", "ok", f"{version}; no cluster is named: a stage starts its own Ray on loopback")]
    if away := _away(address):
        todo = "Start it (ray start --head), or mend the address: machine.yaml: ray_address, or RAY_ADDRESS"
        return [Finding("ray", "fault", f"{address}: {away}", todo)]
    from pipeline.runtime import access  # imports Ray

    try:
        access.admit(address, ANSWER)
    except (ValueError, OSError) as error:
        what, _, todo = str(error).partition(". ")
        return [Finding("ray", "fault", what, todo or "Is it the address of a cluster's head, host:6379?")]
    return [Finding("ray", "ok", f"{address} answers, and takes this machine's token"), *_nodes(address)]


def _away(address: str) -> str | None:
    from pipeline.runtime import head

    try:
        return head.refusal(address, ANSWER)
    except OSError as error:
        return str(error)


def _nodes(address: str) -> Sequence[Finding]:
    """The versions on each node, asked by a process of its own, which can be ended."""
    code = "import sys; from pipeline.doctor.nodes import tell; tell(sys.argv[1])"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, address], capture_output=True, text=True, timeout=JOIN, check=False
        )
    except subprocess.TimeoutExpired:
        what = f"the nodes of {address} did not say their versions in {JOIN:g} s"
        return [Finding("nodes", "warning", what, "Look at them: ray status")]
    if done.returncode:
        what = next(iter(done.stderr.strip().splitlines()[-1:]), "no message")
        return [Finding("nodes", "fault", f"{address} cannot be joined: {what}", "Every node needs requirements.lock")]
    from pipeline.doctor import nodes

    return nodes.compared(done.stdout)


def dashboard() -> Sequence[Finding]:
    """The dashboard that RAY_API_SERVER_ADDRESS names, to which `ray job submit` sends a job."""
    address = os.environ.get("RAY_API_SERVER_ADDRESS")
    if not address:
        return []
    shown, url = redaction.redact(address), f"{address.rstrip('/')}/api/version"
    try:
        answer = requests.get(url, timeout=ANSWER, headers=_ray_token())
    except requests.RequestException as error:
        todo = "Is the head up, and the port forwarded (ssh -L 8265:127.0.0.1:8265 HEAD)?"
        return [Finding("dashboard", "fault", f"{shown}: {_words(error)}", todo)]
    if answer.status_code in (401, 403):
        todo = "Copy ~/.ray/auth_token from its head, or name the file in RAY_AUTH_TOKEN_PATH"
        return [Finding("dashboard", "fault", f"{shown} refuses this machine's token ({answer.status_code})", todo)]
    try:
        theirs = str(answer.json()["ray_version"])
    except (ValueError, KeyError, TypeError):
        what = f"{shown} answers {answer.status_code}, but is not Ray's dashboard"
        return [Finding("dashboard", "fault", what, "Set RAY_API_SERVER_ADDRESS to http://127.0.0.1:8265")]
    return [_same("dashboard", shown, "Ray", theirs, metadata.version("ray"), "fault")]


def _ray_token() -> dict[str, str]:
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray/auth_token")
    if not token and file.is_file():
        token = file.read_text().strip()
    return {"Authorization": f"Bearer {token}"} if token else {}


def tracking() -> Sequence[Finding]:
    """MLflow's server or database."""
    try:
        uri = runs.address(machines.read())
    except ValueError as error:
        return [Finding("tracking", "fault", str(error), "Mend machine.yaml: tracking, or MLFLOW_TRACKING_URI")]
    if uri.startswith(("http://", "https://")):
        return [_server(uri)]
    file, ours = database.path(uri), metadata.version("mlflow")
    if file is None:
        return [Finding("tracking", "ok", f"a database at {runs.public(uri)}, not asked; MLflow {ours}")]
    try:
        holder = database.holder(file)
    except OSError as error:
        return [
            Finding("tracking", "fault", str(error), "Mend it as it says, or name another in machine.yaml (tracking)")
        ]
    if holder:
        return [Finding("tracking", "warning", f"{file} is held by {holder}", "Wait for it, or end it")]
    state = "no run yet" if not file.exists() else f"{file.stat().st_size / 1e6:,.1f} MB"
    return [Finding("tracking", "ok", f"{file} ({state}); MLflow {ours}")]


def _server(uri: str) -> Finding:
    shown = runs.public(uri)
    login = os.environ.get("MLFLOW_TRACKING_USERNAME", ""), os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token and not login[0] else {}
    try:
        answer = requests.get(
            f"{uri.rstrip('/')}/version", timeout=ANSWER, auth=login if login[0] else None, headers=headers
        )
    except requests.RequestException as error:
        todo = "Start it (make ui), or mend machine.yaml: tracking, or MLFLOW_TRACKING_URI"
        return Finding("tracking", "fault", f"{shown}: {_words(error)}", todo)
    if answer.status_code in (401, 403):
        todo = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to what it takes"
        return Finding("tracking", "fault", f"{shown} refuses this login ({answer.status_code})", todo)
    theirs = answer.text.strip()
    if answer.status_code != 200 or len(theirs) > 40 or not theirs[:1].isdigit():
        todo = "Mend machine.yaml: tracking, or MLFLOW_TRACKING_URI: http://host:5000"
        return Finding("tracking", "fault", f"{shown} answers {answer.status_code}, but is not MLflow's server", todo)
    return _same("tracking", shown, "MLflow", theirs, metadata.version("mlflow"), "warning")


def _same(about: str, where: str, what: str, theirs: str, ours: str, state: State) -> Finding:
    """Whether a server has the version that is installed here; a patch of it may differ."""
    if theirs.split(".")[:2] == ours.split(".")[:2]:
        return Finding(about, "ok", f"{where} answers: {what} {theirs}")
    todo = "Install the version of requirements.lock there"
    return Finding(about, state, f"{where} has {what} {theirs[:40]}, here is {ours}", todo)


def store() -> Sequence[Finding]:
    """The object store, if machine.yaml names a bucket."""
    machine = machines.read()
    buckets = {path.key.parts[0]: path for path in map(paths.parse, _named(machine)) if isinstance(path, S3Path)}
    has_login = bool(os.environ.get("AWS_ACCESS_KEY_ID") and os.environ.get("AWS_SECRET_ACCESS_KEY"))
    profile = os.environ.get("AWS_PROFILE") or (Path.home() / ".aws/credentials").exists()
    login = "credentials from the environment" if has_login else "a profile" if profile else "no credentials here"
    if not buckets:
        return [Finding("s3", "ok", f"machine.yaml names no bucket; {login}")]
    return [_bucket(path, login) for path in buckets.values()]


def _named(machine: Machine) -> list[str]:
    return [word for word in (machine.store, machine.shards) if word != "auto"]


def _bucket(path: S3Path, login: str) -> Finding:
    try:
        path.system  # noqa: B018 - asks once whether the bucket is there
    except OSError as error:
        what, _, todo = str(error).partition(". ")
        return Finding("s3", "fault", f"{what} ({login})", todo)
    return Finding("s3", "ok", f"s3://{path.key.parts[0]} at {path.endpoint or 'Amazon S3'} answers; {login}")


def _words(error: requests.RequestException) -> str:
    """Why a server did not answer, in a few words."""
    if isinstance(error, requests.Timeout):
        return f"no answer in {ANSWER:g} s"
    text = str(error)
    known = {"refused": "nothing listens there", "resolve": "there is no such host", "CERTIFICATE": "its certificate"}
    return next((words for part, words in known.items() if part in text), type(error).__name__)


PROBES = {"ray": cluster, "dashboard": dashboard, "tracking": tracking, "s3": store}
