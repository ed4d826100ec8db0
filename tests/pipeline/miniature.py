"""Shards of a few small pictures, for tests of their readers."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from alexnet.dataset import Mean, Sums
from alexnet.pictures import decode
from pipeline.runtime import digests
from pipeline.shards import tables
from pipeline.shards.manifest import Manifest
from pipeline.shards.tables import Shard, Synset
from tests.sections import PREPARATION


def jpeg(number: int, side: int) -> bytes:
    """A JPEG of coarse colour patches with noise; each number gives another picture.

    Without noise, flat areas would tie in max-pooling, and rounding would decide where a gradient goes.
    """
    lots = np.random.default_rng(number)
    coarse = Image.fromarray(lots.integers(60, 196, (4, 4, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float64)
    noisy = (smooth + lots.normal(0, 20, smooth.shape)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=90)
    return file.getvalue()


def shard(file: Path, numbers: Sequence[int], labels: Sequence[int], side: int, group: int) -> Shard:
    """Writes the pictures with these numbers as a shard with `group` rows in a row group."""
    classes = [Synset(wnid=f"n{label:08}", words=f"class {label}") for label in range(max(labels) + 1)]
    rows = {
        "image": [{"bytes": jpeg(number, side), "path": f"{number}.jpg"} for number in numbers],
        "label": list(labels),
        "wnid": [classes[label].wnid for label in labels],
        "id": [str(number) for number in numbers],
        "width": [side] * len(numbers),
        "height": [side] * len(numbers),
        "sha256": ["0" * 64] * len(numbers),
    }
    file.parent.mkdir(exist_ok=True)
    tables.write(rows, tables.with_classes(tables.IMAGES, classes), file, group)
    data = file.read_bytes()
    return Shard(file=file.name, rows=len(numbers), bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def prepared(folder: Path, train: int, val: int, classes: int, side: int = 256) -> Manifest:
    """Writes the outs of `resize` and `mean` to `folder`: data/shards/, with two training shards, and data/mean.npz."""
    shards, first = folder / "data/shards", train // 2
    shards.mkdir(parents=True)
    parts = {"train-0": range(first), "train-1": range(first, train), "val-0": range(train, train + val)}
    made = {
        name: shard(shards / f"{name}.parquet", numbers, [number % classes for number in numbers], side, 4)
        for name, numbers in parts.items()
    }
    manifest = Manifest(
        side=side,
        classes=tuple(Synset(wnid=f"n{label:08}", words=f"class {label}") for label in range(classes)),
        shards={"train": (made["train-0"], made["train-1"]), "val": (made["val-0"],), "test": ()},
        indexed=train + val,
        rejected=0,
        drawn=True,
        preparation=dataclasses.replace(PREPARATION, side=side),
    )
    (shards / "manifest.json").write_text(manifest.to_json())
    digests.seal(shards)
    sums = Sums.none(side).add(np.stack([decode(jpeg(number, side)).numpy() for number in range(train)]))
    with (folder / "data/mean.npz").open("wb") as handle:
        Mean.of(sums).save(handle)
    return manifest
