"""The stage `mean`, compared with numpy's mean of the decoded pictures."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from alexnet.dataset import Mean
from pipeline import mean
from pipeline.runtime import digests
from pipeline.runtime.machines import Machine
from pipeline.shards import artifacts, tables
from pipeline.shards.manifest import Manifest
from pipeline.shards.tables import Shard, Synset
from tests.pipeline.flips import unsaid
from tests.sections import PREPARATION

CLASSES = (Synset(wnid="n01440764", words="tench"),)
SIDE = 24


def picture(seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)
    return file.getvalue()


def shard(folder: Path, name: str, seeds: range) -> Shard:
    rows = [
        {
            "image": {"bytes": picture(seed), "path": f"{seed}.jpg"},
            "label": 0,
            "wnid": "n01440764",
            "id": str(seed),
            "width": SIDE,
            "height": SIDE,
            "sha256": "",
        }
        for seed in seeds
    ]
    table = pa.Table.from_pylist(rows, schema=tables.IMAGES)
    tables.write(table, tables.with_classes(tables.IMAGES, CLASSES), folder / name, 4)
    data = (folder / name).read_bytes()
    return Shard(file=name, rows=len(rows), bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def task(name: str) -> mean.Task:
    (known,) = [each for part in Manifest.read(artifacts.SHARDS).shards.values() for each in part if each.file == name]
    return mean.Task(file=artifacts.SHARDS / name, shard=known)


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "data/shards"
    folder.mkdir(parents=True)
    parts = {
        "train": (shard(folder, "a.parquet", range(9)), shard(folder, "b.parquet", range(9, 14))),
        "val": (shard(folder, "c.parquet", range(14, 19)),),
    }
    preparation = dataclasses.replace(PREPARATION, side=SIDE)
    manifest = Manifest(
        side=SIDE, classes=CLASSES, shards=parts, indexed=19, rejected=0, drawn=True, preparation=preparation
    )
    (folder / "manifest.json").write_text(manifest.to_json())
    digests.seal(folder)
    (tmp_path / "params.yaml").write_text("source: {}\nresize: {}\n")
    with contextlib.chdir(tmp_path):
        yield tmp_path


def test_the_mean_is_numpys_over_the_training_pictures_alone(copy: Path, ray_session: None) -> None:
    (copy / "machine.yaml").write_text("workers: 2\n")
    mean.run()
    made = Mean.load(artifacts.MEAN)
    train = [np.asarray(Image.open(io.BytesIO(picture(seed))), np.float64) for seed in range(14)]
    pixels_BCHW = np.stack(train).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(made.image_CHW, pixels_BCHW.mean(axis=0), rtol=1e-6)
    flat = pixels_BCHW.transpose(1, 0, 2, 3).reshape(3, -1)
    np.testing.assert_allclose(made.covariance_CC, np.cov(flat, bias=True), rtol=1e-10)
    assert made.images == 14


def test_bytes_do_not_depend_on_the_workers(copy: Path, ray_session: None) -> None:
    mean.run()
    data = artifacts.MEAN.read_bytes()
    parts = [mean.of_shard(task(name)) for name in ("b.parquet", "a.parquet")]
    mean.save(parts[0].merge(parts[1]), Machine())
    assert artifacts.MEAN.read_bytes() == data


def test_a_job_finds_the_mean_in_the_storage(copy: Path) -> None:
    machine = Machine(storage=str(copy / "storage"))
    mean.save(mean.of_shard(task("a.parquet")), machine)
    folder = artifacts.prepared(machine)
    assert folder is not None
    assert (folder / "mean.npz").read_bytes() == artifacts.MEAN.read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ["SHA256SUMS", "mean.npz"]
    digests.check(folder / "mean.npz", "mean")


def test_a_shard_with_any_other_byte_is_named(copy: Path) -> None:
    named, file = task("a.parquet"), artifacts.SHARDS / "a.parquet"
    size = file.stat().st_size
    places = [*range(0, size, 97), *range(size - 200, size)]
    assert unsaid(file, lambda: mean.of_shard(named).products_CC.tolist(), places, always=True) == []
    file.unlink()
    with pytest.raises(OSError, match=r"a\.parquet: gone or damaged: .* Run: dvc repro --force --single-item resize"):
        mean.of_shard(named)


def test_without_shards_it_says_what_to_run(tmp_path: Path) -> None:
    with contextlib.chdir(tmp_path), pytest.raises(FileNotFoundError, match="dvc repro resize"):
        mean.run()
