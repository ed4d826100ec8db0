"""Tracking, in a real database: how runs end, what a killed one leaves, one value for each step, the served model."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock

from alexnet.build import Classifier, save
from alexnet.model import AlexNet
from pipeline.commands import alexnet
from pipeline.inference import predictor
from pipeline.runtime.machines import Machine
from pipeline.runtime.stage import Stopped
from pipeline.shards import tables
from pipeline.shards.manifest import Manifest
from pipeline.shards.tables import Shard, Synset
from pipeline.tracking import __main__ as program
from pipeline.tracking import courier, description, registry, runs
from tests.pipeline import miniature
from tests.sections import PAPER, PREPARATION

ROOT = Path(__file__).parents[3]

MACHINE = Machine()

# MLflow's own code, on the versions that are pinned
pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType"),
]


def manifest(seed: int = 0, drawn: bool = True) -> Manifest:
    return Manifest(
        side=256,
        classes=(Synset(wnid="n1", words="a"), Synset(wnid="n2", words="b")),
        shards={split: (Shard(file=f"{split}-0", rows=3, bytes=9, sha256=str(seed)),) for split in ("train", "val")},
        indexed=6,
        rejected=0,
        drawn=drawn,
        preparation=PREPARATION,
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def sender() -> Iterator[courier.Courier]:
    """The process that speaks to MLflow: one for many tests, since it takes seconds to be there."""
    with pytest.MonkeyPatch.context() as environment:
        for name in list(os.environ):
            if name.startswith(("MLFLOW_", "DVC_")):
                environment.delenv(name)
        environment.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
        with courier.running("kept") as process:
            yield process


@pytest.fixture
def store(home: Path, sender: courier.Courier, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of one database for all tests of this file; the fingerprint keeps them apart."""
    monkeypatch.setattr(courier, "running", lambda _: contextlib.nullcontext(sender))
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "DVC_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DVC_ROOT", str(home))
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    return client()


def client() -> Any:
    import mlflow

    mlflow.set_tracking_uri(runs.address(MACHINE))
    return mlflow.MlflowClient()


def only(client: Any, fingerprint: str) -> Any:
    experiment = client.get_experiment_by_name("alexnet")
    (record,) = client.search_runs([experiment.experiment_id], f"tags.fingerprint = '{fingerprint}'")
    return record


def values(client: Any, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client.get_metric_history(run_id, key)]


def test_nested_parameters_become_dotted_words() -> None:
    nested = {"a": {"b": {"c": 1e-05}, "d": (1, 2.5)}, "e": "word", "f": None, "g": True}
    assert description.words(nested) == {"a.b.c": "1e-05", "a.d": "[1, 2.5]", "e": "word", "f": "null", "g": "true"}


def test_a_run_of_no_commit_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    tags = description.wanted("http://host:5000", "0123", {}, None, "train", adopt=False).tags
    assert tags["git.commit"] == "no git"
    assert "git.dirty" not in tags


def test_address_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert runs.address(MACHINE) == f"sqlite:///{tmp_path}/mlflow.db"
    assert runs.address(Machine(tracking="sqlite:///some.db")) == f"sqlite:///{tmp_path}/some.db"
    assert runs.address(Machine(tracking="sqlite:////abs/some.db")) == "sqlite:////abs/some.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there:5000")
    assert runs.address(MACHINE) == "http://there:5000"
    assert runs.address(Machine(tracking="http://other:5000")) == "http://other:5000"
    for folder in ("./mlruns", "file:///tmp/mlruns"):
        with pytest.raises(ValueError, match=r"is a folder, which MLflow .* no longer takes.*Give a server"):
            runs.address(Machine(tracking=folder))


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("sqlite:///we%3Fird/mlflow.db", "sqlite:///mlflow.db"),
        ("postgresql://me:Pl4nted.Secret@db/x", "postgresql://me:Pl4nted.Secret@db/x"),
    ],
)
def test_the_pages_are_told_of_a_database_by_the_environment(
    uri: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ReplacedError(Exception):
        pass

    def execv(_: str, words: list[str]) -> None:
        raise ReplacedError(*words)

    (tmp_path / "we?ird").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "")
    monkeypatch.setattr(os, "execv", execv)
    with pytest.raises(ReplacedError) as caught:
        program.show(5001)
    assert caught.value.args[1:] == ("-m", "mlflow", "server", "--host", "127.0.0.1", "--port", "5001")
    assert os.environ["MLFLOW_BACKEND_STORE_URI"] == told
    assert Path.cwd() == (tmp_path / "we?ird" if uri.startswith("sqlite") else tmp_path)


