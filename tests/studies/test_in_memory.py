"""Pictures held on the device make the network that pictures read from shards make; and a study is run on them."""

from __future__ import annotations

import copy
import dataclasses
import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from alexnet.columns import Together
from alexnet.dataset import Mean
from alexnet.learning import Learning
from alexnet.network import Dropout
from pipeline.evaluation import forward, scores
from pipeline.shards import batches
from pipeline.shards.batches import Pictures
from pipeline.shards.manifest import Manifest
from pipeline.training import trainer as trainer_module
from pipeline.training.spec import FirstWeights, Start, TrainingSpec
from pipeline.training.trainer import Rank, Trainer
from studies import __main__ as entry
from studies import in_memory, rows, table, workspace
from studies.in_memory import PicturesInMemory
from studies.study import Study, Variant, run_of
from tests.pipeline import miniature
from tests.sections import AUGMENTATION, LEARNING, PAPER

CPU = torch.device("cpu")

MODEL = dataclasses.replace(PAPER, width=1 / 16)
START: dict[str, Any] = {
    "network": "none", "layers": "fitting", "unsupervised": "none", "unsupervised_layers": 1,
    "unsupervised_patches": 200, "unsupervised_iterations": 2,
}  # fmt: skip
SHORT = dataclasses.replace(LEARNING, batch_size=10, epochs=2, rate=0.002, held_out=0.2, log_steps=1, streams=4)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    miniature.prepared(tmp_path, train=24, val=12, classes=3)
    monkeypatch.setattr(in_memory, "prepare", lambda study: workspace.read(tmp_path))  # test_workspace.py makes them
    return tmp_path


def pictures(folder: Path) -> tuple[Pictures, Pictures]:
    shards = folder / "data/shards"
    manifest = Manifest.read(shards)
    return Pictures(shards, manifest.shards["train"]), Pictures(shards, manifest.shards["val"])


def held(train: Pictures, val: Pictures) -> PicturesInMemory:
    made = PicturesInMemory(CPU, 2)
    for each in (train, val):
        made.hold(each, 256)
    return made


def test_pictures_for_which_there_is_no_room_are_refused_before_any_process_begins(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked(here, dataclasses.replace(STUDY, seeds=(0,), variants=STUDY.variants[:1]))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
    monkeypatch.setattr(entry, "HERE", here / "studies")
    monkeypatch.setattr("sys.argv", ["studies", "x", "--on", "memory", "--at-once", "7"])
    with pytest.raises(SystemExit, match=r"studies: .*bytes of pixels for 1 at once, and 1,000 are free in the memory"):
        entry.main()
    assert "| variant |" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["studies", "x", "--on", "memory", "--at-once", "0"])
    with pytest.raises(SystemExit, match="2"):
        entry.main()
    assert "argument --at-once" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("order", ["shuffled", "cyclic"])
def test_the_batches_are_those_of_the_shards(here: Path, order: str) -> None:
    train, val = pictures(here)
    learning = dataclasses.replace(SHORT, order=order)
    epoch = batches.order(train, learning, 1)
    for replicas in (1, 2):
        for replica in range(replicas):
            share = {"first": 1, "replica": replica, "replicas": replicas}
            ours = list(held(train, val)(train, epoch, 7, **share))
            theirs = list(batches.batches(train, epoch, 7, **share))
            assert len(ours) == len(theirs) == 2
            for one, other in zip(ours, theirs, strict=True):
                assert (one.number, one.count) == (other.number, other.count)
                for name in ("positions_B", "labels_B", "images_BCHW"):
                    assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.slow
def test_what_is_learned_is_equal_to_the_bit(here: Path) -> None:
    train, val = pictures(here)
    spec = spec_of(here, SHORT)
    rank = Rank(link=Together(2))
    trainers = [
        Trainer(spec, train, val, read, CPU, rank)
        for read in (functools.partial(batches.batches, threads=2), held(train, val))
    ]
    for trainer in trainers:
        trainer.learn()
    ours, theirs = (trainer.state_dict() for trainer in trainers)
    assert ours["progress"] == theirs["progress"]
    assert len(ours["progress"]["epochs"]) == 2
    for kind in ("weights", "velocity"):
        for name, tensor in theirs[kind].items():
            assert torch.equal(ours[kind][name], tensor), name


def spec_of(here: Path, learning: Learning) -> TrainingSpec:
    return TrainingSpec(
        model=MODEL,
        start=Start(**START),
        augmentation=AUGMENTATION,
        learning=learning,
        manifest=Manifest.read(here / "data/shards"),
        mean=Mean.load(here / "data/mean.npz"),
        mean_digest="",
        first=FirstWeights(digest="none", weights={}, summary=""),
    )


