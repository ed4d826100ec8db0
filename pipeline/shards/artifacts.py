"""The locations of the shards and the mean: in this working copy, or in a folder that all nodes see."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pipeline.runtime import digests, files, params, paths
from pipeline.runtime.machines import Machine, shared
from pipeline.runtime.paths import AnyPath
from pipeline.shards.manifest import MANIFEST, Manifest

SHARDS = Path("data/shards")
MEAN = Path("data/mean.npz")


def locate(manifest: Manifest, machine: Machine) -> AnyPath:
    """The absolute folder of the shard files; `ValueError` if one is missing or its size is not the manifest's."""
    above = elsewhere(machine)
    folder = SHARDS.absolute() if above is None else stored(above, manifest)
    sizes = dict(files.listed(folder)) if folder.is_dir() else {}
    for shard in (shard for shards in manifest.shards.values() for shard in shards):
        if shard.file not in sizes:
            raise ValueError(f"{folder / shard.file}: not there. Run: dvc repro --force --single-item resize")
        if sizes[shard.file] != shard.bytes:
            raise ValueError(
                f"{folder / shard.file}: has {sizes[shard.file]} bytes, was made with {shard.bytes}. "
                "Run: dvc repro --force --single-item resize"
            )
    return folder


def elsewhere(machine: Machine) -> AnyPath | None:
    """Shared root of the shards, if machine.yaml names one; None if they are DVC's output here."""
    if machine.shards != "auto":
        return paths.parse(machine.shards)
    storage = shared(machine)
    return None if storage is None else storage / "shards"


def stored(above: AnyPath, manifest: Manifest) -> AnyPath:
    """The folder of the shards of `manifest` below a shared root, named by the manifest's digest."""
    return above / manifest.digest


def prepared(machine: Machine) -> Path | None:
    """The folder in the storage for manifest.json and mean.npz, by the data sections of params.yaml; None without storage.

    A Ray job that is sent with code and params.yaml, but without data, finds its inputs there.
    """
    storage = shared(machine)
    if storage is None:
        return None
    document = params.load(params.PARAMS)
    sections = json.dumps({name: document.get(name) for name in ("source", "resize")}, sort_keys=True, default=str)
    return storage / "prepared" / hashlib.sha256(sections.encode()).hexdigest()


def inputs(machine: Machine) -> tuple[Manifest, Path]:
    """The inputs of training: the manifest, and the file of the mean; from `data/` here, else from the storage.

    `FileNotFoundError`, with the command to run, if both are missing; `ValueError` if they have changed since they were
    written.
    """
    folder = _holding(machine)
    manifest, mean = Manifest.read(folder), MEAN.absolute() if folder == SHARDS else folder / MEAN.name
    if not mean.exists():
        raise FileNotFoundError(f"{mean}: not there. {digests.again('mean')}")
    if folder != SHARDS:
        digests.check(mean, "mean")
    _check_mean(mean, manifest)
    return manifest, mean


def _check_mean(file: Path, manifest: Manifest) -> None:
    """`ValueError` if the mean was not computed from as many pictures, of the same size, as this manifest has."""
    from alexnet.dataset import Mean

    try:
        mean = Mean.load(file)
    except ValueError as error:
        raise ValueError(f"{error}. {digests.again('mean')}") from None
    theirs, ours = (mean.images, mean.image_CHW.shape[-1]), (manifest.rows("train"), manifest.side)
    if ours[0] and theirs != ours:
        raise ValueError(
            f"{file}: of {theirs[0]} pictures with {theirs[1]} pixels a side, but data/shards has {ours[0]} with "
            f"{ours[1]}. {digests.again('mean')}"
        )


def manifest(machine: Machine) -> Manifest:
    """The manifest that `inputs` would find, with the same errors."""
    return Manifest.read(_holding(machine))


def _holding(machine: Machine) -> Path:
    """The folder of the manifest: data/shards here, or the prepared folder in the storage."""
    folder = prepared(machine)
    if folder is None or (SHARDS / MANIFEST).exists():
        return SHARDS
    if not (folder / MANIFEST).exists():
        raise FileNotFoundError(
            f"neither {SHARDS.absolute()} nor {folder} has a manifest.json: the pictures of this params.yaml "
            "were never prepared. Run, in a working copy with this storage: dvc repro mean"
        )
    return folder
