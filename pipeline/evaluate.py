"""Network and pictures → error rates, every picture's probabilities, and features (§4.1, §6).

Run:    dvc repro evaluate
Reads:  data/model.pt, data/shards/
Writes: metrics.json, data/evaluation/{predictions,features-SPLIT}.parquet and {per_class,confusion,errors}.csv; with
        neighbours {features-train,neighbours}.parquet, with codes codes-{SPLIT,train}.parquet and encoder.npz;
        SPLIT is results.split, val or test; SHA256SUMS over all of these, including metrics.json
Takes:  results (model comes from data/model.pt)
Expect: the sample, under a minute on 2 cores; ILSVRC-2012 writes 1 GB, with neighbours 11 GB more and minutes of
        search (benchmarks/neighbours.py), with codes a quarter of an hour of one core per epoch of the codes

One Ray task classifies one shard, in the shard's order, so that the number of workers does not change any bit. Finished
shards are kept in work/ until the stage is done, so that a stopped stage resumes.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the slow imports
    from pipeline.__main__ import main as enter

    enter("evaluate")

import dataclasses
import hashlib
import io
import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from pipeline.evaluation import neighbours, vectors
from pipeline.evaluation.results import Results
from pipeline.evaluation.trained import METRICS, MODEL, NONE, OUT, check_labels, load, names, read_model
from pipeline.runtime import cluster, digests, documents, files, params, stage
from pipeline.runtime import machine as machines
from pipeline.runtime.paths import AnyPath
from pipeline.runtime.progress import Progress
from pipeline.shards import artifacts, tables
from pipeline.shards.tables import Manifest, Shard
from pipeline.tracking import runs

if TYPE_CHECKING:
    import ray
    from torch import Tensor

    from alexnet.augmentation import MeanKind
    from alexnet.errors import Count
    from alexnet.network import Network

KERNEL = 1
"""Increase this when a change of code changes a number: results of older code in work/ are then not reused."""

PICTURES = {"cpu": 16, "cuda": 128}
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


def run() -> None:
    """Runs the stage."""
    section = params.read("results", Results)
    machine = machines.read()
    manifest = artifacts.manifest(machine)
    model = read_model(MODEL)
    network, facts = load(model, manifest, section.split)
    sections = {"results": dataclasses.asdict(section), "model": dataclasses.asdict(network.model)}
    with runs.run(machine, facts["fingerprint"], sections, manifest, "evaluate", adopt=True) as record:
        parts = classify(model, manifest, section, machine)
        with files.atomic(OUT) as folder:
            folder.mkdir()
            check_parts(parts)
            summary = summarize(parts, manifest, section, folder)
            text = json.dumps(summary, indent=1) + "\n"
            seal(folder, text)
        with files.atomic(METRICS) as file:
            file.write_text(text)
        publish(record, network, summary, model)
    files.discard(stage.WORK / "evaluate")
    best = summary["ten_views"]
    print(
        f"evaluate: {summary['images']:,} pictures, top-1 error {best['top1_error']:.1%} "
        f"({best['top1_low']:.1%} to {best['top1_high']:.1%}), top-5 error {best['top5_error']:.1%}"
    )


def classify(model: bytes, manifest: Manifest, section: Results, machine: machines.Machine) -> dict[str, list[Path]]:
    """Classifies every picture, resuming in work/; returns a file per shard, by split, in the order of the shards."""
    key = hashlib.sha256(f"{KERNEL} {hashlib.sha256(model).hexdigest()}".encode()).hexdigest()
    work = stage.WORK / "evaluate"
    for other in work.iterdir() if work.exists() else []:
        if other.name != key:
            files.discard(other)
    folder = work / key
    folder.mkdir(parents=True, exist_ok=True)
    splits = (section.split, "train") if section.neighbours else (section.split,)
    with cluster.connected(machine):
        import ray

        device: Literal["cpu", "cuda"] = "cuda" if cluster.gpus(machine) else "cpu"
        handle, shards = ray.put(model), artifacts.locate(manifest, machine)
        check_labels(manifest, section.split, shards)
        tasks = [
            Task(split=split, shard=shard, folder=shards, device=device, model=handle)
            for split in splits
            for shard in manifest.shards[split]
            if shard.rows
        ]
        with Progress("evaluate", sum(task.shard.rows for task in tasks), "images") as progress:
            missing = [task for task in tasks if not digests.marked(folder / task.name)]
            progress.begin(sum(task.shard.rows for task in tasks) - sum(task.shard.rows for task in missing))
            for task, table in cluster.each(of_shard, missing, machine, gpus=int(device == "cuda")):
                with files.atomic(folder / task.name) as made:
                    tables.write(table, table.schema, made, 128)
                digests.mark(folder / task.name)
                progress.add(table.num_rows)
    return {split: [folder / task.name for task in tasks if task.split == split] for split in splits}


def check_parts(parts: dict[str, list[Path]]) -> None:
    """`ValueError` if a shard's result has changed since it was written; the next run computes it again."""
    for part in itertools.chain.from_iterable(parts.values()):
        if not digests.marked(part):
            raise ValueError(f"{part}: damaged since it was written. Run: dvc repro evaluate")


