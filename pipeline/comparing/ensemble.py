"""Saved probabilities of several networks → the errors of their weighted mean (§6, Table 2).

The paper's 5 CNNs are five seeds: dvc exp run --queue -S learning.seed=1,2,3,4,5. Weights need not sum to 1.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from alexnet.errors import Count, count, mean_over_models, summary
from alexnet.names import cut
from pipeline.evaluation.trained import OUT
from pipeline.evaluation.vectors import to_matrix
from pipeline.runtime import digests, files, machines, revisions, stage
from pipeline.runtime.printing import say
from pipeline.tracking import runs

Counts = dict[int, Count]
"""Right answers by the number of guesses."""

PREDICTIONS = "predictions.parquet"

BLOCK = 128
"""Pictures at a time, the size of a row group."""

TOPS = (1, 5)


@dataclass(frozen=True)
class Argument:
    """A member on the command line: name and weight."""

    name: str
    weight: float = 1.0

    @classmethod
    def parse(cls, word: str) -> Argument:
        """Parses NAME or NAME=WEIGHT; a word that is an existing path has no weight. `ValueError` for a bad weight."""
        name, equals, weight = word.rpartition("=")
        if not equals or Path(word).exists():
            return cls(word)
        try:
            number = float(weight)
        except ValueError:
            number = math.nan
        if not (name and 0 <= number < math.inf):
            raise ValueError(f"{word}: the weight has to be a number, 0 or more, is '{weight}'")
        return cls(name, number)


class Member:
    """One network's predictions, read by row groups as they are needed."""

    def __init__(self, name: str, handle: BinaryIO) -> None:
        self.name = name
        try:
            self.parquet = pq.ParquetFile(handle, page_checksum_verification=True)
            labels = self.parquet.read(["id", "label"])
            self.classes = self.parquet.schema_arrow.field("probabilities").type.list_size
        except (pa.ArrowException, OSError, KeyError, AttributeError) as error:
            raise ValueError(f"{name}: damaged, or not a predictions.parquet: {error}") from None
        self.labels: dict[str, int] = dict(zip(labels["id"].to_pylist(), labels["label"].to_pylist(), strict=True))
        if len(self.labels) < labels.num_rows:
            raise ValueError(f"{name}: contains a picture twice")
        self._groups = self._read()
        self._waiting: dict[str, Tensor] = {}

    def _read(self) -> Iterator[pa.Table]:
        for group in range(self.parquet.num_row_groups):
            try:
                yield self.parquet.read_row_group(group, columns=["id", "probabilities"])
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"{self.name}: damaged: {error}") from None

    def probabilities(self, ids: Sequence[str]) -> Tensor:
        """The probabilities of these pictures, B×K. Each picture can be asked for once.

        Rows read before they are asked for are kept in memory: few if all members have the pictures in the same order,
        at worst all of them.
        """
        wanted = set(ids) - self._waiting.keys()
        while wanted:
            table = next(self._groups, None)
            if table is None:
                raise ValueError(f"{self.name}: damaged: picture {min(wanted)} has an id and no probabilities")
            names = table["id"].to_pylist()
            self._waiting |= dict(zip(names, to_matrix(table["probabilities"]), strict=True))
            wanted -= set(names)
        return torch.stack([self._waiting.pop(name) for name in ids])


def main(members: Sequence[str], out: Path | None) -> None:
    """Runs the program."""
    stage.main("ensemble", lambda: run(members, out))


def run(words: Sequence[str], out: Path | None = None) -> None:
    """Computes the errors of these NAME[=WEIGHT], prints them, logs them to MLflow, and writes them to the file `out`."""
    arguments = [Argument.parse(word) for word in words]
    machine = machines.read()
    with ExitStack() as stack:
        handles = [stack.enter_context(opened(each.name)) for each in arguments]
        sums = [hashlib.file_digest(handle, "sha256").hexdigest() for handle in handles]  # type: ignore[arg-type]
        for each, digest in zip(arguments, sums, strict=True):
            check_sealed(each.name, digest)
        members = [Member(each.name, handle) for each, handle in zip(arguments, handles, strict=True)]
        check(members)
        alone, together = measure(members, [each.weight for each in arguments])
    result = {
        "images": together[1].images,
        "classes": members[0].classes,
        "members": [
            {"name": each.name, "weight": each.weight, "predictions": digest, **summary(counts)}
            for each, digest, counts in zip(arguments, sums, alone, strict=True)
        ],
        "ensemble": summary(together),
    }
    say(*table(result).split("\n"))
    fingerprint = hashlib.sha256(json.dumps([sums, [each.weight for each in arguments]]).encode()).hexdigest()[:16]
    parameters = {"members": [each.name for each in arguments], "weights": [each.weight for each in arguments]}
    with runs.run(machine, fingerprint, parameters, None, "ensemble", adopt=True) as record:
        errors = {f"ten_views/{name}": result["ensemble"][name] for name in ("top1_error", "top5_error")}
        record.score(errors)
    if out:
        with files.atomic(out) as partial:
            partial.write_text(json.dumps(result, indent=1) + "\n")