def test_the_address_is_printed_without_its_password(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:Pl4nted.Secret@there:5000")
    program.address()
    program.show(5000)
    assert capsys.readouterr().out == "http://there:5000\nthe runs are at http://there:5000\n"
    for words in (["sned"], ["--port", "1"], ["send", "all"], ["--help"]):
        with pytest.raises(SystemExit):
            alexnet.main(["tracking", *words])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("uri", "said"),
    [
        (
            "postgres://me:Pl4nted.Secret@there/runs",
            "tracking: postgres://there/runs is neither a server nor a database",
        ),
        ("sqlite:///runs.db?password=Pl4nted.Secret", r"tracking: sqlite:///runs.db?password=*** has a question mark"),
    ],
)
def test_an_address_that_the_pages_cannot_be_shown_of_is_refused_without_its_password(
    uri: str, said: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "tracking", "ui"],
        cwd=tmp_path,
        env=os.environ | {"MLFLOW_TRACKING_URI": uri, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1 and said in done.stderr
    assert "Pl4nted" not in done.stdout + done.stderr


def test_a_champion_has_fewer_errors_on_the_same_pictures() -> None:
    """Clearly fewer or clearly more by its 95 % interval; what may be guessing gets no alias even without a champion."""

    def aliases(error: float, best: float | None, pictures: str = "a", half: float = 0.02) -> list[str]:
        ends = {"top1_low": repr(error - half), "top1_high": repr(error + half)}
        tags = {"manifest": pictures, "top1_error": repr(error), "guessing": "0.9", **ends}
        return registry.deserved(tags, None if best is None else {"manifest": "a", "top1_error": repr(best)})[0]

    both, one = ["candidate", "champion"], ["candidate"]
    assert aliases(0.8, None) == both
    assert aliases(0.3, 0.4) == both
    assert aliases(0.39, 0.4) == aliases(0.4, 0.4) == aliases(0.41, 0.4) == one
    assert aliases(0.3, 0.4, half=0.2) == aliases(0.5, 0.4, half=0.2) == one
    assert aliases(0.5, 0.4) == []
    assert aliases(0.3, 0.4, "b") == aliases(0.5, 0.4, "b") == one
    assert aliases(0.89, None) == aliases(0.95, None) == aliases(0.89, 0.95, "b") == []
    assert aliases(math.nan, None) == aliases(math.nan, 0.4) == []
    assert registry.deserved({"manifest": "a", "top1_error": "0.1"}, {"manifest": "a", "top1_error": "0.4"})[0] == one


@pytest.mark.slow
def test_a_run_says_what_it_is(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "rusty-nail")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"metadata": {"job_submission_id": "raysubmit_1"}}')
    with runs.run(MACHINE, "says", {"learning": {"rate": 0.01}}, manifest(), "train") as run:
        run.log(0, {"loss": math.nan})
    record = only(store, "says")
    assert record.info.status == "FINISHED"
    assert record.info.run_name.startswith("rusty-nail")
    assert record.data.params == {"learning.rate": "0.01"}
    expected = {"fingerprint": "says", "stage": "train", "manifest": manifest().digest, "dvc.exp_name": "rusty-nail"}
    assert record.data.tags.items() >= expected.items()
    assert record.data.tags["ray.job_id"] == "raysubmit_1"
    assert record.data.tags["host"] == socket.gethostname()
    assert math.isnan(record.data.metrics["loss"])
    (pictures,) = record.inputs.dataset_inputs
    assert manifest().digest.startswith(pictures.dataset.digest)
    assert pictures.dataset.name == "drawn pictures"


