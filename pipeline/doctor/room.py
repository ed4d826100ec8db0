"""The memory and disk space that a run needs, compared with what is free; only a run that would fail is refused."""

from __future__ import annotations

import configparser
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet

from pipeline.runtime import machines, params
from pipeline.runtime.machines import Machine

ORDER = ("download", "resize", "mean", "train", "evaluate", "report")

LEAST = 64 * 2**20
"""Free bytes without which no stage begins."""

JPEG, SIDE = 12_000, 256
"""A low estimate of the bytes of a stored picture with this side; photographs have 30,000 at quality 95."""


# Measured on the sample, 2 cores, two processes: batches of 32, 256, 1,024 and 1,499 pictures take 4.0, 6.3, 11.0 and
# 15.5 GB in all. The constants below estimate 3.9, 5.5, 11.2 and 14.8.
RAY, PROCESS = 2_200_000_000, 700_000_000
"""Bytes of the stage with its Ray, and of each training process, before the first picture."""
KEPT = 2.35
"""Memory of a step per picture, as a multiple of what the backward pass saves for the picture."""
WIDER = {"float64": 2.0, "bfloat16": 0.6}
"""The same memory at other precisions, relative to float32."""

REFLINKS = ("btrfs", "xfs", "zfs", "apfs", "bcachefs", "overlay")
"""File systems that may store equal files once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkSize:
    """The size of the network of params.yaml."""

    parameters: int
    features: int
    """Features per picture that `evaluate` writes."""
    saved: int
    """Bytes that are saved for the backward pass per picture, in float32."""
    patch: int
    """Side of the input patches, in pixels."""


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that will be written to a folder."""

    folder: Path
    bytes: int
    what: str
    """What is written, in a word or two."""
    out: bool = False
    """Whether it becomes an out, which DVC also copies to its cache."""


def faults(name: str, document: Mapping[str, Any], network: NetworkSize | None, machine: Machine) -> list[str]:
    """The lack of space for stage `name` and the stages after it: a line for each disk, and one for the memory."""
    pictures = _pictures(name, document)
    needs = list(_needs(name, document, network, machine, pictures))
    if (cache := _cache()) is not None:
        needs += [Need(cache, need.bytes, "DVC's cache") for need in needs if need.out]
    lines = list(_disks([*_first(machine), *needs]))
    if network is not None and ORDER.index(name) <= ORDER.index("train"):
        lines += _memory(name, document, network, machine, pictures)
    return lines


def _pictures(name: str, document: Mapping[str, Any]) -> dict[str, int]:
    """Pictures of each split, as far as known before stage `name`; may be empty."""
    manifest, source = Path("data/shards/manifest.json"), document.get("source")
    try:
        if ORDER.index(name) > ORDER.index("resize"):
            shards = json.loads(manifest.read_bytes())["shards"]
            return {split: sum(shard["rows"] for shard in shards[split]) for split in shards}
        if name == "resize":
            index = pyarrow.parquet.read_table("data/index/index.parquet", columns=["split"])
            return {count["values"]: count["counts"] for count in index["split"].value_counts().to_pylist()}
        if isinstance(source, Mapping) and source.get("name") == "sample":
            return {"train": int(source["train_images"]), "val": int(source["val_images"])}
    except (OSError, ValueError, TypeError, KeyError):
        pass  # the stage that reads the file will report it
    return {}


def _first(machine: Machine) -> Iterator[Need]:
    """The folders to which every run writes."""
    yield Need(Path.cwd(), LEAST, "work in progress")
    yield Need(machines.base(machine), LEAST, "runs")
    if folder := _shards(machine):
        yield Need(folder, 0, "shards")


def _needs(
    name: str, document: Mapping[str, Any], network: NetworkSize | None, machine: Machine, pictures: Mapping[str, int]
) -> Iterator[Need]:
    """The known needs of stage `name` and of the stages after it."""
    done = ORDER.index(name)
    if network is None:
        return
    if name == "download":
        yield from _archives(machine)
    if done <= ORDER.index("resize") and (folder := _shards(machine)):
        each = _picture(document["resize"])
        finished = _below(Path("work/resize")) if folder == Path.cwd() else 0
        in_dvc = machine.shards == machine.storage == "auto"
        yield Need(folder, max(0, sum(pictures.values()) * each - finished), "shards", out=in_dvc)
    if done <= ORDER.index("train"):
        # two checkpoints of weights and velocity
        yield Need(machines.base(machine), 16 * network.parameters, "checkpoints")
        yield Need(Path.cwd(), 4 * network.parameters, "model.pt", out=True)
    if done <= ORDER.index("evaluate"):
        results = document["results"]
        rows = pictures.get(results["split"], 0) * 4 + (pictures.get("train", 0) * 2 if results["neighbours"] else 0)
        yield Need(Path.cwd(), rows * network.features, "evaluation", out=True)


def _archives(machine: Machine) -> Iterator[Need]:
    """The archives to be fetched to the data store, and the tars into which compressed ones are repacked."""
    from pipeline.download import SOURCES  # as the stage itself does

    source, store = params.read("source", SOURCES), machines.store(machine)
    if not isinstance(store, Path):
        return
    for remote in getattr(source, "remotes", ()):
        file = store / source.name / remote.name
        part, unpacked = file.with_name(file.name + ".part"), any((store / source.name).glob("*/"))
        if remote.bytes and not file.exists() and not unpacked:
            fetched = part.stat().st_size if part.exists() else 0
            yield Need(
                store, max(0, remote.bytes - fetched) + (remote.bytes if file.suffix != ".tar" else 0), "archives"
            )


