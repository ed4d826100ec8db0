"""Network and pictures -> error rates, every picture's probabilities, and the features (§4.1, §6).

Run:    dvc repro evaluate
Reads:  data/model.pt, data/shards/
Writes: metrics.json, data/evaluation/{predictions,features-val}.parquet and {per_class,confusion}.csv; with
        neighbours {features-train,neighbours}.parquet, with codes codes-{val,train}.parquet and encoder.npz
Takes:  results (and model, which is in data/model.pt)
Expect: the sample, under a minute on 2 cores; ILSVRC-2012 makes 1 GB, and with neighbours 11 GB more, minutes to
        search (benchmarks/neighbours.py), and one core's quarter of an hour for each epoch of the codes

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
from pipeline.paths import AnyPath
from pipeline.progress import Progress
from pipeline.tables import Manifest, Shard, Synset

if TYPE_CHECKING:
    import numpy as np
    import ray
    from numpy.typing import NDArray
    from torch import Tensor

    from alexnet.codes import Encoder
    from alexnet.errors import Count
    from alexnet.model import Network

MODEL = Path("data/model.pt")
OUT = Path("data/evaluation")
METRICS = Path("metrics.json")

KERNEL = 1
"""Raised when a change of code changes a number: what older code left in work/ is then not taken over."""

PICTURES = {"cpu": 16, "cuda": 128}
"""Pictures that go through the network at once, with all their views. It decides the last bits, so it is fixed."""

BLOCK = 4096
"""Rows of features in memory at once. Learning the codes shuffles within a block, so it decides their bits."""

QUERIES = 2
"""Keeps the choice of the queries apart from the report's two, which may have the same seed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """params.yaml, `results:` — what is measured of a finished network, and on which pictures."""

    split: Literal["val", "test"]
    """The pictures it is tested on. §6: test of ILSVRC-2010, val of ILSVRC-2012, whose test split has no labels."""
    neighbours: int
    """So many training pictures nearest to each query are looked up, as for Figure 4; the paper shows 6. They need a
    pass over the training set, and 8 kB for each of its pictures. 0: none, no such pass, and no codes."""
    queries: int
    """So many of the tested pictures, chosen by lot, are the queries. 2012 (findsimilar.py): 128."""
    seed: int
    """Of the choice of the queries, and of the codes' first weights and order."""
    code_bits: int
    """§6.1: bits of the short codes that stand for the features; a multiple of 8. 0: none."""
    code_hidden: int
    """Units of the layers between the features and the code."""
    code_epochs: int
    """Times through the training pictures' features in learning the codes."""
    code_batch_size: int
    """Rows of features per update of the codes' weights."""
    code_rate: float
    """The codes' learning rate."""

    def __post_init__(self) -> None:
        for name in ("neighbours", "seed", "code_bits"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} has to be 0 or more, is {getattr(self, name)}")
        for name in ("queries", "code_hidden", "code_epochs", "code_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} has to be at least 1, is {getattr(self, name)}")
        if self.code_bits % 8:
            raise ValueError(f"code_bits has to be a multiple of 8, is {self.code_bits}")
        if self.code_rate <= 0:
            raise ValueError(f"code_rate has to be above 0, is {self.code_rate}")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One shard; everything a worker needs to know."""

    split: str
    shard: Shard
    folder: AnyPath
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
    network, facts = load(model, manifest, section.split)
    seen = {"results": dataclasses.asdict(section), "model": dataclasses.asdict(network.model)}
    with tracking.run(settings, facts["fingerprint"], seen, manifest, "evaluate", adopt=True) as record:
        parts = classify(model, manifest, section, settings)
        with stage.whole(OUT) as folder:
            folder.mkdir()
            summary = summarize(parts, manifest, section, folder)
        with stage.whole(METRICS) as file:
            file.write_text(json.dumps(summary, indent=1) + "\n")
        publish(record, network, facts, summary, model)
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


def load(model: bytes, manifest: Manifest, split: str) -> tuple[Network, dict[str, Any]]:
    """The network and the facts saved with it; `ValueError` if it cannot be tested on the split.

    That is where it tells other classes apart than the pictures have, or where there are no pictures.
    """
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
    there = [name for name in manifest.shards if manifest.rows(name)]
    if split not in there:
        raise ValueError(
            f"params.yaml: results: split: {split}, but data/shards has no picture in {split}, only in "
            f"{', '.join(there)}. Set another split, or a source that has it and run: dvc repro"
        )
    return network, facts


def check_labels(manifest: Manifest, split: str, folder: AnyPath) -> None:
    """`ValueError` if a picture of the split has no label: only the index of train and val promises one."""
    for shard in manifest.shards[split]:
        for label in tables.read(folder / shard.file, ["label"])["label"].to_pylist():
            if not 0 <= label < len(manifest.classes):
                raise ValueError(
                    f"{folder / shard.file}: a picture has the label {label}, and there are {len(manifest.classes)} "
                    f"classes: without labels no error can be counted. Set params.yaml: results: split: val"
                )


def classify(model: bytes, manifest: Manifest, section: Results, settings: machine.Machine) -> dict[str, list[Path]]:
    """Takes every picture through the network; gives the parts by split, in the order of the shards."""
    key = hashlib.sha256(f"{KERNEL} {hashlib.sha256(model).hexdigest()}".encode()).hexdigest()
    work = stage.WORK / "evaluate"
    for other in work.iterdir() if work.exists() else []:
        if other.name != key:
            stage.discard(other)
    folder = work / key
    folder.mkdir(parents=True, exist_ok=True)
    splits = (section.split, "train") if section.neighbours else (section.split,)
    with cluster.connected(settings):
        import ray

        device: Literal["cpu", "cuda"] = "cuda" if cluster.gpus(settings) else "cpu"
        handle, place = ray.put(model), shards.locate(manifest, settings)
        check_labels(manifest, section.split, place)
        tasks = [
            Task(split=split, shard=shard, folder=place, device=device, model=handle)
            for split in splits
            for shard in manifest.shards[split]
        ]
        with Progress("evaluate", sum(task.shard.rows for task in tasks), "images") as progress:
            missing = [task for task in tasks if not (folder / task.name).exists()]
            progress.begin(sum(task.shard.rows for task in tasks) - sum(task.shard.rows for task in missing))
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
    table = through(network.to(task.device), facts["mean"].to(task.device), batches, task.split != "train")
    assert table.num_rows == task.shard.rows, (table.num_rows, task.shard)
    return table


def through(network: Network, mean_CHW: Tensor, batches: Iterable[list[dict[str, Any]]], tested: bool) -> pa.Table:
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
        side = network.model.patch
        views = ten_views(images, mean_CHW, side) if tested else centre_view(images, mean_CHW, side)[:, None]
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


def pictures(file: AnyPath, number: int) -> Iterator[list[dict[str, Any]]]:
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
    join(parts[section.split], wanted, folder / "predictions.parquet", counts.add)
    join(parts[section.split], ["id", "label", "features"], folder / f"features-{section.split}.parquet")
    likeness: dict[str, Any] = {}
    if section.neighbours:
        seen = join(parts["train"], ["id", "label", "features"], folder / "features-train.parquet")
        assert seen == manifest.rows("train"), f"{seen} of {manifest.rows('train')} training pictures were seen"
        likeness["neighbours"] = write_neighbours(folder, section)
    tested = manifest.rows(section.split)
    assert counts.images == tested, f"{counts.images} of {tested} pictures were seen"
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
        **likeness,
    }


def write_neighbours(folder: Path, section: Results) -> dict[str, float]:
    """For some tested pictures the training pictures nearest by their features, nearest first, and by codes if wanted.

    Returns what metrics.json says of them. The features of the training set are read block by block: they may be larger
    than the memory.
    """
    from alexnet import codes, features

    trained, tested = (folder / f"features-{split}.parquet" for split in ("train", section.split))
    queries, base = picked(tested, section.queries, section.seed, QUERIES), tables.read(trained, ["id", "label"])
    features_QF = matrix(queries["features"]).numpy()
    passes = 3 + section.code_epochs if section.code_bits else 1
    with Progress("evaluate: neighbours", passes * base.num_rows, "rows") as progress:
        rows_QK, distances_QK = features.nearest(features_QF, blocks(trained, progress), section.neighbours)
        table = {"id": queries["id"]} | _found(base["id"], rows_QK, distances_QK, ("nearest", "distance"))
        summary = {"queries": queries.num_rows, "same_class": _same_class(queries, base, rows_QK)}
        if section.code_bits:
            encoder, error = learn_codes(trained, section, folder / "encoder.npz", progress)
            write_codes(encoder, tested, folder / f"codes-{section.split}.parquet")
            codes_NY = write_codes(encoder, trained, folder / "codes-train.parquet", progress)
            parts = (codes_NY[start : start + BLOCK] for start in range(0, len(codes_NY), BLOCK))
            by_code_QK, bits_QK = codes.nearest(encoder.encode(features_QF), parts, section.neighbours)
            table |= _found(base["id"], by_code_QK, bits_QK, ("nearest_by_code", "bits_apart"))
            both = [set(near) & set(coded) - {-1} for near, coded in zip(rows_QK, by_code_QK, strict=True)]
            summary |= {
                "same_class_by_code": _same_class(queries, base, by_code_QK),
                "found_by_code": sum(map(len, both)) / max(1, int((rows_QK >= 0).sum())),
                "code_error": error,
            }
    tables.write(pa.table(table), pa.table(table).schema, folder / "neighbours.parquet")
    return summary


def learn_codes(trained: Path, section: Results, file: Path, progress: Progress) -> tuple[Encoder, float]:
    """Learns the codes of a table's features and writes their encoder; gives it and the error of the last epoch."""
    from alexnet import codes

    encoder, errors = codes.train(
        lambda: blocks(trained, progress),
        bits=section.code_bits,
        hidden=section.code_hidden,
        epochs=section.code_epochs,
        batch_size=section.code_batch_size,
        rate=section.code_rate,
        seed=section.seed,
    )
    with file.open("wb") as handle:
        encoder.save(handle)
    return encoder, errors[-1]


