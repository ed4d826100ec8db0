"""Original pictures → 256 × 256 JPEGs in Parquet shards, in random order (§2).

Run:    dvc repro resize
Reads:  data/index/, the archives in the data store
Writes: data/shards/: the shards, manifest.json, rejected.parquet, damaged.parquet, duplicates.parquet, pictures.json, and
        SHA256SUMS over all; with shards or storage in machine.yaml, the shards go to that folder, and the other files to both
Takes:  resize
Expect: ILSVRC-2012 becomes 1,331,167 rows, 40 GB; some 500 pictures a second on each CPU

One Ray task makes one shard. Finished shards are kept in work/ until the stage is done, so that a stopped stage resumes.
A picture that cannot be decoded goes to rejected.parquet with the reason: kept + rejected = indexed. A picture that is kept
though it is damaged is listed in damaged.parquet with the decoder's warning; one of val or test that is also in train, byte for
byte, in duplicates.parquet. pictures.json counts formats, sizes, orientations, damage and duplicates of the originals.
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
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from alexnet.preparation import Preparation
from pipeline.archives.reader import in_archive_order
from pipeline.runtime import cluster, digests, files, machines, params, stage
from pipeline.runtime.machines import Machine
from pipeline.runtime.paths import AnyPath
from pipeline.runtime.printing import say
from pipeline.runtime.progress import Progress
from pipeline.shards import duplicates, tables
from pipeline.shards.artifacts import SHARDS, elsewhere, prepared, stored
from pipeline.shards.census import Census
from pipeline.shards.index import INDEX, Index, check_store, read_index
from pipeline.shards.manifest import MANIFEST, Manifest
from pipeline.shards.rejected import check_rejected, first_of
from pipeline.shards.tables import SPLITS, Shard

VERSION = 1
"""Increase this when a change of code changes a shard's bytes: shards of older code in work/ are then not reused."""

