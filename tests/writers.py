"""Compares the Parquet files of two folders that two versions of pyarrow wrote from the same pictures.

Run:    python tests/writers.py OLD NEW     (two folders data/shards, or two data/index)
Fails:  anything but the writer's name in the footers differs: a row, its order, the schema, a row group, a byte of the data
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow.parquet as pq


def differences(old: Path, new: Path) -> Iterator[str]:
    """Yields what differs between the Parquet files of the two folders, other than the name of the writer."""
    names = [sorted(file.name for file in folder.glob("*.parquet")) for folder in (old, new)]
    if names[0] != names[1]:
        yield f"the files are {names[0]} and {names[1]}"
        return
    if not names[0]:
        yield f"{old} and {new} hold no Parquet file"
    for name in names[0]:
        yield from (f"{name}: {what} differs" for what in _compared(old / name, new / name))


def _compared(old: Path, new: Path) -> Iterator[str]:
    import pyarrow.parquet as pq  # here, so that --help is quick

    with pq.ParquetFile(old) as first, pq.ParquetFile(new) as second:
        if not first.schema_arrow.equals(second.schema_arrow, check_metadata=True):
            yield "the schema"
        if not first.read().equals(second.read()):
            yield "a row, or the rows' order"
        if _groups(first) != _groups(second):
            yield "a row group"
        writers = [file.metadata.created_by.encode() for file in (first, second)]
    data = [file.read_bytes() for file in (old, new)]
    footers = [len(each) - 8 - int.from_bytes(each[-8:-4], "little") for each in data]
    if data[0][: footers[0]] != data[1][: footers[1]]:
        yield "a byte of the data"
    ends = [each[footer:-8].replace(writer, b"") for each, footer, writer in zip(data, footers, writers, strict=True)]
    if ends[0] != ends[1]:
        yield "the footer, not only in its writer,"


def _groups(file: pq.ParquetFile) -> list[dict[str, Any]]:
    """What the footer says of the row groups and their columns."""
    return [file.metadata.row_group(number).to_dict() for number in range(file.num_row_groups)]


def main() -> int:
    """Runs the program; returns 1 if anything differs."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    words = parser.parse_args()
    found = list(differences(words.old, words.new))
    print("\n".join(found) or "equal, but for the writer's name in the footers")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