def write_codes(encoder: Encoder, source: Path, file: Path, progress: Progress | None = None) -> NDArray[np.uint8]:
    """Writes the code of each row of a table of features, in its order, and returns them, N x bytes."""
    import numpy as np

    codes_NY = np.concatenate([encoder.encode(block) for block in blocks(source, progress)])
    packed = pa.py_buffer(codes_NY.tobytes())
    column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(codes_NY.shape[1]), len(codes_NY), [None, packed])
    table = tables.read(source, ["id", "label"]).append_column("code", column)
    tables.write(table, table.schema, file, BLOCK)
    return codes_NY


def blocks(file: Path, progress: Progress | None = None) -> Iterator[NDArray[np.floating[Any]]]:
    """The features of a table in its order, N x F: so many row groups at a time that they have `BLOCK` rows."""
    import numpy as np

    kept: list[NDArray[np.floating[Any]]] = []
    for group in tables.groups(file, ["features"]):
        kept.append(matrix(group["features"]).numpy())
        if sum(map(len, kept)) >= BLOCK:
            yield np.concatenate(kept)
            kept = []
        if progress:
            progress.add(group.num_rows)
    if kept:
        yield np.concatenate(kept)


def _found(
    ids: pa.ChunkedArray, rows_QK: NDArray[np.int64], distances_QK: NDArray[Any], names: tuple[str, str]
) -> dict[str, pa.Array]:
    """Two columns of lists: the ids of the rows found for each query, and how far they are."""
    import numpy as np

    found_QK = rows_QK >= 0
    ends = pa.array(np.concatenate([[0], found_QK.sum(axis=1).cumsum()]), pa.int32())
    near = ids.take(pa.array(rows_QK[found_QK])).combine_chunks()
    return {
        name: pa.ListArray.from_arrays(ends, values)
        for name, values in zip(names, (near, pa.array(distances_QK[found_QK])), strict=True)
    }


