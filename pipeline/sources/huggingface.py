"""Parquet files of labelled pictures, from Hugging Face's Hub, such as ILSVRC/imagenet-1k, or of one's own.

A picture in a compressed column is not a range of bytes, and reading one picture means reading its row group. So each file
is repacked once, a picture at a time, into a tar in the data store. Pictures without a label, such as imagenet-1k's test
split, are left out. The files are read in a separate process with limited memory (`pipeline.archives.apart`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Literal

from pipeline.archives import class_folders, parquet, published, repacked
from pipeline.archives.apart import Apart
from pipeline.archives.class_folders import SPLITS, UnlabelledPicture
from pipeline.archives.contents import Choice, Contents, check_choice, check_folder
from pipeline.archives.leftovers import is_leftover
from pipeline.archives.parquet import Columns
from pipeline.archives.store import StorePath
from pipeline.archives.tars import hash_file
from pipeline.archives.tree import Tree
from pipeline.runtime import files, web
from pipeline.runtime.fetch import fetch
from pipeline.runtime.paths import AnyPath

COUNTS = {"ILSVRC/imagenet-1k": {"train": 1_281_167, "val": 50_000}}
"""Data set → split → number of pictures."""

HUB = "https://huggingface.co"
"""The Hub's address; `HF_ENDPOINT` may name a mirror."""

EXAMPLE = "train-00000-of-00294.parquet"