@pytest.mark.slow
def test_the_experiment_and_the_run_may_be_named(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "other")
    with runs.run(MACHINE, "named", {}, manifest(), "train") as run:
        first = run.run_id
    assert store.get_experiment_by_name("other").experiment_id == store.get_run(first).info.experiment_id
    monkeypatch.setenv("MLFLOW_RUN_ID", first)
    with runs.run(MACHINE, "of other parameters", {}, manifest(), "train") as run:
        assert run.run_id == first
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(OSError, match=r"MLflow at sqlite:.*0000 not found"):
        runs.run(MACHINE, "x", {}, manifest(), "train").__enter__()


@pytest.mark.slow
def test_the_machine_is_watched(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING")
    with runs.run(MACHINE, "watched", {}, manifest(), "train"):
        time.sleep(2)
    assert "system/cpu_utilization_percentage" in only(store, "watched").data.metrics


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RuntimeError("x"), "FAILED"),
        (ValueError("x"), "FAILED"),
        (Stopped(143), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
    ],
)
def test_how_it_ends(store: Any, error: BaseException, status: str) -> None:
    name = f"ends {type(error).__name__}"
    with pytest.raises(type(error)), runs.run(MACHINE, name, {}, manifest(), "train"):
        raise error
    assert only(store, name).info.status == status


@pytest.mark.slow
def test_resumed_run_keeps_one_value_for_each_step(store: Any) -> None:
    def train(first: int, last: int) -> None:
        with runs.run(MACHINE, "resumed", {"a": 1}, manifest(), "train") as run:
            for step in range(first, last):
                run.log(step, {"loss": 1 / (1 + step)} | ({"top1": step} if step % 2 else {}))
            if last < 30:
                raise Stopped(143)

    for first, last in ((0, 10), (7, 20), (0, 30)):  # as from checkpoints behind what was logged
        with contextlib.suppress(Stopped):
            train(first, last)
    record = only(store, "resumed")
    assert record.info.status == "FINISHED"
    assert values(store, record.info.run_id, "loss") == [(step, 1 / (1 + step)) for step in range(30)]
    assert values(store, record.info.run_id, "top1") == [(step, step) for step in range(1, 30, 2)]


@pytest.mark.slow
def test_many_rows_at_once_and_only_past_the_last(store: Any) -> None:
    with runs.run(MACHINE, "many", {}, manifest(), "train") as run:
        run.log(3, {"loss": 3.0})
        run.log_all((step, {"loss": float(step), "rate": 0.1}) for step in range(1300))
    found = values(store, run.run_id, "loss")
    assert found == [(step, float(step)) for step in range(3, 1300)]
    assert len(values(store, run.run_id, "rate")) == 1300


@pytest.mark.slow
def test_later_stages_add_to_the_finished_run(store: Any) -> None:
    with runs.run(MACHINE, "later", {"a": 1}, manifest(), "train"):
        pass
    for views in (10, 10, 1):
        with runs.run(MACHINE, "later", {"a": 1, "views": views}, manifest(), "evaluate", adopt=True) as run:
            run.score({"top1": 0.5, "nan": math.nan})
    with runs.run(MACHINE, "later", {}, manifest(), "evaluate", adopt=True) as run:
        run.score({"top1": 0.4, "nan": math.nan})
    record = only(store, "later")
    assert record.data.params == {"a": "1", "views": "10"}
    assert record.data.tags["now.views"] == "1"
    assert values(store, record.info.run_id, "top1") == [(0, 0.5), (1, 0.4)]
    assert len(values(store, record.info.run_id, "nan")) == 1
    assert len(record.inputs.dataset_inputs) == 1


@pytest.mark.slow
def test_training_afresh_is_another_run(store: Any) -> None:
    for _ in range(2):
        with runs.run(MACHINE, "afresh", {"a": 1}, manifest(), "train") as run:
            run.log(0, {"loss": 1.0})
    experiment = store.get_experiment_by_name("alexnet")
    found = store.search_runs([experiment.experiment_id], "tags.fingerprint = 'afresh'")
    assert [record.data.metrics for record in found] == [{"loss": 1.0}] * 2


@pytest.mark.slow
def test_artifacts_lie_in_the_working_copy_that_lasts(
    store: Any, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file.txt").write_text("words")
    with runs.run(MACHINE, "artifacts", {}, manifest(), "train") as run:
        run.artifact(tmp_path / "folder", "there")
    (found,) = (home / "mlartifacts").glob(f"{run.run_id}/artifacts/there/file.txt")
    assert found.read_text() == "words"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]


