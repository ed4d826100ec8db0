"""The nearest pictures, by features and by short codes, against a plain search; who is asked for is drawn by lot."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from alexnet.codes import Encoder
from pipeline.evaluation import choice, scores, vectors
from pipeline.shards import tables
from pipeline.shards.manifest import Manifest
from tests.pipeline.noise import RESULTS, rows_of


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
    uncoded = scores.summarize(made, manifest, dataclasses.replace(RESULTS, code_bits=0), tmp_path)
    assert uncoded["neighbours"] == {key: summary["neighbours"][key] for key in ("queries", "same_class")}
    assert pq.read_schema(tmp_path / "neighbours.parquet").names == ["id", "nearest", "distance"]
    assert not [*tmp_path.glob("codes-*"), *tmp_path.glob("encoder*")]
    (tmp_path / "none").mkdir()
    alone = scores.summarize(
        {"val": made["val"]}, manifest, dataclasses.replace(RESULTS, neighbours=0), tmp_path / "none"
    )
    assert alone == {key: value for key, value in summary.items() if key != "neighbours"}
    there = {"predictions.parquet", "features-val.parquet", "per_class.csv", "confusion.csv", "errors.csv"}
    assert {file.name for file in (tmp_path / "none").iterdir()} == there


def test_fewer_training_pictures_than_neighbours_are_all_found(
    summarized: tuple[Path, Manifest, dict[str, Any]], tmp_path: Path
) -> None:
    folder, manifest, _ = summarized
    made = {split: sorted(folder.glob(f"part-{split}-*")) for split in ("val", "train")}
    said = scores.summarize(made, manifest, dataclasses.replace(RESULTS, neighbours=20), tmp_path)["neighbours"]
    labels = [row["label"] for row in rows_of(folder, "train")]
    ids = sorted(row["id"] for row in rows_of(folder, "train"))
    tested, same = {row["id"]: row["label"] for row in rows_of(folder, "val")}, 0
    for found in pq.read_table(tmp_path / "neighbours.parquet").to_pylist():
        assert sorted(found["nearest"]) == sorted(found["nearest_by_code"]) == ids
        same += labels.count(tested[found["id"]])
    assert 0 < said["same_class"] == said["same_class_by_code"] == same / (5 * 11)
    assert said["found_by_code"] == 1


def test_the_queries_are_a_random_choice_of_the_ids(
    summarized: tuple[Path, Manifest, dict[str, Any]], tmp_path: Path
) -> None:
    folder, _, _ = summarized
    file = folder / "data/evaluation/features-val.parquet"
    everything = pq.read_table(file)
    drawn = choice.random_rows(file, 5, 0, 2)
    assert drawn["id"].to_pylist() == pq.read_table(folder / "data/evaluation/neighbours.parquet")["id"].to_pylist()
    rows = {row["id"]: row for row in everything.to_pylist()}
    assert drawn.to_pylist() == [rows[name] for name in drawn["id"].to_pylist()]
    assert sorted(choice.random_rows(file, 99, 0, 2)["id"].to_pylist()) == sorted(rows)
    assert choice.random_rows(file, 0, 0, 2).num_rows == 0
    tables.write(everything[::-1], everything.schema, tmp_path / "turned.parquet", 2)
    assert choice.random_rows(tmp_path / "turned.parquet", 5, 0, 2).equals(drawn)


def test_a_choice_by_lot() -> None:
    chosen = choice.random_indices(50_000, 8, 0, 0)
    assert len(set(chosen)) == 8
    assert chosen == choice.random_indices(50_000, 8, 0, 0)
    assert chosen != choice.random_indices(50_000, 8, 1, 0)
    assert chosen != choice.random_indices(50_000, 8, 0, 1)
    assert sorted(choice.random_indices(3, 8, 0, 0)) == [0, 1, 2]


def test_blocks_are_the_rows_in_their_order(
    summarized: tuple[Path, Manifest, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, _ = summarized
    file = folder / "data/evaluation/features-train.parquet"  # row groups of 4, 4 and 3
    whole = np.array(pq.read_table(file)["features"].to_pylist(), np.float16)
    for most, sizes in ((1, [4, 4, 3]), (5, [8, 3]), (4096, [11])):
        monkeypatch.setattr(vectors, "BLOCK", most)
        found = list(vectors.blocks(file))
        assert [len(block) for block in found] == sizes
        np.testing.assert_array_equal(np.concatenate(found), whole)
