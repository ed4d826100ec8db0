"""Network and pictures -> error rates, every picture's probabilities, and the features (§4.1, §6).

Run:    dvc repro evaluate
Reads:  data/model.pt, data/shards/
Writes: metrics.json, data/evaluation/{predictions,features-val,features-train,neighbours}.parquet
        and {per_class,confusion}.csv
Takes:  results (and model, which is in data/model.pt)
Expect: the sample, under a minute on 2 cores; ILSVRC-2012 makes 1 GB, and with neighbours 11 GB more

One Ray task takes one shard, whole and in its order, so that the number of workers changes no bit. What is done stays
in work/ until all is, so a stage that was stopped goes on where it was.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import cluster, machine, params, shards, stage, tables, tracking
from pipeline.progress import Progress
from pipeline.tables import Manifest, Shard, Synset

if TYPE_CHECKING:
    import ray
    from torch import Tensor

    from alexnet.errors import Count
    from alexnet.model import AlexNet

MODEL = Path("data/model.pt")
OUT = Path("data/evaluation")
METRICS = Path("metrics.json")

KERNEL = 1
"""Raised when a change of code changes a number: what older code left in work/ is then not taken over."""

PICTURES = {"cpu": 16, "cuda": 128}
"""Pictures that go through the network at once, with all their views. It decides the last bits, so it is fixed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """params.yaml, `results:` — what is measured of a finished network, beside its errors."""

    neighbours: int
    """So many training pictures nearest to each validation picture are looked up, as for Figure 4; the paper shows 6.
    They need a pass over the training set, and 8 kB for each of its pictures. 0: none, and no such pass."""

    def __post_init__(self) -> None:
        if self.neighbours < 0:
            raise ValueError(f"neighbours has to be 0 or more, is {self.neighbours}")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One shard; everything a worker needs to know."""

    split: str
    shard: Shard
    folder: Path
    device: Literal["cpu", "cuda"]
    model: ray.ObjectRef[bytes]

    @property
    def name(self) -> str:
        """Of the part that comes of it: by the shard's bytes, not its place."""
        return f"{self.shard.sha256}.parquet"


def run() -> None:
    """The stage."""
    section = params.read("results", Results)
    settings = machine.read()
    manifest, _ = shards.inputs(settings)
    model = read_model(MODEL)
    network, facts = load(model, manifest)
    seen = {"results": dataclasses.asdict(section), "model": dataclasses.asdict(network.model)}
    with tracking.run(settings, facts["fingerprint"], seen, manifest, "evaluate", adopt=True) as record:
        parts = classify(model, manifest, section, settings)
        with stage.whole(OUT) as folder:
            folder.mkdir()
            summary = summarize(parts, manifest, section, folder)
        with stage.whole(METRICS) as file:
            file.write_text(json.dumps(summary, indent=1) + "\n")
        publish(record, network, facts, summary, hashlib.sha256(model).hexdigest())
    stage.discard(stage.WORK / "evaluate")
    best = summary["ten_views"]
    print(
        f"evaluate: {summary['images']:,} pictures, top-1 error {best['top1_error']:.1%} "
        f"({best['top1_low']:.1%} to {best['top1_high']:.1%}), top-5 error {best['top5_error']:.1%}"
    )


def read_model(file: Path) -> bytes:
    """The bytes of the trained network; `FileNotFoundError` with what to run if it is not there."""
    if not file.exists():
        raise FileNotFoundError(f"{file}: not there. Run: dvc repro train")
    return file.read_bytes()


def load(model: bytes, manifest: Manifest) -> tuple[AlexNet, dict[str, Any]]:
    """The network and the facts saved with it; `ValueError` if it tells other classes apart than the pictures have."""
    from alexnet import model as models

    network, facts = models.load(io.BytesIO(model))
    theirs = [wnid for wnid, _ in facts["classes"]]
    ours = [synset.wnid for synset in manifest.classes]
    if theirs != ours:
        where = next((k for k, pair in enumerate(zip(theirs, ours, strict=False)) if pair[0] != pair[1]), -1)
        differ = f"class {where} is {theirs[where]} and {ours[where]}" if where >= 0 else "one list begins the other"
        raise ValueError(
            f"{MODEL} knows {len(theirs)} classes, data/shards has {len(ours)}: {differ}. Run: dvc repro train"
        )
    if manifest.rows("val") == 0:
        raise ValueError("data/shards has no validation picture. Run: dvc repro --force resize")
    return network, facts


