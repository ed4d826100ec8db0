"""Pictures that are in train and in val or test: found by their bytes, counted and listed, whatever they are called."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from ruamel.yaml import YAML

from pipeline import download, resize
from pipeline.runtime.machines import Machine
from pipeline.shards import duplicates, tables
from pipeline.shards.census import Census
from pipeline.shards.tables import Shard
from tests.pipeline import layouts
from tests.pipeline.miniature import jpeg
from tests.pipeline.test_resize import PARAMS


def index(*rows: tuple[str, str, int, int]) -> pa.Table:
    """An index of pictures: id, split, length, CRC-32."""
    known = {"label": 0, "wnid": "n1", "archive": "a.tar", "offset": 0}
    listed = [{**known, "id": i, "split": s, "length": length, "crc32": crc} for i, s, length, crc in rows]
    return pa.Table.from_pylist(listed, schema=tables.INDEX)


def test_length_and_checksum_both_have_to_be_equal_and_the_split_another() -> None:
    rows = index(
        ("b", "train", 9, 1),
        ("a", "train", 9, 1),  # twice in train: no duplicate of another split
        ("c", "train", 9, 2),
        ("d", "train", 8, 1),
        ("z", "val", 9, 1),
        ("y", "test", 9, 1),
        ("x", "val", 7, 2),
        ("w", "val", 8, 2),
        ("v", "val", 5, 5),
        ("u", "test", 5, 5),  # in val and in test alone
        ("t", "val", 8, 1),
    )
    found = {row["id"]: (row["split"], row["reason"]) for row in duplicates.in_index(rows)}
    assert found == {
        "t": ("val", "the same bytes as d in train"),
        "y": ("test", "the same bytes as a in train"),
        "z": ("val", "the same bytes as a in train"),
    }
    assert [*found] == ["t", "y", "z"]
    counts = duplicates.by_split(duplicates.in_index(rows))
    assert duplicates.words(counts) == "pictures with the same bytes as a training picture: 2 val, 1 test"
    assert {"c", "x", "w", "v", "u"}.isdisjoint(duplicates.candidates(rows)["id"].to_pylist())
    assert duplicates.in_index(rows.slice(0, 4)) == duplicates.in_index(rows.slice(4)) == []


def test_in_shards_the_digest_decides_and_what_was_rejected_is_no_duplicate(tmp_path: Path) -> None:
    rows = index(
        ("a", "train", 9, 1), ("b", "train", 9, 1), ("c", "train", 9, 3), ("x", "val", 9, 1), ("y", "val", 9, 3)
    )
    digests = {"a": "other", "b": "same", "x": "same", "y": "lost"}  # c was rejected
    kept = [
        {
            "id": name,
            "sha256": digest,
            "image": {"bytes": b"", "path": ""},
            "label": 0,
            "wnid": "",
            "width": 1,
            "height": 1,
        }
        for name, digest in digests.items()
    ]
    tables.write(pa.Table.from_pylist(kept, schema=tables.IMAGES), tables.IMAGES, tmp_path / "a.parquet")
    shards = [Shard(file="a.parquet", rows=4, bytes=0, sha256="")]
    assert [row["id"] for row in duplicates.in_index(rows)] == ["x", "y"]
    (row,) = duplicates.in_shards(rows, tmp_path, shards)
    assert (row["id"], row["reason"]) == ("x", "the same bytes as b in train")
    gone = [Shard(file="gone.parquet", rows=4, bytes=0, sha256="")]
    assert duplicates.in_shards(rows.slice(0, 3), tmp_path, gone) == [], "without candidates no shard is read"


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    """A working copy whose val and test have pictures of train under other names."""
    layout = layouts.imagefolder(tmp_path / "data/store")
    train = {name: data for name, (split, _, data) in layout.rows.items() if split == "train"}
    first, second, *_ = sorted(train)
    lost = jpeg(777, 40)[:-200]
    copies = {
        "val/Cat/copied.jpg": train[first],
        "val/dog breed/renamed.png": train[first],
        "test/Cat/9.jpg": train[second],
        "train/Cat/lost.jpg": lost,
        "val/Cat/lost too.jpg": lost,
    }
    layouts.write(copies, tmp_path / "data/store/my/pets")
    document = YAML(typ="safe").load(PARAMS) | {"source": layout.section}
    (tmp_path / "params.yaml").write_text(json.dumps(document))
    with contextlib.chdir(tmp_path):
        yield tmp_path


def test_the_stages_and_the_lists_name_them_whatever_they_are_called(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    download.run()
    said = capsys.readouterr().out
    assert (
        "imagefolder: pictures with the same bytes as a training picture: 3 val, 1 test. The first of them:\n" in said
    )
    assert "imagefolder:   val/Cat/copied has the same bytes as train/" in said
    census, listed = published(here)
    # of the pair that cannot be decoded nothing is kept
    assert {row["id"] for row in listed} == {"val/Cat/copied", "val/dog breed/renamed", "test/Cat/9"}
    assert census.duplicates == {"test": 1, "val": 2}
    line = "pictures with the same bytes as a training picture: 2 val, 1 test; duplicates.parquet lists them"
    assert line in census.lines()
    store = here / "data/store"
    by_id = {row["id"]: row for row in tables.read(here / "data/index/index.parquet").to_pylist()}
    for row in listed:
        other = by_id[row["reason"].removeprefix("the same bytes as ").removesuffix(" in train")]
        assert other["split"] == "train"
        files = [(store / each["archive"]).read_bytes() for each in (row, other)]
        assert hashlib.sha256(files[0]).digest() == hashlib.sha256(files[1]).digest()


def published(folder: Path) -> tuple[Census, list[dict[str, Any]]]:
    """What `resize` writes, made in this process."""
    section = resize.params.read("resize", resize.Resize)
    found = resize.read_index(resize.INDEX)
    work = resize.prepare_work(resize.key(section, found), Machine())
    tasks = resize.plan(section, found, work, folder / "data/store")
    done = {task.file: resize.make_shard(task) for task in tasks}
    resize.publish(done, section, found, work, Machine())
    listed = tables.read(folder / "data/shards/duplicates.parquet").to_pylist()
    return Census.read(folder / "data/shards/pictures.json"), listed
