"""Text files of lines NAME LABEL: which picture of a folder a name means, and which class a label.

A name may have folders before it, an extension or none, and quotes; tabs, commas, semicolons or spaces separate it from the
label; in all lines a box may follow, between tabs. A label is the name of a class or, in all lines, its rank among the sorted
classes, from 0 as in Caffe's val.txt. A file of labels alone is that of the pictures by number, as TensorFlow's list of
synsets: line n labels the picture n.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from pipeline.archives.store import StorePath
from pipeline.archives.tree import ENDINGS

LONGEST = 4096
"""The most characters of a line."""

_BETWEEN = re.compile(r"\s*[\t,;]\s*|\s+")
_BOXED = re.compile(r"([^\t]+\t[^\t]+)(?:\t *-?[0-9.]+ *)+")
"""A line with a box behind the label, as Tiny ImageNet's val_annotations.txt has it."""

_NUMBER = re.compile(r"(?<![0-9])0*([0-9]{1,18})$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """The label of a picture, as a file has it."""

    line: int
    """Line in the file, from 1."""
    name: str
    label: str


@dataclass(frozen=True, kw_only=True, slots=True)
class FlatFolder:
    """A folder of pictures without class folders."""

    where: StorePath
    paths: tuple[str, ...]
    """Paths of its pictures in the tree."""
    classes: tuple[str, ...]
    """Names of the training classes, sorted."""
    _known: set[str] = field(init=False, default_factory=set)
    _named: dict[str, tuple[str, ...]] = field(init=False, default_factory=dict)
    _stems: dict[str, tuple[str, ...]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._known.update(self.classes)
        for path in self.paths:
            name = _plain(path)
            self._named[name] = (*self._named.get(name, ()), path)
            self._stems[_stem(name)] = (*self._stems.get(_stem(name), ()), path)

    def is_class(self, label: str) -> bool:
        """Whether a label is the name of a training class."""
        return label in self._known

    def find(self, name: str) -> tuple[str, ...]:
        """The paths of the pictures that a name may mean: with or without folders before it, and its extension."""
        for plain in (_plain(name), _plain(name.replace("\\", "/"))):
            if paths := self._named.get(plain) or self._stems.get(plain) or self._stems.get(_stem(plain)):
                return paths
        return ()


def is_numbers(text: str) -> bool:
    """Whether each line is one number."""
    lines = _lines(text)
    return bool(lines) and all(_is_rank(line) for _, line in lines)


def parse(text: str, file: StorePath, flat: FlatFolder) -> list[Entry]:
    """The entries of a file, without a line of headings. `ValueError` for a line that is not NAME LABEL."""
    lines = _lines(text)
    if long := next((number for number, line in lines if len(line) > LONGEST), None):
        raise ValueError(f"{file}: line {long} has more than {LONGEST:,} characters, and is not NAME LABEL")
    if not any(_BETWEEN.search(line) for _, line in lines):
        return list(_numbered(lines, flat))
    if all(_BOXED.fullmatch(line) for _, line in lines):
        lines = [(number, _BOXED.sub(r"\1", line)) for number, line in lines]
    entries = []
    for number, line in lines:
        entry = _entry(number, line, file, flat)
        if entry is not None:
            entries.append(entry)
        elif number != lines[0][0]:  # the first line may be headings
            name, label = _pairs(line)[-1]
            entries.append(Entry(line=number, name=name, label=label))
    return entries


def by_name(file: StorePath, entries: Mapping[str, Entry], flat: FlatFolder) -> dict[str, str]:
    """Path → class; `ValueError` for a label that is no training class's name."""
    unknown = [entry for entry in entries.values() if not flat.is_class(entry.label)]
    _refuse_unknown(file, unknown, flat, "no training class")
    return {path: entry.label for path, entry in entries.items()}


def by_rank_or_name(file: StorePath, entries: Mapping[str, Entry], flat: FlatFolder) -> dict[str, str]:
    """Path → class, by the classes' names or, in all lines, by their ranks from 0. `ValueError` if it can be read in two ways."""
    named = [entry for entry in entries.values() if flat.is_class(entry.label)]
    ranked = [entry for entry in entries.values() if _is_rank(entry.label)]
    fit = len(ranked) == len(entries) and all(int(entry.label) < len(flat.classes) for entry in ranked)
    if len(named) == len(entries):
        other = next((entry for entry in ranked if fit and flat.classes[int(entry.label)] != entry.label), None)
        if other:
            raise ValueError(
                f"{file}: line {other.line}: '{other.label}' is the name of a class, and also the rank of the class "
                f"'{flat.classes[int(other.label)]}'. Rename the class folders, so that no name is a number"
            )
        return {path: entry.label for path, entry in entries.items()}
    if len(ranked) < len(entries):
        others = [entry for entry in entries.values() if not flat.is_class(entry.label) and not _is_rank(entry.label)]
        _refuse_unknown(file, others, flat, "neither a training class nor the rank of one")
        number = next(entry for entry in ranked if not flat.is_class(entry.label))
        raise ValueError(
            f"{file}: line {named[0].line} has the name of a class, '{named[0].label}', and line {number.line} a number, "
            f"'{number.label}'. Write all labels as names, or all as ranks from 0"
        )
    if not fit or not any(int(entry.label) == 0 for entry in ranked):
        _refuse_ranks(file, ranked, flat)
    return {path: flat.classes[int(entry.label)] for path, entry in entries.items()}


def _refuse_ranks(file: StorePath, ranked: list[Entry], flat: FlatFolder) -> None:
    """`ValueError`: ranks that are too high, or without a 0, are other numbers than the ranks of these classes."""
    last = max(ranked, key=lambda entry: int(entry.label))
    lowest = min(int(entry.label) for entry in ranked)
    raise ValueError(
        f"{file}: its labels are the numbers {lowest} to {last.label} (line {last.line}), but the ranks of {len(flat.classes):,} "
        f"classes go from 0 to {len(flat.classes) - 1}. Numbers from 1, such as ILSVRC's own, are in another order: write "
        "the names of the classes, or take the devkit"
    )


def _refuse_unknown(file: StorePath, unknown: list[Entry], flat: FlatFolder, what: str) -> None:
    if unknown:
        first = min(unknown, key=lambda entry: entry.line)
        raise ValueError(
            f"{file}: {len(unknown):,} labels are {what}, the first is line {first.line}: '{first.label:.200}'. The training "
            f"pictures have {len(flat.classes):,} classes, such as {', '.join(flat.classes[:3])}"
        )


def _entry(number: int, line: str, file: StorePath, flat: FlatFolder) -> Entry | None:
    """The entry of a line, also if only one of its halves is known; None if none is."""
    pairs = _pairs(line)
    if not pairs:
        raise ValueError(f"{file}: line {number} is '{line:.200}', not NAME LABEL")
    pictures = [pair for pair in pairs if flat.find(pair[0])]
    labels = [pair for pair in pairs if flat.is_class(pair[1]) or _is_rank(pair[1])]
    both = [pair for pair in pictures if pair in labels]
    if len({(flat.find(name), label) for name, label in both}) > 1:
        raise ValueError(
            f"{file}: line {number}, '{line:.200}', can be read as '{both[0][0]}' with the label '{both[0][1]}', or as "
            f"'{both[1][0]}' with '{both[1][1]}'. Put a tab between them"
        )
    best = both or pictures or labels
    return Entry(line=number, name=best[0][0], label=best[0][1]) if best else None


def _pairs(line: str) -> list[tuple[str, str]]:
    """The ways to split a line into a name and a label; at its tabs alone if it has any."""
    between = re.compile(r"\s*\t\s*") if "\t" in line else _BETWEEN
    return [(_unquoted(line[: gap.start()]), _unquoted(line[gap.end() :])) for gap in between.finditer(line)]


def _numbered(lines: list[tuple[int, str]], flat: FlatFolder) -> Iterator[Entry]:
    """Yields the entries of a file of labels alone: that on line n is of the picture whose name ends in the number n."""
    names = {
        int(match.group(1)): path for path in flat.paths if (match := _NUMBER.search(_stem(path.rpartition("/")[2])))
    }
    for number, line in lines:
        yield Entry(line=number, name=names.get(number, f"picture number {number}"), label=_unquoted(line))


def _lines(text: str) -> list[tuple[int, str]]:
    """Number and text of the lines that are not empty."""
    stripped = ((number, line.strip()) for number, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1))
    return [(number, line) for number, line in stripped if line]


def _plain(path: str) -> str:
    """The last part of a path; macOS writes é as two characters."""
    return unicodedata.normalize("NFC", path.rpartition("/")[2])


def _stem(name: str) -> str:
    """A name without a picture's extension."""
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix) if suffix.lower() in ENDINGS else name


def _unquoted(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1].replace(text[0] * 2, text[0])
    return text


def _is_rank(label: str) -> bool:
    return label.isascii() and label.isdigit()