KILLED = """
import sys, time
from pipeline.tracking import description, registry, runs
from pipeline.runtime.machines import Machine
from pipeline.shards import tables
from pipeline.shards.manifest import Manifest
from tests.sections import PREPARATION
pictures = Manifest(
    side=256, classes=(), shards={}, indexed=0, rejected=0, drawn=True, preparation=PREPARATION
)
with runs.run(Machine(), sys.argv[1], {}, pictures, "train") as run:
    run.log_all((step, {"loss": step}) for step in range(5))
    print("ready", flush=True)
    time.sleep(600)
"""


def begun(fingerprint: str) -> subprocess.Popen[str]:
    """A process that holds a run."""
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", KILLED, fingerprint], stdout=subprocess.PIPE, text=True, env=path)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen[str], number: int) -> None:
    process.send_signal(number)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.slow
def test_what_a_sigkill_leaves_running(store: Any) -> None:
    process = begun("killed")
    try:
        with runs.run(MACHINE, "another", {}, manifest(), "train"):
            assert only(store, "killed").info.status == "RUNNING", "its process is there"
    finally:
        end(process, signal.SIGKILL)
    assert only(store, "killed").info.status == "RUNNING"
    with runs.run(MACHINE, "a third", {}, manifest(), "train"):
        assert only(store, "killed").info.status == "KILLED"
    with runs.run(MACHINE, "killed", {}, manifest(), "train") as run:
        run.log_all((step, {"loss": step}) for step in range(3, 9))
    record = only(store, "killed")
    assert record.info.status == "FINISHED"
    assert values(store, record.info.run_id, "loss") == [(step, step) for step in range(9)]


@pytest.mark.slow
def test_four_at_once_on_no_database(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # the client has set it to its own database
    with monkeypatch.context() as hasty, FileLock(tmp_path / "mlflow.db.lock"):
        hasty.setattr(runs, "MAKING", 0.1)
        what = r"mlflow\.db, which another stage makes or looks through after 0 s"
        with pytest.raises(TimeoutError, match=what), runs._prepared(runs.address(MACHINE), "train"):
            pass  # else it is a matter of luck whether four spoil each other's tables
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    code = KILLED.replace("time.sleep(600)", "pass")
    processes = [subprocess.Popen([sys.executable, "-c", code, f"at once {number}"], env=path) for number in range(4)]
    assert [process.wait(120) for process in processes] == [0] * 4
    assert (tmp_path / "mlflow.db").exists()
    there = client()
    for number in range(4):
        record = only(there, f"at once {number}")
        assert record.info.status == "FINISHED"
        assert len(values(there, record.info.run_id, "loss")) == 5


@pytest.mark.slow
def test_a_server_that_is_not_there_fails_soon_and_plainly(store: Any) -> None:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
        start = time.monotonic()
        run = runs.run(Machine(tracking=uri), "no server", {}, manifest(), "train")
        with pytest.raises(OSError, match=f"MLflow at {uri}"):
            run.__enter__()
        assert time.monotonic() - start < 30


def classifier(normalization: Any, seed: int, border: Any = "overhang") -> Classifier:
    model = dataclasses.replace(
        PAPER,
        width=0.0625,
        border=border,
        normalization=normalization,
        first_std=(0.05,) * 10,
        first_bias=(0.1,) * 10,
    )
    network = AlexNet(model, classes=2)
    network.draw_first_weights(seed)
    return Classifier(network, torch.rand(3, 256, 256) * 255)  # in training mode, as it comes from a training


def saved(network: Classifier) -> bytes:
    """A model.pt of the network."""
    file = io.BytesIO()
    facts = {"fingerprint": "f", "classes": [["n1", "a"], ["n2", "b"]], "drawn": False, "manifest": "m"}
    facts |= {"preparation": PREPARATION.plain}
    save(file, network.network, **facts, mean=torch.full((3, 256, 256), 128.0), mean_kind="image")
    return file.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("normalization", "border"), [("printed", "overhang"), ("original", "overhang"), ("caffe", "exact")]
)
def test_the_served_model_is_the_network(store: Any, normalization: str, border: str) -> None:
    import mlflow

    network = classifier(normalization, 1, border)
    weights = saved(network)
    with runs.run(MACHINE, f"served {normalization}", {}, manifest(drawn=False), "evaluate", adopt=True) as run:
        assert run.publish(weights, network.network.model, 0.5)
    served = mlflow.pyfunc.load_model(f"runs:/{run.run_id}/model")
    files = [miniature.jpeg(number, 300) for number in range(2)]
    mine = predictor.Predictor.load(weights)
    expected = mine.described([mine.prepare(data) for data in files], 1)[0]
    answers = served.predict(files, params={"top": 1, "views": 1})
    np.testing.assert_allclose([row[0] for row in answers["probability"]], expected.max(dim=1).values, atol=1e-5)
    assert [row[0] for row in answers["wnid"]] == [f"n{1 + label}" for label in expected.argmax(dim=1)]