GROUP = 128
"""Rows in a row group of JPEGs: some 4 MB, small enough to stream and large enough for one read; the paper's batch size."""
RAW_GROUP = 32
"""Rows in a row group of raw pixels: some 6 MB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resize(Preparation):
    """params.yaml, `resize:` (§2): the preparation of each picture, and the order and division of all."""

    shuffle_seed: int
    """Seed of the random order in which the pictures are stored."""
    images_per_shard: int
    """The most indexed pictures in a shard; a worker that dies loses the work on one shard. Each picture takes some 30 kB of
    the worker's memory."""
    max_rejected: float
    """The largest fraction (0 to 1) of the indexed pictures that may be rejected; above it the stage fails."""

    def __post_init__(self) -> None:
        Preparation.__post_init__(self)  # a dataclass with slots is another class than `super()` sees
        if not 0 <= self.shuffle_seed < 2**63:
            raise ValueError(f"shuffle_seed has to be 0 or more, below 2^63, is {self.shuffle_seed}")
        if self.images_per_shard < 1:
            raise ValueError(f"images_per_shard has to be at least 1, is {self.images_per_shard}")
        if not 0 <= self.max_rejected <= 1:
            raise ValueError(f"max_rejected has to be a fraction, 0 to 1, is {self.max_rejected}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A shard to make, with everything that a worker needs: workers read neither params.yaml nor machine.yaml."""

    section: Resize
    schema: pa.Schema
    """The shard's schema, including the classes. Sending it to a worker takes a hundredth of the time of their list."""
    file: str
    """The shard's file name."""
    rows: pa.Table
    """Rows of the index, in the order of the shard."""
    folder: AnyPath
    """The folder for unfinished work."""
    store: AnyPath
    """The data store."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedShard:
    """A finished shard, its rejected and its damaged pictures, and its counts."""

    shard: Shard
    rejected: list[dict[str, Any]]
    """Rows of `tables.REJECTED`."""
    damaged: list[dict[str, Any]]
    """Rows of `tables.REJECTED` about kept pictures; the reason is the decoder's warning."""
    census: Census
    """Counts over the shard's pictures, including the rejected ones."""


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
    census, lists = publish(done, section, index, folder, machine)
    first = [line for name in ("damaged.parquet", duplicates.FILE) for line in first_of(lists[name])]
    say(*(f"resize: {line}" for line in [*census.lines(), *first]))


def key(section: Resize, index: Index) -> str:
    """SHA-256 of everything that decides the shards' bytes, and of nothing else."""
    decisive = dataclasses.asdict(section)
    del decisive["max_rejected"]
    packages = ("torch", "simplejpeg", "pillow", "pyarrow")
    # 2.15.0 and 2.15.0+cpu give the same bytes
    versions = {package: importlib.metadata.version(package).partition("+")[0] for package in packages}
    text = json.dumps([VERSION, GROUP, versions, decisive, index.digest], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def prepare_work(name: str, machine: Machine) -> AnyPath:
    """The absolute folder for unfinished work under the key `name`, with the shards finished so far.

    It is on the same disk or object store as the out, so that finished files only have to be moved. Work that this working
    copy began under another key is removed.
    """
    local = stage.WORK / "resize"
    root = elsewhere(machine)
    work = local.absolute() if root is None else root / "work"
    for other in [path for path in local.iterdir() if path.name != name] if local.exists() else []:
        files.discard(work / other.name)
        files.discard(other)
    # if the shards are stored elsewhere, this folder is an empty mark: this working copy owns the folder of that name there
    (local / name).mkdir(parents=True, exist_ok=True)
    return work / name


def plan(section: Resize, index: Index, folder: AnyPath, archives: AnyPath) -> list[Task]:
    """The shards to make: each split in random order, divided evenly."""
    tasks = []
    schema = tables.with_classes(tables.IMAGES, index.classes)
    for split in SPLITS:
        rows = index.rows.filter(pc.equal(index.rows["split"], split)).sort_by("id")
        rows = rows.take(random_order(rows.num_rows, section.shuffle_seed, split))
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


def random_order(count: int, seed: int, split: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    """A random permutation of `count` rows, determined by the seed and the split."""
    # numpy guarantees Philox's raw numbers for all versions, but not the result of `permutation`
    philox = np.random.Philox(key=np.array([seed, SPLITS.index(split)], np.uint64))
    return np.argsort(philox.random_raw(count), kind="stable")


def make(tasks: list[Task], section: Resize, index: Index, machine: Machine) -> dict[str, FinishedShard]:
    """Makes all shards; returns file name → shard. `ValueError` as soon as too many pictures are rejected."""
    done: dict[str, FinishedShard] = {}
    rejected: list[dict[str, Any]] = []
    with Progress("resize", index.rows.num_rows, "images") as progress:
        for task, result in cluster.each(make_shard, tasks, machine):
            done[task.file] = result
            rejected += result.rejected
            check_rejected(rejected, index, section.max_rejected)
            progress.add(task.rows.num_rows, f"{len(rejected):,} rejected" if rejected else "")
    return {task.file: done[task.file] for task in tasks}


def make_shard(task: Task) -> FinishedShard:
    """Makes a shard, unless it exists whole. Runs in a worker; Ray may run it more than once, or twice at the same time."""
    done = task.folder / "done" / f"{task.file}.json"
    made = read_finished(task, done)
    if made is not None:
        return made
    pictures, rejected, damaged, census = convert(task)
    rows = task.rows.num_rows - len(rejected)
    group = RAW_GROUP if task.section.quality == "raw" else GROUP
    with files.atomic(task.folder / "shards" / task.file) as partial:
        tables.write(pictures, task.schema, partial, group)
        with partial.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        shard = Shard(file=task.file, rows=rows, bytes=partial.stat().st_size, sha256=digest)
    # written last: this file marks the shard as finished
    made = FinishedShard(shard=shard, rejected=rejected, damaged=damaged, census=census)
    with files.atomic(done) as partial:
        partial.write_text(digests.stamped(json.dumps(dataclasses.asdict(made), indent=1)))
    return made


def read_finished(task: Task, done: AnyPath) -> FinishedShard | None:
    """The shard that an earlier run finished; None if there is none, or if its bytes have changed."""
    try:
        facts = json.loads(digests.unstamped(done))
        made = FinishedShard(
            shard=Shard(**facts["shard"]),
            rejected=facts["rejected"],
            damaged=facts["damaged"],
            census=Census(**facts["census"]),
        )
        with (task.folder / "shards" / task.file).open("rb") as file:
            return made if hashlib.file_digest(file, "sha256").hexdigest() == made.shard.sha256 else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def convert(task: Task) -> tuple[pa.Table, list[dict[str, Any]], list[dict[str, Any]], Census]:
    """Decodes and resizes a shard's pictures: rows of `tables.IMAGES` in the task's order, rejected and damaged rows, census."""
    import torch

    from alexnet.pictures import Undecodable, describe

    torch.set_num_threads(1)  # the tasks run in parallel, one on each core
    rows = task.rows.to_pylist()
    pictures: dict[int, dict[str, Any]] = {}
    reasons: dict[int, str] = {}
    warnings: dict[int, str] = {}
    census = Census()
    ending = "ppm" if task.section.quality == "raw" else "jpg"
    for number, data in in_archive_order(rows, task.store):
        row = rows[number]
        try:
            picture_CHW, warning = task.section.accept(data)
        except Undecodable as error:
            reasons[number] = str(error)
            census.reject(reasons[number])
            continue
        if warning:
            warnings[number] = warning
        _, height, width = picture_CHW.shape
        census.keep(*describe(data), len(data), width, height, task.section.side, damaged=bool(warning))
        pictures[number] = {
            "image": {"bytes": task.section.store(picture_CHW), "path": f"{row['id']}.{ending}"},
            "label": row["label"],
            "wnid": row["wnid"],
            "id": row["id"],
            "width": width,
            "height": height,
            "sha256": hashlib.sha256(data).hexdigest(),
        }
    assert len(pictures) + len(reasons) == census.indexed == len(rows), (len(pictures), len(reasons), len(rows))
    kept = pa.Table.from_pylist([pictures[number] for number in sorted(pictures)], schema=tables.IMAGES)
    rejected, damaged = (
        [{**rows[number], "reason": why[number]} for number in sorted(why)] for why in (reasons, warnings)
    )
    return kept, rejected, damaged, census


def publish(
    done: dict[str, FinishedShard], section: Resize, index: Index, folder: AnyPath, machine: Machine
) -> tuple[Census, dict[str, list[dict[str, Any]]]]:
    """Moves the finished shards to their place, writes the stage's other files, and removes the unfinished work.

    Returns the counts, and the lists of pictures by their files' names.
    """
    manifest = Manifest(
        side=section.side,
        classes=index.classes,
        shards={
            split: tuple(made.shard for file, made in done.items() if file.startswith(f"{split}-")) for split in SPLITS
        },
        indexed=index.rows.num_rows,
        rejected=sum(len(made.rejected) for made in done.values()),
        drawn=index.drawn,
        preparation=Preparation(**section.plain),
    )
    kept = sum(made.shard.rows for made in done.values())
    census = sum((made.census for made in done.values()), Census())
    assert kept + manifest.rejected == manifest.indexed, (kept, manifest.rejected, manifest.indexed)
    assert (census.kept, census.indexed) == (kept, manifest.indexed), (census, kept, manifest.indexed)
    assert census.damaged == sum(len(made.damaged) for made in done.values()), census
    shards = folder / "shards"
    for name, _ in files.listed(shards):
        if name not in done:
            files.discard(shards / name)
    lists = {
        "rejected.parquet": [row for made in done.values() for row in made.rejected],
        "damaged.parquet": [row for made in done.values() for row in made.damaged],
        duplicates.FILE: duplicates.in_shards(index.rows, shards, (made.shard for made in done.values())),
    }
    census.duplicates = duplicates.by_split(lists[duplicates.FILE])
    _write_small(lists, manifest, census, shards)
    root = elsewhere(machine)
    if root is None:
        files.put(shards, SHARDS, MANIFEST)
    else:
        files.put(shards, stored(root, manifest), MANIFEST)
        with files.atomic(SHARDS) as made:
            _write_small(lists, manifest, census, made)
    _prepare(manifest, machine)
    files.discard(folder)
    files.discard(stage.WORK / "resize")
    return census, lists


def _write_small(lists: dict[str, list[dict[str, Any]]], manifest: Manifest, census: Census, folder: AnyPath) -> None:
    for name, unsorted in lists.items():
        rows = sorted(unsorted, key=lambda row: str(row["id"]))
        with files.atomic(folder / name) as made:
            tables.write(pa.Table.from_pylist(rows, schema=tables.REJECTED), tables.REJECTED, made)
    for name, text in (("pictures.json", census.to_json()), (MANIFEST, manifest.to_json())):
        with files.atomic(folder / name) as made:
            made.write_text(text)
    digests.seal(folder, {shard.file: shard.sha256 for part in manifest.shards.values() for shard in part})


def _prepare(manifest: Manifest, machine: Machine) -> None:
    """Writes the manifest to the folder where Ray jobs find it, and removes a mean of other pictures from that folder."""
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
