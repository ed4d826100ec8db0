"""The layout of ILSVRC's archives: a year's devkit, and each picture's byte range in the tars, read in one pass (§2).

The training archive is a tar that holds a tar for each WordNet id; the validation archive is a tar of pictures; the devkit
is a compressed tar with `meta.mat` and the ground truth. Nothing is unpacked: a picture is a range of bytes in an archive.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from pipeline.archives import bounds, matlab, published, repacked
from pipeline.archives.contents import Archive, ByteRange, Choice, Contents, Picture, gather
from pipeline.archives.published import PART
from pipeline.archives.store import StorePath
from pipeline.archives.tars import HashedFile, hash_file, leftovers_note, open_hashed, picture_members
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
    """The archive of test pictures; empty if their labels are secret."""
    test_truth: str = ""
    """The text file with the test labels; empty if they are secret."""
    patch: str = ""
    """An optional tar of pictures that replace those with the same names."""
    remotes: tuple[Remote, ...] = ()
    """The published archives, in the order in which they are fetched."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """"classes" → number of classes; split → number of pictures."""

    @property
    def truth(self) -> str:
        """The path in the devkit of the validation pictures' labels."""
        return f"data/ILSVRC{self.number}_validation_ground_truth.txt"

    @property
    def archives(self) -> tuple[str, ...]:
        """The names of the archives of a complete set."""
        return tuple(filter(None, (self.train, self.val, self.devkit, self.test, self.test_truth)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Devkit:
    """The devkit's contents."""

    classes: tuple[Synset, ...]
    """The low-level synsets in the order of their WordNet ids; the index is the label."""
    train_images: tuple[int, ...]
    """Number of training pictures of each class, in the same order."""
    wnids: dict[int, str]
    """Number of a class in this year's lists → WordNet id."""
    val_wnids: tuple[str, ...]
    """WordNet ids of the validation pictures; that of picture n is at index n - 1."""


def contents(
    folder: StorePath, year: Year, classes: Choice = "all", *, complete: bool = True, drawn: bool = False
) -> Contents:
    """Reads a year's archives once, from start to end: their checksums, and the byte range of every picture.

    The pictures keep the order of the training, validation and test archives. Unless `complete`, pictures and the test
    archive may be missing. `ValueError` if an archive is truncated or does not fit the devkit; `FileNotFoundError` if one is
    missing.
    """
    for name in year.archives:
        if not (folder / name).path.is_file() and (complete or name not in (year.test, year.test_truth)):
            raise FileNotFoundError(
                f"{folder / name}: no such archive. ILSVRC-{year.number} comes as {', '.join(year.archives)}"
            )
    kit = devkit((folder / year.devkit).path, year)
    archives = [hash_file(folder / year.devkit)]
    test_wnids: tuple[str, ...] = ()
    if year.test_truth and (folder / year.test_truth).path.is_file():
        truth = folder / year.test_truth
        test_wnids = _truth(bounds.read_small(truth.path), str(truth), kit.wnids)
        archives.append(hash_file(truth))
    patches: dict[str, ByteRange] = {}
    notes: list[str] = []

    def pictures() -> Iterator[Picture]:
        if year.patch and (folder / year.patch).path.is_file():
            with open_hashed(folder / year.patch) as file:
                patches.update(_patches(file))
                archives.append(file.archive())
                notes.extend(leftovers_note(file))
        with open_hashed(folder / year.train) as file:
            yield from _train_pictures(file, kit, complete)
            archives.append(file.archive())
            notes.extend(leftovers_note(file))
        for split, name, wnids in (("val", year.val, kit.val_wnids), ("test", year.test, test_wnids)):
            if name and (folder / name).path.is_file():
                with open_hashed(folder / name) as file:
                    yield from _numbered_pictures(file, split, wnids, year, complete)
                    archives.append(file.archive())
                    notes.extend(leftovers_note(file))
        if patches:
            notes.append(f"{folder / year.patch}: {len(patches):,} pictures that replace none")

    words = {synset.wnid: synset.words for synset in kit.classes}
    found, kept = _with_patches(pictures(), patches), folder.root
    return gather(found, lambda _: archives, words, kept, classes, where=folder, drawn=drawn, notes=notes)


def official(folder: StorePath, year: Year, classes: Choice) -> Contents:
    """`contents` of the published archives; missing ones are fetched. `ValueError` if an MD5 or a count is wrong."""
    md5 = {}
    for remote in year.remotes:
        published.ensure(remote, folder / remote.name, complete=True)
        md5[remote.name] = remote.md5
    kit = devkit((folder / year.devkit).path, year)
    said = [
        (year.devkit, "classes", len(kit.classes)),
        (year.devkit, "train", sum(kit.train_images)),
        (year.devkit, "val", len(kit.val_wnids)),
    ]
    if year.test_truth:
        truth = folder / year.test_truth
        said.append((year.test_truth, "test", len(_truth(bounds.read_small(truth.path), str(truth), kit.wnids))))
    for name, what, count in said:
        if count != year.counts[what]:
            raise ValueError(
                f"{folder / name}: says {count:,} {what}, ILSVRC-{year.number} has {year.counts[what]:,}. "
                f"Fetch it again; or, {PART}"
            )
    whole = contents(folder, year, classes)
    for archive in whole.archives.to_pylist():
        file = StorePath(folder.root) / archive["name"]
        published.check_md5(file, Archive(**archive), md5.get(file.path.name))
    return whole


def devkit(file: AnyPath, year: Year) -> Devkit:
    """Reads the devkit's archive: the classes, and the ground truth of the validation pictures."""
    parts = _unpack(file, (META, year.truth), year)
    return parse_devkit(file, parts[META], parts[year.truth], year)


def parse_devkit(where: object, meta: bytes, truth: bytes, year: Year) -> Devkit:
    """The devkit's contents, from the bytes of its `meta.mat` and of its ground truth; `where` names it in errors."""
    numbers, classes, train_images = _synsets(where, meta, f"ILSVRC{year.number}_ID")
    wnids = {number: synset.wnid for number, synset in zip(numbers, classes, strict=True)}
    val_wnids = _truth(truth, f"{where}: {year.truth}", wnids)
    return Devkit(classes=classes, train_images=train_images, wnids=wnids, val_wnids=val_wnids)


def _truth(text: bytes, where: str, wnids: dict[int, str]) -> tuple[str, ...]:
    """The WordNet id of the class number on each line."""
    found = []
    for line, word in enumerate(text.decode("ascii", "replace").split(), start=1):
        if not word.isdigit() or int(word) not in wnids:
            raise ValueError(f"{where}: line {line} is '{word}', no number of a class in {META}")
        found.append(wnids[int(word)])
    return tuple(found)


def _unpack(file: AnyPath, wanted: tuple[str, ...], year: Year) -> dict[str, bytes]:
    parts: dict[str, bytes] = {}
    for member, data in repacked.untar(file):
        name = next((name for name in wanted if f"/{member}".endswith(f"/{name}")), None)
        if name:
            bounds.check_member(len(data), member, file, bounds.SMALL)
            parts[name] = data
    for name in wanted:
        if name not in parts:
            raise ValueError(f"{file}: holds no {name}. It has to be the devkit of classification ({year.devkit})")
    return parts


def _synsets(file: object, meta: bytes, field: str) -> tuple[list[int], tuple[Synset, ...], tuple[int, ...]]:
    """The low-level synsets in the order of their WordNet ids: their numbers, themselves, their training pictures."""
    try:
        rows = sorted(
            (str(row["WNID"]), int(*row[field]), str(row["words"]), int(*row["num_train_images"]))
            for row in matlab.read(meta)["synsets"]
            # the other synsets are inner nodes of WordNet's tree, which have no pictures of their own
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


def synset_tars(file: HashedFile) -> Iterator[tuple[str, int, int]]:
    """Yields WordNet id, offset and length of each tar in a tar of tars."""
    where = str(file.path)
    for outer in picture_members(file, 0, file.bytes, where):
        yield _match_name(_TRAIN_TAR, outer.name, where, "n01440764.tar").group(1), outer.offset_data, outer.size


def synset_pictures(file: HashedFile, wnid: str, start: int, length: int) -> Iterator[tuple[str, ByteRange]]:
    """Yields name and byte range of each picture in a synset's tar: `length` bytes of the file, or the whole file."""
    where = f"{file.path}: {wnid}.tar" if length < file.bytes else str(file.path)
    for member in picture_members(file, start, length, where):
        name = _match_name(_TRAIN_PICTURE, member.name, where, f"{wnid}_10026.JPEG")
        if name.group(2) != wnid:
            raise ValueError(f"{where}: member {member.name} is of {name.group(2)}, not of {wnid}. Fetch it again")
        yield name.group(1), file.range(start + member.offset_data, member.size)


def _train_pictures(file: HashedFile, kit: Devkit, complete: bool) -> Iterator[Picture]:
    wnids = {synset.wnid for synset in kit.classes}
    counts = Counter[str]()
    for wnid, start, length in synset_tars(file):
        if wnid not in wnids:
            raise ValueError(
                f"{file.path}: {wnid}.tar: {wnid} is no class of the devkit. Archive and devkit have to be of one year"
            )
        for name, part in synset_pictures(file, wnid, start, length):
            counts[wnid] += 1
            yield Picture.at(part, name, "train", wnid)
    for synset, expected in zip(kit.classes, kit.train_images, strict=True):
        if complete and counts[synset.wnid] != expected:
            raise ValueError(
                f"{file.path}: holds {counts[synset.wnid]} pictures of {synset.wnid}, the devkit says {expected}. "
                f"Fetch the archive again, or the devkit that belongs to it; or, {PART}"
            )


def _numbered_pictures(
    file: HashedFile, split: str, wnids: tuple[str, ...], year: Year, complete: bool
) -> Iterator[Picture]:
    """Yields the pictures of a validation or test archive; the label of picture n is `wnids[n - 1]`."""
    path = str(file.path)
    named = re.compile(rf"(ILSVRC{year.number}_{split}_([0-9]{{8}}))\.JPEG")
    count = 0
    for member in picture_members(file, 0, file.bytes, path):
        name = _match_name(named, member.name, path, f"ILSVRC{year.number}_{split}_00000001.JPEG")
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


def _patches(file: HashedFile) -> Iterator[tuple[str, ByteRange]]:
    """Yields name and byte range of each picture in the archive of patches."""
    for member in picture_members(file, 0, file.bytes, str(file.path)):
        name = PurePosixPath(member.name)
        if name.suffix == ".JPEG":
            yield name.stem, file.range(member.offset_data, member.size)


def _with_patches(pictures: Iterable[Picture], patches: dict[str, ByteRange]) -> Iterator[Picture]:
    """Yields the pictures, patched ones with the byte range of their patch. Patches of no picture stay in `patches`."""
    for each in pictures:
        part = patches.pop(each.id, None)
        yield each if part is None else Picture.at(part, each.id, each.split, each.wnid)


def _match_name(pattern: re.Pattern[str], name: str, where: str, example: str) -> re.Match[str]:
    """Matches a member's name without its folder, since some copies were packed with one. `ValueError` for other names."""
    match = pattern.fullmatch(PurePosixPath(name).name)
    if match is None:
        raise ValueError(f"{where}: member {name!r} has no name like {example}. Is this the archive it should be?")
    return match
