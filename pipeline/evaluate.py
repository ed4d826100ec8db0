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
import itertools
import json
import os
from pathlib import Path
from typing import Any, Literal

import ray

from alexnet.network import Network
from pipeline.evaluation import forward, scores
from pipeline.evaluation.results import Results
from pipeline.evaluation.trained import METRICS, MODEL, OUT, check_labels, load, read_model
from pipeline.runtime import cluster, digests, files, machines, params, stage
from pipeline.runtime.progress import Progress
from pipeline.shards import artifacts, tables
from pipeline.shards.manifest import Manifest
from pipeline.tracking import runs

VERSION = 1
"""Increase this when a change of code changes a number: results of older code in work/ are then not reused."""


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
            summary = scores.summarize(parts, manifest, section, folder)
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
    key = hashlib.sha256(f"{VERSION} {hashlib.sha256(model).hexdigest()}".encode()).hexdigest()
    work = stage.WORK / "evaluate"
    for other in work.iterdir() if work.exists() else []:
        if other.name != key:
            files.discard(other)
    folder = work / key
    folder.mkdir(parents=True, exist_ok=True)
    splits = (section.split, "train") if section.neighbours else (section.split,)
    with cluster.connected(machine):
        device: Literal["cpu", "cuda"] = "cuda" if cluster.gpus(machine) else "cpu"
        handle, shards = ray.put(model), artifacts.locate(manifest, machine)
        check_labels(manifest, section.split, shards)
        tasks = [
            forward.Task(split=split, shard=shard, folder=shards, device=device, model=handle)
            for split in splits
            for shard in manifest.shards[split]
            if shard.rows
        ]
        with Progress("evaluate", sum(task.shard.rows for task in tasks), "images") as progress:
            missing = [task for task in tasks if not digests.marked(folder / task.name)]
            progress.begin(sum(task.shard.rows for task in tasks) - sum(task.shard.rows for task in missing))
            for task, table in cluster.each(
                forward.of_shard, missing, machine, gpus=int(device == "cuda"), stage="evaluate"
            ):
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


def publish(record: runs.Run, network: Network, summary: dict[str, Any], weights: bytes) -> None:
    """Logs the errors to MLflow and registers the network with them."""
    views = ("ten_views", "centre")
    record.score({f"{view}/{name}": summary[view][name] for view in views for name in ("top1_error", "top5_error")})
    record.score({f"neighbours/{name}": value for name, value in summary.get("neighbours", {}).items()})
    for name in ("per_class.csv", "confusion.csv", "errors.csv"):
        record.artifact(OUT / name, "evaluation")
    record.artifact(METRICS, "evaluation")
    record.describe(summary[views[0]])
    best = summary[views[0]]
    interval, guessing = (best["top1_low"], best["top1_high"]), 1 - 1 / network.classes
    aliases = record.publish(weights, network.model, best["top1_error"], interval, guessing)
    if aliases:
        print(f"evaluate: registered in MLflow as {' and '.join(aliases)}")