def seal(folder: Path, metrics: str) -> None:
    """Writes SHA256SUMS over the tables in `folder` and over metrics.json, whose text is `metrics` and which is in git."""
    beside = os.path.relpath(METRICS, OUT)
    digests.seal(folder, {beside: hashlib.sha256(metrics.encode()).hexdigest()})


def of_shard(task: Task) -> pa.Table:
    """Classifies one shard, in a Ray worker: the table that `through` returns."""
    import ray
    import torch

    from alexnet import build

    torch.set_num_threads(1)  # tasks run in parallel already, and the number of threads affects the last bits
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    digests.compare(task.folder / task.shard.file, task.shard.sha256, "resize")
    network, facts = build.load(io.BytesIO(ray.get(task.model)))
    batches = pictures(task.folder / task.shard.file, PICTURES[task.device])
    mean_CHW, tested = facts["mean"].to(task.device), task.split != "train"
    table = through(network.to(task.device), mean_CHW, facts["mean_kind"], batches, tested)
    assert table.num_rows == task.shard.rows, (table.num_rows, task.shard)
    return table


def through(
    network: Network, mean_CHW: Tensor, kind: MeanKind, batches: Iterable[list[dict[str, Any]]], tested: bool
) -> pa.Table:
    """A table with each picture's id, label, and features of its centre patch.

    If `tested`, also `probabilities`, the mean over the ten views, and `centre`, those of the centre patch.
    """
    import torch

    from alexnet.augmentation import CENTRE, centre_view, ten_views
    from alexnet.errors import mean_over_views
    from alexnet.features import of_views
    from alexnet.pictures import decode

    columns: dict[str, list[Any]] = {"id": [], "label": [], "features": [], "probabilities": [], "centre": []}
    for rows in batches:
        images_BCHW = torch.stack([decode(row["image"]["bytes"]) for row in rows]).to(mean_CHW.device)
        side = network.model.patch
        views_BVCHW = (
            ten_views(images_BCHW, mean_CHW, side, kind)
            if tested
            else centre_view(images_BCHW, mean_CHW, side)[:, None]
        )
        features_BVF, logits_BVK = of_views(network, views_BVCHW)
        middle = CENTRE if tested else 0
        columns["id"] += [row["id"] for row in rows]
        columns["label"] += [row["label"] for row in rows]
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


def pictures(file: AnyPath, number: int) -> Iterator[list[dict[str, Any]]]:
    """Yields the rows of a shard in batches of `number`, independent of its row groups; the last may be smaller."""
    kept: list[dict[str, Any]] = []
    for group in tables.groups(file, ["image", "label", "id"], "resize"):
        kept += group.to_pylist()
        while len(kept) >= number:
            yield kept[:number]
            kept = kept[number:]
    if kept:
        yield kept


