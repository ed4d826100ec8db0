"""Files with the labels of pictures that lie flat in one folder: ILSVRC's devkit, Kaggle's csv, lines of NAME LABEL (§2).

A file is taken only if it labels each picture of the folder exactly once, and no other picture.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.archives import bounds, ilsvrc, label_lines, tree
from pipeline.archives.ilsvrc import Devkit, Year
from pipeline.archives.label_lines import Entry, FlatFolder
from pipeline.archives.leftovers import is_leftover
from pipeline.archives.store import StorePath
from pipeline.archives.tree import Tree

SOLUTION = "LOC_val_solution.csv"
HEADER = ["ImageId", "PredictionString"]
META = "meta.mat"

KINDS = (
    "ILSVRC's devkit (ILSVRC2012_devkit_t12.tar.gz or its unpacked folder, with data/meta.mat), Kaggle's "
    f"{SOLUTION}, or a val.txt with a line NAME LABEL for each picture, where LABEL is the name of its class or the "
    "class's rank among the sorted classes, from 0"
)
"""The kinds of files that are taken, in words."""

_LISTS = re.compile(
    r"(val|valid|validation|dev)([ _-]?(labels?|list|map|annotations))?\.(txt|csv|tsv)|.*_validation_synset_labels\.txt",
    re.I,
)
"""Usual names of a text file with the labels of validation pictures; the last one is TensorFlow's."""

_DEVKIT = re.compile(r"ILSVRC20(10|12)_devkit(?!_t3\b).*\.(tar\.gz|tgz)", re.I)
"""Names of the devkit's archive; `_t3` is that of another task."""

_TRUTH = re.compile(r"ILSVRC(20[0-9]{2})_validation_ground_truth\.txt", re.I)


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """The labels of the pictures in a folder."""

    file: StorePath
    """The file that they were read from."""
    wnids: Mapping[str, str]
    """Path of a picture in the tree → its class."""
    words: Mapping[str, str]
    """WordNet id → words, as far as the file has them."""


def flat_folder(root: Tree, top: str, classes: Collection[str]) -> str | None:
    """The folder, `top` or one below it, in which all pictures of `top` lie; None if they lie in class folders."""
    paths, _ = root.under(top).pictures()
    folders = {path.partition("/")[0] for path in paths if "/" in path}
    if paths and not folders:
        return top
    if len(folders) == 1 and all("/" in path for path in paths) and not folders & set(classes):
        return flat_folder(root, f"{top}/{folders.pop()}", classes)
    return None


def find(root: Tree, top: str, classes: Collection[str], given: StorePath | None) -> Labels:
    """The labels of the pictures that lie flat in `top`, a folder of the tree, from the file `given` or from those beside it.

    `ValueError` if there is no such file, if it does not label each picture once with one of the `classes`, or if two files
    disagree.
    """
    flat = _folder(root, top, classes)
    if given is not None:
        return _labels(_named(given), flat)
    files = list(beside(root, top))
    if not files:
        raise ValueError(_none_found(root, flat))
    try:
        found = [_labels(file, flat) for file in files]
    except ValueError as error:
        raise ValueError(f"{error}. To take the labels from another file, set params.yaml: source.val_labels") from None
    for other in found[1:]:
        if differ := [path for path in flat.paths if other.wnids[path] != found[0].wnids[path]]:
            raise ValueError(
                f"{found[0].file} and {other.file} disagree on {len(differ):,} of {len(flat.paths):,} pictures, the first is "
                f"{differ[0]}: '{found[0].wnids[differ[0]]}' or '{other.wnids[differ[0]]}'. Set params.yaml: "
                f"source.val_labels to the right one, such as {found[0].file.inside}"
            )
    return found[0]


def listed_by_kaggle(root: Tree, top: str, classes: Collection[str]) -> dict[str, str]:
    """Path → class of the pictures beside the class folders of `top` that Kaggle's csv lists; empty without that csv."""
    flat = _folder(root, top, classes)
    files = [file for file in beside(root, top) if file.path.name == SOLUTION] if flat.paths else []
    entries = _solution(files[0], _text(files[0])) if files else []
    return {path: entry.label for entry in entries for path in flat.find(entry.name)}


