"""Original pictures → 256 × 256 JPEGs in Parquet shards, in a shuffled order (§2).

Run:    dvc repro resize
Reads:  data/index/, the archives in the data store
Writes: data/shards/ (with shards or storage in machine.yaml: the shards there, and here what is not pictures:
        manifest.json, rejected.parquet, pictures.json, and SHA256SUMS over all)
Takes:  resize
Expect: ILSVRC-2012 becomes 1,331,167 rows, 40 GB; some 500 pictures a second on each CPU

One Ray task makes one shard. A finished shard stays in work/ until all are, so a stage that was stopped goes on
where it was. A picture that cannot be decoded goes to rejected.parquet with the reason: kept + rejected = indexed.
pictures.json counts formats, sizes and orientations of the original pictures.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the slow imports
    from pipeline.__main__ import main as enter

    enter("resize")

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.archives.reader import in_archive_order
from pipeline.runtime import cluster, digests, files, machines, params, stage
from pipeline.runtime.machines import Machine
from pipeline.runtime.paths import AnyPath
from pipeline.runtime.progress import Progress
from pipeline.shards import tables
from pipeline.shards.artifacts import SHARDS, elsewhere, prepared, stored
from pipeline.shards.census import Census
from pipeline.shards.index import INDEX, Index, check_store, read_index
from pipeline.shards.tables import MANIFEST, MOST_PIXELS, SPLITS, Manifest, Shard

VERSION = 1
"""Raised when a change of code changes the bytes of a shard: shards of older code in work/ are then not reused."""

GROUP = 128
"""Rows in a row group: some 4 MB of JPEG, small enough to stream, large enough for one read; the paper's batch."""
RAW_GROUP = 32
"""The same for raw pixels: some 6 MB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resize:
    """params.yaml, `resize:` (§2)."""

    side: int
    """Pixels of the stored square's side. The paper: 256."""
    fit: Literal["crop", "warp"]
    """crop: the central square, as in the paper. warp: the whole picture made square, as Caffe's users did."""
    filter: Literal["bilinear", "bicubic", "area"]
    """How pixels are merged; bilinear and bicubic are antialiased. area is cuda-convnet2's: means of the covered pixels, and
    bicubic where a picture is enlarged. The paper does not say."""
    quality: Literal["raw"] | int
    """JPEG quality of the stored pictures, 1 to 100; raw: the pixels themselves, six times the bytes and decoded six times as
    fast. cuda-convnet2: 95."""
    shuffle_seed: int
    """Seed of the order in which the pictures are stored."""
    images_per_shard: int
    """The most indexed pictures in a shard, which is also what is lost when a worker dies. Each takes some 30 kB of the
    worker's memory."""
    max_rejected: float
    """Fraction of the indexed pictures that may fail to decode before the stage refuses to go on."""

    def __post_init__(self) -> None:
        if not 1 <= self.side <= MOST_PIXELS:
            raise ValueError(f"side has to be 1 to {MOST_PIXELS} pixels, is {self.side}")
        if self.fit == "warp" and self.filter == "area":
            raise ValueError("filter cannot be 'area' where fit is 'warp': it merges squares")
        if self.quality != "raw" and not 1 <= self.quality <= 100:
            raise ValueError(f"quality has to be 1 to 100, or raw, is {self.quality}")
        if not 0 <= self.shuffle_seed < 2**63:
            raise ValueError(f"shuffle_seed has to be 0 or more, below 2^63, is {self.shuffle_seed}")
        if self.images_per_shard < 1:
            raise ValueError(f"images_per_shard has to be at least 1, is {self.images_per_shard}")
        if not 0 <= self.max_rejected <= 1:
            raise ValueError(f"max_rejected has to be a fraction, 0 to 1, is {self.max_rejected}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One shard to be made, with all that a worker needs: it reads no params.yaml and no machine.yaml."""

    section: Resize
    schema: pa.Schema
    """Schema of the shard, which has the classes. Sending it to a worker takes a hundredth of the time of their list."""
    file: str
    rows: pa.Table
    """In the order of the shard."""
    folder: AnyPath
    store: AnyPath


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """One shard made."""

    shard: Shard
    rejected: list[dict[str, Any]]
    """Rows of `tables.REJECTED`."""
    census: Census
    """Counts over its pictures, including the rejected ones."""


def run() -> None:
    """Runs the stage."""
    section = params.read("resize", Resize)
    machine = machines.read()
    index = read_index(INDEX)
    archives = machines.store(machine)
    check_store(index, archives)
    folder = prepare_work(key(section, index), machine)
    tasks = plan(section, index, folder, archives)
    with cluster.connected(machine):
        done = make(tasks, section, index, machine)
    census = publish(done, section, index, folder, machine)
    for line in census.lines():
        print(f"resize: {line}")


def key(section: Resize, index: Index) -> str:
    """A hash of all that decides the shards' bytes, and of nothing else."""
    decisive = dataclasses.asdict(section)
    del decisive["max_rejected"]
    packages = ("torch", "simplejpeg", "pillow", "pyarrow")
    # 2.15.0 and 2.15.0+cpu are the same code for this
    versions = {package: importlib.metadata.version(package).partition("+")[0] for package in packages}
    text = json.dumps([VERSION, GROUP, versions, decisive, index.digest], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def prepare_work(name: str, machine: Machine) -> AnyPath:
    """The absolute folder for unfinished work under the key `name`, with the shards that are finished.

    It lies on the disk or object store of the out, so that moving the files ends the stage. Work that this working copy
    began under another key is removed.
    """
    mine = stage.WORK / "resize"
    above = elsewhere(machine)
    there = mine.absolute() if above is None else above / "work"
    for other in [path for path in mine.iterdir() if path.name != name] if mine.exists() else []:
        files.discard(there / other.name)
        files.discard(other)
    # Where the shards lie elsewhere this folder stays empty: it says that the one of its name there is ours
    (mine / name).mkdir(parents=True, exist_ok=True)
    return there / name


def plan(section: Resize, index: Index, folder: AnyPath, archives: AnyPath) -> list[Task]:
    """The shards to be made: each split is shuffled, and divided evenly."""
    tasks = []
    schema = tables.with_classes(tables.IMAGES, index.classes)
    for split in SPLITS:
        rows = index.rows.filter(pc.equal(index.rows["split"], split)).sort_by("id")
        rows = rows.take(shuffled(rows.num_rows, section.shuffle_seed, split))
        count = -(-rows.num_rows // section.images_per_shard)
        edges = [rows.num_rows * shard // count for shard in range(count + 1)] if count else [0]
        tasks += [
            Task(
                section=section,
                schema=schema,
                file=f"{split}-{shard:05}-of-{count:05}.parquet",
                rows=rows.slice(start, end - start),
                folder=folder,
                store=archives,
            )
            for shard, (start, end) in enumerate(itertools.pairwise(edges))
        ]
    return tasks


def shuffled(count: int, seed: int, split: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    """A random order of `count` rows, fixed by the seed and the split."""
    # Philox's raw numbers are the same in every version of numpy; `permutation` is not promised to be
    philox = np.random.Philox(key=np.array([seed, SPLITS.index(split)], np.uint64))
    return np.argsort(philox.random_raw(count), kind="stable")


def make(tasks: list[Task], section: Resize, index: Index, machine: Machine) -> dict[str, Done]:
    """Makes all shards; `ValueError` as soon as more pictures are rejected than may be."""
    done: dict[str, Done] = {}
    rejected: list[dict[str, Any]] = []
    with Progress("resize", index.rows.num_rows, "images") as progress:
        for task, result in cluster.each(make_shard, tasks, machine):
            done[task.file] = result
            rejected += result.rejected
            check_rejected(rejected, index.rows.num_rows, section.max_rejected)
            progress.add(task.rows.num_rows, f"{len(rejected):,} rejected" if rejected else "")
    return {task.file: done[task.file] for task in tasks}


def check_rejected(rejected: list[dict[str, Any]], indexed: int, allowed: float) -> None:
    """`ValueError`, with the first of them, if the fraction of rejected pictures is larger than allowed."""
    if len(rejected) <= allowed * indexed:
        return
    first = sorted(rejected, key=lambda row: str(row["id"]))[:5]
    lines = [f"  {row['id']} in {row['archive']} at byte {row['offset']}: {row['reason']}" for row in first]
    raise ValueError(
        f"{len(rejected)} or more of {indexed} pictures do not decode; params.yaml: resize: max_rejected: {allowed} "
        f"allows {int(allowed * indexed)}. Fetch the archives again, or raise it. The first are:\n" + "\n".join(lines)
    )


def make_shard(task: Task) -> Done:
    """Makes one shard, unless it is there already and whole. Runs in a worker, maybe more than once or in two."""
    done = task.folder / "done" / f"{task.file}.json"
    made = finished(task, done)
    if made is not None:
        return made
    pictures, rejected, census = convert(task)
    rows = task.rows.num_rows - len(rejected)
    group = RAW_GROUP if task.section.quality == "raw" else GROUP
    with files.atomic(task.folder / "shards" / task.file) as partial:
        tables.write(pictures, task.schema, partial, group)
        with partial.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        shard = Shard(file=task.file, rows=rows, bytes=partial.stat().st_size, sha256=digest)
    # Last, since it vouches for the shard
    made = Done(shard=shard, rejected=rejected, census=census)
    with files.atomic(done) as partial:
        partial.write_text(digests.stamped(json.dumps(dataclasses.asdict(made), indent=1)))
    return made


def finished(task: Task, done: AnyPath) -> Done | None:
    """The shard that an earlier run made, if its bytes are unchanged; else None."""
    try:
        known = json.loads(digests.unstamped(done))
        made = Done(shard=Shard(**known["shard"]), rejected=known["rejected"], census=Census(**known["census"]))
        with (task.folder / "shards" / task.file).open("rb") as file:
            return made if hashlib.file_digest(file, "sha256").hexdigest() == made.shard.sha256 else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def convert(task: Task) -> tuple[pa.Table, list[dict[str, Any]], Census]:
    """The shard's pictures as rows of `tables.IMAGES` in the order of the task, its rejected ones, and the census of both."""
    import torch

    from alexnet.dataset import resize
    from alexnet.pictures import Undecodable, decode, describe, encode

    torch.set_num_threads(1)  # the tasks are what runs in parallel
    rows = task.rows.to_pylist()
    pictures: dict[int, dict[str, Any]] = {}
    reasons: dict[int, str] = {}
    census = Census()
    ending = "ppm" if task.section.quality == "raw" else "jpg"
    for number, data in in_archive_order(rows, task.store):
        row = rows[number]
        try:
            picture_CHW = decode(data)
        except Undecodable as error:
            reasons[number] = str(error)
            census.reject(reasons[number])
            continue
        _, height, width = picture_CHW.shape
        census.keep(*describe(data), len(data), width, height, task.section.side)
        small_CHW = resize(picture_CHW, task.section.side, task.section.filter, task.section.fit)
        pictures[number] = {
            "image": {"bytes": encode(small_CHW, task.section.quality), "path": f"{row['id']}.{ending}"},
            "label": row["label"],
            "wnid": row["wnid"],
            "id": row["id"],
            "width": width,
            "height": height,
            "sha256": hashlib.sha256(data).hexdigest(),
        }
    assert len(pictures) + len(reasons) == census.indexed == len(rows), (len(pictures), len(reasons), len(rows))
    kept = pa.Table.from_pylist([pictures[number] for number in sorted(pictures)], schema=tables.IMAGES)
    return kept, [{**rows[number], "reason": reasons[number]} for number in sorted(reasons)], census


def publish(done: dict[str, Done], section: Resize, index: Index, folder: AnyPath, machine: Machine) -> Census:
    """Puts the shards where they belong, beside the manifest, the rejected and the census, and clears up."""
    manifest = Manifest(
        side=section.side,
        classes=index.classes,
        shards={
            split: tuple(made.shard for file, made in done.items() if file.startswith(f"{split}-")) for split in SPLITS
        },
        indexed=index.rows.num_rows,
        rejected=sum(len(made.rejected) for made in done.values()),
        drawn=index.drawn,
    )
    kept = sum(made.shard.rows for made in done.values())
    census = sum((made.census for made in done.values()), Census())
    assert kept + manifest.rejected == manifest.indexed, (kept, manifest.rejected, manifest.indexed)
    assert (census.kept, census.indexed) == (kept, manifest.indexed), (census, kept, manifest.indexed)
    shards = folder / "shards"
    for name, _ in files.listed(shards):
        if name not in done:
            files.discard(shards / name)
    rejected = [row for made in done.values() for row in made.rejected]
    _write_small(rejected, manifest, census, shards)
    above = elsewhere(machine)
    if above is None:
        files.put(shards, SHARDS, MANIFEST)
    else:
        files.put(shards, stored(above, manifest), MANIFEST)
        with files.atomic(SHARDS) as made:
            _write_small(rejected, manifest, census, made)
    _prepare(manifest, machine)
    files.discard(folder)
    files.discard(stage.WORK / "resize")
    return census


def _write_small(rejected: list[dict[str, Any]], manifest: Manifest, census: Census, folder: AnyPath) -> None:
    rows = sorted(rejected, key=lambda row: str(row["id"]))
    with files.atomic(folder / "rejected.parquet") as made:
        tables.write(pa.Table.from_pylist(rows, schema=tables.REJECTED), tables.REJECTED, made)
    for name, text in (("pictures.json", census.to_json()), (MANIFEST, manifest.to_json())):
        with files.atomic(folder / name) as made:
            made.write_text(text)
    digests.seal(folder, {shard.file: shard.sha256 for part in manifest.shards.values() for shard in part})


def _prepare(manifest: Manifest, machine: Machine) -> None:
    """Writes the manifest where a job that brings only params.yaml finds it, and removes a mean of other pictures."""
    folder = prepared(machine)
    if folder is None:
        return
    with contextlib.suppress(OSError, ValueError):
        if Manifest.read(folder) == manifest:
            return
    files.discard(folder)
    with files.atomic(folder / MANIFEST) as made:
        made.write_text(manifest.to_json())
    digests.seal(folder)
