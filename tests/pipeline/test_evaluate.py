"""Evaluation: compared with a loop over pictures and views; every picture once; equal bytes with any number of workers."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import math
import subprocess
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from alexnet import build
from alexnet.model import AlexNet
from pipeline import evaluate
from pipeline.evaluation import forward, neighbours, scores, trained, vectors
from pipeline.runtime import cluster, digests, machines
from pipeline.shards.manifest import Manifest
from pipeline.shards.tables import Synset
from tests.pipeline.flips import unsaid
from tests.pipeline.noise import CLASSES, RESULTS, as_test, rows_of, world


def probabilities(network: AlexNet, mean: torch.Tensor, image: np.ndarray) -> np.ndarray:
    """Probabilities V×K of ten patches of a picture, cut out by hand: each next to its mirror image, the centre third."""
    patches = []
    for y, x in [(0, 0), (0, 32), (16, 16), (32, 0), (32, 32)]:
        patch = image[y : y + 224, x : x + 224].astype(np.float32)
        patches += [one.transpose(2, 0, 1) - mean.numpy()[:, 16:240, 16:240] for one in (patch, patch[:, ::-1])]
    with torch.inference_mode():
        logits = network(torch.from_numpy(np.stack(patches))).double().numpy()
    powers: np.ndarray = np.exp(logits)
    shares: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return shares


@pytest.mark.slow
def test_errors_and_probabilities_equal_a_loop(summarized: tuple[Path, Manifest, dict[str, Any]]) -> None:
    folder, _, summary = summarized
    network, facts = build.load(io.BytesIO((folder / "data/model.pt").read_bytes()))
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


def test_the_views_of_a_network_that_learned_with_the_mean_at_the_patch_are_less_that(
    summarized: tuple[Path, Manifest, dict[str, Any]],
) -> None:
    """As in the recipe `caffe`: the mean picture is subtracted first, then the ten views are cut."""
    folder, manifest, _ = summarized
    network, facts = build.load(io.BytesIO((folder / "data/model.pt").read_bytes()))
    batches = forward.batches(folder / "data/shards" / manifest.shards["val"][1].file, 2)
    said = forward.forward(network, facts["mean"], "patch", batches, True).to_pylist()
    nothing, mean = torch.zeros(3, 256, 256), facts["mean"].numpy().transpose(1, 2, 0)
    for one, row in zip(said, rows_of(folder, "val")[9:], strict=True):
        image = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))
        np.testing.assert_allclose(
            one["probabilities"], probabilities(network, nothing, image - mean).mean(axis=0), atol=2e-4
        )


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


def test_the_test_split_is_tested_as_the_validation_is(
    summarized: tuple[Path, Manifest, dict[str, Any]], tmp_path: Path
) -> None:
    folder, manifest, summary = summarized
    made = {split: sorted(folder.glob(f"part-{split}-*")) for split in ("val", "train")}
    section = dataclasses.replace(RESULTS, split="test")
    said = scores.summarize({"test": made["val"], "train": made["train"]}, as_test(manifest), section, tmp_path)
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
        trained.load(model, manifest, "test")
    with pytest.raises(ValueError, match=r"no picture in val, only in train, test"):
        trained.load(model, as_test(manifest), "val")
    trained.load(model, as_test(manifest), "test")
    trained.check_labels(manifest, "val", folder / "data/shards")
    shard = manifest.shards["val"][0]
    table = pq.read_table(folder / "data/shards" / shard.file)
    for label in (-1, 7):
        labels = pa.array([*table["label"].to_pylist()[:-1], label])
        place = table.schema.get_field_index("label")
        pq.write_table(table.set_column(place, "label", labels), tmp_path / shard.file)
        with pytest.raises(ValueError, match=rf"has the label {label}, and there are 7 classes: .* split: val"):
            trained.check_labels(dataclasses.replace(manifest, shards={"test": (shard,)}), "test", tmp_path)


def test_batches_ignore_row_groups(summarized: tuple[Path, Manifest, dict[str, Any]]) -> None:
    folder, manifest, _ = summarized
    file = folder / "data/shards" / manifest.shards["val"][0].file  # 9 rows in groups of 4
    sizes = [len(rows) for rows in forward.batches(file, 5)]
    assert sizes == [5, 4]


def test_a_missing_picture_is_noticed(summarized: tuple[Path, Manifest, dict[str, Any]], tmp_path: Path) -> None:
    folder, manifest, _ = summarized
    made = {split: sorted(folder.glob(f"part-{split}-*"))[:1] for split in ("val", "train")}
    with pytest.raises(AssertionError, match="8 of 11 training pictures were seen"):
        scores.summarize(made, manifest, RESULTS, tmp_path)
    with pytest.raises(AssertionError, match="9 of 13 pictures were seen"):
        scores.summarize(made, manifest, dataclasses.replace(RESULTS, neighbours=0), tmp_path)


def test_a_part_with_any_other_byte_is_not_taken_over(
    summarized: tuple[Path, Manifest, dict[str, Any]], tmp_path: Path
) -> None:
    (part, *_) = sorted(summarized[0].glob("part-val-*"))
    kept = tmp_path / "kept.parquet"
    kept.write_bytes(part.read_bytes())
    said = r"kept\.parquet: damaged since it was written\. Run: dvc repro evaluate$"
    with pytest.raises(ValueError, match=said):
        evaluate.check_parts({"val": [kept]})  # killed before its digest was written
    digests.mark(kept)
    assert unsaid(kept, lambda: evaluate.check_parts({"val": [kept]}), always=True) == []
    for mark in (b"", b"0" * 64):
        kept.with_name("kept.parquet.sha256").write_bytes(mark)
        with pytest.raises(ValueError, match=said):
            evaluate.check_parts({"val": [kept]})


def test_features_that_change_while_neighbours_are_looked_for_are_noticed(
    summarized: tuple[Path, Manifest, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, manifest, _ = summarized
    made = {split: sorted(folder.glob(f"part-{split}-*")) for split in ("val", "train")}
    learn = neighbours.learn_codes

    def damaging(trained: Path, *arguments: Any) -> Any:
        data = bytearray(trained.read_bytes())
        data[-5] ^= 1  # behind all pages: no checksum of theirs has it
        answer = learn(trained, *arguments)
        trained.write_bytes(data)
        return answer

    monkeypatch.setattr(neighbours, "learn_codes", damaging)
    monkeypatch.setattr(neighbours, "write_codes", lambda encoder, *_: encoder.encode(np.zeros((11, 256), np.float32)))
    with pytest.raises(ValueError, match=r"features-train\.parquet: not as 'evaluate' wrote it"):
        scores.summarize(made, manifest, RESULTS, tmp_path)


def test_what_is_measured_is_sealed_with_metrics_json_as_coreutils_reads_it(tmp_path: Path) -> None:
    out = tmp_path / trained.OUT
    out.mkdir(parents=True)
    (out / "confusion.csv").write_text("actual,predicted\n")
    (tmp_path / trained.METRICS).write_text("{}\n")
    evaluate.seal(out, "{}\n")
    said = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=out, capture_output=True, text=True)
    assert said.stdout.splitlines() == ["../../metrics.json: OK", "confusion.csv: OK"]


def test_a_worker_refuses_a_shard_that_is_another(
    summarized: tuple[Path, Manifest, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, manifest, _ = summarized
    shard = dataclasses.replace(manifest.shards["val"][0], sha256="0" * 64)
    monkeypatch.setattr("ray.get", lambda handle: handle)
    task = forward.Task(
        split="val", shard=shard, folder=folder / "data/shards", device="cpu", model=cast("Any", b"no network")
    )
    with pytest.raises(ValueError, match=r"val-00000-of-00002\.parquet: not as 'resize' wrote it: .* Run: dvc repro"):
        forward.of_shard(task)


def test_nan_counts_as_wrong_and_as_no_answer() -> None:
    counts = scores.Counts(3)
    lists = vectors.to_column(torch.tensor([[math.nan, 1, 0], [0, 1, 0]]), "float32")
    counts.add(pa.table({"label": [1, 1], "probabilities": lists, "centre": lists}))
    assert counts.answers == [(1, -1), (1, 1)]
    assert counts.summary("probabilities")["top5_error"] == 0.5


def test_other_classes_are_refused(summarized: tuple[Path, Manifest, dict[str, Any]]) -> None:
    folder, manifest, _ = summarized
    other = json.loads(manifest.to_json())
    classes = (*CLASSES[:2], Synset(wnid="n99", words="z"), *CLASSES[3:])
    changed = Manifest(**{**other, "classes": classes, "shards": manifest.shards})
    with pytest.raises(ValueError, match=r"class 2 is n2 and n99. Run: dvc repro train"):
        trained.load((folder / "data/model.pt").read_bytes(), changed, "val")


def test_a_missing_model_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"not there. Run: dvc repro train"):
        trained.read_model(tmp_path / "model.pt")


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
    assert trained.names(classes) == ["crane (n1)", "crane (n2)", "maillot"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Ray and MLflow, whose code runs here
@pytest.mark.usefixtures("ray_session")
def test_the_stage_gives_equal_bytes_with_any_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker, two, and two after a stop that left one finished part; MLflow has the errors and a model."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "RAY_ADDRESS", "DVC_STAGE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    world(tmp_path)
    stages = set()

    class Noted(cluster.Silence):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            stages.add(self.stage)

    monkeypatch.setattr(cluster, "Silence", Noted)
    made: list[dict[str, str]] = []
    for workers in (1, 2, 2):
        monkeypatch.setattr(machines, "read", lambda count=workers: machines.Machine(workers=count, devices="cpu"))
        if len(made) == 2:
            with monkeypatch.context() as stop:
                stop.setattr(scores, "summarize", lambda *_: (_ for _ in ()).throw(SystemExit(143)))
                with pytest.raises(SystemExit):
                    evaluate.run()
            left = sorted((tmp_path / "work/evaluate").glob("*/*.parquet"))
            assert len(left) == 4
            left[0].unlink()
            data = bytearray(left[1].read_bytes())
            data[len(data) // 2] ^= 1
            left[1].write_bytes(data)
        evaluate.run()
        files = [*sorted((tmp_path / "data/evaluation").iterdir()), tmp_path / "metrics.json"]
        made.append({file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files})
    assert made[0] == made[1] == made[2]
    assert len(made[0]) == 12
    assert not (tmp_path / "work/evaluate").exists()
    _in_mlflow(json.loads((tmp_path / "metrics.json").read_text()), tmp_path)
    assert stages == {"evaluate"}, "the name in its messages"


def _in_mlflow(summary: dict[str, Any], home: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    experiment = client.get_experiment_by_name("alexnet")
    assert experiment is not None
    (record,) = client.search_runs([experiment.experiment_id])
    assert record.info.status == "FINISHED"
    assert record.data.metrics["ten_views/top1_error"] == summary["ten_views"]["top1_error"]
    version = client.get_model_version("alexnet-drawn", "1")
    assert version.aliases == [], "an untrained network is no candidate"
    assert version.tags["weights"] == hashlib.sha256((home / "data/model.pt").read_bytes()).hexdigest()
