"""Evaluation: against a loop over single pictures and views; every picture once; the same bytes with any workers."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML

from alexnet import dataset
from alexnet import model as models
from alexnet.model import AlexNet, Model
from pipeline import evaluate, machine, tables
from pipeline.evaluate import Results
from pipeline.tables import Manifest, Shard, Synset

CLASSES = tuple(Synset(wnid=f"n{k}", words=f"class {k}, other word") for k in range(7))

MODEL = Model(
    columns=2,
    width=0.0625,
    normalization="printed",
    dropout=0.5,
    dropout_scale="test",
    first_std=(*(0.05,) * 7, 0.0005),  # of a small last layer: probabilities that are not just 0 and 1
    first_bias=(0.1,) * 8,
)

SIZES = {"val": (9, 4), "train": (8, 3)}


def world(folder: Path) -> Manifest:
    """A working copy whose pictures are noise and whose network was never trained, but answers differently to each."""
    (folder / "data/shards").mkdir(parents=True)
    generator = np.random.default_rng(0)
    made: dict[str, tuple[Shard, ...]] = {}
    for split, sizes in SIZES.items():
        done = []
        for place, size in enumerate(sizes):
            name = f"{split}-{place:05}-of-{len(sizes):05}.parquet"
            file = folder / "data/shards" / name
            labels = generator.integers(len(CLASSES), size=size).tolist()
            rows = [_row(generator, f"{split}{place}_{row:03}", label) for row, label in enumerate(labels)]
            table = pa.Table.from_pylist(rows, schema=tables.IMAGES)
            tables.write(table, tables.with_classes(tables.IMAGES, CLASSES), file, 4)
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            done.append(Shard(file=name, rows=size, bytes=file.stat().st_size, sha256=digest))
        made[split] = tuple(done)
    indexed = sum(map(sum, SIZES.values())) + 1
    manifest = Manifest(side=256, classes=CLASSES, shards=made, indexed=indexed, rejected=1, drawn=True)
    (folder / "data/shards/manifest.json").write_text(manifest.to_json())
    lost = dict.fromkeys(("id", "split", "wnid", "archive"), "x") | {"label": 0, "offset": 0, "length": 1}
    lost["reason"] = "<b>cut short</b>"
    tables.write(
        pa.Table.from_pylist([lost], schema=tables.REJECTED), tables.REJECTED, folder / "data/shards/rejected.parquet"
    )
    (folder / "data/mean.npz").touch()
    with (folder / "data/model.pt").open("wb") as handle:
        save(handle)
    sections = {
        "results": {"neighbours": 3},
        "report": {"pictures": 3, "queries": 2, "seed": 0},
        "learning": {"rate": 0.1},
    }
    YAML().dump(sections, folder / "params.yaml")
    return manifest


def _row(generator: np.random.Generator, name: str, label: int) -> dict[str, Any]:
    coarse = generator.integers(256, size=(3, 8, 8), dtype=np.uint8).repeat(32, 1).repeat(32, 2)
    image = {"bytes": dataset.encode(torch.from_numpy(coarse), 95), "path": f"{name}.jpg"}
    return {"image": image, "label": label, "wnid": f"n{label}", "id": name, "width": 9, "height": 9, "sha256": ""}


def save(handle: Any) -> None:
    network = AlexNet(MODEL, len(CLASSES))
    network.draw_first_weights(3)
    classes = [[synset.wnid, synset.words] for synset in CLASSES]
    mean = torch.linspace(90, 150, 3 * 256 * 256).reshape(3, 256, 256)
    models.save(handle, network, fingerprint="f" * 16, classes=classes, drawn=True, manifest="", mean=mean)


def parts(folder: Path, manifest: Manifest) -> dict[str, list[Path]]:
    """The parts that the workers would make, made here."""
    network, facts = evaluate.load((folder / "data/model.pt").read_bytes(), manifest)
    made: dict[str, list[Path]] = {"val": [], "train": []}
    for split, shards in manifest.shards.items():
        for shard in shards:
            batches = evaluate.pictures(folder / "data/shards" / shard.file, 3)
            table = evaluate.through(network, facts["mean"], batches, split == "val")
            made[split].append(folder / f"part-{shard.file}")
            tables.write(table, table.schema, made[split][-1], 4)
    return made


@pytest.fixture(scope="module")
def summarized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("world")
    manifest = world(folder)
    out = folder / "data/evaluation"
    out.mkdir()
    return folder, manifest, evaluate.summarize(parts(folder, manifest), manifest, Results(neighbours=3), out)


def rows_of(folder: Path, split: str) -> list[dict[str, Any]]:
    files = sorted((folder / "data/shards").glob(f"{split}-*"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def probabilities(network: AlexNet, mean: torch.Tensor, image: np.ndarray) -> np.ndarray:
    """Of ten patches of one picture, cut out by hand: V×K, each beside its mirror image, the centre third."""
    patches = []
    for y, x in [(0, 0), (0, 32), (16, 16), (32, 0), (32, 32)]:
        patch = image[y : y + 224, x : x + 224].astype(np.float32)
        patches += [one.transpose(2, 0, 1) - mean.numpy()[:, 16:240, 16:240] for one in (patch, patch[:, ::-1])]
    with torch.inference_mode():
        logits = network(torch.from_numpy(np.stack(patches))).double().numpy()
    powers: np.ndarray = np.exp(logits)
    shares: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return shares


def test_errors_and_probabilities_equal_a_loop(summarized: tuple[Path, Manifest, dict[str, Any]]) -> None:
    folder, _, summary = summarized
    network, facts = models.load(io.BytesIO((folder / "data/model.pt").read_bytes()))
    predictions = pq.read_table(folder / "data/evaluation/predictions.parquet").to_pylist()
    stored = rows_of(folder, "val")
    assert [row["id"] for row in predictions] == [row["id"] for row in stored]
    wrong = {(view, top): 0 for view in ("ten_views", "centre") for top in (1, 5)}
    for said, row in zip(predictions, stored, strict=True):
        image = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))
        ten = probabilities(network, facts["mean"], image)
        expected = {"ten_views": ten.mean(axis=0), "centre": ten[4]}
        np.testing.assert_allclose(said["probabilities"], expected["ten_views"], atol=2e-4)
        np.testing.assert_allclose(said["centre"], expected["centre"], atol=2e-4)
        for view, top in wrong:
            # the answers as stored: a JPEG read by another decoder differs by a level here and there
            scores = said["probabilities" if view == "ten_views" else "centre"]
            wrong[view, top] += row["label"] not in np.argsort(-np.array(scores), kind="stable")[:top]
    assert len({tuple(said["centre"]) for said in predictions}) == len(predictions), "the case has become too easy"
    for (view, top), count in wrong.items():
        assert summary[view][f"top{top}_error"] == pytest.approx(count / 13)
    assert summary["images"] == 13


def test_per_class_and_confusion_add_up(summarized: tuple[Path, Manifest, dict[str, Any]]) -> None:
    folder, _, summary = summarized
    with (folder / "data/evaluation/per_class.csv").open(newline="") as handle:
        classes = list(csv.DictReader(handle))
    assert sum(int(row["images"]) for row in classes) == 13
    wrong = sum(int(row["images"]) * float(row["top1_error"] or 0) for row in classes)
    assert wrong / 13 == pytest.approx(summary["ten_views"]["top1_error"])
    with (folder / "data/evaluation/confusion.csv").open(newline="") as handle:
        answers = list(csv.DictReader(handle))
    assert list(answers[0]) == ["actual", "predicted"]
    assert sum(row["actual"] != row["predicted"] for row in answers) / 13 == summary["ten_views"]["top1_error"]


def test_features_and_neighbours(summarized: tuple[Path, Manifest, dict[str, Any]]) -> None:
    folder, _, _ = summarized
    out = folder / "data/evaluation"
    val, train = (pq.read_table(out / f"features-{split}.parquet").to_pylist() for split in ("val", "train"))
    assert [row["id"] for row in train] == [row["id"] for row in rows_of(folder, "train")]
    base = np.array([row["features"] for row in train], dtype=np.float64)
    assert base.shape == (11, 256)
    for row, found in zip(val, pq.read_table(out / "neighbours.parquet").to_pylist(), strict=True):
        distances = np.sqrt(((base - np.array(row["features"])) ** 2).sum(1))
        order = np.argsort(distances, kind="stable")[:3]
        assert found["id"] == row["id"]
        assert found["nearest"] == [train[place]["id"] for place in order]
        np.testing.assert_allclose(found["distance"], distances[order], rtol=1e-9)


def test_batches_ignore_row_groups(summarized: tuple[Path, Manifest, dict[str, Any]]) -> None:
    folder, manifest, _ = summarized
    file = folder / "data/shards" / manifest.shards["val"][0].file  # 9 rows in groups of 4
    sizes = [len(rows) for rows in evaluate.pictures(file, 5)]
    assert sizes == [5, 4]


def test_a_missing_picture_is_noticed(summarized: tuple[Path, Manifest, dict[str, Any]], tmp_path: Path) -> None:
    folder, manifest, _ = summarized
    made = {split: sorted(folder.glob(f"part-{split}-*"))[:1] for split in ("val", "train")}
    with pytest.raises(AssertionError, match="8 of 11 training pictures were seen"):
        evaluate.summarize(made, manifest, Results(neighbours=1), tmp_path)
    with pytest.raises(AssertionError, match="9 of 13 pictures were seen"):
        evaluate.summarize(made, manifest, Results(neighbours=0), tmp_path)


def test_nan_counts_as_wrong_and_as_no_answer() -> None:
    counts = evaluate.Counts(3)
    lists = evaluate._lists(torch.tensor([[math.nan, 1, 0], [0, 1, 0]]), "float32")
    counts.add(pa.table({"label": [1, 1], "probabilities": lists, "centre": lists}))
    assert counts.answers == [(1, -1), (1, 1)]
    assert counts.summary("probabilities")["top5_error"] == 0.5


def test_other_classes_are_refused(summarized: tuple[Path, Manifest, dict[str, Any]]) -> None:
    folder, manifest, _ = summarized
    other = json.loads(manifest.to_json())
    classes = (*CLASSES[:2], Synset(wnid="n99", words="z"), *CLASSES[3:])
    changed = Manifest(**{**other, "classes": classes, "shards": manifest.shards})
    with pytest.raises(ValueError, match=r"class 2 is n2 and n99. Run: dvc repro train"):
        evaluate.load((folder / "data/model.pt").read_bytes(), changed)


def test_missing_model_and_bad_section(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"not there. Run: dvc repro train"):
        evaluate.read_model(tmp_path / "model.pt")
    with pytest.raises(ValueError, match="neighbours has to be 0 or more, is -1"):
        Results(neighbours=-1)


def test_equal_first_words_are_told_apart() -> None:
    classes = [
        Synset(wnid="n1", words="crane"),
        Synset(wnid="n2", words="crane, bird"),
        Synset(wnid="n3", words="maillot"),
    ]
    assert evaluate.names(classes) == ["crane (n1)", "crane (n2)", "maillot"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Ray and MLflow, whose code runs here
@pytest.mark.usefixtures("ray_session")
def test_the_stage_gives_equal_bytes_with_any_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker, two, and two after a stop that left one part behind; MLflow holds the errors and a model."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "RAY_ADDRESS", "DVC_STAGE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    world(tmp_path)
    digests: list[dict[str, str]] = []
    for workers in (1, 2, 2):
        monkeypatch.setattr(machine, "read", lambda count=workers: machine.Machine(workers=count, devices="cpu"))
        if len(digests) == 2:
            with monkeypatch.context() as stop:
                stop.setattr(evaluate, "summarize", lambda *_: (_ for _ in ()).throw(SystemExit(143)))
                with pytest.raises(SystemExit):
                    evaluate.run()
            left = sorted((tmp_path / "work/evaluate").glob("*/*.parquet"))
            assert len(left) == 4
            left[0].unlink()
        evaluate.run()
        files = [*sorted((tmp_path / "data/evaluation").iterdir()), tmp_path / "metrics.json"]
        digests.append({file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files})
    assert digests[0] == digests[1] == digests[2]
    assert len(digests[0]) == 7
    assert not (tmp_path / "work/evaluate").exists()
    _in_mlflow(json.loads((tmp_path / "metrics.json").read_text()), tmp_path)


def _in_mlflow(summary: dict[str, Any], home: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    experiment = client.get_experiment_by_name("alexnet")
    assert experiment is not None
    (record,) = client.search_runs([experiment.experiment_id])
    assert record.info.status == "FINISHED"
    assert record.data.metrics["ten_views/top1_error"] == summary["ten_views"]["top1_error"]
    version = client.get_model_version_by_alias("alexnet-drawn", "champion")
    assert version.tags["weights"] == hashlib.sha256((home / "data/model.pt").read_bytes()).hexdigest()
