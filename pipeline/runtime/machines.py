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
    """machine.yaml: every key is optional, and `auto` without the file. See machine.example.yaml."""

    store: str = "auto"
    """Folder of the original archives, or s3://bucket/folder. auto: `store` in the storage, or `data/store` in the working
    copy."""
    shards: str = "auto"
    """Absolute folder of the shards, or s3://bucket/folder. auto: `shards` in the storage, or `data/shards` in the working
    copy. Where they are not in the working copy, DVC holds their manifest."""
    mirrors: Mapping[str, str] = field(default_factory=dict)
    """Mirrors to fetch files from: beginning of an address → its replacement."""
    storage: str = "auto"
    """Absolute folder that every node sees, for archives, shards, runs and MLflow. auto: this working copy alone."""
    ray_address: str = "auto"
    """host:port of a running Ray cluster. auto: `RAY_ADDRESS` if it is set, else a cluster of this machine alone."""
    workers: Literal["auto"] | int = "auto"
    """Processes that read, resize and classify at once. auto: one for each CPU of the cluster."""
    devices: Literal["auto", "cpu"] | int = "auto"
    """GPUs to train on. auto: all of the cluster; cpu: none."""
    placement: Literal["auto", "one", "columns", "replicas"] = "auto"
    """one: one process holds both columns; columns: a process for each column, and replicas of such pairs;
    replicas: every process holds both columns. auto: columns, but one process on a single GPU."""
    checkpoint_steps: int = 1000
    """Steps between two checkpoints within an epoch; one is written after each epoch as well."""
    patience: int = 300
    """Seconds for which `train` waits for a step of its workers, or ten times the longest one; three times that for them to
    begin, for a node that is missing, and for another process that has the run. The other stages end a stopped worker after
    it, and give up tasks that find no room on the cluster after three times that."""
    other_code: Literal["refuse", "continue"] = "refuse"
    """What `train` does about a run that other code has begun: refuse, or go on with it all the same."""
    tracking: str = "auto"
    """MLflow's tracking URI. auto: `MLFLOW_TRACKING_URI` if it is set, else `mlflow.db` in the storage or working copy."""

    def __post_init__(self) -> None:
        for name in ("workers", "devices", "checkpoint_steps", "patience"):
            count = getattr(self, name)
            if isinstance(count, int) and count < 1:
                raise ValueError(f"{name} has to be at least 1, is {count}")
        for start, mirror in self.mirrors.items():
            if not mirror.startswith(("http://", "https://")):
                # without the value: what begins otherwise may be a login
                raise ValueError(f"mirrors: what stands for {start} has to begin with http:// or https://")
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
    """This machine, as the file `$ALEXNET_MACHINE` says, else `machine.yaml`; without either all is `auto`."""
    named = os.environ.get("ALEXNET_MACHINE")
    file = Path(named) if named else home() / "machine.yaml"
    if not named and not file.exists():
        return Machine()
    return params.check(params.load(file), Machine, file)


def home() -> Path:
    """The working copy that lasts. Under `dvc exp run --temp` a stage runs in a copy that does not; DVC names both."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


def shared(machine: Machine) -> Path | None:
    """The folder that all nodes see; None without a storage."""
    return None if machine.storage == "auto" else Path(machine.storage)


def base(machine: Machine) -> Path:
    """The folder for lasting files that are not DVC outs: the storage, or the working copy that lasts."""
    return shared(machine) or home()


def store(machine: Machine) -> AnyPath:
    """The folder of the archives: never a DVC out, never deleted by a stage."""
    if machine.store != "auto":
        named = paths.parse(machine.store)
        return home() / named if isinstance(named, Path) else named
    return home() / "data" / "store" if shared(machine) is None else base(machine) / "store"


def runs(machine: Machine) -> Path:
    """The folder of the training runs, with a folder of checkpoints and results for each fingerprint."""
    return base(machine) / "runs"


def ray_address(machine: Machine) -> str | None:
    """host:port of the cluster to join; None if there is none. `ValueError` for any other form of address."""
    given = os.environ.get("RAY_ADDRESS") if machine.ray_address == "auto" else machine.ray_address
    if not given or given == "local":
        return None
    named = f"RAY_ADDRESS={given}" if machine.ray_address == "auto" else f"machine.yaml: ray_address: {given}"
    if given.startswith(("http:", "https:")):
        raise ValueError(
            f"{named} is a dashboard's address. Stages need the cluster's own, host:6379; "
            "`ray job submit` takes the dashboard's as RAY_API_SERVER_ADDRESS"
        )
    host, _, port = given.rpartition(":")
    if "/" in host or not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ValueError(f"{named} is no cluster's address: it has to be host:port, such as head:6379")
    return given
