"""The budget of rejected pictures, and the text that names the first pictures of a list."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow.compute as pc

from alexnet.preparation import BY_PARAMETER
from pipeline.shards.index import Index


def check_rejected(rejected: list[dict[str, Any]], index: Index, share: float) -> None:
    """`ValueError`, with the first of them, if more pictures are rejected than `share` of the indexed ones.

    A share above 0 allows at least one picture.
    """
    indexed = index.rows.num_rows
    allowed = max(1, int(share * indexed)) if share else 0
    if len(rejected) <= allowed:
        return
    raise ValueError(
        f"{len(rejected)} or more of {indexed} pictures are rejected; params.yaml: resize: max_rejected: {share} "
        f"allows {allowed}. {_advice(rejected, index)}, or raise it. The first are:\n" + "\n".join(first_of(rejected))
    )


def first_of(rows: list[dict[str, Any]]) -> list[str]:
    """The first five of rejected or damaged pictures, by id, a line each."""
    first = sorted(rows, key=lambda row: str(row["id"]))[:5]
    return [f"  {row['id']} in {row['archive']} at byte {row['offset']}: {row['reason']}" for row in first]


def _advice(rejected: list[dict[str, Any]], index: Index) -> str:
    """How to get fewer rejected pictures: by the parameters that reject most of them, or by the kind of source."""
    named = Counter(key for row in rejected for key in BY_PARAMETER if key in row["reason"])
    if 2 * named.total() > len(rejected):
        return f"Change {' and '.join(sorted(named))}"
    if index.drawn:
        return "The sample has a truncated picture on purpose: draw more of them (source.train_images)"
    if pc.all(pc.equal(index.rows["length"], index.rows["archive_bytes"])).as_py():
        return "Replace or remove these files"
    return "Fetch the archives again"
