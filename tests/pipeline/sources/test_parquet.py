"""Parquet files as people have them: names, columns, labels and pictures of any kind, each taken or refused with what to do."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.archives import apart, parquet
from pipeline.archives.contents import Contents
from pipeline.sources.huggingface import HuggingFace
from tests.pipeline.miniature import jpeg
from tests.pipeline.sources.test_sources import rows

SECTION: dict[str, Any] = {"name": "huggingface", "dataset": "me/pets", "revision": "main", "classes": "all"}
IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
NAMES = ["cat", "dog"]
HASH = "886fc0b9e8b3b0a1"


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads the files here: a process for each test would take two seconds. test_bounds.py has those of the process."""
    monkeypatch.setattr(apart.Apart, "__enter__", lambda self: self)
    monkeypatch.setattr(apart.Apart, "__exit__", lambda *_: None)
    monkeypatch.setattr(apart.Apart, "items", lambda _, function, file, more=(): function(file, *more))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


def contents(store: Path, **changes: Any) -> Contents:
    return HuggingFace(**{**SECTION, "complete": False, **changes}).contents(store)


def images(count: int, first: int = 0) -> pa.Array:
    return pa.array([{"bytes": jpeg(first + n, 40), "path": f"{n}.jpg"} for n in range(count)], IMAGE)


def write(file: Path, names: list[str] | None = None, kinds: dict[str, str] | None = None, **columns: Any) -> None:
    """Writes columns, and the metadata of `datasets`: `names` of the column label or labels, or other columns' kinds."""
    table = pa.table(columns)
    named = next((name for name in columns if name.startswith("label")), "label")
    features: dict[str, Any] = {name: {"_type": kind, "names": NAMES} for name, kind in (kinds or {}).items()}
    if names:
        features[named] = {"_type": "ClassLabel", "names": names}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if features else None
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), file)


def pets(store: Path, *files: str, **columns: Any) -> None:
    """Files of four pictures each, of cats and dogs."""
    for number, name in enumerate(files):
        given = {"image": images(4, 4 * number), "label": pa.array([0, 1, 0, 1]), "names": NAMES, **columns}
        write(store / "huggingface/me/pets" / name, **given)


def splits(found: Contents) -> dict[str, int]:
    return dict(Counter(found.pictures["split"].to_pylist()))