@pytest.mark.slow
def test_the_pages_of_a_model_have_its_errors_its_pictures_and_how_to_use_it(store: Any) -> None:
    """What a person writes there stays; what was written here follows a new evaluation, and the run's errors stay single."""
    weights, errors = saved(classifier("none", 8)), {"top1_error": 0.25, "top1_low": 0.2, "top1_high": 0.3}
    errors |= {"top5_error": 0.125, "top5_low": 0.1, "top5_high": 0.15}
    pictures = dataclasses.replace(manifest(7), drawn=True)
    model = dataclasses.replace(PAPER, network="vgg16")

    def evaluate(error: float) -> Any:
        with runs.run(MACHINE, "carded", {}, pictures, "evaluate", adopt=True) as run:
            run.score({"ten_views/top1_error": error, "centre/top1_error": 0.5})
            run.describe(errors | {"top1_error": error})
            run.publish(weights, model, error, (0.2, 0.3), 0.9)
        return run, store.get_model_version_by_alias("vgg16-drawn", "champion")

    for _ in range(2):
        run, version = evaluate(0.25)
    assert "- top-1 error **25.00%** (20.00% to 30.00%), ten views\n" in version.description
    assert "- drawn by a program, not photographed: 3 train, 3 val\n" in version.description
    assert f'mlflow.pyfunc.load_model("models:/vgg16-drawn/{version.version}")' in version.description
    registered = store.get_registered_model("vgg16-drawn").description
    assert "pictures that a program drew, not photographs" in registered
    assert 'mlflow.pyfunc.load_model("models:/vgg16-drawn@champion")' in registered
    linked = {each.key: each for each in store.get_logged_model(version.source.rpartition("/")[2]).metrics}
    assert {key: each.value for key, each in linked.items()} == {"ten_views/top1_error": 0.25, "centre/top1_error": 0.5}
    assert linked["centre/top1_error"].dataset_digest == pictures.digest[:32]
    assert values(store, run.run_id, "ten_views/top1_error") == [(0, 0.25)], "a second value in the run"
    (data,) = store.get_run(run.run_id).inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == (linked["centre/top1_error"].dataset_name, pictures.digest[:32])
    columns = [each["name"] for each in json.loads(data.dataset.schema)["mlflow_colspec"]]
    assert columns == tables.IMAGES.names
    assert json.loads(data.dataset.profile) == {"train": 3, "val": 3}
    assert json.loads(data.dataset.source)["tags"]["manifest"] == pictures.digest
    store.update_registered_model("vgg16-drawn", description="mine")
    run, version = evaluate(0.24)
    assert "**24.00%**" in version.description
    assert store.get_registered_model("vgg16-drawn").description == "mine"
    store.update_model_version("vgg16-drawn", version.version, description="mine, too")
    assert evaluate(0.23)[1].description == "mine, too"


def test_each_kind_of_network_has_a_champion_of_its_own() -> None:
    kinds = [dataclasses.replace(PAPER, network=network) for network in ("alexnet", "vgg16", "resnet50")]
    named = [runs.model_name(kind, manifest(drawn=drawn)) for kind in kinds for drawn in (False, True)]
    assert named == ["alexnet", "alexnet-drawn", "vgg16", "vgg16-drawn", "resnet50", "resnet50-drawn"]


