"""Where a training's time goes, measured on real trainings whose loader, step or exchange is made slow."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from alexnet.columns import Together
from alexnet.dataset import Mean
from alexnet.learning import step
from pipeline.evaluation.reporting import times
from pipeline.runtime import run_record
from pipeline.runtime.clock import PARTS, Clock
from pipeline.runtime.machines import Machine
from pipeline.runtime.run_record import RunRecord
from pipeline.shards import batches
from pipeline.shards.batches import Batch, Pictures
from pipeline.shards.manifest import Manifest
from pipeline.training import trainer as trainer_module
from pipeline.training.spec import FirstWeights, Start, TrainingSpec
from pipeline.training.trainer import Rank, Trainer
from tests.pipeline import miniature
from tests.sections import AUGMENTATION, LEARNING, PAPER

SLOW = 0.25
"""Seconds; a batch of ten pictures takes this network some hundredths."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("times")
    miniature.prepared(folder, train=24, val=12, classes=3)
    return folder


def spec_of(folder: Path) -> TrainingSpec:
    model = dataclasses.replace(PAPER, width=1 / 16)
    start = Start(network="none", layers="fitting", unsupervised="none", unsupervised_layers=1,
                  unsupervised_patches=200, unsupervised_iterations=2)  # fmt: skip
    return TrainingSpec(
        model=model,
        start=start,
        augmentation=AUGMENTATION,
        learning=dataclasses.replace(LEARNING, batch_size=10, epochs=2, rate=0.002, log_steps=1, streams=4),
        manifest=Manifest.read(folder / "data/shards"),
        mean=Mean.load(folder / "data/mean.npz"),
        mean_digest="",
        first=FirstWeights(digest="none", weights={}, summary=""),
    )


def trained(folder: Path, read: Any, clock: Clock, rank: Rank | None = None) -> RunRecord:
    """A whole training, as the record of a run has it."""
    shards = folder / "data/shards"
    spec = spec_of(folder)
    train, val = (Pictures(shards, spec.manifest.shards[split]) for split in ("train", "val"))
    rows: list[dict[str, float]] = []
    trainer = Trainer(spec, train, val, read, torch.device("cpu"), rank, on_times=rows.append, clock=clock)
    begun = time.perf_counter()
    trainer.learn()
    spent = time.perf_counter() - begun
    assert [row["epoch"] for row in rows] == [0, 1]
    assert [row["images"] for row in rows] == [24, 24]
    whole = sum(row[part] for row in rows for part in PARTS)
    assert whole == pytest.approx(spent, rel=0.05), "seconds are lost, or count twice"
    return RunRecord(began="", seconds=spent, sessions=1, unended=0, facts={}, epochs=rows)


def quick(*args: Any, **kwargs: Any) -> Iterator[Batch]:
    return batches.batches(*args, threads=2, **kwargs)


def slow(*args: Any, **kwargs: Any) -> Iterator[Batch]:
    for batch in quick(*args, **kwargs):
        time.sleep(SLOW)
        yield batch