@pytest.mark.parametrize(
    ("train", "val"),
    [
        (f"data/train-00000-of-00001-{HASH}.parquet", f"data/validation-00000-of-00001-{HASH[::-1]}.parquet"),
        ("data/train-00000-of-00001.parquet", "data/valid-00000-of-00001.parquet"),
        ("full/train-00000-of-00001.parquet", "full/val-00000-of-00001.parquet"),
        ("train.parquet", "Val.parquet"),
        ("default/train/0000.parquet", "default/validation/0000.parquet"),
        ("pets_training_1.parquet", "pets_dev_1.parquet"),
    ],
)
def test_files_are_of_the_split_that_their_name_or_folder_says(store: Path, train: str, val: str) -> None:
    pets(store, train, val, re.sub("val[a-z]*|dev", "test", val.lower()))
    found = contents(store)
    assert splits(found) == ({"train": 4, "val": 4, "test": 4})
    assert {synset.wnid for synset in found.classes} == set(NAMES)
    by_split = {data: split for split, _, data in rows(found, store).values()}
    assert by_split == {jpeg(n, 40): ("train", "val", "test")[n // 4] for n in range(12)}


def test_files_that_say_no_split_are_for_training_unless_others_say_one(store: Path) -> None:
    pets(store, "a.parquet", "deep/b.parquet", ".cache/c.parquet")
    assert splits(contents(store, val_share=0.5)) == {"train": 4, "val": 4}
    pets(store, "train.parquet")
    found = contents(store, val_share=0.5)
    assert splits(found) == {"train": 2, "val": 2}
    assert found.notes == (f"{store}/huggingface/me/pets: 2 Parquet files whose names say no split, such as a.parquet",)


TWICE = {
    "two versions": (f"train-00000-of-00002-{HASH}.parquet", f"train-00000-of-00003-{HASH[::-1]}.parquet"),
    "two configurations": ("a/train-00000-of-00001.parquet", "b/train-00000-of-00001.parquet"),
    "two configurations, not numbered": ("a/train.parquet", "b/train.parquet"),
}


@pytest.mark.parametrize("case", TWICE)
def test_two_versions_or_configurations_are_not_one_set(store: Path, case: str) -> None:
    pets(store, *TWICE[case])
    with pytest.raises(ValueError, match=r"me/pets: .*(the same shard|in two files).*source\.config"):
        contents(store, val_share=0.5)
    if case != "two versions":
        assert splits(contents(store, val_share=0.5, config="a")) == {"train": 2, "val": 2}


def test_a_set_without_a_validation_split_holds_out_a_share_of_each_class(store: Path) -> None:
    pets(store, "train-00000-of-00001.parquet", "test-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=r"me/pets: has no labelled validation pictures.*source\.val_share: 0\.1$"):
        contents(store)
    half = contents(store, val_share=0.5)
    assert splits(half) == {"train": 2, "val": 2, "test": 4}

    def held(**changes: Any) -> set[str]:
        found = contents(store, val_share=0.5, **changes).pictures.to_pylist()
        return {row["id"] for row in found if row["split"] == "val"}

    assert held() == held()
    assert len({frozenset(held(seed=seed)) for seed in range(9)}) > 1
    pets(store, "validation-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=r"has validation pictures, so .*source\.val_share has to be 0, is 0\.5"):
        contents(store, val_share=0.5)
    with pytest.raises(ValueError, match="val_share has to be at least 0 and below 1"):
        contents(store, val_share=1.0)


STRINGS = pa.array(["dog", "cat", "dog", "cat"])
PICTURES: dict[str, Callable[[], pa.Array]] = {
    "plain binary": lambda: pa.array([jpeg(n, 40) for n in range(4)]),
    "large binary": lambda: pa.array([jpeg(n, 40) for n in range(4)], pa.large_binary()),
    "bytes without path": lambda: pa.array([{"bytes": jpeg(n, 40)} for n in range(4)]),
    "other fields": lambda: pa.array([{"path": None, "size": 3, "bytes": jpeg(n, 40)} for n in range(4)]),
    "paths of any ending": lambda: pa.array(
        [{"bytes": jpeg(n, 40), "path": f"C:\\x\\{n}{end}"} for n, end in enumerate((".JFIF", "", ".avif", ".pgm"))]
    ),
}
TAKEN: dict[str, dict[str, Any]] = {
    "labels": {"label": None, "labels": pa.array([1, 0, 1, 0])},
    "names": {"label": STRINGS, "names": None},
    "large names": {"label": None, "labels": STRINGS.cast(pa.large_string()), "names": None},
    "a dictionary of names": {"label": STRINGS.dictionary_encode(), "names": None},
    "small numbers": {"label": pa.array([1, 0, 1, 0], pa.uint8())},
    "the only class label": {"label": None, "cls": pa.array([1, 0, 1, 0]), "kinds": {"cls": "ClassLabel"}, "names": None},
    "the only picture": {"image": None, "photo": images(4), "label": STRINGS, "names": None, "kinds": {"photo": "Image"}},
    "img": {"image": None, "img": images(4), "label": STRINGS, "names": None},
    **{name: {"image": make(), "label": STRINGS, "names": None} for name, make in PICTURES.items()},
}  # fmt: skip


@pytest.mark.parametrize("case", TAKEN)
def test_columns_of_these_kinds_are_taken(store: Path, case: str) -> None:
    given = TAKEN[case]
    for split in ("train", "val"):
        columns = {"image": images(4), "label": pa.array([1, 0, 1, 0]), "names": NAMES, **given}
        write(store / f"huggingface/me/pets/{split}.parquet", **{k: v for k, v in columns.items() if v is not None})
    found = contents(store)
    assert [synset.wnid for synset in found.classes] == ["cat", "dog"]
    of_train = {data: wnid for split, wnid, data in rows(found, store).values() if split == "train"}
    assert of_train == {jpeg(n, 40): ("dog", "cat")[n % 2] for n in range(4)}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "fine and coarse": (
        {"label": None, "fine": [1, 0, 1, 0], "coarse": [0, 0, 1, 1], "kinds": dict.fromkeys(("fine", "coarse"), "ClassLabel")},
        r"has no column 'label' or 'labels' of labels; its columns are .*fine \(int64\), coarse .*source\.label_column: fine",
    ),
    "cls": ({"label": None, "cls": STRINGS}, r"no column 'label' .* are image \(struct.*cls \(string\)\. .*label_column: NAME"),
    "photo": ({"image": None, "photo": images(4)}, r"no column 'image' or 'img' of images; .*source\.image_column: NAME"),
    "numbers of nothing": ({"names": None}, "column 'label' holds numbers, whose classes are not named .* ClassLabel$"),
    "fractions": ({"label": [0.5] * 4}, r"column 'label' holds double, not .* classes\..*source\.label_column"),
    "lists": ({"label": [[1], [2], [], [0]]}, r"column 'label' holds list<.*>, not .* classes"),
    "paths": ({"image": ["a.jpg"] * 4}, r"'image' holds string, not the bytes of pictures\..*image_column.*imagefolder"),
    "pixels": ({"image": [[1, 2, 3]] * 4}, r"'image' holds list<.*, not the bytes of pictures"),
    "a picture's path alone": ({"image": pa.array([{"path": "a.jpg"}] * 4)}, "not the bytes of pictures"),
    "too few names": ({"names": ["cat"]}, r"row 1 has the label 1, of 1 names"),
    "all without bytes": (
        {"image": pa.array([{"bytes": None, "path": "data/a.jpg"}] * 4, IMAGE)},
        r"no row has a picture's bytes in column 'image', from row 0 on, only paths, such as 'data/a\.jpg'\..*imagefolder",
    ),
    "nothing but null": ({"image": pa.nulls(4)}, r"no row has a picture's bytes in column 'image', from row 0 on\. Write"),
    "a name twice": ({"names": ["cat", "cat"]}, "labels 0 and 1, 'cat' and 'cat', would both be the class 'cat'"),
    "names that a tar makes one": (
        {"label": ["a/b", "a_b", "a\\b", "c"]}, "labels 'a/b' and 'a_b', 'a/b' and 'a_b', would both be the class 'a_b'",
    ),
    "a name that leads out": ({"label": ["..", "b", "c", "c"]}, r"label '\.\.' is called '\.\.', which names no folder"),
    "an endless name": ({"label": ["x" * 70_000, "b", "c", "c"]}, r"label 'x+ is called 'x{80}', which names no folder"),
    "equal paths": (
        {"image": pa.array([{"bytes": b"x", "path": f"x{n}_n0144076{n}.jpg"} for n in (0, 1, 0, 1)], IMAGE)},
        r"rows 0 and 2 would both be the picture 'x0\.jpg' of the class 'n01440760', since their paths are equal",
    ),
    "paths that sometimes have a class": (
        {"image": pa.array([{"bytes": b"x", "path": f"x{end}.jpg"} for end in ("", "", "_n01440764", "")], IMAGE)},
        "label 0, 'cat', would be two classes, 'cat' and 'n01440764'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_other_columns_are_refused_with_what_is_there_and_what_to_write(store: Path, case: str) -> None:
    changes, said = REFUSED[case]
    given: dict[str, Any] = {"image": images(4), "label": [0, 1, 0, 1], "names": NAMES, **changes}
    write(store / "huggingface/me/pets/train.parquet", **{k: v for k, v in given.items() if v is not None})
    with pytest.raises(ValueError, match=rf"me/pets/train\.parquet: .*{said}") as told:
        contents(store, val_share=0.5)
    assert "Fetch it again" not in str(told.value)
    assert not list(store.rglob("*.tar"))


def test_a_column_that_params_names_is_used_and_repacked_beside_the_others(store: Path) -> None:
    given = {"fine": STRINGS, "coarse": pa.array(["pet"] * 3 + ["wild"]), "photo": images(4), "image": images(4, 10)}
    write(store / "huggingface/me/pets/train.parquet", **given)
    for changes, classes, pictures in (
        ({"label_column": "fine"}, ["cat", "dog"], 10),
        ({"label_column": "coarse"}, ["pet", "wild"], 10),
        ({"label_column": "coarse", "image_column": "photo"}, ["pet", "wild"], 0),
        ({"label_column": "fine"}, ["cat", "dog"], 10),
    ):
        found = contents(store, val_share=0.5, **changes)
        assert [synset.wnid for synset in found.classes] == classes
        assert {data for _, _, data in rows(found, store).values()} == {jpeg(pictures + n, 40) for n in range(4)}
    assert len(list(store.rglob("*.tar"))) == 3
    with pytest.raises(ValueError, match=r"has no column 'coarser' of labels; its .*source\.label_column: NAME"):
        contents(store, val_share=0.5, label_column="coarser")


def test_a_row_without_bytes_is_counted_among_the_pictures_and_one_without_a_label_is_said(store: Path) -> None:
    some = images(6).to_pylist()
    some[0], some[3] = {"bytes": None, "path": "a.jpg"}, None
    given = {"image": pa.array(some, IMAGE), "label": pa.array([0, 1, 0, 1, None, -1])}
    write(store / "huggingface/me/pets/train.parquet", NAMES, **given)
    found = contents(store, val_share=0.5)
    assert sorted(len(data) == 0 for _, _, data in rows(found, store).values()) == [False, False, True, True]
    assert found.notes == (f"{store}/huggingface/me/pets/train.parquet: 2 pictures without a label",)


@pytest.mark.parametrize("path", ["a.x", "a", "deep/a.jpg.1", None])
def test_a_row_s_name_has_a_picture_s_extension(path: str | None) -> None:
    assert parquet._name(path, "train-000007", "cat") == ("train-000007.jpg", "cat")
    assert parquet._name("a_n01440764.Tiff", "", "tench") == ("a.Tiff", "n01440764")
    assert parquet._name(None, "0", "a\\b/c") == ("0.jpg", "a_b_c")


@pytest.mark.parametrize("name", [".NET", "__MACOSX", "Cat", "a b ", "a.", "ümlaut", "u\u0308mlaut", "thumbs.db", "C:"])
def test_any_name_that_can_be_a_class_is_one_of_its_own(store: Path, name: str) -> None:
    write(store / "huggingface/me/pets/train.parquet", image=images(4), label=["cat", name] * 2)
    found = contents(store, val_share=0.5)
    assert [synset.wnid for synset in found.classes] == sorted(["cat", name])
    assert splits(found) == {"train": 2, "val": 2}


def test_two_classes_of_two_files_are_never_one(store: Path) -> None:
    for file, name in (("train.parquet", "a/b"), ("val.parquet", "a_b")):
        write(store / "huggingface/me/pets" / file, image=images(4), label=["c", name] * 2)
    with pytest.raises(
        ValueError, match=r"the classes 'a_b', and 'a/b' in another file, would both be the class 'a_b'"
    ):
        contents(store)


def test_a_test_file_without_labels_is_left_out_and_said(store: Path) -> None:
    pets(store, "train.parquet", "val.parquet")
    write(store / "huggingface/me/pets/test.parquet", image=images(4))
    found = contents(store)
    assert splits(found) == {"train": 4, "val": 4}
    assert found.notes == (f"{store}/huggingface/me/pets/test.parquet: its pictures have no labels",)


@pytest.mark.parametrize(
    ("present", "incomplete"),
    [
        ((f"train-00000-of-00002-{HASH}", f"train-00001-of-00002-{HASH[::-1]}", "val-00000-of-00001"), False),
        ((f"train-00000-of-00002-{HASH}", "val-00000-of-00001"), True),
        (("data/train-00000-of-00001", "data/validation-00000-of-00002", "data/validation-00001-of-00002"), False),
        (("train-00000-of-00001",), True),
        (("train", "val"), False),
        (("train-00000-of-00001", "val-00000-of-00001", "test-00000-of-00009"), False),
    ],
)
def test_a_name_tells_which_shards_are_missing(present: tuple[str, ...], incomplete: bool) -> None:
    section = HuggingFace(**SECTION, complete=True)
    assert section._incomplete([PurePosixPath(f"{name}.parquet") for name in present]) is incomplete
    held_out = HuggingFace(**SECTION, complete=True, val_share=0.5)
    assert not held_out._incomplete([PurePosixPath("train-00000-of-00001.parquet")])
