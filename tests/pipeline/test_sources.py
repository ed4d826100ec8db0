"""Every source from a small set in its real layout: each row of the index is the picture, the class and the split."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import download, params
from pipeline.sources.contents import Contents
from tests.pipeline import layouts
from tests.pipeline.layouts import Layout


def contents(store: Path, section: dict[str, Any]) -> Contents:
    file = store.parent / "params.yaml"
    file.write_text(json.dumps({"source": section}))
    found = params.read("source", download.SOURCES, file).contents(store)
    download.check(found)
    return found


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


def rows(found: Contents, store: Path) -> dict[str, tuple[str, str, bytes]]:
    """By id: split, class and bytes."""
    return {
        row["id"]: (row["split"], row["wnid"], part(store / row["archive"], row["offset"], row["length"]))
        for row in found.pictures.to_pylist()
    }


def part(file: Path, offset: int, length: int) -> bytes:
    return file.read_bytes()[offset : offset + length]


def expected(layout: Layout, found: dict[str, tuple[str, str, bytes]]) -> dict[str, tuple[str, str, bytes]]:
    """What the layout holds; where it does not say which pictures are held out, as the index says."""
    return {name: (split or found[name][0], wnid, data) for name, (split, wnid, data) in layout.rows.items()}


@pytest.mark.parametrize("name", layouts.ALL)
def test_every_row_is_the_picture_its_class_and_its_split(store: Path, name: str) -> None:
    layout = layouts.ALL[name](store)
    found = contents(store, layout.section)
    assert {synset.wnid: synset.words for synset in found.classes} == layout.words
    assert [synset.wnid for synset in found.classes] == sorted(layout.words)
    listed = rows(found, store)
    assert listed.keys() == layout.rows.keys()
    if layout.exact:
        assert listed == expected(layout, listed)
    for name_, (split, wnid, data) in listed.items():
        assert (layout.rows[name_][0] or split, layout.rows[name_][1]) == (split, wnid)
        assert pixels(data) == pixels(layout.rows[name_][2])
    for row in found.pictures.to_pylist():
        assert row["label"] == sorted(layout.words).index(row["wnid"])
    assert not found.drawn


def pixels(data: bytes) -> bytes:
    from alexnet.dataset import decode

    return decode(data).numpy().tobytes()


@pytest.mark.parametrize("name", layouts.ALL)
def test_the_archives_are_listed_with_their_checksums(store: Path, name: str) -> None:
    found = contents(store, layouts.ALL[name](store).section)
    listed = found.archives.to_pylist()
    assert {row["archive"] for row in found.pictures.to_pylist()} <= {archive["name"] for archive in listed}
    for archive in listed:
        data = (store / archive["name"]).read_bytes()
        assert archive["bytes"] == len(data)
        assert archive["sha256"] == hashlib.sha256(data).hexdigest()
        assert archive["md5"] in (None, hashlib.md5(data, usedforsecurity=False).hexdigest())


@pytest.mark.parametrize("name", layouts.ALL)
def test_the_index_is_the_same_again_and_behind_a_link(store: Path, name: str, tmp_path: Path) -> None:
    layout = layouts.ALL[name](store)
    first = contents(store, layout.section)
    again = contents(store, layout.section)
    assert (again.pictures, again.archives, again.classes) == (first.pictures, first.archives, first.classes)
    other = tmp_path / "other"
    other.mkdir()
    for folder in store.iterdir():
        if folder.name != "repacked":
            (other / folder.name).symlink_to(folder)
    linked = contents(other, layout.section)
    assert (linked.pictures, linked.archives, linked.classes) == (first.pictures, first.archives, first.classes)


@pytest.mark.parametrize("name", layouts.ALL)
def test_nothing_of_the_user_s_is_changed(store: Path, name: str) -> None:
    layout = layouts.ALL[name](store)
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}
    contents(store, layout.section)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert {path.parts[len(store.parts)] for path in set(store.rglob("*")) - set(before) if path.is_file()} <= {
        "repacked"
    }


@pytest.mark.parametrize("name", layouts.ALL)
def test_classes_can_be_chosen_and_are_ranked_among_themselves(store: Path, name: str) -> None:
    layout = layouts.ALL[name](store)
    ids = sorted(layout.words)
    for choice, taken in ((2, ids[:2]), ([ids[2], ids[0]], [ids[0], ids[2]])):
        found = contents(store, layout.section | {"classes": choice})
        assert [synset.wnid for synset in found.classes] == taken
        listed = found.pictures.to_pylist()
        assert {row["id"] for row in listed} == {name for name, row in layout.rows.items() if row[1] in taken}
        assert all(row["label"] == taken.index(row["wnid"]) for row in listed)
    with pytest.raises(
        ValueError, match=rf"source\.classes: the set has no class '{ids[0][:-1]}', did you mean '{ids[0]}'"
    ):
        contents(store, layout.section | {"classes": [ids[0][:-1], ids[1]]})
    with pytest.raises(ValueError, match=r"source\.classes: 4, but the set has 3"):
        contents(store, layout.section | {"classes": 4})
