"""Where the shards and the mean lie: in this working copy, or where all nodes see them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pipeline.runtime import digests, files, params, paths
from pipeline.runtime.machine import Machine, shared
from pipeline.runtime.paths import AnyPath
from pipeline.shards.tables import MANIFEST, Manifest

SHARDS = Path("data/shards")
MEAN = Path("data/mean.npz")


def locate(manifest: Manifest, machine: Machine) -> AnyPath:
    """The folder of the shard files, absolute; `ValueError` if one is missing or has another size than it had."""
    above = elsewhere(machine)
    folder = SHARDS.absolute() if above is None else stored(above, manifest)
    there = dict(files.listed(folder)) if folder.is_dir() else {}
    for shard in (shard for shards in manifest.shards.values() for shard in shards):
        if shard.file not in there:
            raise ValueError(f"{folder / shard.file}: not there. Run: dvc repro --force --single-item resize")
        if there[shard.file] != shard.bytes:
            raise ValueError(
                f"{folder / shard.file}: has {there[shard.file]} bytes, was made with {shard.bytes}. "
                "Run: dvc repro --force --single-item resize"
            )
    return folder


def elsewhere(machine: Machine) -> AnyPath | None:
    """What the shards lie below where all nodes see them; None if that is this working copy, as DVC's out."""
    if machine.shards != "auto":
        return paths.parse(machine.shards)
    storage = shared(machine)
    return None if storage is None else storage / "shards"


def stored(above: AnyPath, manifest: Manifest) -> AnyPath:
    """The folder there for the shards that `manifest` describes."""
    return above / manifest.digest


def prepared(machine: Machine) -> Path | None:
    """The folder in the storage for what the data sections of this params.yaml lead to; None without a storage.

    By it a Ray job, which brings code and params.yaml but no data, finds its inputs. It holds manifest.json, and
    mean.npz once that is made.
    """
    storage = shared(machine)
    if storage is None:
        return None
    document = params.load(params.PARAMS)
    sections = json.dumps({name: document.get(name) for name in ("source", "resize")}, sort_keys=True, default=str)
    return storage / "prepared" / hashlib.sha256(sections.encode()).hexdigest()


def inputs(machine: Machine) -> tuple[Manifest, Path]:
    """What training starts from, the manifest and the file of the mean: of `data/` here, else of the storage.

    Raises `FileNotFoundError` with what to run where there is neither, and `ValueError` where they are not as written.
    """
    folder = _holding(machine)
    found, mean = Manifest.read(folder), MEAN.absolute() if folder == SHARDS else folder / MEAN.name
    if not mean.exists():
        raise FileNotFoundError(f"{mean}: not there. {digests.again('mean')}")
    if folder != SHARDS:
        digests.check(mean, "mean")
    _check_mean(mean, found)
    return found, mean


def _check_mean(file: Path, manifest: Manifest) -> None:
    """`ValueError` if the file is not what `mean` writes for the training pictures of this manifest."""
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
    """What the shards hold; it lies where `inputs` finds it, and so do its errors."""
    return Manifest.read(_holding(machine))


def _holding(machine: Machine) -> Path:
    """The folder of the manifest: here, or in the storage what was prepared there."""
    folder = prepared(machine)
    if folder is None or (SHARDS / MANIFEST).exists():
        return SHARDS
    if not (folder / MANIFEST).exists():
        raise FileNotFoundError(
            f"neither {SHARDS.absolute()} nor {folder} has a manifest.json: the pictures of this params.yaml "
            "were never prepared. Run, in a working copy with this storage: dvc repro mean"
        )
    return folder
