"""Reading the index of `download`: each picture's archive, byte range and class; and checking that the store has them."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.runtime import digests, documents, files
from pipeline.runtime.paths import AnyPath
from pipeline.shards import tables
from pipeline.shards.tables import Synset

INDEX = Path("data/index")

LOOKED_AT = 1000
"""Most archives whose size is compared before the work begins."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Contents:
    """`data/index/contents.json`."""

    drawn: bool
    classes: tuple[Synset, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """The contents of `data/index`."""

    rows: pa.Table
    """The schema `tables.INDEX`, and `archive_bytes`, the size of the picture's archive."""
    classes: tuple[Synset, ...]
    archives: pa.Table
    """The schema `tables.ARCHIVES`."""
    drawn: bool
    """Whether the pictures were drawn by a program."""
    digest: str
    """Digest of the index's files; it covers the archives' checksums."""


def read_index(folder: Path) -> Index:
    """Reads the index; `OSError` or `ValueError` if it has changed since `download` wrote it, or breaks its promises."""
    written = [folder / name for name in ("index.parquet", "archives.parquet", "contents.json")]
    data = [digests.read(file, "download") for file in written]
    rows, archives = (tables.parse(data[index], written[index]) for index in (0, 1))
    contents = documents.parse(data[2], _Contents, written[2], "download")
    tables.check_index(rows, contents.classes, archives, written[0])
    sizes = archives["bytes"].take(pc.index_in(rows["archive"], value_set=archives["name"].combine_chunks()))
    digest = hashlib.sha256(b"".join(hashlib.sha256(each).digest() for each in data))
    return Index(
        rows=rows.append_column("archive_bytes", sizes),
        classes=contents.classes,
        archives=archives,
        drawn=contents.drawn,
        digest=digest.hexdigest(),
    )


def check_store(index: Index, folder: AnyPath) -> None:
    """`ValueError` if an archive of the index is missing from the store, or has another size.

    If every picture is its own file, about `LOOKED_AT` are checked here, and the others when they are read.
    """
    used = index.archives.filter(pc.is_in(index.archives["name"], value_set=pc.unique(index.rows["archive"])))
    step = max(1, used.num_rows // LOOKED_AT)
    looked_at = used.take(np.arange(0, used.num_rows, step)).to_pylist()
    named = [folder / archive["name"] for archive in looked_at]
    with ThreadPoolExecutor(files.at_once(folder)) as readers:
        for file, archive, size in zip(named, looked_at, readers.map(files.size, named), strict=True):
            if size is None:
                raise ValueError(f"{file}: missing, but the index names it. Run: dvc repro --force download")
            if size != archive["bytes"]:
                raise ValueError(
                    f"{file}: has {size} bytes, had {archive['bytes']} when it was indexed. "
                    "Run: dvc repro --force download"
                )