def _picture(resize: Mapping[str, Any]) -> int:
    side = int(resize["side"])
    return side * side * 3 if resize["quality"] == "raw" else JPEG * side * side // SIDE**2


def _shards(machine: Machine) -> Path | None:
    """The folder of the shards; None if it is on an object store."""
    if machine.shards == "auto":
        return machines.base(machine)
    return None if "://" in machine.shards else Path(machine.shards)


def _cache() -> Path | None:
    """DVC's cache, if `dvc` runs this stage and copies outs there; None if its file system or `cache.type` links instead."""
    if "DVC_STAGE" not in os.environ:
        return None
    config = configparser.ConfigParser(interpolation=None)
    # the last file counts; an experiment's copy names the working copy's cache in its config.local
    config.read([Path.home() / ".config/dvc/config", ".dvc/config", ".dvc/config.local"])
    cache = config["cache"] if config.has_section("cache") else {}
    folder = (Path(".dvc") / cache.get("dir", "cache")).absolute()
    links = cache.get("type", "reflink,copy")
    copied = not ({"hardlink", "symlink"} & set(links.replace(" ", "").split(",")))
    return folder if copied and not ("reflink" in links and _system(_existing(folder)) in REFLINKS) else None


def _system(folder: Path) -> str:
    """The type of the folder's file system; empty if unknown."""
    disks = {Path(disk.mountpoint): disk.fstype for disk in psutil.disk_partitions(all=True)}
    return next((disks[path] for path in (folder, *folder.parents) if path in disks), "")


def _below(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _existing(folder: Path) -> Path:
    """The folder itself, or its nearest parent that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.is_dir())


def _disks(needs: list[Need]) -> Iterator[str]:
    """A line for each folder that is not writable, and for each disk with too little free space."""
    by_disk: dict[int, list[Need]] = {}
    for need in needs:
        folder = _existing(need.folder)
        if why := _unwritable(folder):
            yield f"{need.folder}: cannot be written to ({why}). Allow that, or name another folder in machine.yaml"
        by_disk.setdefault(folder.stat().st_dev, []).append(need)
    for disk in by_disk.values():
        folder, wanted = disk[0].folder, max(LEAST, sum(need.bytes for need in disk))
        free = shutil.disk_usage(_existing(folder)).free
        if free < wanted:
            what = ", ".join(dict.fromkeys(need.what for need in disk if need.bytes))
            yield (
                f"{folder}: {_gb(free)} are free on this disk, and at least {_gb(wanted)} will be written "
                f"({what}). Make room, or name another disk in machine.yaml (storage)"
            )


@functools.cache
def _unwritable(folder: Path) -> str:
    """The reason why the folder is not writable; empty if it is."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def _memory(
    name: str, document: Mapping[str, Any], network: NetworkSize, machine: Machine, pictures: Mapping[str, int]
) -> list[str]:
    """A line if the network is trained on this machine's CPUs and a batch does not fit into its memory."""
    elsewhere = (
        machine.ray_address != "auto" or os.environ.get("RAY_ADDRESS") or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    )
    on_gpu = machine.devices != "cpu" and Path("/dev/nvidia0").exists()
    if elsewhere or on_gpu:
        return []
    asked = int(document["learning"]["batch_size"])
    batch = min(asked, pictures.get("train", asked))
    fixed, each = _training(document, network, machine)
    free = _free() if name == "train" else _whole()
    if fixed + batch * each <= free:
        return []
    most = max(0, free - fixed) // each
    return [
        f"params.yaml: learning.batch_size: {asked}: a step with {batch:,} pictures takes some {_gb(fixed + batch * each)} "
        f"of memory, and {_gb(free)} are available. "
        + (f"Set at most {most:,}" if most else "Free some memory, or use a smaller network (model.width)")
    ]


def _training(document: Mapping[str, Any], network: NetworkSize, machine: Machine) -> tuple[int, int]:
    """Bytes that training on CPUs takes at any batch size, and that each picture of a batch adds."""
    processes = 1 if machine.placement == "one" or (os.cpu_count() or 1) < 2 else 2
    side, times = int(document["resize"]["side"]), WIDER.get(document["learning"]["precision"], 1.0)
    fixed = RAY + processes * PROCESS + 24 * network.parameters
    return fixed, int(processes * 3 * side * side + KEPT * times * network.saved)


def _free() -> int:
    """Bytes available to the training now."""
    return min(int(psutil.virtual_memory().available), _limit()) - _spare()


def _whole() -> int:
    """Bytes available to the training when nothing else runs."""
    return min(int(psutil.virtual_memory().total), _limit()) - _spare()


def _spare() -> int:
    return int(psutil.virtual_memory().total) // 20  # Ray's memory monitor kills workers in the last twentieth


def _limit() -> int:
    """The container's memory limit in bytes, or 2^63 if there is none."""
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return int(Path(file).read_text())
        except (OSError, ValueError):  # "max"
            continue
    return 2**63


def _gb(count: int) -> str:
    return f"{count / 1e9:,.1f} GB"
