"""Parquet files from Hugging Face's Hub, such as ILSVRC/imagenet-1k: pictures in the column `image`, classes in `label`.

A picture in a compressed column is not a range of bytes, and reading one picture means reading its row group. So each file
is repacked once, a picture at a time, into a tar in the data store. Pictures without a label, such as imagenet-1k's test
split, are left out. The files are read in a separate process with limited memory (`pipeline.archives.apart`).
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
from pipeline.archives.tars import hash_file
from pipeline.archives.tree import Tree
from pipeline.runtime import files
from pipeline.runtime.fetch import Remote, fetch
from pipeline.runtime.paths import AnyPath, S3Path
from pipeline.runtime.web import listing
from pipeline.shards import tables

SPLITS = {"train": "train", "validation": "val", "valid": "val", "val": "val", "test": "test"}
"""First word of a file's name → split."""

COUNTS = {"ILSVRC/imagenet-1k": {"train": 1_281_167, "val": 50_000}}
"""Data set → split → number of pictures."""

LABELS = "labels.json"
"""The file in each tar that holds each class's words."""

ROWS, BUFFER = 1, 2**20
"""Rows in memory at a time, one because all rows may refer to the same large value; and bytes of read buffer."""

PAGES = 10_000
"""The most pages of a file list from the Hub, each of up to a thousand files."""

MOST_ROWS, GROUP = 2**26, 2**31
"""The most rows of a file, and unpacked bytes of a row group; imagenet-1k's row groups have 100 rows and 15 MB."""

AGAIN = "Fetch it again"

_FILE = re.compile(r"([a-z]+)-([0-9]{5})-of-([0-9]{5})\.parquet")
_WNID = re.compile(r"(.+)_(n[0-9]{8})")


@dataclass(frozen=True, kw_only=True, slots=True)
class HuggingFace:
    """params.yaml, `source:` with `name: huggingface`."""

    name: Literal["huggingface"]
    dataset: str
    """The data set's name on the Hub, such as ILSVRC/imagenet-1k. Its files are in the store's folder `huggingface/<name>`."""
    revision: str
    """The commit, branch or tag to fetch from; only a commit fixes the data."""
    classes: Choice
    """all, the first N in the order of WordNet ids or names, or a list of those."""
    complete: bool
    """Whether every file that the names count, and every picture of imagenet-1k, must be present. Missing files are fetched,
    with the token in `HF_TOKEN`. false: the files in the store are used."""

    def __post_init__(self) -> None:
        check_folder(self.dataset)
        check_choice(self.classes)

    def contents(self, store: AnyPath) -> Contents:
        """The contents of the Parquet files in the store; with `complete`, missing files are fetched first."""
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
                    trees.append(repacked.tree_of(file, hash_file(file), unpack))
                else:
                    notes.append(f"{file}: its pictures have no labels")
        whole = _join(trees, folder)
        words = {wnid: word for tree in trees for wnid, word in json.loads(tree.read(LABELS)).items()}
        pictures = [
            picture
            for split in ("train", "val", "test")
            for picture in class_folders.find_pictures(whole, split, split, notes)
        ]
        if self.complete:
            published.check_complete(folder, pictures, COUNTS.get(self.dataset, {}))
        return class_folders.contents(whole, pictures, words, self.classes, notes, short_names=True)

    def _fetch(self, folder: AnyPath) -> None:
        """Fetches the missing files of the data set; asks the Hub only if a file is missing."""
        present = {path.name for path in folder.rglob("*.parquet")}
        if present and not _missing(present):
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
            missing = [(entry, path) for entry, path in wanted if path.name not in present]
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
    """A file's size in bytes from the Hub's list; None if the list has no valid size."""
    size = entry.get("size")
    return size if isinstance(size, int) and size >= 0 else None


def _split(file: PurePath | S3Path) -> str:
    """The split of a file, from its name; "" for a file that is not part of a data set."""
    name = _FILE.fullmatch(file.name)
    return SPLITS.get(name.group(1), "") if name else ""


def _labelled(file: AnyPath) -> Iterator[bool]:
    """Yields one value: whether the file has labels."""
    with tables.readable(file, AGAIN) as source, pq.ParquetFile(source, buffer_size=BUFFER) as parquet:
        _check(parquet, file, "label")
        labels = parquet.iter_batches(MOST_ROWS // 2**10, columns=["label"], use_threads=False)
        yield any(pc.any(pc.greater_equal(batch["label"], 0)).as_py() for batch in labels)


def _missing(present: set[str]) -> list[str]:
    """The missing files (a name tells how many its split has), without a test split's; and splits without any file."""
    found = [match for match in map(_FILE.fullmatch, sorted(present)) if match and SPLITS.get(match.group(1))]
    kinds = {(match.group(1), match.group(3)) for match in found}
    wanted = [f"{kind}-{number:05}-of-{count}.parquet" for kind, count in sorted(kinds) for number in range(int(count))]
    missing = [name for name in wanted if name not in present and not name.startswith("test-")]
    splits = {SPLITS[kind] for kind, _ in kinds}
    return missing + [split for split in ("train", "val") if split not in splits]


def _pictures(file: Path, split: str) -> Iterator[tuple[str, bytes]]:
    """Yields the labelled pictures of a Parquet file as SPLIT/CLASS/NAME, and at last `LABELS` with the classes' words."""
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
                    _check_class_name(wnid, label, labels.setdefault(wnid, label), names, file)
                    words[wnid] = names[label]
                    yield f"{split}/{wnid}/{name}", picture["image"]["bytes"]
                row += 1
    yield LABELS, json.dumps(words, sort_keys=True, ensure_ascii=False).encode()


def _check_class_name(wnid: str, label: int, first: int, names: list[str], file: Path) -> None:
    """`ValueError` if a class's name cannot name a folder, is not valid text, or is also the name of another class."""
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
    """`ValueError` if a column is missing, or if the file claims more than `MOST_ROWS` rows or `GROUP` bytes a row group."""
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
    """The classes' names, which Hugging Face writes into the schema's metadata."""
    try:
        features: dict[str, Any] = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return [str(name) for name in features["label"]["names"]]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{file}: has no column 'label' whose classes are named in Hugging Face's way") from None


def _name(path: str | None, otherwise: str, word: str) -> tuple[str, str]:
    """A picture's file name, and its class: the WordNet id at the end of `path` if there is one, else `word`."""
    given = PurePosixPath(path or f"{otherwise}.jpg")
    ending = given.suffix or ".jpg"
    if match := _WNID.fullmatch(given.stem):
        return match.group(1) + ending, match.group(2)
    return f"{otherwise}{ending}", re.sub(r"[/\0]", "_", word)


def _join(trees: list[Tree], folder: StorePath) -> Tree:
    files = {path: part for tree in trees for path, part in tree.files.items() if path != LABELS}
    if len(files) != sum(len(tree.files) - 1 for tree in trees):
        raise ValueError(f"{folder}: a picture is in two files. Are they of one version of the set?")
    return Tree(
        where=folder,
        files=dict(sorted(files.items())),
        tars=tuple(tar for tree in trees for tar in tree.tars),
        origins=tuple(origin for tree in trees for origin in tree.origins),
    )