def summarize(parts: dict[str, list[Path]], manifest: Manifest, section: Results, folder: Path) -> dict[str, Any]:
    """Writes the tables to `folder` and returns the contents of metrics.json; errors are sums of counts, divided once."""
    counts, classes = Counts(len(manifest.classes)), manifest.classes
    columns = ["id", "label", "probabilities", "centre"]
    vectors.concatenate(parts[section.split], columns, folder / "predictions.parquet", counts.add)
    vectors.concatenate(parts[section.split], ["id", "label", "features"], folder / f"features-{section.split}.parquet")
    nearest: dict[str, Any] = {}
    if section.neighbours:
        seen = vectors.concatenate(parts["train"], ["id", "label", "features"], folder / "features-train.parquet")
        assert seen == manifest.rows("train"), f"{seen} of {manifest.rows('train')} training pictures were seen"
        nearest["neighbours"] = neighbours.write(folder, section)
    tested = manifest.rows(section.split)
    assert counts.images == tested, f"{counts.images} of {tested} pictures were seen"
    words = names(classes)
    rows = [
        [label, synset.wnid, synset.words, one.images, _text(one.error), _text(five.error)]
        for label, (synset, one, five) in enumerate(zip(classes, *counts.by_class(), strict=True))
    ]
    documents.write_rows(
        folder / "per_class.csv", ["label", "wnid", "words", "images", "top1_error", "top5_error"], rows
    )
    errors = [[label, words[label], _text(one.error)] for label, one in enumerate(counts.by_class()[0])]
    documents.write_rows(folder / "errors.csv", ["label", "class", "top1_error"], errors)
    answers = [[words[label], words[guess] if guess >= 0 else NONE] for label, guess in counts.answers]
    documents.write_rows(folder / "confusion.csv", ["actual", "predicted"], answers)
    return {
        "images": counts.images,
        "classes": len(classes),
        "ten_views": counts.summary("probabilities"),
        "centre": counts.summary("centre"),
        **nearest,
    }


class Counts:
    """Running counts over the tested pictures: top-1 and top-5 errors, in all and by class, and every answer."""

    def __init__(self, classes: int) -> None:
        import torch

        self.classes, self.images = classes, 0
        self.credits: dict[tuple[str, int], list[Tensor]] = {
            (name, top): [] for name in ("centre", "probabilities") for top in (1, 5)
        }
        self.labels: list[Tensor] = []
        self.answers: list[tuple[int, int]] = []
        self._cat = torch.cat

    def add(self, table: pa.Table) -> None:
        """Counts the rows of a table of predictions."""
        from alexnet import errors

        labels = _tensor(table["label"])
        self.images += len(labels)
        self.labels.append(labels)
        for (name, top), shards in self.credits.items():
            shards.append(errors.topk_credit(vectors.to_matrix(table[name]), labels, top))
        guesses = errors.guesses(vectors.to_matrix(table["probabilities"]))
        self.answers += zip(labels.tolist(), guesses.tolist(), strict=True)

    def summary(self, name: str) -> dict[str, float]:
        """Error rates and their 95 % intervals, from the column `name`, for metrics.json."""
        from alexnet.errors import Count, summary

        return summary({top: Count(float(self._cat(self.credits[name, top]).sum()), self.images) for top in (1, 5)})

    def by_class(self) -> tuple[list[Count], list[Count]]:
        """Top-1 and top-5 counts of each class, over ten views."""
        from alexnet.errors import per_class

        labels = self._cat(self.labels)
        one, five = (per_class(self._cat(self.credits["probabilities", top]), labels, self.classes) for top in (1, 5))
        return one, five


def _tensor(column: pa.ChunkedArray) -> Tensor:
    import torch

    return torch.from_numpy(column.to_numpy().copy())


def _text(error: float) -> str:
    return "" if math.isnan(error) else repr(error)  # a class without a picture has no error


def publish(record: runs.Run, network: Network, summary: dict[str, Any], weights: bytes) -> None:
    """Logs the errors to MLflow and registers the network with them."""
    views = ("ten_views", "centre")
    record.score({f"{view}/{name}": summary[view][name] for view in views for name in ("top1_error", "top5_error")})
    record.score({f"neighbours/{name}": value for name, value in summary.get("neighbours", {}).items()})
    for name in ("per_class.csv", "confusion.csv", "errors.csv"):
        record.artifact(OUT / name, "evaluation")
    record.artifact(METRICS, "evaluation")
    aliases = record.publish(weights, network.model, summary[views[0]]["top1_error"])
    if aliases:
        print(f"evaluate: registered in MLflow as {' and '.join(aliases)}")