def beside(root: Tree, top: str) -> Iterator[StorePath]:
    """Yields the files of labels by their usual names: in `top`, in the folders above it, and unpacked devkits anywhere."""
    parts = top.split("/")
    near = {"/".join(parts[:count]) for count in range(len(parts) + 1)}
    for path in root.files:
        folder, _, name = path.rpartition("/")
        if not name.lower().endswith((".txt", ".csv", ".tsv", ".gz", ".tgz")) or is_leftover(path):
            continue
        listed = name == SOLUTION or _LISTS.fullmatch(name) or _DEVKIT.fullmatch(name)
        if (folder in near and listed) or (_TRUTH.fullmatch(name) and _meta(path) in root.files):
            yield root.where / path


def _meta(truth: str) -> str:
    """The path of the meta.mat beside a ground truth."""
    folder, slash, _ = truth.rpartition("/")
    return f"{folder}{slash}{META}"


def _folder(root: Tree, top: str, classes: Collection[str]) -> FlatFolder:
    paths, _ = root.under(top).pictures()
    return FlatFolder(
        where=root.where / top,
        paths=tuple(f"{top}/{path}" for path in paths if "/" not in path),
        classes=tuple(sorted(classes)),
    )


def _none_found(root: Tree, flat: FlatFolder) -> str:
    """The message where no file of labels is beside flat pictures."""
    truth = next((path for path in root.files if _TRUTH.fullmatch(path.rpartition("/")[2])), None)
    if truth:
        return _numbers_only(root.where / truth)
    return (
        f"{flat.where}: its {len(flat.paths):,} pictures lie flat, not in folders of the training classes, and no labels were "
        f"found. {_above(root)}Taken are {KINDS}. Put one of these into {root.where}, or set params.yaml: source.val_labels "
        "to its path in the data store"
    )


def _above(root: Tree) -> str:
    """A sentence that names Kaggle's csv, if it lies above the tree on the disk; else nothing."""
    if not isinstance(root.where.path, Path):
        return ""
    # behind a link too: what is linked may be Kaggle's ILSVRC/Data/CLS-LOC
    for folder in list(root.where.path.resolve().parents)[:3]:
        if (folder / SOLUTION).is_file():
            store = Path(str(root.where.root)).resolve()
            inside = store in folder.parents
            do = f"set params.yaml: source.folder: {folder.relative_to(store)}" if inside else f"link {folder} instead"
            return f"{folder / SOLUTION} lies above this folder: {do}. "
    return ""


def _numbers_only(file: StorePath) -> str:
    return (
        f"{file}: its numbers are ILSVRC's own, neither ranks nor names of classes, and only the devkit's {META} translates "
        f"them. Put {META} beside it, or take the whole devkit (ILSVRC2012_devkit_t12.tar.gz)"
    )


def _named(given: StorePath) -> StorePath:
    """The file that `source.val_labels` names; in a folder, a devkit's ground truth."""
    if given.path.is_dir():
        inside = tree.of_folder(given)
        truth = [path for path in inside.files if _TRUTH.fullmatch(path.rpartition("/")[2])]
        if len(truth) != 1:
            raise ValueError(
                f"{given}: a folder with {len(truth)} ILSVRC…_validation_ground_truth.txt. It has to be a devkit"
            )
        return given / truth[0]
    if not given.path.is_file():
        raise FileNotFoundError(
            f"{given}: no such file. params.yaml: source.val_labels is a path in the data store; if the file lies elsewhere, "
            f"link it: ln -s /where/it/is {given}"
        )
    return given