@pytest.mark.slow
def test_candidate_and_champion(store: Any) -> None:
    def publish(seed: int, error: float, pictures: int) -> tuple[str, ...]:
        with runs.run(MACHINE, f"published {seed}", {}, manifest(pictures), "evaluate", adopt=True) as run:
            return run.publish(weights(seed), PAPER, error, (error - 0.05, error + 0.05), 0.9)

    @functools.cache
    def weights(seed: int) -> bytes:
        return saved(classifier("none", seed))

    def champion() -> str:
        return str(store.get_model_version_by_alias("alexnet-drawn", "champion").tags["weights"])

    assert publish(1, 0.5, 0) == ("candidate", "champion")
    assert publish(2, 0.52, 0) == ("candidate",)
    assert publish(5, 0.6, 0) == (), "clearly worse than the champion"
    assert publish(3, 0.1, 1) == ("candidate",), "errors on other pictures do not compare"
    assert champion() == hashlib.sha256(weights(1)).hexdigest()
    assert publish(4, 0.4, 0) == ("candidate", "champion")
    assert champion() == hashlib.sha256(weights(4)).hexdigest()
    versions = len(store.search_model_versions("name = 'alexnet-drawn'"))
    assert publish(4, 0.4, 0) == ("candidate", "champion"), "it is not compared with itself"
    assert len(store.search_model_versions("name = 'alexnet-drawn'")) == versions, "stored again"
    assert champion() == hashlib.sha256(weights(4)).hexdigest()
    assert publish(4, 0.88, 0) == (), "it guesses when it is measured again"


@pytest.mark.slow
def test_the_weights_of_a_model_are_found_by_each_of_its_names(store: Any) -> None:
    given = saved(classifier("none", 5))
    with runs.run(MACHINE, "weights", {}, manifest(drawn=False), "evaluate", adopt=True) as run:
        run.publish(given, PAPER, 0.1, (0.09, 0.11))
    version = store.get_model_version_by_alias("alexnet", "candidate")
    logged = store.get_model_version("alexnet", version.version).source
    names = ["models:/alexnet@champion", f"models:/alexnet/{version.version}", logged, f"runs:/{run.run_id}/model"]
    assert re.fullmatch("models:/m-[0-9a-f]+", logged)
    for name in names:
        assert runs.weights(MACHINE, name) == given, name


@pytest.mark.slow
def test_the_weights_of_a_run_are_found_by_its_id_its_fingerprint_and_its_name(store: Any) -> None:
    """Those that it logged last; a run that logged none, and a name that no run has, are said."""
    given = saved(classifier("none", 6)), saved(classifier("none", 7))
    for weights in given:
        with runs.run(MACHINE, "a run", {}, manifest(drawn=False), "evaluate", adopt=True) as run:
            run.publish(weights, PAPER, 0.9)
    store.update_run(run.run_id, name="it's mine")
    for known in (run.run_id, "a run", "it's mine"):
        assert runs.weights(MACHINE, known) == given[1], known
    with runs.run(MACHINE, "never evaluated", {}, manifest(), "train"):
        pass
    with pytest.raises(ValueError, match=r"has no network: `evaluate` adds it"):
        runs.weights(MACHINE, "never evaluated")
    with pytest.raises(ValueError, match=r"no run has the id, the fingerprint or the name 'no' or \"'; the latest: .+"):
        runs.weights(MACHINE, "no' or \"")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["models:/none@champion", "models:/none/1", f"models:/m-{'0' * 32}", f"runs:/{'0' * 32}/model", "models:/"]
)
def test_a_model_that_is_not_there_is_said(store: Any, name: str) -> None:
    with pytest.raises(OSError, match="MLflow at sqlite:"):
        runs.weights(MACHINE, name)


@pytest.mark.slow
def test_a_model_without_its_weights_is_said(store: Any) -> None:
    with runs.run(MACHINE, "no weights", {}, manifest(), "evaluate", adopt=True) as run:
        run.artifact(Path(__file__), "model")
    with pytest.raises(OSError, match=r"has no model\.pt"):
        runs.weights(MACHINE, f"runs:/{run.run_id}/model")