def _same_class(queries: pa.Table, base: pa.Table, rows_QK: NDArray[np.int64]) -> float:
    """The share of the rows found that are of their query's class."""
    same_QK = base["label"].to_numpy()[rows_QK] == queries["label"].to_numpy()[:, None]
    found_QK = rows_QK >= 0
    return float((same_QK & found_QK).sum() / max(1, found_QK.sum()))


def picked(file: Path, number: int, seed: int, use: int) -> pa.Table:
    """Rows of a table, chosen by lot among all ids, in the order of the lot; the table may be larger than the memory."""
    import pyarrow.compute as pc

    ids = sorted(tables.read(file, ["id"])["id"].to_pylist())
    wanted = pa.array([ids[place] for place in choose(len(ids), number, seed, use)], pa.string())
    found = pa.concat_tables(group.filter(pc.is_in(group["id"], wanted)) for group in tables.groups(file))
    return found.take(pc.index_in(wanted, value_set=found["id"]))


def choose(count: int, number: int, seed: int, use: int) -> list[int]:
    """Up to `number` of `count` rows, by lot, in the order of the lot; `use` keeps two choices of one seed apart."""
    import numpy as np

    # Philox's raw numbers are the same in every version of numpy
    lots = np.random.Philox(key=np.array([seed, use], np.uint64)).random_raw(count)
    return [int(row) for row in np.argsort(lots, kind="stable")[:number]]