def _labels(file: StorePath, flat: FlatFolder) -> Labels:
    """The labels in a file of any kind; `ValueError` unless there is exactly one for each picture."""
    name, words = file.path.name, dict[str, str]()
    if truth := _TRUTH.fullmatch(name):
        meta = StorePath(file.root, _meta(file.inside)).path
        if not meta.is_file():
            raise ValueError(_numbers_only(file))
        kit = ilsvrc.parse_devkit(
            file, bounds.read_small(meta), bounds.read_small(file.path), _year(int(truth.group(1)))
        )
        entries, words = _of_devkit(kit, int(truth.group(1)))
    elif name.lower().endswith((".gz", ".tgz")):
        number = re.match(r"ILSVRC(20[0-9]{2})", name, re.I)
        year = _year(int(number.group(1)) if number else 2012)
        entries, words = _of_devkit(ilsvrc.devkit(file.path, year), year.number)
    else:
        text = _text(file)
        if name == SOLUTION or text.startswith(",".join(HEADER)):
            entries = _solution(file, text)
        elif label_lines.is_numbers(text):
            raise ValueError(_numbers_only(file))
        else:
            entries = label_lines.parse(text, file, flat)
            return Labels(
                file=file, wnids=label_lines.by_rank_or_name(file, _matched(file, entries, flat), flat), words={}
            )
    matched = _matched(file, entries, flat)
    return Labels(file=file, wnids=label_lines.by_name(file, matched, flat), words=words)


def _year(number: int) -> Year:
    devkit = "ILSVRC2010_devkit-1.0.tar.gz" if number == 2010 else f"ILSVRC{number}_devkit_t12.tar.gz"
    return Year(number=number, train="", val="", devkit=devkit)


def _of_devkit(kit: Devkit, year: int) -> tuple[list[Entry], dict[str, str]]:
    """The labels of a devkit's validation pictures, and its words."""
    entries = [
        Entry(line=number, name=f"ILSVRC{year}_val_{number:08}", label=wnid)
        for number, wnid in enumerate(kit.val_wnids, start=1)
    ]
    return entries, {synset.wnid: synset.words for synset in kit.classes}


def _text(file: StorePath) -> str:
    """The text of a small file in UTF-8, or in UTF-16 with its mark; `ValueError` for another encoding."""
    data = bounds.read_small(file.path)
    try:
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: no text in UTF-8 ({error.reason} at byte {error.start}). Save it as UTF-8") from None


def _solution(file: StorePath, text: str) -> list[Entry]:
    """Kaggle's list: each picture's name, and its boxes, each of which begins with the WordNet id."""
    entries = []
    try:
        for line, row in enumerate(csv.reader(io.StringIO(text, newline="")), start=1):
            match row:
                case [] | ["ImageId", "PredictionString"]:
                    continue
                case [name, boxes] if boxes.split():
                    entries.append(Entry(line=line, name=name, label=boxes.split()[0]))
                case _:
                    raise ValueError(f"{file}: line {line} is {','.join(row)!r:.200}, not a picture and its class")
    except csv.Error as error:
        raise ValueError(f"{file}: no list of pictures and their classes ({error})") from None
    return entries


def _matched(file: StorePath, entries: Iterable[Entry], flat: FlatFolder) -> dict[str, Entry]:
    """Path of a picture → its label; `ValueError` unless each picture has one, and each label a picture."""
    matched: dict[str, Entry] = {}
    strange: list[Entry] = []
    for entry in entries:
        paths = flat.find(entry.name)
        if len(paths) > 1:
            raise ValueError(
                f"{file}: line {entry.line}: '{entry.name}' is {paths[0]} or {paths[1]}. Write it with its extension"
            )
        if not paths:
            strange.append(entry)
        elif before := matched.get(paths[0]):
            raise ValueError(
                f"{file}: lines {before.line} and {entry.line} both label {paths[0]}: '{before.label}' and '{entry.label}'. "
                "Remove one"
            )
        else:
            matched[paths[0]] = entry
    bare = [path for path in flat.paths if path not in matched]
    said = []
    if strange:
        said.append(
            f"{len(strange):,} of {len(strange) + len(matched):,} labels are of no picture in {flat.where}, the first is "
            f"line {strange[0].line}: '{strange[0].name:.200}'"
        )
    if bare:
        said.append(
            f"{len(bare):,} of the {len(flat.paths):,} pictures in {flat.where} have no label, the first is {bare[0]}"
        )
    if said:
        advice = "Unpack the pictures again, all of them" if strange else "Remove the pictures, or add their labels"
        raise ValueError(
            f"{file}: {'; '.join(said)}. {advice}; to use a part of the set, name a list of that part: params.yaml: "
            "source.val_labels"
        )
    return matched