@pytest.mark.slow
def test_what_is_learned_goes_on_from_a_pause_to_the_bit(here: Path) -> None:
    train, val = pictures(here)
    read, kept = held(train, val), []

    def keep() -> None:
        kept.append(copy.deepcopy(whole.state_dict()))

    learning = dataclasses.replace(SHORT, epochs=3)
    whole = Trainer(spec_of(here, learning), train, val, read, CPU, on_boundary=keep)
    whole.learn()
    assert {contents["progress"]["batch"] for contents in kept} == {0, 1, 2}
    for contents in kept[:-1]:
        other = Trainer(spec_of(here, learning), train, val, read, CPU)
        other.load_state_dict(copy.deepcopy(contents))
        other.learn()
        assert other.progress == whole.progress
        for kind in ("weights", "velocity"):
            for name, tensor in kept[-1][kind].items():
                assert torch.equal(other.state_dict()[kind][name], tensor), name
    for number, row in enumerate(whole.progress.epochs):
        steps = [step for step in whole.progress.steps if step["epoch"] == number]
        sizes = [10] * (len(steps) - 1)
        sizes.append(len(train) - len(whole.held_out_N) - sum(sizes))
        mean = sum(size * step["loss"] for size, step in zip(sizes, steps, strict=True)) / sum(sizes)
        assert row["train_loss"] == pytest.approx(mean, rel=1e-9)


def test_a_batch_s_dropout_is_drawn_by_its_rows_and_its_step(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def noted(*arguments: Any, dropout: Dropout, **others: Any) -> Any:
        seen.append((dropout.step, dropout.rows_B.tolist()))
        return plain(*arguments, dropout=dropout, **others)

    plain = trainer_module.step
    monkeypatch.setattr(trainer_module, "step", noted)
    train, val = pictures(here)
    made = Trainer(spec_of(here, dataclasses.replace(SHORT, held_out=0.0)), train, val, held(train, val), CPU)
    made.learn()
    assert seen == [(step, list(range(size))) for step, size in enumerate([10, 10, 4] * 2)]


def document() -> dict[str, Any]:
    sections = {"model": MODEL, "augmentation": AUGMENTATION, "learning": SHORT}
    named = {name: dataclasses.asdict(section) for name, section in sections.items()}
    return {"source": {"name": "sample"}, "resize": {"side": 256}, **named, "start": START}


def write(file: Path, contents: dict[str, Any]) -> None:
    with file.open("w") as handle:
        YAML().dump(contents, handle)


STUDY = Study(
    name="x",
    target="evaluate",
    seeds=(0, 1),
    variants=(
        Variant(name="base", changes={}, section="", paper=""),
        Variant(name="clusters", changes={"start.unsupervised": "kmeans"}, section="§7", paper=""),
    ),
)


def asked(folder: Path, study: Study) -> None:
    """The study's folder as a person writes it."""
    (folder / study.folder).mkdir(parents=True)
    write(folder / study.base, document())
    keys = {"target": study.target, "seeds": [*study.seeds], "variants": [*map(dataclasses.asdict, study.variants)]}
    write(folder / study.folder / "study.yaml", keys)


@pytest.mark.slow
def test_a_study_has_a_row_for_each_run_and_makes_none_twice(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked(here, STUDY)
    monkeypatch.setattr(entry, "HERE", here / "studies")
    monkeypatch.setattr("sys.argv", ["studies", "x", "--on", "memory", "--at-once", "2"])
    entry.main()
    found = rows.read(STUDY)
    assert sorted((row["variant"], row["seed"]) for row in found) == [
        ("base", "0"), ("base", "1"), ("clusters", "0"), ("clusters", "1")
    ]  # fmt: skip
    (row,) = [row for row in found if (row["variant"], row["seed"]) == ("base", "1")]
    learning = dataclasses.replace(SHORT, seed=1)
    train, val = pictures(here)
    mean = Mean.load(here / "data/mean.npz")
    trainer = Trainer(spec_of(here, learning), train, val, functools.partial(batches.batches, threads=2), CPU)
    trainer.learn()
    points = [
        {name: float(point[name]) for name in ("step", "epoch", "rate", "loss", "top1_error")}
        for point in rows.curves(STUDY)[row["key"]]
    ]
    assert points == [pytest.approx(row, rel=1e-4) for row in trainer.progress.steps]
    # the errors against evaluate's own way with a network
    trainer.network.eval()
    table_of = forward.forward(
        trainer.network,
        torch.from_numpy(mean.image_CHW),
        "centre",
        forward.batches(here / "data/shards/val-0.parquet", 4),
        True,
    )
    counts = scores.Counts(3)
    counts.add(table_of)
    assert int(row["images"]) == counts.images == 12
    for name, column in (("", "probabilities"), ("centre_", "centre")):
        expected = counts.summary(column)
        for top in (1, 5):
            assert float(row[f"{name}top{top}_error"]) == pytest.approx(expected[f"top{top}_error"], abs=1e-9)
    assert table.table(STUDY) in capsys.readouterr().out
    entry.main()
    assert rows.read(STUDY) == found
    said = capsys.readouterr().out
    assert "studies:" not in said
    assert table.table(STUDY) in said
    assert {"table.md", "losses.png", "differences.png"} <= {file.name for file in (here / "studies/x").iterdir()}


@pytest.mark.slow
def test_a_run_that_fails_is_said_and_the_others_are_made(here: Path) -> None:
    wild = Variant(name="wild", changes={"learning.rate": 1e30}, section="", paper="")
    study = dataclasses.replace(STUDY, variants=(wild, STUDY.variants[0]), seeds=(0,), target="train")
    asked(here, study)
    with pytest.raises(ValueError, match=r"wild, seed 0: the loss is .* in step \d"):
        in_memory.run(study, [run_of(study, variant, 0) for variant in study.variants], at_once=1)
    (row,) = rows.read(study)
    assert row["variant"] == "base"
    assert row["centre_top1_error"]
