"""This machine: its folders, addresses and workers, from machine.yaml. Nothing here decides a result."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.runtime import params, paths
from pipeline.runtime.paths import AnyPath


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """machine.yaml: every key is optional; without the file all are `auto` or their default. See machine.example.yaml."""

    store: str = "auto"
    """Folder of the original archives, or s3://bucket/folder. auto: `store` in the storage, or `data/store` in the working
    copy."""
    shards: str = "auto"
    """Absolute folder of the shards, or s3://bucket/folder. auto: `shards` in the storage, or `data/shards` in the working
    copy. If the shards are not in the working copy, DVC tracks only their manifest."""
    mirrors: Mapping[str, str] = field(default_factory=dict)
    """Mirrors for downloads: beginning of an address → its replacement."""
    storage: str = "auto"
    """Absolute folder on a file system that all nodes share, for archives, shards, runs and MLflow. auto: the working copy."""
    ray_address: str = "auto"
    """host:port of a running Ray cluster. auto: `RAY_ADDRESS` if it is set, otherwise a new cluster on this machine."""
    workers: Literal["auto"] | int = "auto"
    """Number of processes that read, resize and classify. auto: one for each CPU of the cluster."""
    devices: Literal["auto", "cpu"] | int = "auto"
    """Number of GPUs to train on. auto: all of the cluster's; cpu: none."""
    placement: Literal["auto", "one", "columns", "replicas"] = "auto"
    """one: one process has both columns; columns: a process for each column, and replicas of such pairs;
    replicas: every process has both columns. auto: columns, but one process on a single GPU."""
    checkpoint_steps: int = 1000
    """Steps between two checkpoints within an epoch; another one is written after each epoch."""
    patience: int = 300
    """Seconds that `train` waits for a step of its workers, or ten times the longest step so far if that is more. It waits
    three times as long for the workers to begin, for a missing node, and for another process that has the run. The other
    stages end a stopped worker after this time, and give up after three times as long if no task finds room on the cluster."""
    other_code: Literal["refuse", "continue"] = "refuse"
    """What `train` does with a run that was begun by other code: refuse it, or continue it."""
    tracking: str = "auto"
    """MLflow's tracking URI. auto: `MLFLOW_TRACKING_URI` if it is set, otherwise `mlflow.db` in the storage or working copy."""

    def __post_init__(self) -> None:
        for name in ("workers", "devices", "checkpoint_steps", "patience"):
            count = getattr(self, name)
            if isinstance(count, int) and count < 1:
                raise ValueError(f"{name} has to be at least 1, is {count}")
        for start, mirror in self.mirrors.items():
            if not mirror.startswith(("http://", "https://")):
                # the value is not printed: it may be a login
                raise ValueError(f"mirrors: the mirror of {start} has to begin with http:// or https://")
        storage, shards, _ = (self._at(name) for name in ("storage", "shards", "store"))
        if self.storage != "auto" and not (isinstance(storage, Path) and storage.is_absolute()):
            raise ValueError(f"storage has to be an absolute path, since the workers run elsewhere; is {storage}")
        if self.shards != "auto" and isinstance(shards, Path) and not shards.is_absolute():
            raise ValueError(f"shards has to be an absolute path or s3://bucket/folder, is {shards}")

    def _at(self, name: str) -> AnyPath:
        try:
            return paths.parse(getattr(self, name))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


def read() -> Machine:
    """Reads the file that `ALEXNET_MACHINE` names, otherwise `machine.yaml`; the defaults if there is neither.

    Raises `ParamsError` if a key or value is wrong.
    """
    variable = os.environ.get("ALEXNET_MACHINE")
    file = Path(variable) if variable else home() / "machine.yaml"
    if not variable and not file.exists():
        return Machine()
    return params.check(params.load(file), Machine, file)


def home() -> Path:
    """The permanent working copy: under `dvc exp run --temp` a stage runs in a temporary one, and DVC_ROOT names this one."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


def shared(machine: Machine) -> Path | None:
    """machine.yaml's `storage`, the folder that all nodes share; None if it is `auto`."""
    return None if machine.storage == "auto" else Path(machine.storage)


def base(machine: Machine) -> Path:
    """The folder for permanent files that are not DVC outs: the storage, or the permanent working copy."""
    return shared(machine) or home()


def store(machine: Machine) -> AnyPath:
    """The data store: the folder of the archives, which is never a DVC out and never deleted by a stage."""
    if machine.store != "auto":
        path = paths.parse(machine.store)
        return home() / path if isinstance(path, Path) else path
    return home() / "data" / "store" if shared(machine) is None else base(machine) / "store"


def runs(machine: Machine) -> Path:
    """The folder of the training runs: one folder of checkpoints and results for each fingerprint."""
    return base(machine) / "runs"


def ray_address(machine: Machine) -> str | None:
    """host:port of the cluster to join; None if neither machine.yaml nor the environment names one.

    Raises `ValueError` for any other form of address.
    """
    address = os.environ.get("RAY_ADDRESS") if machine.ray_address == "auto" else machine.ray_address
    if not address or address == "local":
        return None
    shown = f"RAY_ADDRESS={address}" if machine.ray_address == "auto" else f"machine.yaml: ray_address: {address}"
    if address.startswith(("http:", "https:")):
        raise ValueError(
            f"{shown} is a dashboard's address. Stages need the cluster's own, host:6379; "
            "`ray job submit` takes the dashboard's as RAY_API_SERVER_ADDRESS"
        )
    host, _, port = address.rpartition(":")
    if "/" in host or not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ValueError(f"{shown} is no cluster's address: it has to be host:port, such as head:6379")
    return address
