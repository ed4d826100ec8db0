"""The tables keep their promises: equal bytes, checked pages, a schema that others read."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.runtime import digests
from pipeline.shards import tables
from pipeline.shards.manifest import Manifest
from pipeline.shards.tables import Shard, Synset
from tests.pipeline.flips import unsaid
from tests.sections import PREPARATION

CLASSES = (Synset(wnid="n01440764", words="tench"), Synset(wnid="n01443537", words="goldfish"))


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def images(count: int) -> pa.Table:
    rows = [
        {
            "image": {"bytes": picture(row), "path": f"{row}.jpg"},
            "label": row % 2,
            "wnid": CLASSES[row % 2].wnid,
            "id": str(row),
            "width": 16,
            "height": 16,
            "sha256": f"{row:064}",
        }
        for row in range(count)
    ]
    return pa.Table.from_pylist(rows, schema=tables.IMAGES)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    file = tmp_path / "train-00000-of-00001.parquet"
    tables.write(images(20), tables.with_classes(tables.IMAGES, CLASSES), file, 8)
    return file


def test_equal_rows_are_equal_bytes(shard: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.parquet"
    parts = pa.concat_tables([images(20).slice(0, 7), images(20).slice(7)])  # in chunks, as tasks may have it
    tables.write(parts, tables.with_classes(tables.IMAGES, CLASSES), again, 8)
    assert again.read_bytes() == shard.read_bytes()


def test_what_is_written_is_read_by_groups_too(shard: Path) -> None:
    assert tables.read(shard).to_pylist() == images(20).to_pylist()
    groups = list(tables.groups(shard, ["id"]))
    assert [group.num_rows for group in groups] == [8, 8, 4]
    assert [name for group in groups for name in group["id"].to_pylist()] == [str(row) for row in range(20)]


def test_pictures_are_stored_as_they_are_and_labels_are_counted(shard: Path) -> None:
    assert picture(3) in shard.read_bytes()
    columns = pq.ParquetFile(shard).metadata.row_group(0)
    by_name = {columns.column(i).path_in_schema: columns.column(i) for i in range(columns.num_columns)}
    assert by_name["label"].statistics.max == 1
    assert not by_name["image.bytes"].has_dictionary_page


@pytest.mark.parametrize("where", ["picture", "label"])
def test_a_flipped_bit_is_found(shard: Path, where: str) -> None:
    data = bytearray(shard.read_bytes())
    column = 2 if where == "label" else 0
    place = (
        data.index(picture(3)) + 50
        if column == 0
        else pq.ParquetFile(shard).metadata.row_group(0).column(2).data_page_offset + 45
    )
    data[place] ^= 1
    shard.write_bytes(data)
    message = f"{re.escape(str(shard))}: damaged"
    with pytest.raises(OSError, match=message):
        tables.read(shard)
    with pytest.raises(OSError, match=message):
        list(tables.groups(shard))


def test_a_missing_and_a_cut_file_are_named(shard: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.parquet: not there"):
        tables.read(tmp_path / "none.parquet")
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(OSError, match=f"{re.escape(str(shard))}: damaged"):
        tables.read(shard)


INDEX_ROWS: list[dict[str, Any]] = [
    {
        "id": "a",
        "split": "train",
        "label": 0,
        "wnid": "n01440764",
        "archive": "x.tar",
        "offset": 512,
        "length": 88,
        "crc32": 1,
    },
    {
        "id": "b",
        "split": "val",
        "label": 1,
        "wnid": "n01443537",
        "archive": "x.tar",
        "offset": 600,
        "length": 0,
        "crc32": 0,
    },
    {"id": "c", "split": "test", "label": -1, "wnid": "", "archive": "y.tar", "offset": 0, "length": 9, "crc32": 2},
]


ARCHIVES = pa.Table.from_pylist(
    [{"name": "x.tar", "bytes": 600}, {"name": "y.tar", "bytes": 9}], schema=tables.ARCHIVES
)


def check(rows: list[dict[str, Any]]) -> None:
    tables.check_index(pa.Table.from_pylist(rows, schema=tables.INDEX), CLASSES, ARCHIVES, Path("index.parquet"))


def test_a_sound_index_passes() -> None:
    check(INDEX_ROWS)


@pytest.mark.parametrize(
    ("row", "change", "message"),
    [
        (1, {"id": "a"}, "contains a picture twice"),
        (0, {"split": "training"}, "unknown split 'training'"),
        (0, {"label": 1}, "not the rank of its WordNet id"),
        (0, {"label": 2, "wnid": "n9"}, "not the rank of its WordNet id"),
        (0, {"archive": "z.tar"}, r"names the archive z\.tar, which"),
        (0, {"offset": -1}, "negative"),
        (0, {"length": None}, "a picture has no length"),
        (0, {"crc32": None}, "a picture has no crc32"),
        (2, {"label": None}, "a picture has no label"),
        (0, {"length": 89}, r"ends at byte 601 of x\.tar, which has 600"),
    ],
)
def test_a_broken_promise_is_named(row: int, change: dict[str, Any], message: str) -> None:
    rows = [{**known, **(change if place == row else {})} for place, known in enumerate(INDEX_ROWS)]
    with pytest.raises(ValueError, match=rf"^index\.parquet: .*{message}.*Run: dvc repro --force download$"):
        check(rows)


def test_an_index_has_rows_and_columns() -> None:
    with pytest.raises(ValueError, match="contains no picture"):
        check([])
    with pytest.raises(ValueError, match="has the columns"):
        tables.check_index(pa.table({"id": ["a"]}), CLASSES, ARCHIVES, Path("index.parquet"))
    rows = pa.Table.from_pylist(INDEX_ROWS, schema=tables.INDEX)
    with pytest.raises(ValueError, match=r"has the columns \['name', 'bytes'\], not those of tables\.ARCHIVES"):
        tables.check_index(rows, CLASSES, ARCHIVES.select(["name", "bytes"]), Path("index.parquet"))
    with pytest.raises(ValueError, match="the classes are not in the order of their WordNet ids, each once"):
        tables.check_index(rows, CLASSES[::-1], ARCHIVES, Path("index.parquet"))


SUM = "0123456789abcdef" * 4

MANIFEST = Manifest(
    side=256,
    classes=CLASSES,
    shards={
        "train": (Shard(file="t", rows=3, bytes=9, sha256=SUM), Shard(file="u", rows=4, bytes=9, sha256=SUM)),
        "val": (),
    },
    indexed=8,
    rejected=1,
    drawn=True,
    preparation=PREPARATION,
)


def written(folder: Path, text: str) -> None:
    """A manifest of that text, sealed: as older or other code might have left it."""
    (folder / "manifest.json").write_text(text)
    digests.seal(folder)


def changed(path: tuple[Any, ...], value: object) -> str:
    document = json.loads(MANIFEST.to_json())
    within = document
    for key in path[:-1]:
        within = within[key]
    within[path[-1]] = value
    return json.dumps(document)


def test_a_manifest_is_read_as_written(tmp_path: Path) -> None:
    written(tmp_path, MANIFEST.to_json())
    assert Manifest.read(tmp_path) == MANIFEST
    assert MANIFEST.rows("train") == 7
    assert MANIFEST.rows("val") == 0


def test_the_digest_is_that_of_the_manifest_before_it_had_the_preparation() -> None:
    """The digest is in the fingerprint of every run: computed here from the keys of then."""
    document = json.loads(MANIFEST.to_json())
    del document["preparation"]
    text = json.dumps(document, indent=1, sort_keys=True) + "\n"
    assert MANIFEST.digest == hashlib.sha256(text.encode()).hexdigest()


def test_a_manifest_that_is_not_there_or_not_ours_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="dvc repro resize"):
        Manifest.read(tmp_path)
    (tmp_path / "manifest.json").write_text(MANIFEST.to_json())
    with pytest.raises(
        FileNotFoundError, match=r"SHA256SUMS: not there, .* older code wrote it\. Run: dvc repro --force"
    ):
        Manifest.read(tmp_path)


def test_a_manifest_with_any_other_byte_is_refused(tmp_path: Path) -> None:
    """A digit of a number of rows makes a manifest too, one that stands for other pictures."""
    written(tmp_path, MANIFEST.to_json())
    for file in (tmp_path / "manifest.json", tmp_path / digests.SUMS):
        assert unsaid(file, lambda: Manifest.read(tmp_path), mask=1) == []


WRONG: list[tuple[tuple[Any, ...], object, str]] = [
    (("side",), "256", r"side: .*integer \(found '256'\)"),
    (("side",), True, r"side: .*integer \(found True\)"),
    (("side",), 256.0, r"side: .*integer \(found 256\.0\)"),
    (("side",), 0, "side: has to be 1 to 4096, is 0"),
    (("side",), float("nan"), r"not valid JSON \(NaN is no number\)"),
    (("drawn",), 1, r"drawn: .*boolean \(found 1\)"),
    (("indexed",), None, r"indexed: .*integer \(found None\)"),
    (("indexed",), 9, "indexed: 9, but 7 are in shards, and 1 rejected"),
    (("rejected",), -1, "indexed: 8, but 7 are in shards, and -1 rejected"),
    (("more",), 3, r"more: unknown key \(its value: 3\)"),
    (("classes",), {}, r"classes: .*array \(found \{\}\)"),
    (("classes", 1), "n01443537", r"classes\.1: .*object"),
    (("classes", 1, "wnid"), 7, r"classes\.1\.wnid: .*string \(found 7\)"),
    (("classes", 1, "wnid"), "n01440764", "classes: have to be in the order of their WordNet ids, each once"),
    (("classes", 1, "rank"), 7, r"classes\.1\.rank: unknown key"),
    (("shards",), [], r"shards: .*object \(found \[\]\)"),
    (("shards",), {"train": []}, "shards: has to have train and val, and may have test, has train"),
    (("shards", "trian"), [], "shards: has to have .*, has .*trian"),
    (("shards", "train"), {}, r"shards\.train: .*array"),
    (("shards", "train", 0), [], r"shards\.train\.0: .*object"),
    (("shards", "train", 0, "rows"), "3", r"shards\.train\.0\.rows: .*integer \(found '3'\)"),
    (("shards", "train", 0, "rows"), -3, "shards: t: has -3 rows and 9 bytes"),
    (("shards", "train", 0, "bytes"), 1e99, r"shards\.train\.0\.bytes: .*integer"),
    (("shards", "train", 0, "bytes"), 2**64, r"shards: t: has 3 rows and 18446744073709551616 bytes"),
    (("shards", "train", 0, "file"), "../t", r"shards: '\.\./t' is not a file name"),
    (("shards", "train", 0, "file"), "u", "shards: names a file twice"),
    (("shards", "train", 0, "sha256"), "0", "shards: t: sha256: '0' is not a sha256"),
    (("preparation", "fit"), "zoom", r"preparation\.fit: .*'crop'.* \(found 'zoom'\)"),
    (("preparation", "quality"), 0, r"preparation: .*quality has to be 1 to 100"),
    (("preparation", "side"), 128, "preparation: has the side 128, the pictures have 256"),
]


@pytest.mark.parametrize(("path", "value", "said"), WRONG)
def test_a_value_of_another_kind_in_a_manifest_is_named(
    tmp_path: Path, path: tuple[Any, ...], value: object, said: str
) -> None:
    written(tmp_path, changed(path, value))
    with pytest.raises(ValueError, match=said) as caught:
        Manifest.read(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}/manifest.json: ")
    assert str(caught.value).endswith("Run: dvc repro --force --single-item resize")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not valid JSON"),
        ("[]", "has to be a JSON object, is list"),
        ('{"side": 256}', "classes: is missing"),
        ('{"side": 1, "side": 2}', "the key 'side' is there twice"),
        ('{"side": ' + "[" * 200_000, "not valid JSON"),
        ('{"side": ' + "[" * 500 + "]" * 500 + "}", "classes: is missing"),
        (
            changed(("side",), 1).replace('"side": 1', '"side": ' + "[" * 500 + "]" * 500),
            "Invalid JSON: recursion limit exceeded",
        ),
        (changed(("classes",), [3] * 1000), r"classes\.0: .* \(and 999 more\)"),
    ],
)
def test_a_text_that_is_no_manifest_is_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    written(tmp_path, text)
    with pytest.raises(ValueError, match=rf"manifest\.json: .*{said}.*Run: dvc repro --force --single-item resize$"):
        Manifest.read(tmp_path)


def test_the_digest_tells_manifests_apart() -> None:
    assert dataclasses.replace(MANIFEST).digest == MANIFEST.digest
    for change in ({"side": 255}, {"rejected": 0}, {"drawn": False}, {"classes": CLASSES[::-1]}):
        assert dataclasses.replace(MANIFEST, **change).digest != MANIFEST.digest


def seen(image: dict[str, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(bytes(image["bytes"]))))


def test_pandas_reads_pictures_and_labels(shard: Path) -> None:
    import pandas

    loaded = pandas.read_parquet(shard)
    check_rows(loaded["label"].tolist(), loaded["image"].tolist())


def test_duckdb_reads_pictures_and_labels(shard: Path) -> None:
    import duckdb

    rows = duckdb.sql(f"select label, image from '{shard}'").fetchall()
    check_rows([label for label, _ in rows], [image for _, image in rows])
    # a field of the struct alone, as one looks for pictures
    (found,) = duckdb.sql(f"select count(*) from '{shard}' where image.path like '%.jpg'").fetchall()
    assert found == (20,)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray Data's own settings
def test_ray_data_reads_pictures_and_labels(shard: Path, ray_session: None) -> None:
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.read_parquet(str(shard)).take_all()
    check_rows([row["label"] for row in rows], [row["image"] for row in rows])


def check_rows(labels: list[int], images: list[dict[str, Any]]) -> None:
    """What a reader found in `shard` is what was written to it."""
    assert labels == [row % 2 for row in range(20)]
    for number, image in enumerate(images):
        np.testing.assert_array_equal(seen(image), np.asarray(Image.open(io.BytesIO(picture(number)))))


def test_hugging_face_reads_pictures_and_names(shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    import datasets  # it reads the two settings when imported

    loaded = datasets.load_dataset(
        "parquet", data_files={"train": str(shard)}, cache_dir=str(tmp_path / "cache"), split="train"
    )
    assert loaded.features["label"].names == ["n01440764", "n01443537"]
    assert loaded[3]["image"].size == (16, 16)
    np.testing.assert_array_equal(np.asarray(loaded[3]["image"]), np.asarray(Image.open(io.BytesIO(picture(3)))))
    assert len(loaded) == 20
