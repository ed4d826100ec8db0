"""Looks at this machine: Python, the locked packages, git, DVC, the settings, disk, memory, GPUs."""

from __future__ import annotations

import os
import platform
import re
import shutil
import stat
import sys
import tomllib
from collections.abc import Iterator, Sequence
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from pipeline.doctor import preflight, room
from pipeline.doctor.finding import Finding, State
from pipeline.runtime import git, machines, params

LOCK = Path("requirements.lock")

ENOUGH = 10 * 2**30
"""Free bytes of a disk below which a warning is given: the environment has 7 GB, a run of the sample 1 GB."""

NAMED = 5
"""The most packages that a line names."""

AGAIN = "Make the environment again: make clean, then make .venv/ready"


def python() -> Sequence[Finding]:
    """The version of Python, and whether it runs in an environment."""
    wanted = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    version = platform.python_version()
    seen = f"{version}, in {sys.prefix}"
    if not SpecifierSet(wanted).contains(version, prereleases=True):
        return [Finding("python", "fault", f"{seen}; it has to be {wanted}", AGAIN)]
    if sys.prefix == sys.base_prefix:
        return [Finding("python", "warning", f"{seen}, which is no environment of its own", "make .venv/ready")]
    return [Finding("python", "ok", seen)]


def lock() -> Sequence[Finding]:
    """The installed packages, compared with requirements.lock."""
    wanted = [each for each in locked(LOCK.read_text(encoding="utf-8")) if not each.marker or each.marker.evaluate()]
    other = []
    for each in wanted:
        try:
            version = metadata.version(each.name)
        except metadata.PackageNotFoundError:
            other.append(f"{each.name} is missing")
            continue
        if not each.specifier.contains(version, prereleases=True):
            other.append(f"{each.name} {version} is installed, locked is {str(each.specifier).removeprefix('==')}")
    if not other:
        return [Finding("lock", "ok", f"the {len(wanted)} packages of {LOCK} are installed")]
    more = f", and {len(other) - NAMED} more" if len(other) > NAMED else ""
    return [Finding("lock", "fault", f"{LOCK}: {'; '.join(other[:NAMED])}{more}", AGAIN)]


def locked(text: str) -> Iterator[Requirement]:
    """The packages of a lock, with their versions and the systems that they are for."""
    for line in re.findall(r"^[\w.-]+==[^\\\n]+", text, re.M):
        yield Requirement(line.strip())


def repository() -> Sequence[Finding]:
    """Git, and this working copy's commit."""
    if shutil.which("git") is None:
        what = "git is not installed: no run says its commit, and there are no experiments"
        return [Finding("git", "fault", what, "Install it: sudo apt install git, or your system's way")]
    version = git.output("--version").removeprefix("git version ")
    commit = git.output("rev-parse", "--short", "HEAD")
    if not commit:
        todo = "git init && git add -A && git commit -m 'as unpacked'"
        return [Finding("git", "warning", f"{version}; this folder has no commit, so there are no experiments", todo)]
    changed = len(git.output("status", "--porcelain", "--untracked-files=no").splitlines())
    return [Finding("git", "ok", f"{version}; commit {commit}{f', {changed} files changed since' * bool(changed)}")]


def dvc() -> Sequence[Finding]:
    """DVC: its version, its cache, and the folder of its databases, which hold pickles."""
    found = [Finding("dvc", "ok", f"{metadata.version('dvc')}, cache in {cache()}")]
    if find_spec("alexnet_rwlock") is None:
        what = (
            "this environment was not completed: a killed DVC may stop the next one, and its databases are in /var/tmp"
        )
        found.append(Finding("dvc", "warning", what, "make .venv/ready"))
    site = Path(os.environ.get("DVC_SITE_CACHE_DIR") or "/var/tmp/dvc")  # noqa: S108
    if site.exists() and site.stat().st_mode & stat.S_IWOTH:
        what = f"everybody may write to {site}, where DVC keeps pickles, which it runs"
        found.append(Finding("dvc", "fault", what, f"export DVC_SITE_CACHE_DIR={Path('.dvc/site').absolute()}"))
    return found


def cache() -> Path:
    """The folder of DVC's cache."""
    for file in (Path(".dvc/config.local"), Path(".dvc/config")):
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        if set_here := re.search(r"^\s*dir\s*=\s*(.+)$", text.partition("[cache]")[2].partition("[")[0], re.M):
            return (Path(".dvc") / set_here[1].strip()).resolve()
    return Path(".dvc/cache").absolute()


def settings() -> Sequence[Finding]:
    """params.yaml and machine.yaml, as a stage checks them before it begins."""
    try:
        preflight.check("report")
    except params.ParamsError as error:
        return [Finding("settings", "fault", line, "Mend it there") for line in str(error).splitlines()]
    return [Finding("settings", "ok", "params.yaml and machine.yaml have no fault")]


def disk() -> Sequence[Finding]:
    """The free space on each disk that a run writes to."""
    folders = {"here": Path.cwd(), "runs": machines.base(machines.read()), "DVC's cache": cache()}
    disks: dict[int, tuple[Path, list[str]]] = {}
    for name, folder in folders.items():
        there = next(each for each in (folder, *folder.parents) if each.exists())
        disks.setdefault(there.stat().st_dev, (there, []))[1].append(name)
    found = []
    for folder, names in disks.values():
        free = shutil.disk_usage(folder).free
        state: State = "fault" if free < room.LEAST else "warning" if free < ENOUGH else "ok"
        todo = (
            ""
            if state == "ok"
            else "Make room, or name another folder in machine.yaml (storage); dvc gc removes old outs"
        )
        found.append(Finding("disk", state, f"{free / 2**30:,.1f} GiB free in {folder} ({', '.join(names)})", todo))
    return found


def memory() -> Sequence[Finding]:
    """The memory that is available."""
    free, least = psutil.virtual_memory().available, room.RAY + 2 * room.PROCESS
    seen = f"{free / 1e9:,.1f} GB available, {os.cpu_count()} CPUs"
    if free < least:
        todo = "End what else takes memory, or set placement: one and fewer workers in machine.yaml"
        return [Finding("memory", "warning", f"{seen}; a training of two processes takes {least / 1e9:.1f} GB", todo)]
    return [Finding("memory", "ok", seen)]


def gpus() -> Sequence[Finding]:
    """The GPUs that the driver shows, and whether torch was built for them."""
    wanted, names = machines.read().devices, _gpu_names()
    if isinstance(wanted, int) and wanted > len(names):
        what = f"machine.yaml: devices: {wanted} GPUs asked for, this machine has {len(names)}"
        state: State = "warning" if machines.ray_address(machines.read()) else "fault"
        return [Finding("gpu", state, what, "Set devices: auto, or look at nvidia-smi")]
    if not names:
        return [Finding("gpu", "ok", "none: trains on the CPU")]
    if "+cpu" in (version := metadata.version("torch")):
        return [Finding("gpu", "warning", f"{', '.join(names)}, which torch {version} cannot use", AGAIN)]
    return [Finding("gpu", "ok", f"{len(names)}: {', '.join(names)}")]


def _gpu_names() -> list[str]:
    try:
        nvml = import_module("pynvml")
        nvml.nvmlInit()
    except Exception:
        return []
    count = nvml.nvmlDeviceGetCount()
    return [str(nvml.nvmlDeviceGetName(nvml.nvmlDeviceGetHandleByIndex(number))) for number in range(count)]


PROBES = {
    "python": python, "lock": lock, "git": repository, "dvc": dvc, "settings": settings, "disk": disk, "memory": memory,
    "gpu": gpus,
}  # fmt: skip
