"""Evaluation: against a loop over single pictures and views; every picture once; the same bytes with any workers."""

from __future__ import annotations

import csv
import dataclasses
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
from alexnet.codes import Encoder
from alexnet.model import AlexNet
from pipeline import evaluate, machine, tables
from pipeline.evaluate import Results
from pipeline.tables import Manifest, Shard, Synset
from tests.sections import PAPER

CLASSES = tuple(Synset(wnid=f"n{k}", words=f"class {k}, other word") for k in range(7))

MODEL = dataclasses.replace(
    PAPER,
    width=0.0625,
    normalization="printed",
    first_std=(*(0.05,) * 9, 0.0005),  # of a small last layer: probabilities that are not just 0 and 1
    first_bias=(0.1,) * 10,
)

SIZES = {"val": (9, 4), "train": (8, 3)}

RESULTS = Results(
    split="val",
    neighbours=3,
    queries=5,
    seed=0,
    code_bits=16,
    code_hidden=8,
    code_epochs=3,
    code_batch_size=4,
    code_rate=0.01,
)


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
        "results": dataclasses.asdict(RESULTS),
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
    network, facts = evaluate.load((folder / "data/model.pt").read_bytes(), manifest, "val")
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
    return folder, manifest, evaluate.summarize(parts(folder, manifest), manifest, RESULTS, out)


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
    folder, _, summary = summarized
    out = folder / "data/evaluation"
    val, train = (pq.read_table(out / f"features-{split}.parquet").to_pylist() for split in ("val", "train"))
    assert [row["id"] for row in train] == [row["id"] for row in rows_of(folder, "train")]
    base = np.array([row["features"] for row in train], dtype=np.float64)
    assert base.shape == (11, 256)
    tested, same = {row["id"]: row for row in val}, 0
    neighbours = pq.read_table(out / "neighbours.parquet").to_pylist()
    for found in neighbours:
        query = tested[found["id"]]
        distances = np.sqrt(((base - np.array(query["features"])) ** 2).sum(1))
        order = np.argsort(distances, kind="stable")[:3]
        assert found["nearest"] == [train[place]["id"] for place in order]
        np.testing.assert_allclose(found["distance"], distances[order], rtol=1e-9)
        same += sum(train[place]["label"] == query["label"] for place in order)
    assert len(neighbours) == summary["neighbours"]["queries"] == 5
    assert summary["neighbours"]["same_class"] == same / 15


def test_codes_are_the_encoder_s_and_their_neighbours_are_counted(
    summarized: tuple[Path, Manifest, dict[str, Any]],
) -> None:
    folder, _, summary = summarized
    out = folder / "data/evaluation"
    encoder, coded = Encoder.load(out / "encoder.npz"), {}
    for split in ("val", "train"):
        features, coded[split] = (
            pq.read_table(out / f"{kind}-{split}.parquet").to_pylist() for kind in ("features", "codes")
        )
        assert [(row["id"], row["label"]) for row in coded[split]] == [(row["id"], row["label"]) for row in features]
        for row, code in zip(features, coded[split], strict=True):
            assert encoder.encode(np.array([row["features"]], np.float32)).tobytes() == code["code"]
    assert len({row["code"] for row in coded["train"]}) > 5, "the case has become too easy"
    tested, same, shared = {row["id"]: row for row in coded["val"]}, 0, 0
    for found in pq.read_table(out / "neighbours.parquet").to_pylist():
        query = tested[found["id"]]
        apart = [
            (sum((a ^ b).bit_count() for a, b in zip(row["code"], query["code"], strict=True)), place)
            for place, row in enumerate(coded["train"])
        ]
        order = [place for _, place in sorted(apart)[:3]]
        assert found["nearest_by_code"] == [coded["train"][place]["id"] for place in order]
        assert found["bits_apart"] == [bits for bits, _ in sorted(apart)[:3]]
        same += sum(coded["train"][place]["label"] == query["label"] for place in order)
        shared += len(set(found["nearest"]) & set(found["nearest_by_code"]))
    said = summary["neighbours"]
    assert (said["same_class_by_code"], said["found_by_code"]) == (same / 15, shared / 15)
    assert 0 < said["code_error"] < 2


