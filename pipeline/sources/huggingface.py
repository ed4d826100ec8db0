"""Parquet files of Hugging Face's Hub, such as ILSVRC/imagenet-1k: pictures in a column `image`, classes in `label`.

A picture in a compressed column is no range of bytes, and a row group has to be read whole for one of its pictures; so
each file is repacked once into a tar in the data store, a picture at a time. Pictures without a label, as those of
imagenet-1k's test split, are left out. All that the files hold is read in a process of limited memory (`apart`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Literal
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.archives import bounds, class_folders, published, repacked
from pipeline.archives.apart import Apart
from pipeline.archives.contents import Choice, Contents, check_choice, check_folder
from pipeline.archives.store import StorePath
from pipeline.archives.tars import hashed
from pipeline.archives.tree import Tree
from pipeline.runtime import files
from pipeline.runtime.fetch import Remote, fetch
from pipeline.runtime.paths import AnyPath, S3Path
from pipeline.runtime.web import listing
from pipeline.shards import tables

SPLITS = {"train": "train", "validation": "val", "valid": "val", "val": "val", "test": "test"}
"""The split that a file's name begins with, and what it is called here."""

COUNTS = {"ILSVRC/imagenet-1k": {"train": 1_281_167, "val": 50_000}}

LABELS = "labels.json"
"""In each tar: the words of each class."""

ROWS, BUFFER = 1, 2**20
"""Rows in memory at a time, as all may name the same large value; and bytes of the file."""

PAGES = 10_000
"""Pages of a list of the Hub, each of up to a thousand files."""

MOST_ROWS, GROUP = 2**26, 2**31
"""Rows of a file, and bytes that a row group may claim to have unpacked; imagenet-1k's have 100 rows and 15 MB."""

AGAIN = "Fetch it again"

_FILE = re.compile(r"([a-z]+)-([0-9]{5})-of-([0-9]{5})\.parquet")
_WNID = re.compile(r"(.+)_(n[0-9]{8})")


@dataclass(frozen=True, kw_only=True, slots=True)
class HuggingFace:
    """params.yaml, `source:` with `name: huggingface`."""

    name: Literal["huggingface"]
    dataset: str
    """The data set's name on the Hub, ILSVRC/imagenet-1k; its files lie in the store below `huggingface/` and it."""
    revision: str
    """The commit, branch or tag that files are fetched from: main, or better a commit."""
    classes: Choice
    """all, the first N in the order of WordNet ids or names, or a list of those."""
    complete: bool
    """Whether every file has to be there, as many as their names say, and of imagenet-1k every picture: what is missing
    is fetched, with the token in `HF_TOKEN`. false: what is there is taken."""

    def __post_init__(self) -> None:
        check_folder(self.dataset)
        check_choice(self.classes)

    def contents(self, store: AnyPath) -> Contents:
        """The contents of the Parquet files."""
        folder = StorePath(store) / self.name / self.dataset
        if self.complete:
            self._fetch(folder.path)
        found = sorted(
            (file for file in folder.files("*.parquet") if _split(file.path)), key=lambda file: file.path.name
        )
        if not found:
            raise FileNotFoundError(
                f"{folder}: holds no file like train-00000-of-00294.parquet. If they lie elsewhere, link their folder: "
                f"ln -s /where/they/are {folder}"
            )
        notes: list[str] = []
        trees = []
        with Apart() as apart:
            for file in found:
                [labelled] = apart.items(_labelled, file.path)
                if labelled:
                    unpack = partial(apart.items, _pictures, more=(_split(file.path),))
                    trees.append(repacked.tree_of(file, hashed(file), unpack))
                else:
                    notes.append(f"{file}: its pictures have no labels")
        whole = _joined(trees, folder)
        words = {wnid: word for tree in trees for wnid, word in json.loads(tree.read(LABELS)).items()}
        pictures = [
            picture for split in ("train", "val", "test") for picture in class_folders.found(whole, split, split, notes)
        ]
        if self.complete:
            published.check_complete(folder, pictures, COUNTS.get(self.dataset, {}))
        return class_folders.contents(whole, pictures, words, self.classes, notes, short_names=True)

    def _fetch(self, folder: AnyPath) -> None:
        """Fetches the files of the set that are not there; asks the Hub only if there are such."""
        there = {path.name for path in folder.rglob("*.parquet")}
        if there and not _missing(there):
            return
        token = os.environ.get("HF_TOKEN")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        page: str | None = (
            f"{hub}/api/datasets/{quote(self.dataset)}/tree/{quote(self.revision, safe='')}?recursive=true"
        )
        found = 0
        for _ in range(PAGES):
            if not page:
                break
            entries, page = listing(page, headers)
            listed = [(entry, PurePosixPath(str(entry.get("path", "")))) for entry in entries]
            # the test split of imagenet-1k has no labels
            wanted = [(entry, path) for entry, path in listed if _split(path) not in _unwanted(self.dataset)]
            found += len(wanted)
            missing = [(entry, path) for entry, path in wanted if path.name not in there]
            if missing:
                first = files.on_disk(folder / missing[0][1].name)
                first.parent.mkdir(parents=True, exist_ok=True)
                files.check_room(first, sum(_bytes(entry) or 0 for entry, _ in missing))
            for entry, path in missing:
                url = f"{hub}/datasets/{quote(self.dataset)}/resolve/{quote(self.revision, safe='')}/{quote(str(path))}"
                sha256 = (entry.get("lfs") or {}).get("oid")
                fetch(Remote(url=url, bytes=_bytes(entry), sha256=sha256), folder / path.name, headers)
        if page:
            raise ValueError(f"{hub}: {self.dataset} at {self.revision}: a list of more than {PAGES} pages")
        if not found:
            raise ValueError(f"{hub}: {self.dataset} at {self.revision} has no files like train-00000-of-00294.parquet")


