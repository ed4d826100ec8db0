"""A working copy before `evaluate`: pictures of noise, and an untrained network."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from ruamel.yaml import YAML

from alexnet import build
from alexnet.model import AlexNet
from alexnet.pictures import encode
from pipeline.evaluation import forward, trained
from pipeline.evaluation.results import Results
from pipeline.runtime import digests
from pipeline.shards import tables
from pipeline.shards.manifest import Manifest
from pipeline.shards.tables import Shard, Synset
from tests.sections import PAPER, PREPARATION

WORDS = (r"$\frac{$", "none", "<script>alert(1)</script>", "=1\r", "猫", "\x1b[2J", "class")

CLASSES = tuple(Synset(wnid=f"n{k}", words=f"{words}, other word") for k, words in enumerate(WORDS))
"""Classes with names that once broke the report, or that are markup in it."""

MODEL = dataclasses.replace(
    PAPER,
    width=0.0625,
    normalization="printed",
    first_std=(*(0.05,) * 9, 0.0005),  # of a small last layer: probabilities that are not just 0 and 1
    first_bias=(0.1,) * 10,
)


SIZES = {"val": (9, 4), "train": (8, 3)}


RESULTS = Results(
    split="val",
    neighbours=3,
    queries=5,
    seed=0,
    code_bits=16,
    code_hidden=8,
    code_epochs=3,
    code_batch_size=4,
    code_rate=0.01,
)


def world(folder: Path) -> Manifest:
    """A working copy with pictures of noise and an untrained network, whose output differs for each picture."""
    (folder / "data/shards").mkdir(parents=True)
    generator = np.random.default_rng(0)
    made: dict[str, tuple[Shard, ...]] = {}
    for split, sizes in SIZES.items():
        done = []
        for place, size in enumerate(sizes):
            name = f"{split}-{place:05}-of-{len(sizes):05}.parquet"
            file = folder / "data/shards" / name
            labels = generator.integers(len(CLASSES), size=size).tolist()
            rows = [_row(generator, f"{split}{place}_{row:03}", label) for row, label in enumerate(labels)]
            table = pa.Table.from_pylist(rows, schema=tables.IMAGES)
            tables.write(table, tables.with_classes(tables.IMAGES, CLASSES), file, 4)
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            done.append(Shard(file=name, rows=size, bytes=file.stat().st_size, sha256=digest))
        made[split] = tuple(done)
    indexed = sum(map(sum, SIZES.values())) + 1
    manifest = Manifest(
        side=256, classes=CLASSES, shards=made, indexed=indexed, rejected=1, drawn=True, preparation=PREPARATION
    )
    (folder / "data/shards/manifest.json").write_text(manifest.to_json())
    lost = dict.fromkeys(("id", "split", "wnid"), "x") | {"label": 0, "offset": 0, "length": 1}
    lost["archive"] = "a_folder/" + "an_archive_without_a_space_" * 4
    reasons = {"rejected": "<b>cut short</b>", "damaged": "<i>bad code</i>", "duplicates": "the same as <u>y</u>"}
    for name, reason in reasons.items():
        row, file = lost | {"reason": reason}, folder / f"data/shards/{name}.parquet"
        tables.write(pa.Table.from_pylist([row], schema=tables.REJECTED), tables.REJECTED, file)
    digests.seal(folder / "data/shards")
    with (folder / "data/model.pt").open("wb") as handle:
        save(handle)
    sections = {
        "results": dataclasses.asdict(RESULTS),
        "report": {"pictures": 3, "queries": 2, "seed": 0},
        "learning": {"rate": 0.1},
    }
    YAML().dump(sections, folder / "params.yaml")
    return manifest


def _row(generator: np.random.Generator, name: str, label: int) -> dict[str, Any]:
    coarse = generator.integers(256, size=(3, 8, 8), dtype=np.uint8).repeat(32, 1).repeat(32, 2)
    image = {"bytes": encode(torch.from_numpy(coarse), 95), "path": f"{name}.jpg"}
    return {"image": image, "label": label, "wnid": f"n{label}", "id": name, "width": 9, "height": 9, "sha256": ""}


def save(handle: Any) -> None:
    network = AlexNet(MODEL, len(CLASSES))
    network.draw_first_weights(3)
    classes = [[synset.wnid, synset.words] for synset in CLASSES]
    mean = torch.linspace(90, 150, 3 * 256 * 256).reshape(3, 256, 256)
    build.save(
        handle,
        network,
        fingerprint="f" * 16,
        classes=classes,
        drawn=True,
        manifest="",
        mean=mean,
        mean_kind="centre",
        preparation=PREPARATION.plain,
    )


def parts(folder: Path, manifest: Manifest) -> dict[str, list[Path]]:
    """Makes the workers' parts in this process."""
    network, facts = trained.load((folder / "data/model.pt").read_bytes(), manifest, "val")
    made: dict[str, list[Path]] = {"val": [], "train": []}
    for split, shards in manifest.shards.items():
        for shard in shards:
            batches = forward.batches(folder / "data/shards" / shard.file, 3)
            table = forward.forward(network, facts["mean"], facts["mean_kind"], batches, split == "val")
            made[split].append(folder / f"part-{shard.file}")
            tables.write(table, table.schema, made[split][-1], 4)
    return made


def as_test(manifest: Manifest) -> Manifest:
    """The same shards, with the validation pictures as the test split."""
    return dataclasses.replace(
        manifest, shards={"train": manifest.shards["train"], "val": (), "test": manifest.shards["val"]}
    )


def rows_of(folder: Path, split: str) -> list[dict[str, Any]]:
    files = sorted((folder / "data/shards").glob(f"{split}-*"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]