_SHARD = re.compile(r"(?P<kind>[^/]+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})(?:-[0-9a-f]{16})?\.parquet")
"""A shard's name as the Hub writes it; at the end, in some years, with a hash."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HuggingFace:
    """params.yaml, `source:` with `name: huggingface`. The keys with a default may be missing."""

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
    config: str = ""
    """The folder of the data set whose files are used, where it has several configurations; "" for all files."""
    image_column: str = ""
    """The column of pictures; "" for `image` or `img`, or the only one that the schema's metadata call an Image."""
    label_column: str = ""
    """The column of classes; "" for `label` or `labels`, or the only one that the schema's metadata call a ClassLabel."""
    val_share: float = 0.0
    """Share (0 to 1) of each class's training pictures to hold out as `val`; 0 if there are validation files."""
    seed: int = 0
    """Seed of the choice of the pictures held out."""

    def __post_init__(self) -> None:
        check_folder(self.dataset)
        if self.config:
            check_folder(self.config)
        check_choice(self.classes)
        if not 0 <= self.val_share < 1:
            raise ValueError(f"val_share has to be at least 0 and below 1, is {self.val_share}")

    def contents(self, store: AnyPath) -> Contents:
        """The contents of the Parquet files in the store; with `complete`, missing files are fetched first."""
        folder = StorePath(store) / self.name / self.dataset
        folder = folder / self.config if self.config else folder
        if self.complete:
            self._fetch(folder.path)
        notes: list[str] = []
        splits = _splits(_present(folder.path), folder, notes)
        if not splits:
            raise FileNotFoundError(
                f"{folder}: holds no file like {EXAMPLE}. If they lie elsewhere, link their folder: "
                f"ln -s /where/they/are {folder}"
            )
        trees = self._trees({folder / str(path): split for path, split in splits.items()}, notes)
        whole, words = _join(trees, folder)
        pictures = [_picture(path) for path in whole.files]
        if self.complete:
            published.check_complete(folder, pictures, COUNTS.get(self.dataset, {}))
        pictures = self._with_held_out(pictures, folder)
        return class_folders.contents(whole, pictures, words, self.classes, notes, short_names=True)

    def _trees(self, splits: Mapping[StorePath, str], notes: list[str]) -> list[Tree]:
        """The repacked files, and lines that count what was left out of them."""
        columns = Columns(image=self.image_column, label=self.label_column)
        chosen = json.dumps([self.image_column, self.label_column])
        variant = f"-{hashlib.sha256(chosen.encode()).hexdigest()[:8]}" if any(json.loads(chosen)) else ""
        trees = []
        with Apart() as apart:
            for file, split in splits.items():
                [labelled] = apart.items(parquet.labelled, file.path, more=(columns, split))
                if not labelled:
                    notes.append(f"{file}: its pictures have no labels")
                    continue
                unpack = partial(apart.items, parquet.pictures, more=(columns, split))
                trees.append(repacked.tree_of(file, hash_file(file), unpack, variant))
                if unlabelled := _json(trees[-1], parquet.UNLABELLED, 0):
                    notes.append(f"{file}: {unlabelled:,} pictures without a label")
        return trees

    def _with_held_out(self, pictures: list[UnlabelledPicture], folder: StorePath) -> list[UnlabelledPicture]:
        """The pictures, after the share `val_share` of the training pictures was moved to `val`."""
        has = any(picture.split == "val" for picture in pictures)
        if has and self.val_share:
            raise ValueError(
                f"{folder}: has validation pictures, so params.yaml: source.val_share has to be 0, is {self.val_share}"
            )
        if not has and not self.val_share:
            raise ValueError(
                f"{folder}: has no labelled validation pictures, in files like {EXAMPLE.replace('train', 'validation')}. To hold "
                "out a part of the training pictures instead, set params.yaml: source.val_share: 0.1"
            )
        return class_folders.with_held_out(pictures, self.val_share, self.seed)

    def _fetch(self, folder: AnyPath) -> None:
        """Fetches the missing files of the data set; asks the Hub only if a file is missing."""
        present = _present(folder)
        if present and not self._incomplete(present):
            return
        from pipeline.archives import hub  # it takes half a second, and most sources need none

        token = os.environ.get("HF_TOKEN")
        address = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
        found = hub.listed(address, self.dataset, self.revision, self.config, token)
        listed = {
            PurePosixPath(path).relative_to(self.config): remote
            for path, remote in found
            if _is_inside(path, self.config)
        }
        where = f"{web.shown(address)}: {self.dataset} at {self.revision}"
        _check_one_configuration(listed, where)
        # the test split of imagenet-1k has no labels
        unwanted = ("test",) if self.dataset in COUNTS else ()
        wanted = [path for path, split in _by_split(listed).items() if split and split not in unwanted]
        if not wanted:
            raise ValueError(f"{where} has no files like {EXAMPLE}")
        known = {_place(path) for path in present}
        missing = [path for path in wanted if _place(path) not in known]
        if missing:
            first = files.on_disk(folder / str(_place(missing[0])))
            first.parent.mkdir(parents=True, exist_ok=True)
            files.check_room(first, sum(listed[path].bytes or 0 for path in missing))
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        for path in missing:
            fetch(listed[path], folder / str(_place(path)), headers)

    def _incomplete(self, present: Collection[PurePosixPath]) -> bool:
        """Whether a shard is missing (a name tells how many its split has), but for a test split's; or a whole split."""
        splits = _by_split(present)
        wanted = {"train"} if self.val_share else {"train", "val"}
        shards = [(match, splits[path]) for path in present if (match := _SHARD.fullmatch(path.name)) and splits[path]]
        numbers: dict[tuple[str, str], set[int]] = {}
        for match, split in shards:
            if split != "test":
                numbers.setdefault((match["kind"], match["count"]), set()).add(int(match["number"]))
        some = any(found < set(range(int(count))) for (_, count), found in numbers.items())
        return some or not wanted <= set(splits.values())


def _present(folder: AnyPath) -> list[PurePosixPath]:
    """The Parquet files below a folder, by relative path, without hidden files and folders."""
    if not folder.is_dir():
        return []
    paths = [path for path, _ in files.listed(folder) if path.endswith(".parquet")]
    return [PurePosixPath(path) for path in paths if not is_leftover(path)]


def _by_split(paths: Iterable[PurePosixPath]) -> dict[PurePosixPath, str]:
    """File → split, or "" if its name says none; all are `train` if no name says any, as in the library `datasets`."""
    splits = {path: _split(path) for path in paths}
    return splits if any(splits.values()) else dict.fromkeys(splits, "train")


