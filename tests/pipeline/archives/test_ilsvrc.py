"""The index of archives in ILSVRC-2012's layout: against tarfile's own reading, and what is said of bad ones."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from pipeline.archives import ilsvrc, tars
from pipeline.archives.contents import Archive, Contents
from pipeline.archives.store import StorePath
from pipeline.sources.ilsvrc import YEAR_2012 as YEAR

TRAIN, VAL, DEVKIT = YEAR.archives

# ILSVRC2012_ID 1, 2, 3 and the inner node 4: the order is not that of the WordNet ids
WNIDS = ("n03000000", "n01000000", "n02000000")
LABELS = {"n01000000": 0, "n02000000": 1, "n03000000": 2}
TRUTH = (2, 3, 1, 1)
Names = dict[str, bytes]


def bytes_of(name: str) -> bytes:
    """Some bytes that differ from name to name, of many lengths: an index does not look inside a picture."""
    length = 1 + int.from_bytes(hashlib.sha256(name.encode()).digest()[:2]) % 1500
    return (name.encode() * 1500)[:length]


def tar_of(files: Mapping[str, bytes], kind: int = tarfile.GNU_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            if name.endswith("/"):
                member.type = tarfile.DIRTYPE
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def train_files() -> dict[str, Names]:
    """Two, three and one picture of the three classes."""
    counts = {"n01000000": 2, "n02000000": 3, "n03000000": 1}
    names = {wnid: [f"{wnid}_{7 * number}.JPEG" for number in range(count, 0, -1)] for wnid, count in counts.items()}
    return {wnid: {name: bytes_of(name) for name in listed} for wnid, listed in names.items()}


def val_files() -> Names:
    names = [f"ILSVRC2012_val_{number:08}.JPEG" for number in range(1, len(TRUTH) + 1)]
    return {name: bytes_of(name) for name in names}


def meta(wnids: tuple[str, ...] = WNIDS, ids: tuple[int, ...] = (1, 2, 3), **counts: int) -> bytes:
    fields = ("ILSVRC2012_ID", "WNID", "words", "num_children", "children", "num_train_images")
    synsets = np.empty((len(wnids) + 1, 1), dtype=[(field, object) for field in fields])
    counts = {"n01000000": 2, "n02000000": 3, "n03000000": 1} | counts
    for row, (id_, wnid) in enumerate(zip(ids, wnids, strict=True)):
        synsets[row, 0] = (float(id_), wnid, f"words of {wnid}", 0.0, np.zeros((1, 0)), float(counts.get(wnid, 0)))
    inner = (float(len(wnids) + 1), "n00000001", "all", float(len(wnids)), np.arange(1.0, len(wnids) + 1), 0.0)
    synsets[-1, 0] = inner
    out = io.BytesIO()
    savemat(out, {"synsets": synsets})  # type: ignore[arg-type]
    return out.getvalue()


def devkit(meta_mat: bytes | None = None, truth: tuple[object, ...] = TRUTH) -> bytes:
    top = "ILSVRC2012_devkit_t12"
    parts = {
        f"{top}/": b"",
        f"{top}/{ilsvrc.META}": meta() if meta_mat is None else meta_mat,
        f"{top}/{YEAR.truth}": "".join(f"{word}\n" for word in truth).encode(),
    }
    return gzip.compress(tar_of(parts))


def train_tar(files: Mapping[str, Names] | None = None, kind: int = tarfile.GNU_FORMAT) -> bytes:
    inner = (train_files() if files is None else files).items()
    return tar_of({f"{wnid}.tar": tar_of(pictures, kind) for wnid, pictures in inner}, kind)


class Store:
    """A store with one folder of archives, good ones until told otherwise."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path / "here"
        self.folder.mkdir()
        self.put(TRAIN, train_tar())
        self.put(VAL, tar_of(val_files()))
        self.put(DEVKIT, devkit())

    def put(self, name: str, data: bytes) -> None:
        (self.folder / name).write_bytes(data)

    def contents(self) -> Contents:
        return ilsvrc.contents(StorePath(self.path) / self.folder.relative_to(self.path).as_posix(), YEAR)

    def pictures(self) -> list[Any]:
        return [SimpleNamespace(**row) for row in self.contents().pictures.to_pylist()]

    def picture(self, picture: Any) -> bytes:
        return (self.path / picture.archive).read_bytes()[picture.offset : picture.offset + picture.length]

    def fault(self) -> str:
        with pytest.raises(ValueError, match=r"\w") as caught:
            self.contents()
        return str(caught.value)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def assert_indexed(store: Store) -> None:
    pictures = store.pictures()
    there = {name: data for files in train_files().values() for name, data in files.items()} | val_files()
    assert [f"{picture.id}.JPEG" for picture in pictures] == list(there)
    for picture in pictures:
        assert store.picture(picture) == there[f"{picture.id}.JPEG"]
        assert picture.crc32 == zlib.crc32(store.picture(picture))
    train = [picture for picture in pictures if picture.split == "train"]
    val = [picture for picture in pictures if picture.split == "val"]
    assert [picture.wnid for picture in train] == [picture.id.split("_")[0] for picture in train]
    assert [picture.wnid for picture in val] == [WNIDS[id_ - 1] for id_ in TRUTH]
    assert all(picture.label == LABELS[picture.wnid] for picture in pictures)
    assert [picture.offset for picture in train] == sorted(picture.offset for picture in train)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_row_s_bytes_are_the_member_s(store: Store, kind: int) -> None:
    store.put(TRAIN, train_tar(kind=kind))
    store.put(VAL, tar_of(val_files(), kind))
    assert_indexed(store)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("prefix", ["./", "val/", "a/" * 60, "é" * 70 + "/"])