def test_without_codes_or_neighbours_there_are_none(
    summarized: tuple[Path, Manifest, dict[str, Any]], tmp_path: Path
) -> None:
    folder, manifest, summary = summarized
    made = {split: sorted(folder.glob(f"part-{split}-*")) for split in ("val", "train")}
    uncoded = evaluate.summarize(made, manifest, dataclasses.replace(RESULTS, code_bits=0), tmp_path)
    assert uncoded["neighbours"] == {key: summary["neighbours"][key] for key in ("queries", "same_class")}
    assert pq.read_schema(tmp_path / "neighbours.parquet").names == ["id", "nearest", "distance"]
    assert not [*tmp_path.glob("codes-*"), *tmp_path.glob("encoder*")]
    (tmp_path / "none").mkdir()
    alone = evaluate.summarize(
        {"val": made["val"]}, manifest, dataclasses.replace(RESULTS, neighbours=0), tmp_path / "none"
    )
    assert alone == {key: value for key, value in summary.items() if key != "neighbours"}
    there = {"predictions.parquet", "features-val.parquet", "per_class.csv", "confusion.csv"}
    assert {file.name for file in (tmp_path / "none").iterdir()} == there


def test_the_queries_are_drawn_by_lot_from_the_ids(
    summarized: tuple[Path, Manifest, dict[str, Any]], tmp_path: Path
) -> None:
    folder, _, _ = summarized
    file = folder / "data/evaluation/features-val.parquet"
    everything = pq.read_table(file)
    drawn = evaluate.picked(file, 5, 0, 2)
    assert drawn["id"].to_pylist() == pq.read_table(folder / "data/evaluation/neighbours.parquet")["id"].to_pylist()
    rows = {row["id"]: row for row in everything.to_pylist()}
    assert drawn.to_pylist() == [rows[name] for name in drawn["id"].to_pylist()]
    assert sorted(evaluate.picked(file, 99, 0, 2)["id"].to_pylist()) == sorted(rows)
    assert evaluate.picked(file, 0, 0, 2).num_rows == 0
    tables.write(everything[::-1], everything.schema, tmp_path / "turned.parquet", 2)
    assert evaluate.picked(tmp_path / "turned.parquet", 5, 0, 2).equals(drawn)


def test_a_choice_by_lot() -> None:
    chosen = evaluate.choose(50_000, 8, 0, 0)
    assert len(set(chosen)) == 8
    assert chosen == evaluate.choose(50_000, 8, 0, 0)
    assert chosen != evaluate.choose(50_000, 8, 1, 0)
    assert chosen != evaluate.choose(50_000, 8, 0, 1)
    assert sorted(evaluate.choose(3, 8, 0, 0)) == [0, 1, 2]