def _split(path: PurePosixPath) -> str:
    """The split that a word of the file's name says, else a folder above it, the nearest first; "" if none does."""
    words = [*re.split(r"[^a-z]+", path.stem.lower()), *(part.lower() for part in reversed(path.parts[:-1]))]
    return next((SPLITS[word] for word in words if word in SPLITS), "")


def _splits(present: Collection[PurePosixPath], folder: StorePath, notes: list[str]) -> dict[PurePosixPath, str]:
    """File → split; `ValueError` if a shard is there twice. A line in `notes` counts the files whose names say no split."""
    splits = _by_split(present)
    seen: dict[tuple[str, int], PurePosixPath] = {}
    for path in sorted(path for path, split in splits.items() if split):
        if match := _SHARD.fullmatch(path.name):
            first = seen.setdefault((match["kind"], int(match["number"])), path)
            if first != path:
                raise ValueError(
                    f"{folder}: {first} and {path} are the same shard, of two versions or configurations of the set. Remove one "
                    "version, or name the configuration's folder in params.yaml: source.config"
                )
    if others := sorted(path for path, split in splits.items() if not split):
        notes.append(f"{folder}: {len(others):,} Parquet files whose names say no split, such as {others[0]}")
    return {path: splits[path] for path in sorted(splits, key=lambda path: (path.name, path)) if splits[path]}


def _place(path: PurePosixPath) -> PurePosixPath:
    """A file's place below the set's folder: shards lie there side by side."""
    return PurePosixPath(path.name) if _SHARD.fullmatch(path.name) else path


def _check_one_configuration(paths: Iterable[PurePosixPath], where: str) -> None:
    """`ValueError` if the files lie in several folders, apart from the splits' folders."""
    found = Counter(
        "/".join(part for part in path.parent.parts if part.lower() not in SPLITS)
        for path, split in _by_split(paths).items()
        if split
    )
    if len(found) > 1:
        some = ", ".join(f"{folder or '.'}/ ({count:,} files)" for folder, count in sorted(found.items())[:5])
        raise ValueError(
            f"{where} has Parquet files in several folders, as if of several configurations: {some}. Say which is meant in "
            f"params.yaml: source.config: {max(found)}"
        )


def _is_inside(path: str, folder: str) -> bool:
    """Whether a path that the Hub names is below the folder, and no path out of it."""
    parts = PurePosixPath(path)
    return parts.is_relative_to(folder) and not parts.is_absolute() and ".." not in parts.parts


def _picture(path: str) -> UnlabelledPicture:
    """The picture at a path of a repacked file, SPLIT/CLASS/NAME."""
    split, wnid, _ = path.split("/", 2)
    return UnlabelledPicture(path=path, split=split, wnid=wnid)


def _json(tree: Tree, path: str, otherwise: Any) -> Any:
    return json.loads(tree.read(path)) if path in tree.files else otherwise


def _join(trees: list[Tree], folder: StorePath) -> tuple[Tree, dict[str, str]]:
    """The pictures of all repacked files, and class → words."""
    words: dict[str, str] = {}
    found: dict[str, Any] = {}
    for tree in trees:
        own = _json(tree, parquet.WORDS, {})
        parquet.same_classes(own, words, folder.root / tree.origins[0].name)
        words |= own
        pictures = {path: part for path, part in tree.files.items() if "/" in path}
        if twice := found.keys() & pictures.keys():
            raise ValueError(
                f"{folder}: {min(twice)} is in two files. Are they of one version of the set? If of two configurations, name the "
                "folder of one in params.yaml: source.config"
            )
        found |= pictures
    whole = Tree(
        where=folder,
        files=dict(sorted(found.items())),
        tars=tuple(tar for tree in trees for tar in tree.tars),
        origins=tuple(origin for tree in trees for origin in tree.origins),
    )
    return whole, words