@contextmanager
def opened(name: str) -> Iterator[BinaryIO]:
    """Opens the predictions.parquet of a path, a DVC experiment or a git revision; `ValueError` if there is none."""
    path = Path(name)
    if path.is_dir():
        path = path / PREDICTIONS
    if path.exists():
        with path.open("rb") as handle:
            yield handle
        return
    with revisions.opened(name, OUT / PREDICTIONS, "evaluate") as handle:
        yield handle


def check_sealed(name: str, digest: str) -> None:
    """`ValueError` if the sha256 of a member's predictions is not the one in the SHA256SUMS beside them.

    Predictions without SHA256SUMS (from older code, or copied without it) are accepted.
    """
    path = Path(name)
    folder, file = (path, PREDICTIONS) if path.is_dir() else (path.parent, path.name)
    if path.exists():
        recorded = digests.recorded(folder) if (folder / digests.SUMS).exists() else {}
    else:
        recorded, file = revisions.recorded(name, OUT), PREDICTIONS
    if recorded.get(file, digest) != digest:
        raise ValueError(
            f"{name}: {file} is not as 'evaluate' wrote it: its sha256 is {digest[:16]}…, was {recorded[file][:16]}…. "
            f"{digests.again('evaluate')}"
        )


def check(members: Sequence[Member]) -> None:
    """`ValueError` if two networks were tested on different pictures or classes."""
    first = members[0]
    for other in members[1:]:
        if other.classes != first.classes:
            raise ValueError(f"{first.name} has {first.classes} classes, {other.name} has {other.classes}")
        for one, two in ((first, other), (other, first)):
            if alone := one.labels.keys() - two.labels.keys():
                raise ValueError(f"picture {min(alone)} is in {one.name} and not in {two.name} ({len(alone)} in all)")
        if name := next((name for name, label in first.labels.items() if other.labels[name] != label), None):
            labels = f"{first.labels[name]} in {first.name} and {other.labels[name]} in {other.name}"
            raise ValueError(f"picture {name} has label {labels}: their classes differ")


def measure(members: Sequence[Member], weights: Sequence[float]) -> tuple[list[Counts], Counts]:
    """Top-1 and top-5 counts of each network alone, and of the weighted mean of their probabilities."""
    counts: list[Counts] = [dict.fromkeys(TOPS, Count(0.0, 0)) for _ in range(len(members) + 1)]
    labels = members[0].labels
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a block is too small for several threads: on a busy machine two took ten times as long
    try:
        for ids in batched(labels, BLOCK):
            right_B = torch.tensor([labels[name] for name in ids])
            parts = [member.probabilities(ids) for member in members]
            for own, scores_BK in zip(counts, [*parts, mean_over_models(parts, weights)], strict=True):
                for top in TOPS:
                    own[top] += count(scores_BK, right_B, top)
    finally:
        torch.set_num_threads(threads)
    return counts[:-1], counts[-1]


def batched(items: Iterable[str], size: int) -> Iterator[list[str]]:
    """Yields the items in lists of `size`; the last may be shorter."""
    rest = iter(items)
    while block := list(islice(rest, size)):
        yield block


def table(result: dict[str, Any]) -> str:
    """The result as a table for the terminal."""
    rows = [(cut(each["name"], 80), f"{each['weight']:g}", each) for each in result["members"]]
    rows.append((f"all {len(rows)} together", "", result["ensemble"]))
    wide = max(len(name) for name, _, _ in rows)
    lines = [f"{'':{wide}}  weight  {'top-1 error':25}  top-5 error"]
    for name, weight, row in rows:
        top1, top5 = (
            f"{row[f'top{top}_error']:.1%} ({row[f'top{top}_low']:.1%} to {row[f'top{top}_high']:.1%})" for top in TOPS
        )
        lines.append(f"{name:{wide}}  {weight:>6}  {top1:25}  {top5}")
    return "\n".join([*lines, f"on {result['images']:,} pictures, ten views of each, with 95 % intervals"])
