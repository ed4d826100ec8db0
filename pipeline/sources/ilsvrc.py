"""The layout of ILSVRC-2012: its devkit, and where each picture lies in the tars, read in one pass (§2).

The training archive is a tar of one tar for each WordNet id, the validation archive a tar of pictures, the devkit a
compressed tar with `meta.mat` and the ground truth. Nothing is unpacked: a picture is a range of bytes in an archive.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

import numpy as np
from scipy.io import loadmat

from pipeline.tables import Synset

TRAIN = "ILSVRC2012_img_train.tar"
VAL = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
META = "data/meta.mat"
GROUND_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"

CHUNK = 2**20
"""Bytes read and hashed at a time: the training archive has 150 GB, a picture some 100 kB."""

_TRAIN_TAR = re.compile(r"(n[0-9]{8})\.tar")
_TRAIN_PICTURE = re.compile(r"((n[0-9]{8})_[0-9]+)\.JPEG")
_VAL_PICTURE = re.compile(r"(ILSVRC2012_val_([0-9]{8}))\.JPEG")


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One row of the index (`tables.INDEX`): the bytes of a picture are `archive[offset : offset + length]`."""

    id: str
    split: str
    label: int
    wnid: str
    archive: str
    offset: int
    length: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Archive:
    """A file of the source, as it lies in the store."""

    name: str
    bytes: int
    md5: str
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """All that a source holds: the classes by label, the pictures, the archives."""

    classes: tuple[Synset, ...]
    pictures: tuple[Picture, ...]
    archives: tuple[Archive, ...]
    drawn: bool
    """The pictures were drawn by a program, not photographed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Devkit:
    """What the devkit says of the pictures."""

    classes: tuple[Synset, ...]
    """The low-level synsets, by rank of the WordNet id: the place is the label."""
    train_images: tuple[int, ...]
    """Training pictures of each class."""
    val_labels: tuple[int, ...]
    """The label of each validation picture, by its number less 1."""


def contents(folder: Path, store: Path, *, drawn: bool) -> Contents:
    """Reads the three archives in `folder`, below `store`, once from end to end: their checksums, and every picture.

    The pictures come as they lie: first the training archive's, then the validation archive's. Raises `ValueError`
    that says archive, member and what to do if an archive is cut short or does not fit the devkit, and
    `FileNotFoundError` if one is missing.
    """
    for name in (TRAIN, VAL, DEVKIT):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name}: no such archive. ILSVRC-2012 comes as {TRAIN}, {VAL} and {DEVKIT}"
            )
    known = devkit(folder / DEVKIT)
    place = folder.relative_to(store)
    with (folder / DEVKIT).open("rb") as file:
        hashed = Hashed(file)
        archives = [hashed.archive((place / DEVKIT).as_posix())]
    pictures: dict[str, Picture] = {}
    for name, listed in ((TRAIN, _train), (VAL, _val)):
        with (folder / name).open("rb") as file:
            hashed = Hashed(file)
            for picture in listed(hashed, folder / name, (place / name).as_posix(), known):
                _add(picture, pictures, folder / name)
            archives.append(hashed.archive((place / name).as_posix()))
    return Contents(classes=known.classes, pictures=tuple(pictures.values()), archives=tuple(archives), drawn=drawn)


def devkit(file: Path) -> Devkit:
    """Reads the classes and the ground truth of the validation pictures from the devkit's archive."""
    parts = _unpack(file, (META, GROUND_TRUTH))
    ids, classes, train_images = _synsets(file, parts[META])
    labels = {id_: label for label, id_ in enumerate(ids)}
    val_labels = []
    for line, word in enumerate(parts[GROUND_TRUTH].decode("ascii", "replace").split(), start=1):
        if not word.isdigit() or int(word) not in labels:
            raise ValueError(f"{file}: {GROUND_TRUTH}: line {line} is '{word}', no ILSVRC2012_ID of a class in {META}")
        val_labels.append(labels[int(word)])
    return Devkit(classes=classes, train_images=train_images, val_labels=tuple(val_labels))


