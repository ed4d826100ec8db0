"""The pictures of a study, made by DVC in a copy of the code, so that the working copy and its params.yaml do not change.

The copy is work/studies/NAME. It shares the working copy's data store and DVC cache, so nothing is fetched or made twice,
and the next call reuses its outs. Git is not needed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from dvc.config import Config
from ruamel.yaml import YAML

from pipeline.runtime import files, machines, revisions, stage
from pipeline.runtime.paths import AnyPath
from pipeline.runtime.printing import say
from pipeline.shards import artifacts
from pipeline.shards.manifest import Manifest
from studies.study import Study

WORKSPACES = stage.WORK / "studies"

CODE = ("alexnet", "pipeline")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """The shards and the mean of a study."""

    manifest: Manifest
    shards: AnyPath
    """The folder of the shards, absolute."""
    mean: Path
    """data/mean.npz, absolute."""


def prepare(study: Study) -> Prepared:
    """Makes the shards and the mean of the study's base with DVC, if needed; `ValueError` if DVC fails."""
    folder = (WORKSPACES / study.name).absolute()
    settings = fill(folder, study.base)
    revisions.keep_here()
    outer = {name: value for name, value in os.environ.items() if name not in ("DVC_ROOT", "DVC_STAGE")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    say(f"studies: the pictures of {study.base}, in {folder}: dvc repro mean")
    environment = outer | {"PATH": path, "ALEXNET_MACHINE": str(settings)}
    done = subprocess.run(["dvc", "repro", "mean"], cwd=folder, env=environment, check=False)
    if done.returncode:
        raise ValueError(f"{folder}: dvc repro mean ended with {done.returncode}; what it said is above")
    return read(folder)


def read(folder: Path) -> Prepared:
    """Reads the shards' manifest and the paths of shards and mean in a workspace."""
    with contextlib.chdir(folder):
        machine = machines.read()
        manifest, mean = artifacts.inputs(machine)
        return Prepared(manifest=manifest, shards=artifacts.locate(manifest, machine), mean=mean.absolute())


def fill(folder: Path, base: Path) -> Path:
    """Copies the code and the base into the workspace, configures its store and cache, and returns its machine.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in CODE:
        files.discard(folder / name)
        shutil.copytree(name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copyfile(name, folder / name)
    shutil.copyfile(base, folder / "params.yaml")
    config = folder / ".dvc/config"
    config.parent.mkdir(exist_ok=True)
    shutil.copyfile(".dvc/config", config)
    config.with_name("config.local").write_text(f"[core]\n    no_scm = true\n[cache]\n    dir = {cache()}\n")
    ours = machines.read()
    settings = dataclasses.asdict(ours) | {"store": str(machines.store(ours))}
    file = folder / "machine.yaml"
    with file.open("w", encoding="utf-8") as handle:
        YAML(typ="safe").dump(settings, handle)
    return file


def cache() -> Path:
    """The absolute path of the working copy's DVC cache, read without Git."""
    named = Config(dvc_dir=".dvc").get("cache", {}).get("dir")
    return Path(named or ".dvc/cache").absolute()
