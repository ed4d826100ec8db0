"""Every source from a small set in its real layout: each row of the index is the picture, the class and the split."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import download
from pipeline.archives import published, repacked, tars, tree
from pipeline.archives.class_folders import UnlabelledPicture
from pipeline.archives.contents import Archive, Contents
from pipeline.archives.store import StorePath
from pipeline.runtime import params, web
from pipeline.runtime.fetch import Remote
from pipeline.sources import cifar10, huggingface, ilsvrc, imagenette, tiny_imagenet
from tests.pipeline import layouts
from tests.pipeline.layouts import Layout
from tests.pipeline.miniature import jpeg
from tests.pipeline.server import File, Server, serving


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


LAYOUTS = [
    pytest.param(name, marks=pytest.mark.slow) if name == "huggingface" else name  # it starts a process
    for name in layouts.ALL
]


@pytest.mark.parametrize("name", LAYOUTS)
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
        assert row["crc32"] == zlib.crc32(listed[row["id"]][2])
    assert not found.drawn


def pixels(data: bytes) -> bytes:
    from alexnet.pictures import decode

    return decode(data).numpy().tobytes()


def test_a_picture_by_itself_that_changes_while_it_is_read_is_refused(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = layouts.imagefolder(store)
    hashed = tree.Tree._hashed

    def longer(self: tree.Tree, name: str) -> Archive:
        with (store / name).open("ab") as file:
            file.write(b"x")
        return hashed(self, name)

    monkeypatch.setattr(tree.Tree, "_hashed", longer)
    with pytest.raises(ValueError, match=r"my/pets/train/Cat/0\.jpg: changed while it was read\. Run it again"):
        contents(store, layout.section)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_archives_are_listed_with_their_checksums(store: Path, name: str) -> None:
    found = contents(store, layouts.ALL[name](store).section)
    listed = found.archives.to_pylist()
    assert {row["archive"] for row in found.pictures.to_pylist()} <= {archive["name"] for archive in listed}
    for archive in listed:
        data = (store / archive["name"]).read_bytes()
        assert archive["bytes"] == len(data)
        assert archive["sha256"] == hashlib.sha256(data).hexdigest()
        assert archive["md5"] in (None, hashlib.md5(data, usedforsecurity=False).hexdigest())


@pytest.mark.parametrize("name", LAYOUTS)
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


@pytest.mark.parametrize("name", LAYOUTS)
def test_nothing_of_the_user_s_is_changed(store: Path, name: str) -> None:
    layout = layouts.ALL[name](store)
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}
    contents(store, layout.section)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert {path.parts[len(store.parts)] for path in set(store.rglob("*")) - set(before) if path.is_file()} <= {
        "repacked"
    }


@pytest.mark.parametrize("name", LAYOUTS)
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


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server for what a source fetches, and nothing of this machine's settings."""
    for name in ("HF_TOKEN", "HF_ENDPOINT", "ALEXNET_MACHINE", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(web, "WAIT", 0.001)
    monkeypatch.chdir(tmp_path)
    with serving() as state:
        yield state


@pytest.mark.parametrize("name", ["imagenette", "tiny_imagenet", "cifar10"])
def test_an_archive_that_is_not_there_is_fetched(
    store: Path, tmp_path: Path, server: Server, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published archives are too large for a test, so a small one takes their place, behind a mirror."""
    layout = layouts.ALL[name](tmp_path / "theirs")
    (archive,) = (tmp_path / "theirs" / name).iterdir()
    module = {"imagenette": imagenette, "tiny_imagenet": tiny_imagenet, "cifar10": cifar10}[name]
    url = (module.ARCHIVES[160] if module is imagenette else module.ARCHIVE).url
    small = Remote(url=url, bytes=archive.stat().st_size, md5=md5(archive))
    if module is imagenette:
        monkeypatch.setitem(imagenette.ARCHIVES, 160, small)
        monkeypatch.setattr(imagenette, "COUNTS", {"train": 12, "val": 6})
        monkeypatch.setattr(imagenette, "WORDS", layout.words)
    else:
        monkeypatch.setattr(module, "ARCHIVE", small)
        for count, value in (("CLASSES", 3), ("TRAIN_IMAGES", 4), ("VAL_IMAGES", 2), ("TEST_IMAGES", 2)):
            monkeypatch.setattr(module, count, value, raising=False)
    section = layout.section | {"complete": True}
    server.files["/mirror/" + archive.name] = File(archive.read_bytes(), cut=lambda _: 5000)
    Path("machine.yaml").write_text(json.dumps({"mirrors": {url.rpartition("/")[0]: f"{server.url}/mirror"}}))
    with pytest.raises(FileNotFoundError, match=r"not there, and with source\.complete: false nothing is fetched"):
        contents(store, layout.section)
    assert server.asked == []
    found = contents(store, section)
    assert len(found.pictures) == 18
    assert (store / name / archive.name).read_bytes() == archive.read_bytes()
    before = len(server.asked)
    assert contents(store, section) == found
    assert len(server.asked) == before
    (store / name / archive.name).write_bytes(archive.read_bytes() + b"\0")
    with pytest.raises(ValueError, match=rf"{archive.name}: its MD5 is \w+, that of the published one {small.md5}"):
        contents(store, section)


def md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()


def test_ilsvrc_is_fetched_and_has_to_be_the_published_one(
    store: Path, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = layouts.ilsvrc(tmp_path / "theirs", 2012)
    remotes = []
    for remote in ilsvrc.YEAR_2012.remotes:
        file = tmp_path / "theirs/ilsvrc2012" / remote.name
        remotes.append(Remote(url=f"{server.url}/{remote.name}", md5=md5(file)))
        server.files[f"/{remote.name}"] = File(file.read_bytes(), cut=lambda _: 7000)
    section = layout.section | {"complete": True}
    year = dataclasses.replace(ilsvrc.YEAR_2012, remotes=tuple(remotes))
    monkeypatch.setitem(ilsvrc.YEARS, "ilsvrc2012", year)
    with pytest.raises(
        ValueError, match=r"devkit_t12\.tar\.gz: says 3 classes, ILSVRC-2012 has 1,000\. Fetch it again; or"
    ):
        contents(store, section)
    year = dataclasses.replace(year, counts={"classes": 3, "train": 12, "val": 6})
    monkeypatch.setitem(ilsvrc.YEARS, "ilsvrc2012", year)
    assert rows(contents(store, section), store) == layout.rows
    val = store / "ilsvrc2012" / ilsvrc.YEAR_2012.val
    val.write_bytes(val.read_bytes() + b"\0")
    with pytest.raises(ValueError, match=r"img_val\.tar: its MD5 is .*complete: false"):
        contents(store, section)


def test_a_part_of_ilsvrc_is_counted_and_its_labels_are_ranked(store: Path) -> None:
    layout = layouts.ilsvrc(store, 2012)
    wnids = layouts.WNIDS
    train = {
        f"{wnid}.tar": layouts.tar(
            {f"{name}.JPEG": row[2] for name, row in layout.rows.items() if name.startswith(wnid)}
        )
        for wnid in (wnids[0], wnids[2])
    }
    (store / "ilsvrc2012" / ilsvrc.YEAR_2012.train).write_bytes(layouts.tar(train))
    found = contents(store, layout.section)
    assert [synset.wnid for synset in found.classes] == [wnids[0], wnids[2]]
    assert Counter(found.pictures["split"].to_pylist()) == {"train": 8, "val": 4}
    assert found.notes == ("2 val pictures of classes that have no training picture",)
    assert set(found.pictures["label"].to_pylist()) == {0, 1}
    assert download.summary("ilsvrc2012", found)[1] == f"ilsvrc2012: left out: {found.notes[0]}"


def test_the_test_pictures_of_2010_may_be_missing_from_a_part(store: Path) -> None:
    layout = layouts.ilsvrc(store, 2010)
    (store / "ilsvrc2010/ILSVRC2010_images_test.tar").unlink()
    (store / "ilsvrc2010/patch_images.tar").unlink()
    found = contents(store, layout.section)
    assert Counter(found.pictures["split"].to_pylist()) == {"train": 12, "val": 6}


def test_all_test_pictures_of_2010_have_to_be_there(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = layouts.ilsvrc(store, 2010)
    section = layout.section | {"complete": True}
    test = layouts.TEST * len(layouts.WNIDS)
    counts = {"classes": 3, "train": 12, "val": 6, "test": 7}
    monkeypatch.setitem(ilsvrc.YEARS, "ilsvrc2010", dataclasses.replace(ilsvrc.YEAR_2010, counts=counts))
    with pytest.raises(
        ValueError, match=rf"ILSVRC2010_test_ground_truth\.txt: says {test} test, ILSVRC-2010 has 7\. Fetch it"
    ):
        contents(store, section)
    year = dataclasses.replace(ilsvrc.YEAR_2010, counts=counts | {"test": test})
    monkeypatch.setitem(ilsvrc.YEARS, "ilsvrc2010", year)
    assert rows(contents(store, section), store) == layout.rows


def hub_entry(path: str, data: bytes) -> dict[str, Any]:
    """A file in the Hub's list of files."""
    lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return {"type": "file", "path": path, "size": len(data), "oid": "3", "lfs": lfs, "xetHash": "4"}


def hub(server: Server, folder: Path, token: str | None = None) -> dict[str, bytes]:
    """What the Hub answers of the files in a folder, in two pages; each file is signed for elsewhere."""
    files = {f"data/{file.name}": file.read_bytes() for file in sorted(folder.iterdir())}
    entries = [
        {"type": "directory", "path": "data", "oid": "1"},
        {"type": "file", "path": "README.md", "size": 3, "oid": "2"},
        *(hub_entry(name, data) for name, data in files.items()),
    ]
    wanted = token and f"Bearer {token}"
    tree = "/api/datasets/ILSVRC/imagenet-1k/tree/main"
    more = {"Link": f'<{server.url}{tree}/more?cursor=1>; rel="next"'}
    server.files[tree] = File(json.dumps(entries[:4]).encode(), headers=more, wanted=wanted)
    server.files[f"{tree}/more"] = File(json.dumps(entries[4:]).encode(), wanted=wanted)
    for name, data in files.items():
        signed = {"Location": f"/signed/{name}?signature=1"}
        server.files[f"/datasets/ILSVRC/imagenet-1k/resolve/main/{name}"] = File(
            status=302, headers=signed, wanted=wanted
        )
        server.files[f"/signed/{name}"] = File(data, cut=lambda _: 3000)
    return files


@pytest.mark.slow
def test_the_hub_s_files_are_fetched_with_the_user_s_token(
    store: Path, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = layouts.huggingface(tmp_path / "theirs")
    files = hub(server, tmp_path / "theirs/huggingface/ILSVRC/imagenet-1k/data", "hf_mine")
    section = layout.section | {"complete": True}
    monkeypatch.setattr(huggingface, "COUNTS", {"ILSVRC/imagenet-1k": {"train": 12, "val": 6}})
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    with pytest.raises(ValueError, match=r"answered 401: .*HF_TOKEN"):
        contents(store, section)
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    assert rows(contents(store, section), store) == layout.rows
    fetched = {path.name for path in (store / "huggingface").rglob("*.parquet")}
    assert fetched == {Path(name).name for name in files if "test" not in name}
    before = len(server.asked)
    contents(store, section)
    assert len(server.asked) == before
    (store / "huggingface/ILSVRC/imagenet-1k/train-00001-of-00002.parquet").unlink()
    assert rows(contents(store, section), store) == layout.rows
    name = "data/train-00001-of-00002.parquet"
    (store / "huggingface/ILSVRC/imagenet-1k/train-00001-of-00002.parquet").unlink()
    server.files[f"/signed/{name}"].data = files["data/train-00000-of-00002.parquet"][: len(files[name])]
    with pytest.raises(ValueError, match=r"(its SHA256 is|has [0-9,]+ bytes, the published file)"):
        contents(store, section)


@pytest.mark.slow
def test_pictures_that_are_missing_from_a_complete_set_are_counted(
    store: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = layouts.huggingface(store)
    with pytest.raises(ValueError, match=r"train has to hold 1,281,167 pictures, has 12 of 3\. .*complete: false"):
        contents(store, layout.section | {"complete": True})
    for make in (layouts.cifar10, lambda store: layouts.tiny_imagenet(store, unpacked=True)):
        layout = make(store)
        if layout.section["name"] == "cifar10":
            layouts.write({"train/bird/0.png": b"", "test/bird/0.png": b""}, store / "cifar10")
        with pytest.raises(ValueError, match=r"has to hold [\d,]+ pictures of each of \d+ classes.*complete: false"):
            contents(store, layout.section | {"complete": True})


def test_a_set_is_complete_if_each_class_has_its_pictures() -> None:
    where = StorePath(Path("store"), "set")
    pictures = [UnlabelledPicture(path="", split=split, wnid=wnid) for split in ("train", "val") for wnid in "aabb"]
    published.check_complete(where, pictures, {"train": 2, "val": 2}, 2, in_each=True)
    published.check_complete(where, pictures, {"train": 4, "val": 4}, ("b", "a"))
    published.check_complete(where, pictures, {})
    for each, said in (
        ({"counts": {"train": 2, "val": 3}, "classes": 2, "in_each": True}, "val .* 3 pictures of each .* has 2 of a"),
        ({"counts": {"train": 2}, "classes": 3, "in_each": True}, "train .* 3 classes, has 4 of 2"),
        ({"counts": {"train": 4}, "classes": ("a", "c")}, "train .* 4 pictures of 2 classes, has 4 of 2"),
        ({"counts": {"val": 5}}, "val .* 5 pictures, has 4 of 2"),
    ):
        with pytest.raises(ValueError, match=rf"^store/set: {said}.*source\.complete: false$"):
            published.check_complete(where, pictures, **each)  # type: ignore[arg-type]
    uneven = [*pictures, UnlabelledPicture(path="", split="train", wnid="a")]
    with pytest.raises(ValueError, match="has 3 of a"):
        published.check_complete(where, uneven, {"train": 2}, 2, in_each=True)


def without(folder: Path, *names: str) -> None:
    for name in names:
        shutil.rmtree(folder / name)


LEFTOVERS = (
    ".ipynb_checkpoints/0.jpg",
    "Cat/.ipynb_checkpoints/0.jpg",
    "Cat/deep/.thumbnails/0.jpg",
    ".Trash-1000/files/0.jpg",
    "Cat/._1.jpg",
    "._Cat",
    "__MACOSX/Cat/0.jpg",
    "__MACOSX/Cat/._0.jpg",
    "Cat/@eaDir/0.jpg/SYNOPHOTO_THUMB_M.jpg",
    "$RECYCLE.BIN/0.jpg",
    "System Volume Information/0.jpg",
    "lost+found/0.jpg",
    "#recycle/0.jpg",
    "Cat/Thumbs.db",
    "Cat/desktop.ini",
    "Cat/.DS_Store",
)
"""Paths below a folder of classes that Jupyter, macOS, Windows, Linux and a NAS make."""


@pytest.mark.parametrize("path", LEFTOVERS)
def test_what_a_desktop_leaves_is_no_class_and_no_picture_and_is_counted(store: Path, path: str) -> None:
    layout = layouts.imagefolder(store)
    before = contents(store, layout.section)
    for split in ("train", "val"):
        layouts.write({f"{split}/{path}": b"x"}, store / "my/pets")
    layouts.write({path: b"x"}, store / "my/pets")
    found = contents(store, layout.section)
    assert rows(found, store) == layout.rows
    assert found.classes == before.classes
    said = "\n".join(found.notes)
    hidden = re.search(r"my/pets/train: (\d+) files that are no pictures \(.*?(\d+) hidden or the system's", said)
    assert hidden, said
    assert int(hidden[2]) == 3  # two of the layout's


NAMES = ("a.JFIF", "b", "c.pgm", "d.avif", "e.jpg.1", "F.PNM", "ein Bild.", "deep/er/UPPER", "g.txt", "h.jpg?w=3")
"""Names that pictures have: of Firefox, of a camera's export, of wget, of nobody."""


@pytest.mark.parametrize("name", NAMES)
def test_bytes_decide_what_is_a_picture_whatever_it_is_called(store: Path, name: str) -> None:
    layout = layouts.imagefolder(store)
    added = {
        f"train/Cat/{name}": jpeg(77, 40),
        "train/ümlaut/a.html": b"<html>",
        "train/ümlaut/b.nef": b"MM\0*\0\0\0\x08",
    }
    layouts.write(added, store / "my/pets")
    found = contents(store, layout.section)
    more = rows(found, store).keys() - layout.rows.keys()
    assert [rows(found, store)[each] for each in more] == [("train", "Cat", jpeg(77, 40))]
    assert any(
        "pets/train: 4 files that are no pictures (2 hidden or the system's, 1 .html, 1 .nef)" in note
        for note in found.notes
    )


def test_what_is_called_a_picture_is_indexed_whatever_its_bytes(store: Path) -> None:
    layout = layouts.imagefolder(store)
    odd = {f"train/Cat/odd{number}{ending}": b"x" for number, ending in enumerate((".jpg", ".AVIF", ".jfif", ".pgm"))}
    layouts.write({**odd, "train/Cat/empty.jpg": b"", "train/Cat/empty": b""}, store / "my/pets")
    found = rows(contents(store, layout.section), store)
    assert len(found) == len(layout.rows) + 5  # `resize` rejects them, so that they are counted


@pytest.mark.parametrize("packed", [layouts.imagenette, layouts.tiny_imagenet], ids=["tar.gz", "zip"])
def test_so_do_they_in_archives(store: Path, packed: Callable[[Path], Layout]) -> None:
    layout = packed(store)
    (file,) = (store / layout.section["name"]).iterdir()
    kept = repacked.untar(file) if file.suffix == ".tgz" else repacked.unzip(file)
    files = {
        name.replace("_0.JPEG", "_0").replace("0.JPEG", "0.Jfif") if "train" in name else name: data
        for name, data in kept
    }
    file.write_bytes(gzip.compress(layouts.tar(files)) if file.suffix == ".tgz" else layouts.zipped(files))
    assert rows(contents(store, layout.section), store) == layout.rows


def test_a_file_s_first_bytes_are_read_once_and_only_if_its_name_says_nothing(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = layouts.imagefolder(store)
    layouts.write({"train/Cat/x": jpeg(1, 40)}, store / "my/pets")
    read: list[str] = []
    look = tree.Tree._format
    monkeypatch.setattr(tree.Tree, "_format", lambda self, part: read.append(part.archive) or look(self, part))
    contents(store, layout.section)
    assert sorted(read) == ["my/pets/train/Cat/x", "my/pets/val/Cat/notes.txt"]


def packed_by_a_mac(data: bytes) -> bytes:
    """The tar as macOS packs it again: before each member another of its attributes, and the Finder's own files."""
    made = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(data)) as old, tarfile.open(fileobj=made, mode="w") as new:
        for member in old:
            if member.isfile():
                body = cast("IO[bytes]", old.extractfile(member)).read()
                body = packed_by_a_mac(body) if member.name.endswith(".tar") else body
                folder, _, name = member.name.rpartition("/")
                for beside in (f"{folder}/._{name}".lstrip("/"), f"{folder}/.DS_Store".lstrip("/")):
                    info = tarfile.TarInfo(beside)
                    info.size = 9
                    new.addfile(info, io.BytesIO(b"attribute"))
                member.size = len(body)
                new.addfile(member, io.BytesIO(body))
            else:
                new.addfile(member)
    return made.getvalue()


@pytest.mark.parametrize("name", ["ilsvrc2012", "ilsvrc2010", "synsets"])
def test_members_that_a_mac_packs_beside_the_pictures_are_left_out_and_counted(store: Path, name: str) -> None:
    layout = layouts.ALL[name](store)
    before = contents(store, layout.section)
    rows_before = rows(before, store)
    tars = sorted(store.rglob("*.tar"))
    assert tars
    for file in tars:
        file.write_bytes(packed_by_a_mac(file.read_bytes()))
        file.with_name(f"._{file.name}").write_bytes(b"attributes")
    found = contents(store, layout.section)
    assert rows(found, store) == rows_before
    assert found.classes == before.classes
    left_out = [note for note in found.notes if "members that are hidden or the system's" in note]
    assert len(left_out) == len(tars), found.notes


def test_of_two_members_of_a_synset_s_tar_with_one_name_none_is_lost(store: Path) -> None:
    layout = layouts.synsets(store)
    file = sorted((store / "fall11").glob("n*.tar"))[0]
    with tarfile.open(file, "a") as opened:
        member = tarfile.TarInfo(f"images/{file.stem}_0.JPEG")
        member.size = 3
        opened.addfile(member, io.BytesIO(b"two"))
    with pytest.raises(
        ValueError, match=rf"{file.name}: {file.stem}_0 is there twice: at byte \d+ of .* and at byte \d+"
    ):
        contents(store, layout.section)


SPLITS_OF_PEOPLE = [
    ("Train", "Val", "Test"),
    ("TRAIN", "VAL", "TEST"),
    ("training", "validation", "testing"),
    ("Training", "dev", "test"),
    ("train", "valid", "Testing"),
]


@pytest.mark.parametrize("names", SPLITS_OF_PEOPLE, ids="-".join)
def test_splits_are_known_by_the_names_that_people_give_them(store: Path, names: tuple[str, str, str]) -> None:
    layout = layouts.imagefolder(store)
    folder = store / "my/pets"
    for index, (old, new) in enumerate(zip(("train", "val", "test"), names, strict=True)):
        (folder / old).rename(folder / f"new{index}")
        (folder / f"new{index}").rename(folder / new)
    found = contents(store, layout.section)
    by_split = {
        split: sum(row["split"] == split for row in found.pictures.to_pylist()) for split in layouts_splits(layout)
    }
    assert by_split == layouts_splits(layout)
    assert [synset.wnid for synset in found.classes] == sorted(layout.words)


def layouts_splits(layout: Layout) -> dict[str, int]:
    """The number of pictures of each split of a layout."""
    splits = [split for split, _, _ in layout.rows.values()]
    return {split: splits.count(split) for split in dict.fromkeys(splits)}


def test_classes_may_be_called_as_splits_are(store: Path) -> None:
    """A train is a class of ImageNet, and a test a class of somebody's: they hold pictures, and no folders."""
    layout = Layout({"name": "imagefolder", "folder": "pets", "classes": "all", "val_share": 0.25, "seed": 0})
    for name in ("Train", "boat", "test", "val"):
        for number in range(4):
            layouts.write({f"{name}/{number}.jpg": layout.add(f"{name}/{number}", "train", name)}, store / "pets")
    found = contents(store, layout.section)
    assert [synset.wnid for synset in found.classes] == ["Train", "boat", "test", "val"]


def test_a_folder_without_a_picture_is_no_class_and_is_named(store: Path) -> None:
    layout = layouts.imagefolder(store)
    layouts.write({"train/Yak/notes.txt": b"x", "train/docs/a/b.pdf": b"x"}, store / "my/pets")
    found = contents(store, layout.section)
    assert rows(found, store) == layout.rows
    assert any("my/pets/train: no picture is in Yak, docs, so they are no classes" in note for note in found.notes)
    with pytest.raises(ValueError, match="Yak"):
        contents(store, layout.section | {"classes": ["Cat", "Yak"]})


def test_pictures_beside_the_splits_are_counted(store: Path) -> None:
    layout = layouts.imagefolder(store)
    layouts.write({"unlabelled/1.jpg": b"x", "unlabelled/deep/2.jpg": b"x", "extra/3.png": b"x"}, store / "my/pets")
    found = contents(store, layout.section)
    assert rows(found, store) == layout.rows
    assert any("my/pets: 3 pictures in no split's folder (extra/, unlabelled/)" in note for note in found.notes)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            {f"{part}/{name}/0.jpg": b"x" for part in ("part1", "part2") for name in ("cat", "dog", "yak", "zebu")},
            r"pets: part1/, part2/ hold no pictures but the same folders of them, cat/, dog/, yak/ and 1 more\. They look like "
            r"splits, .* train and val .*source\.folder",
        ),
        (
            {f"pets/{name}/0.jpg": b"x" for name in ("cat", "dog")},
            r"pets: its only folder with pictures is pets/, which holds cat/, dog/\. .*source\.folder .*/pets$",
        ),
    ],
    ids=["parts", "a folder too many"],
)
def test_classes_that_hold_only_folders_of_pictures_look_like_something_else(
    store: Path, files: dict[str, bytes], said: str
) -> None:
    layouts.write(files, store / "pets")
    section = {"name": "imagefolder", "folder": "pets", "classes": "all", "val_share": 0.25, "seed": 0}
    with pytest.raises(ValueError, match=said):
        contents(store, section)
    with pytest.raises(ValueError, match=said):  # and not "set val_share", which would lead to these classes
        contents(store, section | {"val_share": 0.0})


def test_classes_with_folders_in_them_are_classes(store: Path) -> None:
    """As in Tiny ImageNet, where each class has its pictures in images/."""
    layout = Layout({"name": "imagefolder", "folder": "pets", "classes": "all", "val_share": 0.25, "seed": 0})
    for name, parts in (("cat", ("images",)), ("dog", ("images",)), ("yak", ("spring", "autumn"))):
        for part in parts:
            for number in range(4):
                path = f"{name}/{part}/{number}"
                layouts.write({f"{path}.jpg": layout.add(path, "train", name)}, store / "pets")
    assert [synset.wnid for synset in contents(store, layout.section).classes] == ["cat", "dog", "yak"]


BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], dict[str, Any], str]] = {
    "is not there": (lambda folder: shutil.rmtree(folder), {}, r"my/pets: no such folder in the data store\. .*ln -s"),
    "two validation splits": (lambda folder: (folder / "valid/x").mkdir(parents=True), {}, "both"),
    "no training split": (lambda folder: without(folder, "train"), {}, r"my/pets: has val/ but no train/"),
    "a share, and a split": (lambda _: None, {"val_share": 0.1}, r"has val/, so .*val_share has to be 0, is 0\.1"),
    "no share, and no split": (
        lambda folder: without(folder, "val"),
        {},
        r"has train/, but none of val/, .*val_share: 0\.1",
    ),
    "an unknown class": (
        lambda folder: (folder / "val/Cat").rename(folder / "val/cat"),
        {},
        r"val/cat/0\.jpg is of 'cat', of which there is no training picture",
    ),
    "one class": (
        lambda folder: [without(folder / split, "dog breed", "ümlaut") for split in ("train", "val", "test")],
        {},
        r"needs training pictures of at least 2 classes, found 'Cat'",
    ),
    "a link that leads back": (
        lambda folder: (folder / "train/Cat/again").symlink_to(folder / "train"),
        {},
        "a link that leads back to a folder above it",
    ),
    "a link to nothing": (lambda folder: (folder / "train/Cat/9.jpg").symlink_to("gone"), {}, "or a link to nothing"),
    "a name that is no text": (
        lambda folder: Path(os.fsdecode(os.fsencode(folder / "train/Cat") + b"/\xff.jpg")).write_bytes(b"x"),
        {},
        r"is not UTF-8\. Rename the file",
    ),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_a_folder_that_cannot_be_used_is_refused(store: Path, case: str) -> None:
    change, settings, said = BAD_FOLDERS[case]
    layout = layouts.imagefolder(store)
    change(store / "my/pets")
    if case == "two validation splits":
        (store / "my/pets/valid/x/1.jpg").write_bytes(b"x")
        said = r"my/pets: has both val/ and valid/\. Which is the validation split\?"
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        contents(store, layout.section | settings)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"folder": "/data/pets"}, r"folder has to be the name of a folder in the data store, is '/data/pets'.*ln -s"),
        ({"folder": "../pets"}, "folder has to be the name"),
        ({"folder": "~/pets"}, "folder has to be the name"),
        ({"folder": ""}, "folder has to be the name"),
        ({"folder": "a//b"}, "folder has to be the name"),
        ({"val_share": 1.0}, r"val_share has to be at least 0 and below 1, is 1\.0"),
        ({"classes": 1}, "classes has to be 'all', at least 2, or a list of ids, is 1"),
        ({"classes": ["a"]}, r"classes has to name at least 2 ids, is \['a'\]"),
        ({"classes": ["a", "a"]}, r"classes has to name each id once"),
        ({"classes": 1.5}, r"source\.classes: Input should be 'all', or .* integer, or .* array \(found 1\.5\)$"),
        ({"shares": 1}, r"source\.shares: unknown key \(its value: 1\), did you mean 'val_share'\?"),
    ],
)
def test_settings_that_cannot_be_are_refused(store: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(params.ParamsError, match=said):
        contents(store, layouts.imagefolder(store).section | changes)


def test_what_is_left_out_of_a_folder_is_counted(store: Path) -> None:
    found = contents(store, layouts.imagefolder(store).section)
    notes = "\n".join(found.notes)
    assert "pets/train: 2 files that are no pictures (2 hidden or the system's)" in notes
    assert "pets/train: 1 pictures that lie in no class folder" in notes
    assert "pets/val: 1 files that are no pictures (1 .txt)" in notes
    assert len(found.notes) == 3
    assert contents(store, layouts.kaggle(store).section).notes == (
        f"{store}/kaggle/ILSVRC/Data/CLS-LOC/test: 1 pictures that lie in no class folder",
    )


def test_a_share_is_held_out_of_each_class_by_the_seed_and_nothing_else(store: Path) -> None:
    layout = Layout({"name": "imagefolder", "folder": "pets", "classes": "all", "val_share": 0.25, "seed": 0})
    for wnid, count in (("cat", 8), ("dog", 20)):
        layouts.write({f"{wnid}/{number}.jpg": b"x" for number in range(count)}, store / "pets")

    def val(**changes: Any) -> set[str]:
        found = contents(store, layout.section | changes).pictures.to_pylist()
        return {row["id"] for row in found if row["split"] == "val"}

    first = val()
    assert Counter(name.split("/")[0] for name in first) == {"cat": 2, "dog": 5}
    assert val() == first
    assert val(seed=1) != first
    assert val(val_share=0.5) > first
    layouts.write({"dog/20.jpg": b"x", "ape/1.jpg": b"x", "ape/2.jpg": b"x"}, store / "pets")
    assert len(val() & first) >= 6


@pytest.mark.parametrize("name", ["tiny_imagenet", "cifar10", "imagenette"])
def test_a_damaged_archive_is_named(store: Path, name: str) -> None:
    layout = layouts.ALL[name](store)
    (archive,) = (store / name).iterdir()
    data = archive.read_bytes()
    for damaged in (b"", data[:100], data[: len(data) // 2], data[:-20], data[:5000] + bytes(50) + data[5050:]):
        archive.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{archive.name}: not a whole"):
            contents(store, layout.section)
    assert not list(store.glob("repacked/*.tar"))
    archive.write_bytes(data)
    assert rows(contents(store, layout.section), store).keys() == layout.rows.keys()


@pytest.mark.parametrize("damage", ["cut", "altered", "no record", "gone"])
def test_what_was_repacked_is_made_again_if_it_is_not_whole(store: Path, damage: str) -> None:
    layout = layouts.imagenette(store)
    first = contents(store, layout.section)
    (tar,) = store.glob("repacked/*.tar")
    data = tar.read_bytes()
    match damage:
        case "cut":
            tar.write_bytes(data[: len(data) // 2])
        case "altered":
            tar.write_bytes(data.replace(b"\xff\xd8\xff", b"\xff\xd8\xfe", 1))
        case "no record":
            tar.with_name(tar.name + ".sha256").unlink()
        case "gone":
            tar.unlink()
    again = contents(store, layout.section)
    assert tar.read_bytes() == data
    assert (again.pictures, again.archives) == (first.pictures, first.archives)


def test_another_archive_of_the_same_name_is_repacked_beside_the_first(store: Path) -> None:
    layout = layouts.imagenette(store)
    contents(store, layout.section)
    archive = store / "imagenette/imagenette2-160.tgz"
    archive.write_bytes(gzip.compress(gzip.decompress(archive.read_bytes()), 1))
    assert rows(contents(store, layout.section), store) == layout.rows
    assert len(list(store.glob("repacked/*.tar"))) == 2


@pytest.mark.slow
def test_parquet_that_is_none_of_the_hub_s_is_named(store: Path) -> None:
    layout = layouts.huggingface(store)
    file = store / "huggingface/ILSVRC/imagenet-1k/data/train-00001-of-00002.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with pytest.raises(OSError, match=r"train-00001-of-00002\.parquet: damaged, or not Parquet: .* Fetch it again"):
        contents(store, layout.section)
    for column, value in (("image", {"bytes": b"x", "path": "x"}), ("label", 0)):
        pq.write_table(pa.table({column: [value], "other": [1]}), file)
        other = "label" if column == "image" else "image"
        said = rf"no column '{other}' or .*; its columns are {column} \(.*\), other \(int64\)\. .*{other}_column: NAME$"
        with pytest.raises(ValueError, match=said):
            contents(store, layout.section)
    layouts.parquet([{"image": None, "label": 1}], file)
    with pytest.raises(ValueError, match="no row has a picture's bytes in column 'image', from row 0 on"):
        contents(store, layout.section)
    layouts.parquet([{"image": {"bytes": b"x", "path": "x.jpg"}, "label": 7}], file)
    with pytest.raises(ValueError, match="row 0 has the label 7, of 3 names"):
        contents(store, layout.section)
    pq.write_table(pq.read_table(file).replace_schema_metadata(None), file)
    with pytest.raises(ValueError, match="column 'label' holds numbers, whose classes are not named"):
        contents(store, layout.section)


@pytest.mark.slow
def test_classes_of_the_hub_that_are_no_synsets_go_by_their_names(store: Path) -> None:
    layout = layouts.huggingface(store)
    folder = store / "huggingface/me/pets"
    folder.mkdir(parents=True)
    names = ["dog/wolf", "cat"]
    pictures = [{"image": {"bytes": jpeg(n, 40), "path": None}, "label": n % 2} for n in range(6)]
    layouts.parquet(pictures, folder / "train-00000-of-00001.parquet", names)
    layouts.parquet(pictures[:2], folder / "test-00000-of-00001.parquet", names)
    layouts.parquet(pictures[2:4], folder / "validation-00000-of-00001.parquet", names)
    found = contents(store, layout.section | {"dataset": "me/pets"})
    assert {synset.wnid: synset.words for synset in found.classes} == {"cat": "cat", "dog_wolf": "dog/wolf"}
    assert Counter(found.pictures["split"].to_pylist()) == {"train": 6, "val": 2, "test": 2}
    assert set(rows(found, store).values()) >= {("train", "cat", pictures[1]["image"]["bytes"])}


def test_of_a_large_archive_it_is_said_how_far_it_was_read(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = layouts.ilsvrc(store, 2012)
    val = store / "ilsvrc2012" / ilsvrc.YEAR_2012.val
    val.write_bytes(val.read_bytes() + bytes(5 * 2**20))
    contents(store, layout.section)
    assert "MiB" not in capsys.readouterr().err
    monkeypatch.setattr(tars, "LONG", 2**20)
    contents(store, layout.section)
    assert "download: ILSVRC2012_img_val.tar: 5 of 5 MiB" in capsys.readouterr().err
