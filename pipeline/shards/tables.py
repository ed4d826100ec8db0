"""The Parquet schemas, what they promise, and reading and writing with pyarrow.

Between two stages stands one of these tables. The writer checks the promises, so that readers need not.
"""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.runtime import digests, files
from pipeline.runtime.paths import AnyPath

SPLITS = ("train", "val", "test")

INDEX = pa.schema(
    {
        "id": pa.string(),  # unique: the picture's file name without suffix, n01440764_10026
        "split": pa.string(),  # train, val or test
        "label": pa.int64(),  # the rank of the WordNet id among the classes, from 0
        "wnid": pa.string(),
        "archive": pa.string(),  # name of the archive's file in the data store
        "offset": pa.int64(),  # of the picture's first byte in the archive
        "length": pa.int64(),  # in bytes
        "crc32": pa.uint32(),  # of the picture's bytes, computed when the archive was hashed (zlib.crc32)
    }
)

ARCHIVES = pa.schema(
    {
        "name": pa.string(),  # of a file in the data store: an archive of pictures, or a single picture
        "bytes": pa.int64(),
        "sha256": pa.string(),
        "md5": pa.string(),  # null for a single picture
    }
)

REJECTED = pa.schema([*INDEX, pa.field("reason", pa.string())])

IMAGES = pa.schema(
    {
        "image": pa.struct(
            {"bytes": pa.binary(), "path": pa.string()}
        ),  # side x side, a JPEG or, raw, a PPM; Hugging Face's layout
        "label": pa.int64(),
        "wnid": pa.string(),
        "id": pa.string(),
        "width": pa.int32(),  # of the original picture, in pixels
        "height": pa.int32(),
        "sha256": pa.string(),  # of the original file
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Synset:
    """A class of the data set. Classes are sorted by WordNet id; a label is an index in that list."""

    wnid: str
    """WordNet id."""
    words: str
    """Synonyms, separated by commas."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One Parquet file of pictures."""

    file: str
    rows: int
    bytes: int
    sha256: str


def with_classes(schema: pa.Schema, classes: Iterable[Synset]) -> pa.Schema:
    """`schema` with Hugging Face's metadata: `label` is a ClassLabel, `image` an Image."""
    names = [synset.wnid for synset in classes]
    features: dict[str, object] = {field.name: _feature(field, names) for field in schema}
    huggingface = json.dumps({"info": {"features": features}}, sort_keys=True)
    return schema.with_metadata({"huggingface": huggingface})


def _feature(field: pa.Field, names: list[str]) -> dict[str, object]:
    if field.name == "label":
        return {"names": names, "_type": "ClassLabel"}
    if field.name == "image":
        return {"_type": "Image"}
    return {"dtype": str(field.type), "_type": "Value"}


BATCH = 65_536
"""Rows that `collect` holds as Python objects at a time."""


def collect(rows: Iterable[object], schema: pa.Schema) -> pa.Table:
    """A table from objects that have the schema's columns as attributes; only `BATCH` objects are in memory at a time."""
    waiting = iter(rows)
    batches = []
    while some := list(itertools.islice(waiting, BATCH)):
        columns = {name: [getattr(row, name) for row in some] for name in schema.names}
        batches.append(pa.RecordBatch.from_pydict(columns, schema=schema))
    return pa.Table.from_batches(batches, schema=schema)


def write(rows: Mapping[str, list[Any]] | pa.Table, schema: pa.Schema, file: Path, group: int = 0) -> None:
    """Writes a table to `file`, with `group` rows per row group (0: one group); equal rows give equal bytes.

    Pictures are not compressed, since a JPEG does not compress further. Every page has a checksum.
    """
    table = rows if isinstance(rows, pa.Table) else pa.table(dict(rows), schema=schema)
    words = [name for name in ("label", "wnid", "split", "archive") if name in schema.names]
    pq.write_table(
        table.cast(schema),
        file,
        row_group_size=group or max(1, table.num_rows),
        compression={"image.bytes": "none", "image.path": "none"} if "image" in schema.names else "zstd",
        use_dictionary=words,
        write_statistics=words,
        write_page_index=True,
        write_page_checksum=True,
    )


def read(file: AnyPath, columns: list[str] | None = None, stage: str | None = None) -> pa.Table:
    """Reads a whole table and verifies its pages' checksums; `OSError` if it is missing or damaged.

    `stage`: the stage that wrote it, so that an error can say how to write it again.
    """
    with readable(file, digests.again(stage) if stage else "") as source:
        return pq.read_table(source, columns=columns, page_checksum_verification=True)


def parse(data: bytes, file: AnyPath) -> pa.Table:
    """Parses the bytes of `file` as a table; `OSError` if they are not one."""
    try:
        return pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise OSError(f"{file}: damaged, or not Parquet: {_in_one_line(error)}") from None


def groups(file: AnyPath, columns: list[str] | None = None, stage: str | None = None) -> Iterator[pa.Table]:
    """Yields a table's row groups, prefetching the next; otherwise like `read`."""
    with (
        readable(file, digests.again(stage) if stage else "") as source,
        pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=True) as parquet,
        ThreadPoolExecutor(1) as reader,
    ):
        coming = deque[Future[pa.Table]]()
        for group in range(parquet.num_row_groups):
            coming.append(reader.submit(parquet.read_row_group, group, columns=columns))
            if group:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


@contextmanager
def readable(file: AnyPath, advice: str = "") -> Iterator[pa.NativeFile]:
    """Opens the file; `OSError` with its name and the advice if it is missing, or if the disk or Arrow cannot read it."""
    advice = f". {advice}" if advice else ""
    try:
        with files.opened(file) as source:
            yield source
    except MemoryError:
        raise  # also Arrow's, which says nothing of the file
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: not there{advice}") from None
    except (pa.ArrowException, OSError) as error:
        raise OSError(f"{file}: damaged, or not Parquet: {_in_one_line(error)}{advice}") from None


def _in_one_line(error: Exception) -> str:
    """An error's message on one line; Arrow breaks lines anywhere."""
    return " ".join(str(error).split())


def check_index(rows: pa.Table, classes: Sequence[Synset], archives: pa.Table, file: Path) -> None:
    """`ValueError` if an index breaks a promise of `INDEX` or `ARCHIVES`, with the first one broken."""
    wrong = f"{file}: {{}}. Run: dvc repro --force download"
    for table, schema, name in ((rows, INDEX, "INDEX"), (archives, ARCHIVES, "ARCHIVES")):
        if not table.schema.equals(schema):
            raise ValueError(wrong.format(f"has the columns {table.schema.names}, not those of tables.{name}"))
    if absent := next((name for name in rows.schema.names if rows[name].null_count), None):
        raise ValueError(wrong.format(f"a picture has no {absent}"))
    if rows.num_rows == 0:
        raise ValueError(wrong.format("contains no picture"))
    if pc.count_distinct(rows["id"]).as_py() != rows.num_rows:
        raise ValueError(wrong.format("contains a picture twice"))
    strange = set(pc.unique(rows["split"]).to_pylist()) - set(SPLITS)
    if strange:
        raise ValueError(wrong.format(f"unknown split '{min(strange)}'"))
    names = [synset.wnid for synset in classes]
    if names != sorted(set(names)):
        raise ValueError(wrong.format("the classes are not in the order of their WordNet ids, each once"))
    wnids = pa.array(names, pa.string())
    ranked = pc.equal(pc.index_in(rows["wnid"], value_set=wnids), rows["label"])
    sound = pc.or_(
        pc.fill_null(ranked, False), pc.equal(rows["split"], "test")
    )  # the classes of test pictures may be secret
    if not pc.all(sound).as_py():
        raise ValueError(wrong.format("a label is not the rank of its WordNet id among the classes"))
    archive_rows = pc.index_in(rows["archive"], value_set=archives["name"].combine_chunks())
    if archive_rows.null_count:
        name = rows["archive"].filter(pc.is_null(archive_rows))[0].as_py()
        raise ValueError(wrong.format(f"names the archive {name}, which archives.parquet does not"))
    negative = pc.or_(pc.less(rows["offset"], 0), pc.less(rows["length"], 0))
    ends, sizes = pc.add(rows["offset"], rows["length"]), archives["bytes"].take(archive_rows)
    beyond = pc.greater(ends, sizes)
    for bad, said in ((negative, "has a negative offset or length"), (beyond, "ends at byte {end}")):
        if pc.any(bad).as_py():
            row = pc.index(bad, True).as_py()
            name, end, size = (column[row].as_py() for column in (rows["archive"], ends, sizes))
            raise ValueError(wrong.format(f"a picture {said.format(end=end)} of {name}, which has {size}"))
