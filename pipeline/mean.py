"""Training pictures → the mean image and the covariance of red, green and blue (§2, §4.1).

Run:    dvc repro mean
Reads:  data/shards/
Writes: data/mean.npz
Takes:  no section of params.yaml
Expect: 1 MB; some 2,000 pictures a second per CPU core
"""

from __future__ import annotations

if __name__ == "__main__":  # before the slow imports
    from pipeline.__main__ import main as enter

    enter("mean")

from dataclasses import dataclass

import numpy as np
import torch

from alexnet.dataset import Mean, Sums
from alexnet.pictures import Undecodable, decode
from pipeline.runtime import cluster, digests, files, machines
from pipeline.runtime.machines import Machine
from pipeline.runtime.paths import AnyPath
from pipeline.runtime.progress import Progress
from pipeline.shards import tables
from pipeline.shards.artifacts import MEAN, SHARDS, locate, prepared
from pipeline.shards.manifest import Manifest
from pipeline.shards.tables import Shard


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One shard and its file."""

    file: AnyPath
    shard: Shard


def run() -> None:
    """Runs the stage."""
    machine = machines.read()
    manifest = Manifest.read(SHARDS)
    folder = locate(manifest, machine)
    with cluster.connected(machine):
        sums = total(manifest, folder, machine)
    save(sums, machine)


def total(manifest: Manifest, folder: AnyPath, machine: Machine) -> Sums:
    """The sums over the training pictures, by one Ray task per shard; exact, so their order does not matter."""
    sums = Sums.none(manifest.side)
    tasks = [Task(file=folder / shard.file, shard=shard) for shard in manifest.shards["train"] if shard.rows]
    with Progress("mean", manifest.rows("train"), "images") as progress:
        for _, part in cluster.each(of_shard, tasks, machine):
            sums = sums.merge(part)
            progress.add(part.images)
    assert sums.images == manifest.rows("train"), (sums.images, manifest.rows("train"))
    return sums


def of_shard(task: Task) -> Sums:
    """The sums over one shard's pictures, in a Ray worker; `ValueError` if it is damaged or a picture does not decode."""
    torch.set_num_threads(1)  # tasks run in parallel already
    file, sums = task.file, None
    digests.compare(file, task.shard.sha256, "resize")
    for group in tables.groups(file, ["image", "id"], "resize"):
        pictures = []
        for image, name in zip(group["image"].to_pylist(), group["id"].to_pylist(), strict=True):
            try:
                pictures.append(decode(image["bytes"]).numpy())
            except Undecodable as error:
                raise ValueError(f"{file}: {name}: {error}. Run: dvc repro --force --single-item resize") from None
        images_BCHW = np.stack(pictures)
        sums = (sums or Sums.none(images_BCHW.shape[-1])).add(images_BCHW)
    if sums is None:
        raise ValueError(f"{file}: contains no picture. Run: dvc repro --force --single-item resize")
    return sums


def save(sums: Sums, machine: Machine) -> None:
    """Writes data/mean.npz, and a copy beside shared shards, for jobs that are sent without data."""
    mean = Mean.of(sums)
    with files.atomic(MEAN) as made:
        mean.save(made)
    folder = prepared(machine)
    if folder is not None:
        with files.atomic(folder / MEAN.name) as made:
            made.write_bytes(MEAN.read_bytes())
        digests.add(folder / MEAN.name)
