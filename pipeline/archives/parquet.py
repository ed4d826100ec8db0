"""Labelled pictures in Parquet files, as the library `datasets` and others write them: their columns, classes and rows.

`labelled` and `pictures` run in a separate process with limited memory (`pipeline.archives.apart`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.archives import bounds
from pipeline.archives.tree import ENDINGS
from pipeline.runtime.paths import AnyPath
from pipeline.shards import tables

WORDS, UNLABELLED = "labels.json", "unlabelled.json"
"""Files that follow the pictures in a repacked file: class → words, and the number of rows without a label."""

ROWS, BUFFER = 1, 2**20
"""Rows in memory at a time, one because all rows may refer to the same large value; and bytes of read buffer."""

MOST_ROWS, GROUP = 2**26, 2**31
"""The most rows of a file, and unpacked bytes of a row group; imagenet-1k's row groups have 100 rows and 15 MB."""

AGAIN = "Fetch it again"

LONGEST = 2**16
"""Bytes of the longest name of a class."""

_WNID = re.compile(r"(.+)_(n[0-9]{8})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """The names of the two columns in params.yaml; "" for a column that is found by its usual name or its kind."""

    image: str = ""
    label: str = ""


def labelled(file: AnyPath, columns: Columns, split: str) -> Iterator[bool]:
    """Yields one value: whether a picture of the file has a label. A file of the split `test` may lack the column."""
    with _opened(file) as parquet:
        schema = parquet.schema_arrow
        if split == "test" and not columns.label and not _candidates(schema, "label"):
            yield False
            return
        name = _column(schema, "label", columns.label, file)
        _check_kind(schema, name, "label", file)
        batches = (batch[name] for batch in parquet.iter_batches(MOST_ROWS // 2**10, columns=[name], use_threads=False))
        given = (
            pc.greater_equal(batch, 0) if pa.types.is_integer(batch.type) else batch.is_valid() for batch in batches
        )
        yield any(pc.any(some).as_py() for some in given)


def pictures(file: AnyPath, columns: Columns, split: str) -> Iterator[tuple[str, bytes]]:
    """Yields the labelled pictures of a file as SPLIT/CLASS/NAME, and at last the files `WORDS` and `UNLABELLED`.

    A picture without bytes is yielded empty, so that it is counted among those that cannot be decoded. `ValueError` if none
    has bytes, if a column cannot be found or used, or if two classes or two pictures would become one.
    """
    classes = _Classes(file)
    rows: dict[str, int] = {}
    unlabelled = without = row = 0
    path = None
    with _opened(file) as parquet:
        schema = parquet.schema_arrow
        image, label = (_column(schema, kind, getattr(columns, kind), file) for kind in ("image", "label"))
        for name, kind in ((image, "image"), (label, "label")):
            _check_kind(schema, name, kind, file)
        names = _label_names(schema, label, file)
        for batch in parquet.iter_batches(ROWS, columns=[image, label], use_threads=False):
            bounds.check_member(batch.nbytes, f"row {row}", file)
            for found, given in zip(batch[image].to_pylist(), batch[label].to_pylist(), strict=True):
                if given is None or (names is not None and given < 0):
                    unlabelled += 1
                else:
                    data, path = _bytes(found)
                    without += not data
                    word = _word(given, names, row, file)
                    name, wnid = _name(path, f"{PurePosixPath(file.name).stem}-{row:06}", word)
                    classes.add(wnid, given, word)
                    if (first := rows.setdefault(f"{wnid}/{name}", row)) != row:
                        raise ValueError(
                            f"{file}: rows {first} and {row} would both be the picture {name[:80]!r} of the class "
                            f"{wnid[:80]!r}, since their paths are equal. Give each row a path of its own, or none"
                        )
                    yield f"{split}/{wnid}/{name}", data
                row += 1
    if without and without == row - unlabelled:
        paths = f", only paths, such as '{str(path)[:80]}'" if path else ""
        raise ValueError(
            f"{file}: no row has a picture's bytes in column '{image}', from row 0 on{paths}. Write the bytes into it, as "
            "datasets' push_to_hub does; or, if you have the files, use source.name: imagefolder"
        )
    yield WORDS, json.dumps(classes.words, sort_keys=True, ensure_ascii=False).encode()
    yield UNLABELLED, json.dumps(unlabelled).encode()


def same_classes(words: Mapping[str, str], others: Mapping[str, str], file: object) -> None:
    """`ValueError` if a class of one file is called something else in the others: then two classes would be one."""
    for wnid in sorted(words.keys() & others.keys()):
        if words[wnid] != others[wnid]:
            raise ValueError(
                f"{file}: the classes {words[wnid][:80]!r}, and {others[wnid][:80]!r} in another file, would both be the "
                f"class {wnid[:80]!r}. Give one of them another name"
            )


@contextmanager
def _opened(file: AnyPath) -> Iterator[pq.ParquetFile]:
    """Opens a file; `ValueError` if it claims more than `MOST_ROWS` rows, or `GROUP` bytes in a row group."""
    with tables.readable(file, AGAIN) as source, pq.ParquetFile(source, buffer_size=BUFFER) as parquet:
        known = parquet.metadata
        if not 0 <= known.num_rows <= MOST_ROWS:
            raise ValueError(f"{file}: claims {known.num_rows:,} rows, more than {MOST_ROWS:,}. Is it damaged? {AGAIN}")
        for group in range(known.num_row_groups):
            claimed = known.row_group(group).total_byte_size
            if not 0 <= claimed <= GROUP:
                raise ValueError(
                    f"{file}: row group {group} claims {claimed:,} bytes, more than {GROUP:,}. Is it damaged? If not, write it "
                    "with fewer rows in a row group"
                )
        yield parquet


# Columns


USUAL = {"image": ("image", "img"), "label": ("label", "labels")}
"""The usual names of the two columns."""

KINDS = {"image": "Image", "label": "ClassLabel"}
"""The kinds of the two columns in the metadata that `datasets` writes into the schema."""


def _column(schema: pa.Schema, kind: str, asked: str, file: AnyPath) -> str:
    """The name of the column of pictures (`kind` image) or labels; `ValueError` if it cannot be told."""
    found = [asked] if asked in schema.names else [] if asked else _candidates(schema, kind)
    if len(found) != 1:
        looked = f"'{asked}'" if asked else " or ".join(f"'{name}'" for name in USUAL[kind])
        has = ", ".join(f"{field.name} ({str(field.type)[:60]})" for field in schema)[:300]
        raise ValueError(
            f"{file}: has no column {looked} of {kind}s; its columns are {has}. Say which it is in params.yaml: "
            f"source.{kind}_column: {(found or ['NAME'])[0]}"
        )
    return found[0]


def _candidates(schema: pa.Schema, kind: str) -> list[str]:
    """The first usual name that is there; else the columns of the kind in the metadata."""
    usual = [name for name in USUAL[kind] if name in schema.names]
    if usual:
        return usual[:1]
    features = _features(schema)
    return [name for name in schema.names if _of(features.get(name)).get("_type") == KINDS[kind]]


def _check_kind(schema: pa.Schema, name: str, kind: str, file: AnyPath) -> None:
    """`ValueError` if the column cannot hold pictures or labels."""
    if schema.names.count(name) > 1:
        raise ValueError(f"{file}: has {schema.names.count(name)} columns '{name}'. Give them different names")
    type_ = schema.field(name).type
    if kind == "label":
        if not (pa.types.is_integer(type_) or _is_text(type_)):
            raise ValueError(
                f"{file}: column '{name}' holds {str(type_)[:60]}, not numbers or names of classes. Is another one meant? "
                "params.yaml: source.label_column says which"
            )
        return
    fields = {field.name: field.type for field in type_} if pa.types.is_struct(type_) else {"bytes": type_}
    if not _is_binary(fields.get("bytes")):
        hint = "" if not _is_text(type_) else " If they are paths, and you have the files, use source.name: imagefolder"
        raise ValueError(
            f"{file}: column '{name}' holds {str(type_)[:60]}, not the bytes of pictures. Is another one meant? params.yaml: "
            f"source.image_column says which.{hint}"
        )


def _is_binary(type_: pa.DataType | None) -> bool:
    if type_ is not None and pa.types.is_dictionary(type_):
        return _is_binary(type_.value_type)
    known = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_null)
    return type_ is not None and any(is_(type_) for is_ in known)


def _is_text(type_: pa.DataType) -> bool:
    if pa.types.is_dictionary(type_):
        return _is_text(type_.value_type)
    return any(is_(type_) for is_ in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _features(schema: pa.Schema) -> dict[str, Any]:
    """The columns' kinds and classes in the metadata that `datasets` writes; empty without such metadata."""
    try:
        return _of(json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}


def _of(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _label_names(schema: pa.Schema, column: str, file: AnyPath) -> list[str] | None:
    """The classes' names in the schema's metadata; None if the labels are names themselves."""
    if _is_text(schema.field(column).type):
        return None
    names = _of(_features(schema).get(column)).get("names")
    if not isinstance(names, list):
        raise ValueError(
            f"{file}: column '{column}' holds numbers, whose classes are not named in Hugging Face's way. Write names instead of "
            "numbers, or write the file with `datasets`, the column as a ClassLabel"
        )
    return [str(name) for name in names]


# Rows


def _bytes(found: Any) -> tuple[bytes, str | None]:
    """The bytes, b"" if there are none, and the path of a picture."""
    if not isinstance(found, dict):
        return found or b"", None
    path = found.get("path")
    return found["bytes"] or b"", path if isinstance(path, str) else None


def _word(label: int | str, names: list[str] | None, row: int, file: AnyPath) -> str:
    """The name of a row's class."""
    if names is None or isinstance(label, str):
        return str(label)
    if label >= len(names):
        raise ValueError(f"{file}: row {row} has the label {label}, of {len(names)} names")
    return names[label]


def _name(path: str | None, otherwise: str, word: str) -> tuple[str, str]:
    """A picture's file name, and its class: the WordNet id at the end of `path` if there is one, else `word`.

    The name has a picture's extension, whatever `path` has: every row is a picture.
    """
    given = PurePosixPath(path or "")
    ending = given.suffix if given.suffix.lower() in ENDINGS else ".jpg"
    if match := _WNID.fullmatch(given.stem):
        return _in_folder(match.group(1)) + ending, match.group(2)
    return f"{otherwise}{ending}", _in_folder(word)


def _in_folder(name: str) -> str:
    """The name without the characters that no member of a tar may have in its name."""
    return re.sub(r"[/\\\0]", "_", name)


class _Classes:
    """The classes of a file: each has one name and one label."""

    def __init__(self, file: AnyPath) -> None:
        self.words: dict[str, str] = {}
        """Class → words."""
        self._file = file
        self._labels: dict[str, int | str] = {}
        self._wnids: dict[int | str, str] = {}

    def add(self, wnid: str, label: int | str, word: str) -> None:
        """Adds a row's class; `ValueError` if it cannot name a folder, is no valid text, or is another label's class too."""
        first, other = self._labels.setdefault(wnid, label), self._wnids.setdefault(label, wnid)
        if (first, other) == (label, wnid) and wnid in self.words:
            return
        this = f"{self._file}: label {label!r:.80}"
        if word.encode("utf-8", "replace").decode() != word:
            raise ValueError(
                f"{self._file}: label {label!a:.80}: the name {word[:80]!a} is no Unicode text. Rename that class"
            )
        if wnid in ("", ".", "..") or len(wnid.encode()) > LONGEST:
            raise ValueError(f"{this} is called {word[:80]!r}, which names no folder. Give it another name")
        if first != label:
            raise ValueError(
                f"{self._file}: labels {first!r:.80} and {label!r:.80}, {self.words[wnid][:80]!r} and {word[:80]!r}, would "
                f"both be the class {wnid[:80]!r}. Give one of them another name"
            )
        if other != wnid:
            raise ValueError(
                f"{this}, {word[:80]!r}, would be two classes, {other[:80]!r} and {wnid[:80]!r}, since some pictures' paths end "
                "in a WordNet id. Remove it from the paths, or add it to all"
            )
        self.words[wnid] = word