def _unpack(file: Path, wanted: tuple[str, ...]) -> dict[str, bytes]:
    parts: dict[str, bytes] = {}
    try:
        # unpacked to its end, where its checksum is; a devkit has 3 MB
        with gzip.open(file) as packed, tarfile.open(fileobj=io.BytesIO(packed.read()), mode="r:") as tar:
            for member in tar:
                name = next((name for name in wanted if f"/{member.name}".endswith(f"/{name}")), None)
                if name and member.isfile():
                    parts[name] = cast("IO[bytes]", tar.extractfile(member)).read()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise ValueError(f"{file}: not a whole .tar.gz ({error}). Fetch it again") from None
    for name in wanted:
        if name not in parts:
            raise ValueError(f"{file}: holds no {name}. It has to be the devkit of tasks 1 and 2 ({DEVKIT})")
    return parts


def _synsets(file: Path, meta: bytes) -> tuple[list[int], tuple[Synset, ...], tuple[int, ...]]:
    """ILSVRC2012_ID, synset and number of training pictures of the low-level synsets, by rank of the WordNet id."""
    try:
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]  # type: ignore[arg-type]  # a file object will do
        rows = sorted(
            (str(row["WNID"]), int(row["ILSVRC2012_ID"]), str(row["words"]), int(row["num_train_images"]))
            for row in np.atleast_1d(synsets)
            # the other synsets are the inner nodes of WordNet's tree: no picture is of them
            if int(row["num_children"]) == 0
        )
    except Exception as error:  # loadmat fails in many ways on bytes that are no MATLAB file
        raise ValueError(f"{file}: {META}: no list of synsets in it ({type(error).__name__}: {error})") from None
    for kind, values in (("WNID", [row[0] for row in rows]), ("ILSVRC2012_ID", [row[1] for row in rows])):
        twice = [value for value, count in Counter[str | int](values).items() if count > 1]
        if twice:
            raise ValueError(f"{file}: {META}: {kind} {twice[0]} is there twice")
    classes = tuple(Synset(wnid=wnid, words=words) for wnid, _, words, _ in rows)
    return [row[1] for row in rows], classes, tuple(row[3] for row in rows)


def _train(hashed: Hashed, file: Path, archive: str, known: Devkit) -> Iterator[Picture]:
    labels = {synset.wnid: label for label, synset in enumerate(known.classes)}
    counts = Counter[int]()
    for outer in _members(hashed, 0, hashed.bytes, str(file)):
        where = f"{file}: {outer.name}"
        wnid = _named(_TRAIN_TAR, outer, str(file), "n01440764.tar").group(1)
        if wnid not in labels:
            raise ValueError(f"{where}: {wnid} is no class of the devkit. Archive and devkit have to be of one year")
        for member in _members(hashed, outer.offset_data, outer.size, where):
            name = _named(_TRAIN_PICTURE, member, where, f"{wnid}_10026.JPEG")
            if name.group(2) != wnid:
                raise ValueError(f"{where}: member {member.name} is of {name.group(2)}, not of {wnid}. Fetch it again")
            counts[labels[wnid]] += 1
            yield Picture(
                id=name.group(1),
                split="train",
                label=labels[wnid],
                wnid=wnid,
                archive=archive,
                offset=outer.offset_data + member.offset_data,
                length=member.size,
            )
    for label, synset in enumerate(known.classes):
        if counts[label] != known.train_images[label]:
            raise ValueError(
                f"{file}: holds {counts[label]} pictures of {synset.wnid}, the devkit says "
                f"{known.train_images[label]}. Fetch the archive again, or the devkit that belongs to it"
            )


def _val(hashed: Hashed, file: Path, archive: str, known: Devkit) -> Iterator[Picture]:
    count = 0
    for member in _members(hashed, 0, hashed.bytes, str(file)):
        name = _named(_VAL_PICTURE, member, str(file), "ILSVRC2012_val_00000001.JPEG")
        count += 1
        number = int(name.group(2))
        if not 1 <= number <= len(known.val_labels):
            raise ValueError(
                f"{file}: member {member.name}: the devkit's ground truth has no line {number}, it has "
                f"{len(known.val_labels)}. Archive and devkit have to be of one year"
            )
        label = known.val_labels[number - 1]
        yield Picture(
            id=name.group(1),
            split="val",
            label=label,
            wnid=known.classes[label].wnid,
            archive=archive,
            offset=member.offset_data,
            length=member.size,
        )
    if count != len(known.val_labels):
        raise ValueError(
            f"{file}: holds {count} pictures, the devkit's ground truth has {len(known.val_labels)} lines. "
            "Fetch the archive again, or the devkit that belongs to it"
        )