def classify(model: bytes, manifest: Manifest, section: Results, settings: machine.Machine) -> dict[str, list[Path]]:
    """Takes every picture through the network; gives the parts by split, in the order of the shards."""
    key = hashlib.sha256(f"{KERNEL} {hashlib.sha256(model).hexdigest()}".encode()).hexdigest()
    work = stage.WORK / "evaluate"
    for other in work.iterdir() if work.exists() else []:
        if other.name != key:
            stage.discard(other)
    folder = work / key
    folder.mkdir(parents=True, exist_ok=True)
    splits = ("val", "train") if section.neighbours else ("val",)
    with cluster.connected(settings):
        import ray

        device: Literal["cpu", "cuda"] = "cuda" if cluster.gpus(settings) else "cpu"
        handle, place = ray.put(model), shards.locate(manifest, settings)
        tasks = [
            Task(split=split, shard=shard, folder=place, device=device, model=handle)
            for split in splits
            for shard in manifest.shards[split]
        ]
        with Progress("evaluate", sum(task.shard.rows for task in tasks), "images") as progress:
            missing = [task for task in tasks if not (folder / task.name).exists()]
            progress.add(sum(task.shard.rows for task in tasks) - sum(task.shard.rows for task in missing))
            for task, table in cluster.each(of_shard, missing, settings, gpus=int(device == "cuda")):
                made = folder / f"{task.name}.partial"
                tables.write(table, table.schema, made, 128)
                stage.put(made, folder / task.name)
                progress.add(table.num_rows)
    return {split: [folder / task.name for task in tasks if task.split == split] for split in splits}


def of_shard(task: Task) -> pa.Table:
    """One shard's pictures through the network, on the device; runs in a worker. See `through`."""
    import ray
    import torch

    from alexnet import model as models

    torch.set_num_threads(1)  # the tasks are what runs in parallel, and threads would move the last bits
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    network, facts = models.load(io.BytesIO(ray.get(task.model)))
    batches = pictures(task.folder / task.shard.file, PICTURES[task.device])
    table = through(network.to(task.device), facts["mean"].to(task.device), batches, task.split == "val")
    assert table.num_rows == task.shard.rows, (table.num_rows, task.shard)
    return table


def through(network: AlexNet, mean_CHW: Tensor, batches: Iterable[list[dict[str, Any]]], tested: bool) -> pa.Table:
    """Each picture's id, label and features of its centre patch.

    Where `tested`, the probabilities as well: the mean over ten views, and those of the centre patch.
    """
    import torch

    from alexnet.augmentation import CENTRE, centre_view, ten_views
    from alexnet.dataset import decode
    from alexnet.errors import mean_over_views
    from alexnet.features import features_and_logits

    columns: dict[str, list[Any]] = {"id": [], "label": [], "features": [], "probabilities": [], "centre": []}
    for rows in batches:
        images = torch.stack([decode(row["image"]["bytes"]) for row in rows]).to(mean_CHW.device)
        views = ten_views(images, mean_CHW) if tested else centre_view(images, mean_CHW)[:, None]
        answers = features_and_logits(network, views.flatten(0, 1))
        features, logits = (each.float().reshape(*views.shape[:2], -1) for each in answers)
        middle = CENTRE if tested else 0
        columns["id"] += [row["id"] for row in rows]
        columns["label"] += [row["label"] for row in rows]
        columns["features"].append(features[:, middle].cpu())
        if tested:
            columns["probabilities"].append(mean_over_views(logits).cpu())
            columns["centre"].append(mean_over_views(logits[:, middle : middle + 1]).cpu())
    made = {"id": pa.array(columns["id"], pa.string()), "label": pa.array(columns["label"], pa.int64())}
    for name in ("features", "probabilities", "centre"):
        if columns[name]:
            half = name == "features" and not tested  # of the training pictures there are many
            made[name] = _lists(torch.cat(columns[name]), "float16" if half else "float32")
    return pa.table(made)


def _lists(values_BN: Tensor, kind: str) -> pa.Array:
    """Rows of numbers as a column of lists of one length."""
    flat = pa.array(values_BN.numpy().astype(kind).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values_BN.shape[1])


def pictures(file: Path, number: int) -> Iterator[list[dict[str, Any]]]:
    """The rows of a shard, `number` at a time, whatever its row groups; the last may be fewer."""
    kept: list[dict[str, Any]] = []
    for group in tables.groups(file, ["image", "label", "id"]):
        kept += group.to_pylist()
        while len(kept) >= number:
            yield kept[:number]
            kept = kept[number:]
    if kept:
        yield kept


def summarize(parts: dict[str, list[Path]], manifest: Manifest, section: Results, folder: Path) -> dict[str, Any]:
    """Writes the tables to `folder` and returns what metrics.json says: counts are added up and divided once."""
    counts, classes = Counts(len(manifest.classes)), manifest.classes
    wanted = ["id", "label", "probabilities", "centre"]
    join(parts["val"], wanted, folder / "predictions.parquet", counts.add)
    join(parts["val"], ["id", "label", "features"], folder / "features-val.parquet")
    if section.neighbours:
        seen = join(parts["train"], ["id", "label", "features"], folder / "features-train.parquet")
        assert seen == manifest.rows("train"), f"{seen} of {manifest.rows('train')} training pictures were seen"
        write_neighbours(folder, section.neighbours)
    assert counts.images == manifest.rows("val"), f"{counts.images} of {manifest.rows('val')} pictures were seen"
    words = names(classes)
    rows = [
        [label, synset.wnid, synset.words, one.images, _text(one.error), _text(five.error)]
        for label, (synset, one, five) in enumerate(zip(classes, *counts.by_class(), strict=True))
    ]
    _csv(folder / "per_class.csv", ["label", "wnid", "words", "images", "top1_error", "top5_error"], rows)
    answers = [[words[label], words[guess] if guess >= 0 else "none"] for label, guess in counts.answers]
    _csv(folder / "confusion.csv", ["actual", "predicted"], answers)
    return {
        "images": counts.images,
        "classes": len(classes),
        "ten_views": counts.summary("probabilities"),
        "centre": counts.summary("centre"),
    }