def _unwanted(dataset: str) -> tuple[str, ...]:
    return ("", "test") if dataset in COUNTS else ("",)


def _bytes(entry: dict[str, Any]) -> int | None:
    """A file's size as the Hub has it, if that is a number of bytes."""
    size = entry.get("size")
    return size if isinstance(size, int) and size >= 0 else None


def _split(file: PurePath | S3Path) -> str:
    """The split that a file is of, or "" if it is none of a set's."""
    name = _FILE.fullmatch(file.name)
    return SPLITS.get(name.group(1), "") if name else ""


def _labelled(file: AnyPath) -> Iterator[bool]:
    """Whether a file has labels: one answer."""
    with tables.readable(file, AGAIN) as source, pq.ParquetFile(source, buffer_size=BUFFER) as parquet:
        _check(parquet, file, "label")
        labels = parquet.iter_batches(MOST_ROWS // 2**10, columns=["label"], use_threads=False)
        yield any(pc.any(pc.greater_equal(batch["label"], 0)).as_py() for batch in labels)


def _missing(there: set[str]) -> list[str]:
    """The files that the names of others count, but for those of a test split, and that are not there."""
    found = [match for match in map(_FILE.fullmatch, sorted(there)) if match and SPLITS.get(match.group(1))]
    kinds = {(match.group(1), match.group(3)) for match in found}
    wanted = [f"{kind}-{number:05}-of-{count}.parquet" for kind, count in sorted(kinds) for number in range(int(count))]
    missing = [name for name in wanted if name not in there and not name.startswith("test-")]
    splits = {SPLITS[kind] for kind, _ in kinds}
    return missing + [split for split in ("train", "val") if split not in splits]


def _pictures(file: Path, split: str) -> Iterator[tuple[str, bytes]]:
    """The labelled pictures of a Parquet file, named by split, class and name; then the words of the classes."""
    words: dict[str, str] = {}
    labels: dict[str, int] = {}
    row = 0
    with tables.readable(file, AGAIN) as source, pq.ParquetFile(source, buffer_size=BUFFER) as parquet:
        _check(parquet, file, "image", "label")
        names = _label_names(parquet.schema_arrow, file)
        for batch in parquet.iter_batches(ROWS, columns=["image", "label"], use_threads=False):
            bounds.check_member(batch.nbytes, f"row {row}", file)
            for picture in batch.to_pylist():
                label = picture["label"]
                if label is not None and label >= 0:
                    if picture["image"] is None:
                        raise ValueError(f"{file}: row {row} has a label and no picture. {AGAIN}")
                    if label >= len(names):
                        raise ValueError(f"{file}: row {row} has the label {label}, of {len(names)} names")
                    name, wnid = _name(picture["image"]["path"], f"{file.stem}-{row:06}", names[label])
                    _refuse_one_for_two(wnid, label, labels.setdefault(wnid, label), names, file)
                    words[wnid] = names[label]
                    yield f"{split}/{wnid}/{name}", picture["image"]["bytes"]
                row += 1
    yield LABELS, json.dumps(words, sort_keys=True, ensure_ascii=False).encode()


def _refuse_one_for_two(wnid: str, label: int, first: int, names: list[str], file: Path) -> None:
    """`ValueError` where what stands for a class's name, as that of a folder, is none, no text, or another's too."""
    if names[label].encode("utf-8", "replace").decode() != names[label]:
        raise ValueError(f"{file}: label {label}: the name {names[label][:80]!a} is no Unicode text. Rename that class")
    if wnid in ("", ".", ".."):
        raise ValueError(
            f"{file}: label {label} is called {names[label]!r}, which names no folder. Give it another name"
        )
    if first != label:
        raise ValueError(
            f"{file}: labels {first} and {label}, {names[first][:80]!r} and {names[label][:80]!r}, would both be the class "
            f"{wnid[:80]!r}. Give one of them another name"
        )


def _check(parquet: pq.ParquetFile, file: AnyPath, *columns: str) -> None:
    """`ValueError` if it has no such columns, or claims more than fits into memory, a row group at a time."""
    known, kinds = parquet.metadata, {field.name: field.type for field in parquet.schema_arrow}
    if not kinds.keys() >= set(columns) or ("image" in columns and not {"bytes", "path"} <= _fields(kinds["image"])):
        raise ValueError(f"{file}: no pictures and labels: its columns are {', '.join(kinds)[:200]}. {AGAIN}")
    if not 0 <= known.num_rows <= MOST_ROWS:
        raise ValueError(f"{file}: claims {known.num_rows:,} rows, more than {MOST_ROWS:,}. Fetch it again")
    for group in range(known.num_row_groups):
        claimed = known.row_group(group).total_byte_size
        if not 0 <= claimed <= GROUP:
            raise ValueError(f"{file}: row group {group} claims {claimed:,} bytes, more than {GROUP:,}. Fetch it again")


def _fields(kind: pa.DataType) -> set[str]:
    return {kind.field(number).name for number in range(kind.num_fields)} if pa.types.is_struct(kind) else set()


def _label_names(schema: pa.Schema, file: Path) -> list[str]:
    """What the classes are called: the names that Hugging Face writes beside the schema."""
    try:
        features: dict[str, Any] = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return [str(name) for name in features["label"]["names"]]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{file}: has no column 'label' whose classes are named in Hugging Face's way") from None


def _name(path: str | None, otherwise: str, word: str) -> tuple[str, str]:
    """A picture's name with its ending, and its class: a WordNet id where the path ends in one, else its word."""
    given = PurePosixPath(path or f"{otherwise}.jpg")
    ending = given.suffix or ".jpg"
    if match := _WNID.fullmatch(given.stem):
        return match.group(1) + ending, match.group(2)
    return f"{otherwise}{ending}", re.sub(r"[/\0]", "_", word)


def _joined(trees: list[Tree], folder: StorePath) -> Tree:
    files = {path: part for tree in trees for path, part in tree.files.items() if path != LABELS}
    if len(files) != sum(len(tree.files) - 1 for tree in trees):
        raise ValueError(f"{folder}: a picture is in two files. Are they of one version of the set?")
    return Tree(
        where=folder,
        files=dict(sorted(files.items())),
        tars=tuple(tar for tree in trees for tar in tree.tars),
        origins=tuple(origin for tree in trees for origin in tree.origins),
    )