def test_members_may_lie_in_folders_and_have_long_names(store: Store, kind: int, prefix: str) -> None:
    if kind == tarfile.USTAR_FORMAT and len(prefix) > 60:
        prefix = "a/" * 40  # all that ustar has room for
    inner = {
        wnid: tar_of({prefix: b""} | {prefix + name: data for name, data in files.items()}, kind)
        for wnid, files in train_files().items()
    }
    store.put(TRAIN, tar_of({prefix: b""} | {f"{prefix}{wnid}.tar": data for wnid, data in inner.items()}, kind))
    store.put(VAL, tar_of({prefix: b""} | {prefix + name: data for name, data in val_files().items()}, kind))
    assert_indexed(store)


def test_the_checksums_are_of_the_whole_files(store: Store) -> None:
    # what GNU tar pads with, and then something
    store.put(VAL, tar_of(val_files()) + bytes(3 * 2**20) + b"more")
    archives = [Archive(**row) for row in store.contents().archives.to_pylist()]
    assert {archive.name for archive in archives} == {f"here/{name}" for name in (TRAIN, VAL, DEVKIT)}
    for archive in archives:
        data = (store.path / archive.name).read_bytes()
        assert archive.bytes == len(data)
        assert archive.md5 == hashlib.md5(data, usedforsecurity=False).hexdigest()
        assert archive.sha256 == hashlib.sha256(data).hexdigest()