def delayed(function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    @functools.wraps(function)
    def late(*args: Any, **kwargs: Any) -> Any:
        time.sleep(seconds)
        return function(*args, **kwargs)

    return late


@pytest.mark.slow
def test_a_slow_loader_is_said_to_bind_the_training(folder: Path) -> None:
    record = trained(folder, slow, Clock())
    word, advice = times.verdict(record)
    assert (times.bound(record), word) == ("waiting", "data-bound")
    assert "shards in machine.yaml" in advice
    # 2 epochs of 3 batches to learn from and 1 to test on
    assert record.total("waiting") > 8 * SLOW
    assert times.without(record) > 0.5


@pytest.mark.slow
def test_a_slow_step_is_said_to_bind_the_training(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "step", delayed(step, SLOW))
    record = trained(folder, quick, Clock())
    word, advice = times.verdict(record)
    assert (times.bound(record), word) == ("computing", "compute-bound")
    assert "devices: auto" in advice
    assert record.total("computing") > 6 * SLOW
    assert record.images_per_second == pytest.approx(48 / record.total("waiting", "computing", "exchanging"))


@pytest.mark.slow
def test_a_slow_exchange_is_said_to_bind_the_training(folder: Path) -> None:
    clock = Clock()

    def add_up(tensors: list[torch.Tensor]) -> None:
        with clock.exchange():
            time.sleep(SLOW)

    record = trained(folder, quick, clock, Rank(link=Together(2), reduce=add_up))
    assert (times.bound(record), times.verdict(record)[0]) == ("exchanging", "bound by exchanges")
    assert record.total("exchanging") > 8 * SLOW


def of(**seconds: float) -> RunRecord:
    row = dict.fromkeys(PARTS, 0.0) | {"epoch": 0, "images": 10} | seconds
    return RunRecord(began="", seconds=1, sessions=1, unended=0, facts={"gpu": "H100", "threads": 8}, epochs=[row])


def test_the_shares_add_up_and_a_part_binds_from_a_fifth_on() -> None:
    record = of(waiting=19, computing=70, validating=11)
    assert sum(each.share for each in times.shares(record)) == pytest.approx(1)
    assert times.verdict(record)[0] == "compute-bound"
    assert times.verdict(of(waiting=20, computing=80))[0] == "data-bound"
    assert times.verdict(of(checkpoints=30, waiting=25, computing=45))[0] == "bound by checkpoints"
    nothing = dataclasses.replace(record, epochs=[])
    assert (times.shares(nothing), times.verdict(nothing), nothing.images_per_second) == ([], ("", ""), None)


def test_advice_names_keys_that_machine_yaml_has() -> None:
    keys = {field.name for field in dataclasses.fields(Machine)}
    for part, named in (
        ("waiting", {"shards", "devices"}),
        ("computing", {"devices", "placement"}),
        ("exchanging", {"placement"}),
        ("checkpoints", {"checkpoint_steps", "storage"}),
    ):
        assert named <= keys
        assert all(key in times.verdict(of(**{part: 1.0}))[1] for key in named), part


def test_a_record_is_that_of_its_network_and_passes_over_damaged_lines(tmp_path: Path) -> None:
    assert run_record.read(tmp_path, "m") is None
    run_record.append(tmp_path, "began", {"at": "2026-01-01T00:00:00+00:00", "commit": "old"})
    run_record.append(tmp_path, "epoch", {"epoch": 0, "images": 8, **dict.fromkeys(PARTS, 1.0)})
    run_record.append(tmp_path, "began", {"at": "2026-01-02T00:00:00+00:00", "commit": "new"})
    run_record.append(tmp_path, "worker", {"gpu": "H100"})
    run_record.append(tmp_path, "epoch", {"epoch": 1, "images": 8, **dict.fromkeys(PARTS, 2.0)})
    assert run_record.read(tmp_path, "m") is None, "it has not come to its end"
    run_record.append(tmp_path, "ended", {"seconds": 7.5, "model": "m"})
    with (tmp_path / run_record.FILE).open("ab") as handle:
        handle.write(b'{"what": "epoch", "epoch": 2}\n[1]\n{"what": 3}\n\xff{\n{"what": "epo')
    record = run_record.read(tmp_path, "m")
    assert record is not None
    assert record.began == "2026-01-01T00:00:00+00:00"
    assert (record.seconds, record.sessions, record.unended) == (7.5, 2, 1)
    assert (record.facts["commit"], record.facts["gpu"]) == ("new", "H100")
    assert [row["epoch"] for row in record.epochs] == [0, 1]
    assert record.images_per_second == 16 / 9
    assert run_record.read(tmp_path, "another network") is None
    assert json.loads((tmp_path / run_record.FILE).read_text(errors="replace").splitlines()[0])["what"] == "began"
