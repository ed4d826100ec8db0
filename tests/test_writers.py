"""Shards of another version of pyarrow: what is compared, and what a footer with another writer's name changes."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from pipeline.runtime import digests
from pipeline.shards import tables
from pipeline.shards.manifest import Manifest
from tests.pipeline.miniature import prepared
from tests.writers import differences

ROOT = Path(__file__).parents[1]

WRITER = f"parquet-cpp-arrow version {pa.__version__}".encode()


def rewritten(shards: Path, folder: Path) -> Manifest:
    """A copy of the shards with another version in their footers, as that version would write them, and its manifest."""
    shutil.copytree(shards, folder)
    manifest = Manifest.read(shards)
    parts = {}
    for split, made in manifest.shards.items():
        parts[split] = ()
        for shard in made:
            file = folder / shard.file
            data = file.read_bytes()
            assert data.count(WRITER) == 1
            file.write_bytes(
                data.replace(WRITER, b"parquet-cpp-arrow version 99.9.9"[: len(WRITER)].ljust(len(WRITER), b"9"))
            )
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            parts[split] += (dataclasses.replace(shard, sha256=digest),)
    return dataclasses.replace(manifest, shards=parts)


def test_another_writer_s_name_is_no_difference_but_is_another_manifest(tmp_path: Path) -> None:
    manifest = prepared(tmp_path, 8, 4, 2, side=32)
    other = rewritten(tmp_path / "data/shards", tmp_path / "new")
    assert list(differences(tmp_path / "data/shards", tmp_path / "new")) == []
    assert other.digest != manifest.digest, "shards that are made anew are the pictures of another run"
    shard = other.shards["train"][0]
    digests.compare(tmp_path / "new" / shard.file, shard.sha256, "resize")
    assert tables.read(tmp_path / "new" / shard.file, ["id"], "resize")["id"].to_pylist() == ["0", "1", "2", "3"]


def test_no_stage_depends_on_the_versions_of_packages() -> None:
    for stage in YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"].values():
        assert not {"requirements.lock", "pyproject.toml"} & set(stage["deps"])


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda table: table.take([1, 0, *range(2, table.num_rows)]), "a row, or the rows' order"),
        (lambda table: table.replace_schema_metadata({"a": "b"}), "the schema"),
        (lambda table: table.set_column(1, "label", pa.array([9] * table.num_rows)), "a row, or the rows' order"),
        (lambda table: table, "a row group"),
    ],
)
def test_what_else_differs_is_said(tmp_path: Path, change: object, what: str) -> None:
    prepared(tmp_path, 8, 4, 2, side=32)
    shards, new = tmp_path / "data/shards", tmp_path / "new"
    shutil.copytree(shards, new)
    file = new / "val-0.parquet"
    pq.write_table(change(pq.read_table(file)), file, row_group_size=3)  # type: ignore[operator]
    assert f"val-0.parquet: {what} differs" in list(differences(shards, new))


def test_other_files_are_said(tmp_path: Path) -> None:
    prepared(tmp_path, 8, 4, 2, side=32)
    shutil.copytree(tmp_path / "data/shards", tmp_path / "new")
    (tmp_path / "new/val-0.parquet").unlink()
    assert "the files are" in next(differences(tmp_path / "data/shards", tmp_path / "new"))
    (tmp_path / "empty").mkdir()
    assert "no Parquet file" in next(differences(tmp_path / "empty", tmp_path / "empty"))
