"""The project's JSON and CSV files: written in one format, and checked key by key and row by row when read."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pipeline.runtime import params
from pipeline.runtime.digests import again
from pipeline.runtime.paths import AnyPath

T = TypeVar("T")

SHOWN = 200
"""The most characters of an error message: the wrong value in it may be as large as the file."""


def parse(data: bytes | str, kind: type[T], file: AnyPath, stage: str) -> T:
    """Reads a JSON object into the dataclass `kind`; `ValueError` with the command to run if a key or value is wrong."""
    document = load(data, file, stage)
    missing = [field.name for field in dataclasses.fields(kind) if field.name not in document]  # type: ignore[arg-type]
    if missing:
        raise ValueError(f"{file}: {missing[0]}: is missing. {again(stage)}")
    try:
        return params.check(document, kind, Path(str(file)))
    except RecursionError:
        raise ValueError(f"{file}: not valid JSON (nested too deep). {again(stage)}") from None
    except params.ParamsError as error:
        first, *more = str(error).replace(f"{file}: : ", f"{file}: ").splitlines()
        others = f" (and {len(more)} more)" if more else ""
        raise ValueError(f"{_short(first)}{others}. {again(stage)}") from None


def load(data: bytes | str, file: AnyPath, stage: str) -> dict[str, Any]:
    """Reads a JSON object; a NaN, an infinity or a duplicate key is an error. Raises like `parse`."""
    try:
        document = json.loads(data, parse_constant=_refuse, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not valid JSON ({_short(str(error))}). {again(stage)}") from None
    if not isinstance(document, dict):
        raise ValueError(f"{file}: has to be a JSON object, is {type(document).__name__}. {again(stage)}")
    return document


def rows(
    data: bytes,
    columns: Mapping[str, Callable[[str], Any]],
    file: AnyPath,
    stage: str,
    others: Callable[[str], Any] = str,
) -> list[dict[str, Any]]:
    """The rows of a CSV with a header. `columns`: required column → its parser; `others`: the parser of other columns.

    Raises `ValueError` with the line number and the command to run if a column is missing, a row has another length, or a
    value cannot be parsed.
    """
    line = 1
    try:
        reader = csv.reader(io.StringIO(data.decode(), newline=""), strict=True)
        head = next(reader, [])
        if absent := [name for name in columns if name not in head]:
            raise ValueError(f"has no column {absent[0]}")
        parsed = []
        for cells in reader:
            line = reader.line_num
            if len(cells) != len(head):
                raise ValueError(f"{len(cells)} values for {len(head)} columns")
            parsed.append({name: columns.get(name, others)(cell) for name, cell in zip(head, cells, strict=True)})
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{file}: line {line}: {_short(str(error))}. {again(stage)}") from None
    return parsed


def write_rows(file: Path, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Writes a CSV that `rows` reads: a header, then the rows. Text is written unchanged, even if it begins like a formula."""
    # csv quotes "\n" but not "\r", which its own reader then refuses
    turned = any("\r" in str(cell) for row in rows for cell in row)
    with file.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n", quoting=csv.QUOTE_ALL if turned else csv.QUOTE_MINIMAL)
        writer.writerow(head)
        writer.writerows(rows)


def write_records(file: Path, head: Sequence[str], records: Sequence[Mapping[str, object]]) -> None:
    """Writes a CSV like `write_rows`; missing values are empty. `ValueError` for a value without a column."""
    if unknown := {name for record in records for name in record}.difference(head):
        raise ValueError(f"{file}: has no column {min(unknown)}")
    write_rows(file, head, [[record.get(name, "") for name in head] for record in records])


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key '{next(name for name in names if names.count(name) > 1)}' is there twice")
    return document


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
