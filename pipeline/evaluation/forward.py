"""The forward pass over a shard: each picture's features, and its probabilities over ten views and of the centre (§4.1, §6.1)."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import ray
import torch
from torch import Tensor

from alexnet import build
from alexnet.augmentation import CENTRE, MeanKind, centre_view, ten_views
from alexnet.errors import mean_over_views
from alexnet.features import of_views
from alexnet.network import Network
from alexnet.pictures import decode
from pipeline.evaluation import vectors
from pipeline.runtime import digests
from pipeline.runtime.paths import AnyPath
from pipeline.shards import tables
from pipeline.shards.tables import Shard

BATCH = {"cpu": 16, "cuda": 128}
"""Pictures per forward pass, each with all its views. The batch size affects the last bits, so it is a constant."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One shard, and everything a worker needs to classify it."""

    split: str
    shard: Shard
    folder: AnyPath
    device: Literal["cpu", "cuda"]
    model: ray.ObjectRef[bytes]

    @property
    def name(self) -> str:
        """File name of the task's result, by the digest of the shard."""
        return f"{self.shard.sha256}.parquet"


def of_shard(task: Task) -> pa.Table:
    """Classifies one shard, in a Ray worker: the table that `forward` returns."""
    torch.set_num_threads(1)  # tasks run in parallel already, and the number of threads affects the last bits
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    digests.compare(task.folder / task.shard.file, task.shard.sha256, "resize")
    network, facts = build.load(io.BytesIO(ray.get(task.model)))
    rows = batches(task.folder / task.shard.file, BATCH[task.device])
    mean_CHW, tested = facts["mean"].to(task.device), task.split != "train"
    table = forward(network.to(task.device), mean_CHW, facts["mean_kind"], rows, tested)
    assert table.num_rows == task.shard.rows, (table.num_rows, task.shard)
    return table


def forward(
    network: Network, mean_CHW: Tensor, kind: MeanKind, rows: Iterable[list[dict[str, Any]]], tested: bool
) -> pa.Table:
    """The table of the rows, given in batches: each picture's id, label, and features of its centre patch.

    If `tested`, also `probabilities`, the mean over the ten views, and `centre`, those of the centre patch.
    """
    columns: dict[str, list[Any]] = {"id": [], "label": [], "features": [], "probabilities": [], "centre": []}
    for batch in rows:
        images_BCHW = torch.stack([decode(row["image"]["bytes"]) for row in batch]).to(mean_CHW.device)
        side = network.model.patch
        views_BVCHW = (
            ten_views(images_BCHW, mean_CHW, side, kind)
            if tested
            else centre_view(images_BCHW, mean_CHW, side)[:, None]
        )
        features_BVF, logits_BVK = of_views(network, views_BVCHW)
        middle = CENTRE if tested else 0
        columns["id"] += [row["id"] for row in batch]
        columns["label"] += [row["label"] for row in batch]
        columns["features"].append(features_BVF[:, middle].cpu())
        if tested:
            columns["probabilities"].append(mean_over_views(logits_BVK).cpu())
            columns["centre"].append(mean_over_views(logits_BVK[:, middle : middle + 1]).cpu())
    table = {"id": pa.array(columns["id"], pa.string()), "label": pa.array(columns["label"], pa.int64())}
    for name in ("features", "probabilities", "centre"):
        if columns[name]:
            half = name == "features" and not tested  # half the space, since training pictures are many
            table[name] = vectors.to_column(torch.cat(columns[name]), "float16" if half else "float32")
    return pa.table(table)


def batches(file: AnyPath, number: int) -> Iterator[list[dict[str, Any]]]:
    """Yields the rows of a shard in batches of `number`, independent of its row groups; the last may be smaller."""
    kept: list[dict[str, Any]] = []
    for group in tables.groups(file, ["image", "label", "id"], "resize"):
        kept += group.to_pylist()
        while len(kept) >= number:
            yield kept[:number]
            kept = kept[number:]
    if kept:
        yield kept