def join(parts: Iterable[Path], columns: list[str], file: Path, add: Any = lambda _: None) -> int:
    """Joins the parts' columns in one file, a row group at a time, shows each to `add`; returns the number of rows."""
    opened, rows = None, 0
    for part in parts:
        for group in tables.groups(part, columns):
            opened = opened or writer(file, group.schema)
            opened.write_table(group)
            add(group)
            rows += group.num_rows
    assert opened is not None, "there is at least one part, and it has a picture"
    opened.close()
    return rows


def writer(file: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Of a table that comes in row groups; without dictionaries, since no two floats are the same."""
    return pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=["label"], write_page_checksum=True)


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
    import numpy as np
    import torch

    chunks = [chunk for chunk in column.chunks if len(chunk)]
    return torch.from_numpy(np.concatenate([chunk.flatten().to_numpy().reshape(len(chunk), -1) for chunk in chunks]))


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
    record: tracking.Run, network: Network, facts: dict[str, Any], summary: dict[str, Any], weights: bytes
) -> None:
    """Tells MLflow the errors, and registers the network with them."""
    from alexnet.model import Classifier

    views = ("ten_views", "centre")
    record.score({f"{view}/{name}": summary[view][name] for view in views for name in ("top1_error", "top5_error")})
    record.score({f"neighbours/{name}": value for name, value in summary.get("neighbours", {}).items()})
    for name in ("per_class.csv", "confusion.csv"):
        record.artifact(OUT / name, "evaluation")
    record.artifact(METRICS, "evaluation")
    pairs = [(wnid, words) for wnid, words in facts["classes"]]
    aliases = record.publish(Classifier(network, facts["mean"]), pairs, weights, summary[views[0]]["top1_error"])
    print(f"evaluate: registered in MLflow as {' and '.join(aliases)}")


if __name__ == "__main__":
    from pipeline import evaluate as importable

    stage.main("evaluate", importable.run)
