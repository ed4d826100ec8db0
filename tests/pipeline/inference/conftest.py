"""Original pictures, and what `evaluate` answers for the stored ones: shared by the tests of all that answer for originals."""

from __future__ import annotations

import io
import zlib
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from alexnet import build
from pipeline import resize
from pipeline.evaluation import forward
from pipeline.shards import tables
from tests.pipeline.inference.test_predictor import COUNT, model, original
from tests.pipeline.sections import RESIZE


@pytest.fixture(scope="session")
def originals() -> list[bytes]:
    return [original(number) for number in range(COUNT)]


@pytest.fixture(scope="session")
def tested(originals: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rows of `evaluate` for these pictures, which `resize` stored."""
    store = tmp_path_factory.mktemp("store")
    (store / "archive").write_bytes(b"".join(originals))
    ends = np.cumsum([len(data) for data in originals]).tolist()
    rows = [
        {"id": f"{number:02}", "split": "val", "label": 0, "wnid": "n0", "archive": "archive"}
        | {"offset": end - len(data), "length": len(data), "crc32": zlib.crc32(data), "archive_bytes": ends[-1]}
        for number, (data, end) in enumerate(zip(originals, ends, strict=True))
    ]
    task = resize.Task(
        section=RESIZE,
        schema=tables.IMAGES,
        file="val",
        rows=pa.Table.from_pylist(rows),
        folder=store,
        store=store,
    )
    stored = resize.convert(task)[0].to_pylist()
    network, facts = build.load(io.BytesIO(model()))
    batches = (stored[first : first + 16] for first in range(0, COUNT, 16))
    return forward.forward(network, facts["mean"], facts["mean_kind"], batches, True).to_pylist()