def _add(picture: Picture, pictures: dict[str, Picture], file: Path) -> None:
    first = pictures.setdefault(picture.id, picture)
    if first is not picture:
        raise ValueError(
            f"{file}: member {picture.id}.JPEG is there twice, at bytes {first.offset} and {picture.offset}. "
            "Fetch the archive again"
        )


def _named(pattern: re.Pattern[str], member: tarfile.TarInfo, where: str, example: str) -> re.Match[str]:
    """The match of the member's name, whatever folder it lies in: some copies were packed with one."""
    match = pattern.fullmatch(PurePosixPath(member.name).name)
    if match is None:
        raise ValueError(f"{where}: member {member.name!r} has no name like {example}. Is this archive ILSVRC-2012's?")
    return match


def _members(hashed: Hashed, start: int, length: int, where: str) -> Iterator[tarfile.TarInfo]:
    """The files of the tar in a range of bytes, in their order; `offset_data` counts from the range's start."""
    window = Window(hashed, start, length)
    cut = f"{where}: cut short or damaged: "
    try:
        with tarfile.open(fileobj=cast("IO[bytes]", window), mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep all that it has seen
                if member.isdir():
                    continue
                if not member.isfile() or member.issparse():
                    raise ValueError(
                        f"{where}: member {member.name!r} is no plain file. Is this archive ILSVRC-2012's?"
                    )
                if member.offset_data + member.size > length:
                    raise ValueError(f"{cut}it ends inside member {member.name}. Fetch it again")
                yield member
            end = tar.offset
    except tarfile.TarError as error:
        raise ValueError(f"{cut}{error}. Fetch it again") from None
    # a block that is no header ends tarfile's loop without a word; only one of zeros is the end of a tar
    window.seek(end)
    if window.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise ValueError(f"{cut}it ends at byte {end} without the mark of a tar's end. Fetch it again")


class Hashed:
    """A file read from front to back, hashed on the way; what was skipped is hashed too, what is read again is not."""

    def __init__(self, file: IO[bytes]) -> None:
        self.bytes = os.fstat(file.fileno()).st_size
        self._file = file
        self._seen = 0
        self._digests = (hashlib.md5(usedforsecurity=False), hashlib.sha256())

    def read(self, start: int, length: int) -> bytes:
        """Bytes `start` to `start + length`, fewer at the file's end."""
        self._advance(start)
        self._file.seek(start)
        part = self._file.read(length)
        self._see(part[max(0, self._seen - start) :])
        return part

    def archive(self, name: str) -> Archive:
        """The file's size and checksums, when the rest of it has been read."""
        self._advance(self.bytes)
        md5, sha256 = (digest.hexdigest() for digest in self._digests)
        return Archive(name=name, bytes=self._seen, md5=md5, sha256=sha256)

    def _advance(self, end: int) -> None:
        self._file.seek(self._seen)
        while self._seen < end:
            part = self._file.read(min(CHUNK, end - self._seen))
            if not part:
                return
            self._see(part)

    def _see(self, part: bytes) -> None:
        self._seen += len(part)
        for digest in self._digests:
            digest.update(part)


class Window:
    """A range of a file as a file of its own: what tarfile needs, read, seek and tell."""

    def __init__(self, hashed: Hashed, start: int, length: int) -> None:
        self._hashed = hashed
        self._start = start
        self._length = length
        self._place = 0

    def read(self, length: int) -> bytes:
        """At most `length` bytes from here on."""
        part = self._hashed.read(self._start + self._place, min(length, max(0, self._length - self._place)))
        self._place += len(part)
        return part

    def seek(self, place: int) -> None:
        """Goes to a place, counted from the range's start."""
        self._place = place

    def tell(self) -> int:
        """The place, counted from the range's start."""
        return self._place
