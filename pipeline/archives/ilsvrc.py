"""The layout of ILSVRC: a year's devkit, and each picture's byte range in its tars, read in one pass (§2).

The training archive is a tar of one tar for each WordNet id, the validation archive a tar of pictures, the devkit a
compressed tar with `meta.mat` and the ground truth. Nothing is unpacked: a picture is a range of bytes in an archive.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from pipeline.archives import bounds, matlab, published, repacked
from pipeline.archives.contents import Archive, ByteRange, Choice, Contents, Picture, gathered
from pipeline.archives.published import PART
from pipeline.archives.store import StorePath
from pipeline.archives.tars import Hashed, hashed, members, reading
from pipeline.runtime.fetch import Remote
from pipeline.runtime.paths import AnyPath
from pipeline.shards.tables import Synset

META = "data/meta.mat"

_TRAIN_TAR = re.compile(r"(n[0-9]{8})\.tar")
_TRAIN_PICTURE = re.compile(r"((n[0-9]{8})_[0-9]+)\.JPEG")


@dataclass(frozen=True, kw_only=True, slots=True)
class Year:
    """A year of the challenge: the names of its archives and of their members."""

    number: int
    train: str
    val: str
    devkit: str
    test: str = ""
    """Empty if the test labels are secret; else `test_truth` names the text file with them."""
    test_truth: str = ""
    patch: str = ""
    """An optional tar of pictures that replace those with the same names."""
    remotes: tuple[Remote, ...] = ()
    """The published archives, in the order in which they are fetched."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Classes, and pictures of each split, of the whole year."""

    @property
    def truth(self) -> str:
        """The labels of the validation pictures, in the devkit."""
        return f"data/ILSVRC{self.number}_validation_ground_truth.txt"

    @property
    def archives(self) -> tuple[str, ...]:
        """The archives that a complete set has."""
        return tuple(filter(None, (self.train, self.val, self.devkit, self.test, self.test_truth)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Devkit:
    """The devkit's contents."""

    classes: tuple[Synset, ...]
    """The low-level synsets in the order of their WordNet ids: the index is the label."""
    train_images: tuple[int, ...]
    """Training pictures of each class."""
    wnids: dict[int, str]
    """The year's own class number → WordNet id."""
    val_wnids: tuple[str, ...]
    """The WordNet id of validation picture n at index n - 1."""


def contents(
    folder: StorePath, year: Year, classes: Choice = "all", *, complete: bool = True, drawn: bool = False
) -> Contents:
    """Reads a year's archives in a folder once, from start to end: their checksums, and every picture.

    The pictures keep the order of the training, validation and test archives. `ValueError` with archive, member and what
    to do if an archive is cut short or does not fit the devkit; `FileNotFoundError` if one is missing. Unless `complete`,
    pictures may be missing, and the test archive too.
    """
    for name in year.archives:
        if not (folder / name).path.is_file() and (complete or name not in (year.test, year.test_truth)):
            raise FileNotFoundError(
                f"{folder / name}: no such archive. ILSVRC-{year.number} comes as {', '.join(year.archives)}"
            )
    known = devkit((folder / year.devkit).path, year)
    archives = [hashed(folder / year.devkit)]
    test_wnids: tuple[str, ...] = ()
    if year.test_truth and (folder / year.test_truth).path.is_file():
        truth = folder / year.test_truth
        test_wnids = _truth(bounds.small(truth.path), str(truth), known.wnids)
        archives.append(hashed(truth))
    patches: dict[str, ByteRange] = {}
    notes: list[str] = []

    def pictures() -> Iterator[Picture]:
        if year.patch and (folder / year.patch).path.is_file():
            with reading(folder / year.patch) as file:
                patches.update(_patches(file))
                archives.append(file.archive())
        with reading(folder / year.train) as file:
            yield from _train(file, known, complete)
            archives.append(file.archive())
        for split, name, wnids in (("val", year.val, known.val_wnids), ("test", year.test, test_wnids)):
            if name and (folder / name).path.is_file():
                with reading(folder / name) as file:
                    yield from _numbered(file, split, wnids, year, complete)
                    archives.append(file.archive())
        if patches:
            notes.append(f"{folder / year.patch}: {len(patches):,} pictures that replace none")

    words = {synset.wnid: synset.words for synset in known.classes}
    return gathered(
        _patched(pictures(), patches), lambda _: archives, words, folder.root, classes, drawn=drawn, notes=notes
    )


def official(folder: StorePath, year: Year, classes: Choice) -> Contents:
    """`contents` of the published archives, fetched if they are not there; `ValueError` if one has another MD5."""
    md5 = {}
    for remote in year.remotes:
        published.ensure(remote, folder / remote.name, complete=True)
        md5[remote.name] = remote.md5
    known = devkit((folder / year.devkit).path, year)
    said = [
        (year.devkit, "classes", len(known.classes)),
        (year.devkit, "train", sum(known.train_images)),
        (year.devkit, "val", len(known.val_wnids)),
    ]
    if year.test_truth:
        truth = folder / year.test_truth
        said.append((year.test_truth, "test", len(_truth(bounds.small(truth.path), str(truth), known.wnids))))
    for name, what, count in said:
        if count != year.counts[what]:
            raise ValueError(
                f"{folder / name}: says {count:,} {what}, ILSVRC-{year.number} has {year.counts[what]:,}. "
                f"Fetch it again; or, {PART}"
            )
    found = contents(folder, year, classes)
    for archive in found.archives.to_pylist():
        file = StorePath(folder.root) / archive["name"]
        published.check_md5(file, Archive(**archive), md5.get(file.path.name))
    return found


def devkit(file: AnyPath, year: Year) -> Devkit:
    """Reads the classes and the ground truth of the validation pictures from the devkit's archive."""
    parts = _unpack(file, (META, year.truth), year)
    numbers, classes, train_images = _synsets(file, parts[META], f"ILSVRC{year.number}_ID")
    wnids = {number: synset.wnid for number, synset in zip(numbers, classes, strict=True)}
    val_wnids = _truth(parts[year.truth], f"{file}: {year.truth}", wnids)
    return Devkit(classes=classes, train_images=train_images, wnids=wnids, val_wnids=val_wnids)


def _truth(text: bytes, where: str, wnids: dict[int, str]) -> tuple[str, ...]:
    """The WordNet id of each line's class."""
    found = []
    for line, word in enumerate(text.decode("ascii", "replace").split(), start=1):
        if not word.isdigit() or int(word) not in wnids:
            raise ValueError(f"{where}: line {line} is '{word}', no number of a class in {META}")
        found.append(wnids[int(word)])
    return tuple(found)


def _unpack(file: AnyPath, wanted: tuple[str, ...], year: Year) -> dict[str, bytes]:
    parts: dict[str, bytes] = {}
    for member, data in repacked.untarred(file):
        name = next((name for name in wanted if f"/{member}".endswith(f"/{name}")), None)
        if name:
            bounds.check_member(len(data), member, file, bounds.SMALL)
            parts[name] = data
    for name in wanted:
        if name not in parts:
            raise ValueError(f"{file}: holds no {name}. It has to be the devkit of classification ({year.devkit})")
    return parts


def _synsets(file: AnyPath, meta: bytes, field: str) -> tuple[list[int], tuple[Synset, ...], tuple[int, ...]]:
    """The low-level synsets in the order of their WordNet ids: number, synset, number of training pictures."""
    try:
        rows = sorted(
            (str(row["WNID"]), int(*row[field]), str(row["words"]), int(*row["num_train_images"]))
            for row in matlab.read(meta)["synsets"]
            # the other synsets are the inner nodes of WordNet's tree: no picture is of them
            if int(*row["num_children"]) == 0
        )
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise ValueError(f"{file}: {META}: no list of synsets in it ({type(error).__name__}: {error})") from None
    for kind, values in (("WNID", [row[0] for row in rows]), (field, [row[1] for row in rows])):
        twice = [value for value, count in Counter[str | int](values).items() if count > 1]
        if twice:
            raise ValueError(f"{file}: {META}: {kind} {twice[0]} is there twice")
    classes = tuple(Synset(wnid=wnid, words=words) for wnid, _, words, _ in rows)
    return [row[1] for row in rows], classes, tuple(row[3] for row in rows)


def synset_tars(file: Hashed) -> Iterator[tuple[str, int, int]]:
    """Yields WordNet id, offset and length of each tar in a tar of tars."""
    where = str(file.path)
    for outer in members(file, 0, file.bytes, where):
        yield _named(_TRAIN_TAR, outer.name, where, "n01440764.tar").group(1), outer.offset_data, outer.size


def synset_pictures(file: Hashed, wnid: str, start: int, length: int) -> Iterator[tuple[str, ByteRange]]:
    """Yields name and byte range of each picture in a synset's tar, which is a part of a file or all of it."""
    where = f"{file.path}: {wnid}.tar" if length < file.bytes else str(file.path)
    for member in members(file, start, length, where):
        name = _named(_TRAIN_PICTURE, member.name, where, f"{wnid}_10026.JPEG")
        if name.group(2) != wnid:
            raise ValueError(f"{where}: member {member.name} is of {name.group(2)}, not of {wnid}. Fetch it again")
        yield name.group(1), file.range(start + member.offset_data, member.size)


def _train(file: Hashed, known: Devkit, complete: bool) -> Iterator[Picture]:
    wnids = {synset.wnid for synset in known.classes}
    counts = Counter[str]()
    for wnid, start, length in synset_tars(file):
        if wnid not in wnids:
            raise ValueError(
                f"{file.path}: {wnid}.tar: {wnid} is no class of the devkit. Archive and devkit have to be of one year"
            )
        for name, part in synset_pictures(file, wnid, start, length):
            counts[wnid] += 1
            yield Picture.at(part, name, "train", wnid)
    for synset, expected in zip(known.classes, known.train_images, strict=True):
        if complete and counts[synset.wnid] != expected:
            raise ValueError(
                f"{file.path}: holds {counts[synset.wnid]} pictures of {synset.wnid}, the devkit says {expected}. "
                f"Fetch the archive again, or the devkit that belongs to it; or, {PART}"
            )


def _numbered(file: Hashed, split: str, wnids: tuple[str, ...], year: Year, complete: bool) -> Iterator[Picture]:
    """Yields the pictures of an archive whose labels are the lines of a list."""
    path = str(file.path)
    named = re.compile(rf"(ILSVRC{year.number}_{split}_([0-9]{{8}}))\.JPEG")
    count = 0
    for member in members(file, 0, file.bytes, path):
        name = _named(named, member.name, path, f"ILSVRC{year.number}_{split}_00000001.JPEG")
        count += 1
        number = int(name.group(2))
        if not 1 <= number <= len(wnids):
            raise ValueError(
                f"{path}: member {member.name}: the {split} ground truth has no line {number}, it has {len(wnids)}. "
                "Both have to be of one year"
            )
        yield Picture.at(file.range(member.offset_data, member.size), name.group(1), split, wnids[number - 1])
    if complete and count != len(wnids):
        raise ValueError(
            f"{path}: holds {count} pictures, the {split} ground truth has {len(wnids)} lines. Fetch the archive "
            f"again, or the ground truth that belongs to it; or, {PART}"
        )


def _patches(file: Hashed) -> Iterator[tuple[str, ByteRange]]:
    """Yields name and byte range of the pictures that replace others."""
    for member in members(file, 0, file.bytes, str(file.path)):
        name = PurePosixPath(member.name)
        if name.suffix == ".JPEG":
            yield name.stem, file.range(member.offset_data, member.size)


def _patched(pictures: Iterable[Picture], patches: dict[str, ByteRange]) -> Iterator[Picture]:
    """Yields the pictures with the byte ranges of their patches; a patch without a picture stays in `patches`."""
    for each in pictures:
        part = patches.pop(each.id, None)
        yield each if part is None else Picture.at(part, each.id, each.split, each.wnid)


def _named(pattern: re.Pattern[str], name: str, where: str, example: str) -> re.Match[str]:
    """The match of a member's name without its folder: some copies were packed with one."""
    match = pattern.fullmatch(PurePosixPath(name).name)
    if match is None:
        raise ValueError(f"{where}: member {name!r} has no name like {example}. Is this the archive it should be?")
    return match