def test_blocks_are_the_rows_in_their_order(
    summarized: tuple[Path, Manifest, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, _ = summarized
    file = folder / "data/evaluation/features-train.parquet"  # row groups of 4, 4 and 3
    whole = np.array(pq.read_table(file)["features"].to_pylist(), np.float16)
    for most, sizes in ((1, [4, 4, 3]), (5, [8, 3]), (4096, [11])):
        monkeypatch.setattr(evaluate, "BLOCK", most)
        found = list(evaluate.blocks(file))
        assert [len(block) for block in found] == sizes
        np.testing.assert_array_equal(np.concatenate(found), whole)


def as_test(manifest: Manifest) -> Manifest:
    """The same pictures, those of val as the test split."""
    return dataclasses.replace(
        manifest, shards={"train": manifest.shards["train"], "val": (), "test": manifest.shards["val"]}
    )


def test_the_test_split_is_tested_as_the_validation_is(
    summarized: tuple[Path, Manifest, dict[str, Any]], tmp_path: Path
) -> None:
    folder, manifest, summary = summarized
    made = {split: sorted(folder.glob(f"part-{split}-*")) for split in ("val", "train")}
    section = dataclasses.replace(RESULTS, split="test")
    said = evaluate.summarize({"test": made["val"], "train": made["train"]}, as_test(manifest), section, tmp_path)
    assert said == summary
    names = {file.name.replace("test", "val") for file in tmp_path.iterdir()}
    assert names == {file.name for file in (folder / "data/evaluation").iterdir()}


def test_a_split_without_pictures_or_labels_is_refused(
    summarized: tuple[Path, Manifest, dict[str, Any]], tmp_path: Path
) -> None:
    folder, manifest, _ = summarized
    model = (folder / "data/model.pt").read_bytes()
    with pytest.raises(
        ValueError, match=r"split: test, but data/shards has no picture in test, only in val, train\. Set"
    ):
        evaluate.load(model, manifest, "test")
    with pytest.raises(ValueError, match=r"no picture in val, only in train, test"):
        evaluate.load(model, as_test(manifest), "val")
    evaluate.load(model, as_test(manifest), "test")
    evaluate.check_labels(manifest, "val", folder / "data/shards")
    shard = manifest.shards["val"][0]
    table = pq.read_table(folder / "data/shards" / shard.file)
    for label in (-1, 7):
        labels = pa.array([*table["label"].to_pylist()[:-1], label])
        place = table.schema.get_field_index("label")
        pq.write_table(table.set_column(place, "label", labels), tmp_path / shard.file)
        with pytest.raises(ValueError, match=rf"has the label {label}, and there are 7 classes: .* split: val"):
            evaluate.check_labels(dataclasses.replace(manifest, shards={"test": (shard,)}), "test", tmp_path)


def test_batches_ignore_row_groups(summarized: tuple[Path, Manifest, dict[str, Any]]) -> None:
    folder, manifest, _ = summarized
    file = folder / "data/shards" / manifest.shards["val"][0].file  # 9 rows in groups of 4
    sizes = [len(rows) for rows in evaluate.pictures(file, 5)]
    assert sizes == [5, 4]


def test_a_missing_picture_is_noticed(summarized: tuple[Path, Manifest, dict[str, Any]], tmp_path: Path) -> None:
    folder, manifest, _ = summarized
    made = {split: sorted(folder.glob(f"part-{split}-*"))[:1] for split in ("val", "train")}
    with pytest.raises(AssertionError, match="8 of 11 training pictures were seen"):
        evaluate.summarize(made, manifest, RESULTS, tmp_path)
    with pytest.raises(AssertionError, match="9 of 13 pictures were seen"):
        evaluate.summarize(made, manifest, dataclasses.replace(RESULTS, neighbours=0), tmp_path)


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
        evaluate.load((folder / "data/model.pt").read_bytes(), changed, "val")


def test_a_missing_model_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"not there. Run: dvc repro train"):
        evaluate.read_model(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("neighbours", -1, "0 or more, is -1"),
        ("seed", -1, "0 or more, is -1"),
        ("queries", 0, "at least 1, is 0"),
        ("code_bits", 12, "a multiple of 8, is 12"),
        ("code_hidden", 0, "at least 1, is 0"),
        ("code_epochs", 0, "at least 1, is 0"),
        ("code_batch_size", 0, "at least 1, is 0"),
        ("code_rate", 0.0, "above 0, is 0.0"),
    ],
)
def test_an_impossible_parameter_is_refused(key: str, value: float, words: str) -> None:
    with pytest.raises(ValueError, match=f"{key} has to be {words}"):
        dataclasses.replace(RESULTS, **{key: value})


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
    assert len(digests[0]) == 10
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