def write_neighbours(folder: Path, number: int) -> None:
    """For each validation picture the training pictures nearest by their features, nearest first."""
    from alexnet.features import nearest

    tested = tables.read(folder / "features-val.parquet")
    ids: list[str] = []

    def blocks() -> Iterator[Any]:
        for group in tables.groups(folder / "features-train.parquet"):
            ids.extend(group["id"].to_pylist())
            yield matrix(group["features"]).numpy()

    rows, distances = nearest(matrix(tested["features"]).numpy(), blocks(), number)
    found = {
        "id": tested["id"],
        "nearest": pa.array([[ids[row] for row in each if row >= 0] for each in rows], pa.list_(pa.string())),
        "distance": pa.array(
            [
                [float(one) for row, one in zip(each, far, strict=True) if row >= 0]
                for each, far in zip(rows, distances, strict=True)
            ],
            pa.list_(pa.float64()),
        ),
    }
    tables.write(pa.table(found), pa.table(found).schema, folder / "neighbours.parquet")


def join(parts: Iterable[Path], columns: list[str], file: Path, add: Any = lambda _: None) -> int:
    """Joins the parts' columns in one file, a row group at a time, shows each to `add`; returns the number of rows."""
    writer, rows = None, 0
    for part in parts:
        for group in tables.groups(part, columns):
            # without dictionaries: no two floats are the same
            writer = writer or pq.ParquetWriter(
                file, group.schema, compression="zstd", use_dictionary=["label"], write_page_checksum=True
            )
            writer.write_table(group)
            add(group)
            rows += group.num_rows
    assert writer is not None, "there is at least one part, and it has a picture"
    writer.close()
    return rows


class Counts:
    """Counts over the pictures as they pass: top-1 and top-5, in all and by class, and every answer."""

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
        for (name, top), credits in self.credits.items():
            credits.append(errors.credits(matrix(table[name]), labels, top))
        guesses = errors.guesses(matrix(table["probabilities"]))
        self.answers += zip(labels.tolist(), guesses.tolist(), strict=True)

    def summary(self, name: str) -> dict[str, float]:
        """Error rates and their 95 % intervals."""
        from alexnet.errors import Count

        found: dict[str, float] = {}
        for top in (1, 5):
            count = Count(float(self._cat(self.credits[name, top]).sum()), self.images)
            low, high = count.interval
            found |= {f"top{top}_error": count.error, f"top{top}_low": low, f"top{top}_high": high}
        return found

    def by_class(self) -> tuple[list[Count], list[Count]]:
        """Top-1 and top-5, for each class."""
        from alexnet.errors import per_class

        labels = self._cat(self.labels)
        one, five = (per_class(self._cat(self.credits["probabilities", top]), labels, self.classes) for top in (1, 5))
        return one, five


def matrix(column: pa.ChunkedArray) -> Tensor:
    """A column of lists of one length as a matrix."""
    import torch

    chunks = [chunk for chunk in column.chunks if len(chunk)]
    rows = [torch.from_numpy(chunk.flatten().to_numpy().copy()).reshape(len(chunk), -1) for chunk in chunks]
    return torch.cat(rows)


def _tensor(column: pa.ChunkedArray) -> Tensor:
    import torch

    return torch.from_numpy(column.to_numpy().copy())


def names(classes: Sequence[Synset]) -> list[str]:
    """A short name for each class: its first word, and the WordNet id where two classes share that."""
    first = [synset.words.split(",")[0] for synset in classes]
    return [
        f"{word} ({synset.wnid})" if first.count(word) > 1 else word
        for word, synset in zip(first, classes, strict=True)
    ]


def _text(error: float) -> str:
    return "" if math.isnan(error) else repr(error)  # a class without a picture has no error


def _csv(file: Path, head: list[str], rows: Iterable[Sequence[object]]) -> None:
    with file.open("w", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)


def publish(
    record: tracking.Run, network: AlexNet, facts: dict[str, Any], summary: dict[str, Any], weights: str
) -> None:
    """Tells MLflow the errors, and registers the network with them."""
    from alexnet.model import Classifier

    views = ("ten_views", "centre")
    record.score({f"{view}/{name}": summary[view][name] for view in views for name in ("top1_error", "top5_error")})
    for name in ("per_class.csv", "confusion.csv"):
        record.artifact(OUT / name, "evaluation")
    record.artifact(METRICS, "evaluation")
    pairs = [(wnid, words) for wnid, words in facts["classes"]]
    aliases = record.publish(Classifier(network, facts["mean"]), pairs, weights, summary[views[0]]["top1_error"])
    print(f"evaluate: registered in MLflow as {' and '.join(aliases)}")


if __name__ == "__main__":
    from pipeline import evaluate as importable

    stage.main("evaluate", importable.run)
