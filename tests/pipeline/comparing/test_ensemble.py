"""Ensembles: compared with a plain loop; refused combinations; DVC experiments."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import binomtest

from alexnet.errors import summary
from pipeline.comparing import ensemble
from pipeline.comparing.ensemble import Argument, Member
from pipeline.evaluation import vectors
from pipeline.runtime import digests
from tests.pipeline.flips import unsaid

PICTURES, CLASSES = 300, 7


def labels(count: int = PICTURES) -> list[int]:
    return np.random.default_rng(0).integers(CLASSES, size=count).tolist()


def answers(seed: int, count: int = PICTURES, classes: int = CLASSES) -> np.ndarray:
    """Random probabilities B×K that favour the label."""
    lots = np.random.default_rng(seed + 1)
    logits = lots.normal(size=(count, classes)) + 1.5 * np.eye(classes)[np.array(labels(count)) % classes]
    powers = np.exp(logits)
    shares: np.ndarray = (powers / powers.sum(1, keepdims=True)).astype(np.float32)
    return shares


def written(
    file: Path, shares: np.ndarray, *, order: Any = None, group: int = 128, ids: Any = None, given: Any = None
) -> Path:
    """Writes predictions as `evaluate` does; `order` permutes the rows."""
    order = np.arange(len(shares)) if order is None else order
    ids = [f"val_{number:05}" for number in range(len(shares))] if ids is None else ids
    given = labels(len(shares)) if given is None else given
    lists = vectors.to_column(torch.from_numpy(shares[order]), "float32")
    rows = {"id": [ids[row] for row in order], "label": [given[row] for row in order]}
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({**rows, "probabilities": lists, "centre": lists}), file, row_group_size=group)
    return file


@contextlib.contextmanager
def opened(*files: Path) -> Iterator[list[Member]]:
    with contextlib.ExitStack() as stack:
        yield [Member(file.stem, stack.enter_context(file.open("rb"))) for file in files]


def errors_of(shares: np.ndarray, top: int) -> float:
    """The error rates, computed by a loop."""
    wrong = 0
    for row, label in zip(shares, labels(len(shares)), strict=True):
        wrong += label not in np.argsort(-row)[:top]
    return wrong / len(shares)


@pytest.mark.parametrize("weights", [[1, 1, 1], [0.5, 2, 0], [1e-3, 3e-3, 2e-3]])
@pytest.mark.parametrize("order", ["the same", "others"])
def test_errors_are_those_of_a_loop_over_the_weighted_mean(tmp_path: Path, weights: list[float], order: str) -> None:
    shares = [answers(seed) for seed in range(3)]
    orders = [np.random.default_rng(seed).permutation(PICTURES) if order == "others" else None for seed in range(3)]
    files = [
        written(tmp_path / f"{seed}.parquet", shares[seed], order=orders[seed], group=(128, 50, 300)[seed])
        for seed in range(3)
    ]
    with opened(*files) as members:
        ensemble.check(members)
        alone, together = ensemble.measure(members, weights)
    mean = np.zeros((PICTURES, CLASSES))
    for weight, each in zip(weights, shares, strict=True):
        for row in range(PICTURES):
            mean[row] += weight / sum(weights) * each[row].astype(np.float64)
    for top in (1, 5):
        assert together[top].error == pytest.approx(errors_of(mean, top))
        assert together[top].images == PICTURES
        for counts, each in zip(alone, shares, strict=True):
            assert counts[top].error == pytest.approx(errors_of(each, top))
    if weights == [1, 1, 1]:
        assert together[1].error < min(counts[1].error for counts in alone), "the case has become too easy"


def test_one_block_is_in_memory_where_the_order_is_the_same(tmp_path: Path) -> None:
    files = [written(tmp_path / f"{seed}.parquet", answers(seed), group=(128, 50)[seed]) for seed in range(2)]
    most = 0
    with opened(*files) as members:
        for ids in ensemble.batched(members[0].labels, ensemble.BLOCK):
            for member in members:
                member.probabilities(ids)
                most = max(most, len(member._waiting))
    assert most <= 128


def test_intervals_are_scipys(tmp_path: Path) -> None:
    with opened(written(tmp_path / "a.parquet", answers(0))) as members:
        _, together = ensemble.measure(members, [1.0])
    rates = summary(together)
    for top in (1, 5):
        wrong = round(rates[f"top{top}_error"] * PICTURES)
        expected = binomtest(wrong, PICTURES).proportion_ci(method="wilson")
        assert (rates[f"top{top}_low"], rates[f"top{top}_high"]) == pytest.approx((expected.low, expected.high))


IDS = [f"val_{number:05}" for number in range(PICTURES)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ids": [*IDS[:-1], "val_99999"]}, r"picture val_00299 is in good and not in bad \(1 in all\)"),
        ({"given": [*labels()[:-1], 6 - labels()[-1]]}, r"picture val_00299 has label \d in good and \d in bad"),
        ({"ids": [*IDS[:-1], IDS[0]]}, r"bad: contains a picture twice"),
    ],
)
def test_other_pictures_and_labels_are_refused_by_name(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    good = written(tmp_path / "good.parquet", answers(0))
    bad = written(tmp_path / "bad.parquet", answers(1), **changes)
    with pytest.raises(ValueError, match=words), opened(good, bad) as members:
        ensemble.check(members)


def test_more_pictures_and_other_classes_are_refused_by_name(tmp_path: Path) -> None:
    good = written(tmp_path / "good.parquet", answers(0))
    more = written(tmp_path / "more.parquet", answers(0, 301), given=[*labels(), 0])
    with pytest.raises(ValueError, match="picture val_00300 is in more and not in good"), opened(good, more) as members:
        ensemble.check(members)
    wide = written(tmp_path / "wide.parquet", answers(0, classes=9))
    with pytest.raises(ValueError, match="good has 7 classes, wide has 9"), opened(good, wide) as members:
        ensemble.check(members)


def test_what_is_no_table_of_predictions_is_said(tmp_path: Path) -> None:
    (tmp_path / "words.parquet").write_text("words")
    pq.write_table(pa.table({"id": ["a"], "label": [1]}), tmp_path / "short.parquet")
    for name in ("words", "short"):
        with (
            pytest.raises(ValueError, match=f"{name}: damaged, or not a predictions"),
            opened(tmp_path / f"{name}.parquet"),
        ):
            pass


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    file = tmp_path / "flipped.parquet"
    lists = vectors.to_column(torch.from_numpy(answers(0)), "float32")
    table = pa.table({"id": IDS, "label": labels(), "probabilities": lists, "centre": lists})
    pq.write_table(table, file, write_page_checksum=True, compression="none", use_dictionary=False)
    data = bytearray(file.read_bytes())
    place = data.find(answers(0)[150].tobytes())
    data[place] ^= 1
    file.write_bytes(data)
    with opened(file) as members, pytest.raises(ValueError, match="flipped: damaged"):
        ensemble.measure(members, [1.0])


def test_predictions_that_are_sealed_are_refused_with_any_other_byte(tmp_path: Path) -> None:
    """Named by their folder and by the file; a copy without SHA256SUMS is accepted."""
    file = written(tmp_path / "run/predictions.parquet", answers(0, 20))
    digests.seal(file.parent)
    for name in (str(file), str(file.parent)):
        assert unsaid(file, lambda name=name: ensemble.check_sealed(name, digests.of(file)), always=True) == []
    (tmp_path / "copy.parquet").write_bytes(file.read_bytes()[::-1])
    ensemble.check_sealed(str(tmp_path / "copy.parquet"), "0" * 64)


def test_a_name_may_carry_a_weight(tmp_path: Path) -> None:
    assert Argument.parse("rusty-nail") == Argument("rusty-nail", 1.0)
    assert Argument.parse("rusty-nail=.25") == Argument("rusty-nail", 0.25)
    assert Argument.parse("a=b=2") == Argument("a=b", 2.0)
    (tmp_path / "rate=2").mkdir()
    assert Argument.parse(f"{tmp_path}/rate=2") == Argument(f"{tmp_path}/rate=2", 1.0)
    for word in ("a=", "a=-1", "a=nan", "a=inf", "a=x", "=1"):
        with pytest.raises(ValueError, match=f"{word}: the weight has to be a number, 0 or more"):
            Argument.parse(word)


def test_weights_that_are_all_0_are_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "a.parquet", answers(0))
    with pytest.raises(ValueError, match="weights have to be 0 or more, and not all 0"), opened(file) as members:
        ensemble.measure(members, [0.0])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "DVC_", "ALEXNET_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_it_prints_a_table_writes_what_it_is_asked_for_and_logs_one_run(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    written(here / "one/predictions.parquet", answers(0))
    written(here / "two.parquet", answers(1))
    for _ in range(2):
        ensemble.run(["one", "two.parquet=2"], Path("table.json"))
    said = capsys.readouterr().out
    told = json.loads((here / "table.json").read_text())
    assert not list(here.glob("*.part"))
    assert [(each["name"], each["weight"]) for each in told["members"]] == [("one", 1.0), ("two.parquet", 2.0)]
    assert told["members"][1]["top1_error"] == pytest.approx(errors_of(answers(1), 1))
    mean = (answers(0).astype(np.float64) + 2 * answers(1).astype(np.float64)) / 3
    assert told["ensemble"]["top1_error"] == pytest.approx(errors_of(mean, 1))
    assert f"all 2 together          {errors_of(mean, 1):.1%} (" in said
    assert "on 300 pictures, ten views of each" in said
    (run,) = MlflowClient(f"sqlite:///{here}/mlflow.db").search_runs(["1"])
    assert run.info.status == "FINISHED"
    assert run.data.params == {"members": '["one", "two.parquet"]', "weights": "[1.0, 2.0]"}
    assert run.data.metrics["ten_views/top1_error"] == told["ensemble"]["top1_error"]
    assert run.data.tags["stage"] == "ensemble"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of DVC's own code
def test_predictions_come_out_of_dvc_s_cache_or_its_storage_by_revision(here: Path) -> None:
    def run(*words: str) -> None:
        who = {f"GIT_{role}_{part}": "a@b" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        subprocess.run(words, check=True, env={**os.environ, **who, "PATH": path, "DVC_NO_ANALYTICS": "1"})

    def read(name: str) -> bytes:
        with ensemble.opened(name) as handle:
            return handle.read()

    file = here / "data/evaluation/predictions.parquet"
    run("git", "init", "-q")
    run("dvc", "init", "-q")
    run("git", "commit", "-qm", "nothing")
    run("git", "tag", "nothing")
    data = []
    for seed, tag in enumerate(("one", "two")):
        data.append(written(file, answers(seed)).read_bytes())
        if tag == "two":  # what is older has none
            digests.seal(file.parent)
        run("dvc", "add", "-q", "data/evaluation")
        run("git", "add", "-A")
        run("git", "commit", "-qm", tag)
        run("git", "tag", tag)
    file.unlink()
    assert [read("one"), read("two"), read("HEAD~1")] == [*data, data[0]]
    for name, known in (("one", "0" * 64), ("two", hashlib.sha256(data[1]).hexdigest())):
        ensemble.check_sealed(name, known)
    with pytest.raises(ValueError, match=r"^two: predictions\.parquet is not as 'evaluate' wrote it: .*Run: dvc repro"):
        ensemble.check_sealed("two", "0" * 64)
    with pytest.raises(ValueError, match="rusty-nail: not a path, an experiment or a revision"):
        read("rusty-nail")
    with pytest.raises(
        ValueError, match=r"nothing: its data/evaluation/predictions\.parquet is neither in DVC's cache"
    ):
        read("nothing")
    run("dvc", "remote", "add", "-q", "--local", "-d", "here", str(here / "remote"))
    run("dvc", "push", "-q", "--all-tags")
    shutil.rmtree(here / ".dvc/cache")
    assert read("one") == data[0], "of the storage"
    shutil.rmtree(here / "remote")
    with pytest.raises(ValueError, match=r"nor in its remote storage .*dvc exp apply two, and dvc repro evaluate"):
        read("two")