def test_the_archives_are_read_once_and_in_small_pieces(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    big = {f"n01000000_{number}.JPEG": bytes(2 * tars.CHUNK) for number in (1, 2)}
    store.put(TRAIN, train_tar(train_files() | {"n01000000": big}))
    pieces: list[int] = []
    see = tars.HashedFile._see

    def noted(self: tars.HashedFile, part: bytes) -> None:
        pieces.append(len(part))
        see(self, part)

    monkeypatch.setattr(tars.HashedFile, "_see", noted)
    contents = store.contents()
    assert sum(pieces) == sum(contents.archives["bytes"].to_pylist())
    assert max(pieces) <= tars.CHUNK


def test_the_classes_are_the_low_level_synsets_by_wordnet_id(store: Store) -> None:
    contents = store.contents()
    assert [synset.wnid for synset in contents.classes] == list(LABELS)
    assert [synset.words for synset in contents.classes] == [f"words of {wnid}" for wnid in LABELS]
    assert contents.drawn is False


def test_an_archive_that_is_missing_is_named(store: Store) -> None:
    (store.folder / VAL).unlink()
    with pytest.raises(FileNotFoundError, match=f"{VAL}: no such archive"):
        store.contents()


@pytest.mark.parametrize("name", [TRAIN, VAL])
def test_an_archive_cut_anywhere_is_never_taken_for_a_whole_one(store: Store, name: str) -> None:
    whole = (store.folder / name).read_bytes()
    end = len(whole.rstrip(b"\0"))
    for length in [0, 1, 511, *range(512, end + 512, 256), end]:
        store.put(name, whole[:length])
        fault = store.fault()
        assert f"{store.folder / name}" in fault, length
        assert "Fetch it again" in fault, (length, fault)


def test_the_member_that_an_archive_ends_in_is_named(store: Store) -> None:
    third = next(picture for picture in store.pictures() if picture.id.endswith("val_00000003"))
    store.put(VAL, (store.folder / VAL).read_bytes()[: third.offset + third.length - 1])
    assert f"{VAL}: cut short or damaged: it ends inside member {third.id}.JPEG. Fetch it again" in store.fault()


def test_a_tar_in_the_archive_that_is_cut_is_named(store: Store) -> None:
    inner = {f"{wnid}.tar": tar_of(files) for wnid, files in train_files().items()}
    whole = inner["n02000000.tar"]
    for length in range(0, len(whole.rstrip(b"\0")), 512):
        store.put(TRAIN, tar_of(inner | {"n02000000.tar": whole[:length]}))
        assert f"{TRAIN}: n02000000.tar: cut short or damaged" in store.fault(), length


def test_a_damaged_header_is_no_quiet_end(store: Store) -> None:
    offset = next(picture.offset for picture in store.pictures() if picture.id.endswith("val_00000003"))
    data = bytearray((store.folder / VAL).read_bytes())
    data[offset - 500] ^= 1
    store.put(VAL, bytes(data))
    assert f"{VAL}: cut short or damaged: it ends at byte {offset - 512} without the mark" in store.fault()


@pytest.mark.parametrize("length", [10, 200, -1])
def test_a_devkit_cut_short_is_named(store: Store, length: int) -> None:
    store.put(DEVKIT, devkit()[:length])
    assert f"{DEVKIT}: not a whole .tar.gz" in store.fault()


@pytest.mark.parametrize("part", [ilsvrc.META, YEAR.truth])
def test_a_devkit_without_one_of_its_parts_is_named(store: Store, part: str) -> None:
    store.put(DEVKIT, gzip.compress(tar_of({name: b"1" for name in (ilsvrc.META, YEAR.truth) if name != part})))
    assert f"{DEVKIT}: holds no {part}" in store.fault()


@pytest.mark.parametrize("data", [b"", b"no MATLAB file" * 100, meta()[:300]])
def test_a_meta_mat_that_is_none_is_named(store: Store, data: bytes) -> None:
    store.put(DEVKIT, devkit(data))
    assert f"{DEVKIT}: {ilsvrc.META}: no list of synsets" in store.fault()


BAD_DEVKITS: dict[str, tuple[bytes, str]] = {
    "a WordNet id twice": (devkit(meta(("n01000000", "n02000000", "n01000000"))), "WNID n01000000 is there twice"),
    "an id twice": (devkit(meta(ids=(1, 2, 2))), "ILSVRC2012_ID 2 is there twice"),
    "a label that is an inner node": (devkit(truth=(2, 4, 1, 1)), "line 2 is '4', no number of a class"),
    "a label that is no number": (devkit(truth=(2, 3, "x", 1)), "line 3 is 'x'"),
    "fewer labels": (devkit(truth=(2, 3, 1)), "00000004.JPEG: the val ground truth has no line 4, it has 3"),
    "more labels": (devkit(truth=(*TRUTH, 1)), "holds 4 pictures, the val ground truth has 5 lines"),
    "another year": (
        devkit(meta(("n03000000", "n01000000", "n04000000"))),
        f"{TRAIN}: n02000000.tar: n02000000 is no class of the devkit",
    ),
    "other counts": (devkit(meta(n02000000=4)), "holds 3 pictures of n02000000, the devkit says 4"),
}


@pytest.mark.parametrize("case", BAD_DEVKITS)
def test_a_devkit_that_does_not_fit_is_refused(store: Store, case: str) -> None:
    data, said = BAD_DEVKITS[case]
    store.put(DEVKIT, data)
    assert said in store.fault()


BAD_TRAIN: dict[str, tuple[Any, str]] = {
    "a picture of another class": (
        lambda inner: inner["n01000000"] | {"n02000000_9.JPEG": b"x"},
        "n01000000.tar: member n02000000_9.JPEG is of n02000000, not of n01000000",
    ),
    "a name that is no picture's": (
        lambda inner: inner["n01000000"] | {"x_n01000000_7.JPEG": b"x"},
        "n01000000.tar: member 'x_n01000000_7.JPEG' has no name like n01000000_10026.JPEG",
    ),
    "another ending": (lambda inner: {"n01000000_7.jpg": b"x"}, "member 'n01000000_7.jpg' has no name like"),
    "a Windows path": (lambda inner: {"a\\n01000000_7.JPEG": b"x"}, "has no name like"),
    "the same id twice": (
        lambda inner: dict.fromkeys(("n01000000_7.JPEG", "again/n01000000_7.JPEG"), b"x"),
        "n01000000_7 is there twice: at byte 1024 of here/ILSVRC2012_img_train.tar and at byte 2048",
    ),
}


@pytest.mark.parametrize("case", BAD_TRAIN)
def test_a_training_archive_with_a_wrong_member_is_refused(store: Store, case: str) -> None:
    change, said = BAD_TRAIN[case]
    files = train_files()
    store.put(TRAIN, train_tar(files | {"n01000000": change(files)}))
    fault = store.fault()
    assert said in fault
    assert str(store.folder / TRAIN) in fault


def test_a_link_is_no_picture(store: Store) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        link = tarfile.TarInfo("ILSVRC2012_val_00000001.JPEG")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    store.put(VAL, out.getvalue())
    assert "member 'ILSVRC2012_val_00000001.JPEG' is no plain file" in store.fault()


def test_a_tar_too_large_for_ustar_s_numbers_is_indexed(tmp_path: Path) -> None:
    """The real archive has 150 GB: an offset past 8 GB, in a file that is mostly a hole."""
    size = 9 * 2**30
    file = tmp_path / "holes.tar"
    with file.open("wb") as handle:
        for name, length in (("first", size), ("second", 3)):
            member = tarfile.TarInfo(name)
            member.size = length
            handle.write(member.tobuf(tarfile.GNU_FORMAT))
            handle.seek(-(-length // 512) * 512, io.SEEK_CUR)
        handle.write(bytes(1024))
    with file.open("rb") as opened:
        hashed = tars.HashedFile(opened, StorePath(Path("here")))
        hashed._seen = hashed.bytes  # nothing left to hash: it is the offsets that are looked at
        found = [(member.name, member.offset_data) for member in tars.members(hashed, 0, hashed.bytes, "here")]
    assert found == [("first", 512), ("second", 512 + size + 512)]


def test_a_window_reads_as_a_file_of_its_own(tmp_path: Path) -> None:
    data = bytes(range(256)) * 20
    (tmp_path / "file").write_bytes(data)
    with (tmp_path / "file").open("rb") as opened:
        hashed = tars.HashedFile(opened, StorePath(Path("here")))
        window = tars.Window(hashed, 100, 1000)
        for place, length in ((0, 10), (500, 100), (20, 30), (990, 50), (2000, 10), (999, 1)):
            window.seek(place)
            assert window.read(length) == data[100:1100][place : place + length]
            assert window.tell() == min(place + length, max(place, 1000))
        assert hashed.archive().sha256 == hashlib.sha256(data).hexdigest()
        assert hashed.archive().bytes == len(data)
