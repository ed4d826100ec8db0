"""The whole workflow as users run it: a fresh copy, a tiny sample, the real dvc, Ray, MLflow and job server."""

import contextlib
import csv
import dataclasses
import json
import os
import random
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import webbrowser
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from alexnet.build import load
from alexnet.network import Model
from pipeline.commands import alexnet
from pipeline.runtime import access, params
from pipeline.runtime.machines import Machine
from pipeline.shards import tables
from pipeline.shards.manifest import Manifest
from pipeline.training import initial
from pipeline.training.spec import Start

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
TINY = {
    "source": {"train_images": 40, "val_images": 12},
    "resize": {"images_per_shard": 16, "max_rejected": 0.5},
    "model": {"width": 0.0625},
    "learning": {"epochs": 2, "batch_size": 8, "log_steps": 2, "rate_falls": [1]},
    "report": {"pictures": 2, "queries": 2},
}
pytestmark = pytest.mark.slow


class Copy:
    """A separate working copy with the files that git tracks and the tiny sample."""

    def __init__(self, folder, changes=TINY, lock=False):
        self.folder = folder
        tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for name in filter(None, tracked.split("\0")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
        if not lock:
            (folder / "dvc.lock").unlink(missing_ok=True)
        self.change(changes)
        for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "as it is"]):
            self.run("git", *words)

    def change(self, changes):
        """Rewrites params.yaml."""
        yaml = YAML()
        document = yaml.load(self.folder / "params.yaml")
        for section, values in changes.items():
            document[section].update(values)
        yaml.dump(document, self.folder / "params.yaml")

    def replace(self, section, values):
        """Replaces a section of params.yaml."""
        yaml = YAML()
        document = yaml.load(self.folder / "params.yaml")
        document[section] = values
        yaml.dump(document, self.folder / "params.yaml")

    def run(self, *words, check=True, **environment):
        """Runs a command in the copy; returns its output and errors together."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_", "RAY_"))}
        who = {f"GIT_{role}_{part}": "a@b" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}
        path = {"PATH": f"{BIN}{os.pathsep}{kept.get('PATH', '')}", "DVC_NO_ANALYTICS": "1"}
        done = subprocess.run(
            words, cwd=self.folder, env=kept | who | path | environment, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=550,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{words}\n{done.stdout[-4000:]}"
        return done.stdout if check else (done.returncode, done.stdout)

    def outs(self):
        """Path of an out → its hash in dvc.lock."""
        stages = YAML(typ="safe").load(self.folder / "dvc.lock")["stages"]
        return {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}


@pytest.fixture(scope="module")
def workflow(tmp_path_factory):
    copy = Copy(tmp_path_factory.mktemp("workflow"))
    copy.printed = copy.run("dvc", "repro")
    copy.run("git", "add", "-A")
    copy.run("git", "commit", "-qm", "ran")
    return copy


def test_it_ends_with_errors_a_report_and_nothing_left_to_do(workflow):
    metrics = json.loads((workflow.folder / "metrics.json").read_text())
    assert metrics["images"] == 12
    assert (
        0 <= metrics["ten_views"]["top1_low"] <= metrics["ten_views"]["top1_error"] <= metrics["ten_views"]["top1_high"]
    )
    page = (workflow.folder / "report/index.html").read_text()
    assert "drawn by a program" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "Data and pipelines are up to date" in workflow.run("dvc", "repro")
    assert "Data and pipelines are up to date" in workflow.run("dvc", "status")
    assert workflow.run("git", "status", "--porcelain") == ""


SMALLEST = ["-S", "source.seed=4", "-S", "source.train_images=20", "-S", "source.val_images=10"]


@pytest.fixture
def clone(tmp_path):
    """A clone: dvc.lock is as committed, and nobody can pull the outs that it names."""
    return Copy(tmp_path, {}, lock=True)


@pytest.mark.parametrize("where", [[], ["--temp"], ["--queue"]])
def test_a_clone_s_first_experiment_ends_well(where, clone):
    clone.run("dvc", "exp", "run", *where, "--name", "first", "download", *SMALLEST)
    if where == ["--queue"]:
        clone.run("dvc", "queue", "start")
        for _ in range(120):
            if re.search(r"first .*(Success|Failed)", clone.run("dvc", "queue", "status")):
                break
            time.sleep(1)
        assert re.search(r"first .*Success", clone.run("dvc", "queue", "status")), clone.run(
            "dvc", "queue", "logs", "first"
        )
        clone.run("dvc", "queue", "stop", "--kill")
    assert "[first]" in clone.run("dvc", "exp", "list")
    ref = clone.run("git", "for-each-ref", "--format=%(refname)", "refs/exps/**/first").strip()
    stages = YAML(typ="safe").load(clone.run("git", "show", f"{ref}:dvc.lock"))["stages"]
    assert stages["download"]["params"]["params.yaml"]["source"]["seed"] == 4
    assert "report" in stages, "what did not run is as committed"


@pytest.mark.faults
def test_a_clone_s_first_experiment_of_all_stages_ends_well(clone):
    flat = {f"{section}.{key}": value for section, values in TINY.items() for key, value in values.items()}
    changes = [word for key, value in flat.items() for word in ("-S", f"{key}={value}")]
    clone.run("dvc", "exp", "run", "--name", "first", *changes)
    assert "[first]" in clone.run("dvc", "exp", "list")
    assert json.loads((clone.folder / "metrics.json").read_text())["images"] == 12
    assert "Data and pipelines are up to date" in clone.run("dvc", "status")


def test_the_truncated_picture_is_rejected_and_counted(workflow):
    manifest = Manifest.read(workflow.folder / "data/shards")
    rejected = tables.read(workflow.folder / "data/shards/rejected.parquet").to_pylist()
    assert manifest.rejected == len(rejected) == 1
    assert "truncated" in rejected[0]["reason"]
    assert manifest.rows("train") + manifest.rows("val") + 1 == manifest.indexed == 52


def test_dvc_shows_the_flow_the_metrics_and_the_run_s_figures(workflow):
    dag = workflow.run("dvc", "dag")
    assert all(stage in dag for stage in ("download", "resize", "mean", "train", "evaluate", "report"))
    assert "ten_views.top1_error" in workflow.run("dvc", "metrics", "show")
    shown = workflow.run("dvc", "plots", "show", "--json")
    plots = json.loads(shown[shown.index("{") :])["data"]
    names = {Path(name).stem for name in plots}
    assert {"loss", "errors", "rate", "confusion", "guesses", "neighbours", "first-layer", "saliency"} == names


def test_an_experiment_is_compared_and_applied(workflow):
    """The experiment changes a parameter after the training, so that it need not train again."""
    workflow.run("dvc", "exp", "run", "--queue", "--name", "other-codes", "-S", "results.code_epochs=1")
    workflow.run("dvc", "exp", "run", "--run-all")
    assert workflow.run("dvc", "exp", "list", "--name-only").split() == ["other-codes"]
    assert workflow.run("git", "status", "--porcelain") == ""
    assert "other-codes" in workflow.run("dvc", "exp", "show", "--csv")
    # an ensemble of its predictions, which are not in the working copy, of the last commit's, and of what is here
    asked = ["HEAD", "other-codes", "data/evaluation=2", "--out", "table.json"]
    said = workflow.run(sys.executable, "-m", "pipeline", "ensemble", *asked)
    told = json.loads((workflow.folder / "table.json").read_text())
    (workflow.folder / "table.json").unlink()
    assert "all 3 together" in said
    assert [member["weight"] for member in told["members"]] == [1, 1, 2]
    here = json.loads((workflow.folder / "metrics.json").read_text())["ten_views"]["top1_error"]
    assert [member["top1_error"] for member in told["members"]] == [here] * 3
    said = workflow.run(
        sys.executable, "-m", "pipeline", "compare", "HEAD", "other-codes", "--html", "work/compared.html"
    )
    assert re.search(r"other-codes is as good as HEAD.*on the same\s+pictures,\s+chance\s+alone", said, re.S)
    assert re.search(r"results.code_epochs +\d+ +1$", said, re.M)
    assert (workflow.folder / "work/compared.html").read_text().count("<svg") == 2
    rows = workflow.run(sys.executable, "-m", "pipeline", "runs")
    assert f"top-1 error {100 * here:.2f}" in rows and max(map(len, rows.splitlines())) <= 110
    confused = workflow.run(
        sys.executable, "-m", "pipeline", "confused", "--model-run", "other-codes", "--html", "work/c.html"
    )
    assert f"{round(here * 12)} of 12 pictures were taken for another class" in confused
    assert "data:image/jpeg;base64," in (workflow.folder / "work/c.html").read_text()
    workflow.run("dvc", "exp", "apply", "other-codes")
    try:
        assert "results.code_epochs" in workflow.run("dvc", "params", "diff")
        assert "neighbours.code_error" in workflow.run("dvc", "metrics", "diff", "HEAD", "other-codes")
        workflow.run("dvc", "plots", "diff", "HEAD", "other-codes")
    finally:
        workflow.run("git", "checkout", "--", ".")
        workflow.run("dvc", "checkout")


def test_what_the_pages_say_to_type_can_be_typed(workflow, monkeypatch, capsys):
    """The commands of tests/commands.yaml, in this process where they are ours, since each would import torch anew."""
    monkeypatch.chdir(workflow.folder)
    before, opened = dict(os.environ), []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or True)
    for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI", "ALEXNET_MACHINE"):
        os.environ.pop(name, None)
    pictures = [row["image"]["bytes"] for row in tables.read(next(Path("data/shards").glob("val*"))).to_pylist()]
    Path("work/PICTURES").mkdir(parents=True)
    for number, picture in enumerate(pictures[:3]):
        Path(f"work/PICTURES/{number}.jpg").write_bytes(picture)
    places = {"cat.jpg": "work/PICTURES/0.jpg", "PICTURES": "work/PICTURES", "EXPERIMENT": "HEAD", "why": "work/why",
              "answers.csv": "work/answers.csv"}  # fmt: skip
    try:
        for command in YAML(typ="safe").load(ROOT / "tests/commands.yaml")["typed"]:
            program, *words = [places.get(word, word) for word in shlex.split(command)]
            if program == "alexnet":
                code = 0
                try:
                    alexnet.main(words, prog_name="alexnet", standalone_mode=False)
                except SystemExit as end:
                    code = end.code
                assert not code, (command, capsys.readouterr())
            else:
                workflow.run(program, *words)
    finally:
        os.environ.clear()
        os.environ.update(before)
    assert len(Path("work/answers.csv").read_text().splitlines()) == 1 + 3
    assert [file.suffix for file in Path("work/why").iterdir()] == [".png"]
    assert Path("work/confused.html").stat().st_size > 1000 and len(opened) == 1
    said = capsys.readouterr().out
    assert '"probability"' in said and "in a copy, as experiment normalization-none" in said
    assert workflow.run("git", "status", "--porcelain") == ""


def test_a_registered_network_can_be_begun_with(workflow, monkeypatch):
    monkeypatch.chdir(workflow.folder)
    for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    model, section = (params.read(name, kind) for name, kind in (("model", Model), ("start", Start)))
    section = dataclasses.replace(section, network="models:/alexnet-drawn/1")
    origin = initial.read_pretrained(section, model, Manifest.read(Path("data/shards")), Machine())
    with Path("data/model.pt").open("rb") as handle:
        network, facts = load(handle)
    assert re.match(rf"conv1, .*, fc8 of {section.network} \(run {facts['fingerprint']}\)$", origin.summary)
    assert all(torch.equal(origin.weights[name], weight) for name, weight in network.state_dict().items())


def test_what_is_checked_before_each_stage_is_no_dependency_of_it(workflow):
    """All sections are checked before the first stage; still, another seed of `results` repeats only two stages."""
    before = (workflow.folder / "params.yaml").read_text()
    try:
        workflow.change({"results": {"seed": 1}})
        status = json.loads(workflow.run("dvc", "status", "--json"))
        changed = {name: [found for found in status[name] if "params.yaml" in str(found)] for name in status}
        assert {name for name, found in changed.items() if found} == {"evaluate", "report"}
        (workflow.folder / "machine.yaml").write_text("workers: 1\n")
        workflow.change({"results": {"seed": 0}})
        assert "up to date" in workflow.run("dvc", "status")
    finally:
        (workflow.folder / "params.yaml").write_text(before)
        (workflow.folder / "machine.yaml").unlink(missing_ok=True)


def test_a_recipe_runs_beside_the_working_copy(workflow):
    shutil.copy(workflow.folder / "params.yaml", workflow.folder / "recipes/other.yaml")
    recipe = workflow.folder / "recipes/other.yaml"
    recipe.write_text(re.sub(r"(report:\n(  .*\n)*  seed: )0", r"\g<1>7", recipe.read_text()))
    workflow.run("git", "add", "-A")
    workflow.run("git", "commit", "-qm", "a recipe")
    assert "report.seed=7" in workflow.run(sys.executable, "-m", "pipeline", "run", "--recipe", "other")
    assert workflow.run("git", "status", "--porcelain") == ""
    assert "other" in workflow.run("dvc", "exp", "list", "--name-only").split()
    code, said = workflow.run(sys.executable, "-m", "pipeline", "run", "--recipe", "othr", check=False)
    assert code == 2
    assert "did you mean 'other'? there are caffe, " in said
    workflow.run("git", "rm", "-q", "recipes/other.yaml")  # the report compares with all recipes
    workflow.run("git", "commit", "-qm", "no recipe")


def test_variants_are_run_once_recorded_and_compared(workflow):
    seed = YAML(typ="safe").load(workflow.folder / "params.yaml")["learning"]["seed"]
    file = workflow.folder / "studies/two/study.yaml"
    file.parent.mkdir()
    shutil.copy(workflow.folder / "params.yaml", file.with_name("base.yaml"))
    lines = ["target: evaluate", f"seeds: [{seed}]", "variants:"]
    for name, number in (("one", 8), ("other", 9)):  # what does not touch the training takes no time
        lines.append(f'  - {{name: {name}, section: "", changes: {{report.seed: {number}}}, paper: ""}}')
    file.write_text("\n".join(lines) + "\n")
    workflow.run("git", "add", "-A")
    workflow.run("git", "commit", "-qm", "a study")
    shutil.move(workflow.folder / ".dvc/cache", workflow.folder / "away")
    code, said_too = workflow.run(sys.executable, "-m", "studies", "two", check=False)
    shutil.move(workflow.folder / "away", workflow.folder / ".dvc/cache")
    assert code == 1
    assert "not in DVC's cache. Run first: make repro, or dvc pull" in said_too
    said = workflow.run(sys.executable, "-m", "studies", "two", "other")
    assert "studies: other, seed" in said and "studies: one, seed" not in said
    said = workflow.run(sys.executable, "-m", "studies", "two")
    assert "studies: one, seed" in said and "studies: other, seed" not in said
    error = 100 * json.loads((workflow.folder / "metrics.json").read_text())["ten_views"]["top1_error"]
    assert f"| other |  | 1 | {error:.2f} |" in said
    assert f"{error:.2f} - {error:.2f} = +0.00" in said
    assert file.with_name("table.md").read_text().strip() in said
    assert all(file.with_name(f"{name}.png").stat().st_size > 1000 for name in ("losses", "differences"))
    with file.with_name("curves.csv").open() as handle, (workflow.folder / "data/history/steps.csv").open() as history:
        points = [row for row in csv.DictReader(handle) if (row["variant"], row["per"]) == ("one", "step")]
        steps = [*csv.DictReader(history)]
    assert [{name: point[name] for name in steps[0]} for point in points] == steps
    file.with_name("losses.png").unlink()
    assert workflow.run(sys.executable, "-m", "studies", "two").strip() in said
    assert not file.with_name("losses.png").exists(), "a finished study is printed, not written"
    shutil.rmtree(file.parent)
    workflow.run("git", "reset", "-q", "--hard", "HEAD~1")


def test_outs_are_pushed_and_pulled(workflow, tmp_path):
    before = workflow.outs()
    workflow.run("dvc", "remote", "add", "--local", "-d", "here", str(tmp_path))
    workflow.run("dvc", "push")
    shutil.rmtree(workflow.folder / ".dvc/cache")
    shutil.rmtree(workflow.folder / "data/shards")
    workflow.run("dvc", "pull")
    assert "Data and pipelines are up to date" in workflow.run("dvc", "status")
    assert workflow.outs() == before


def test_a_wrong_key_stops_before_any_work(workflow, tmp_path):
    copy = Copy(tmp_path)
    file = tmp_path / "params.yaml"
    file.write_text(file.read_text().replace("train_images", "train_pictures"))
    code, said = copy.run("dvc", "repro", check=False)
    assert code != 0
    assert "params.yaml: source.train_pictures: unknown key" in said
    assert "did you mean 'train_images'?" in said
    assert not (tmp_path / "data/index").exists()


def test_mlflow_has_the_run_its_curves_and_the_registered_model(workflow):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{workflow.folder}/mlflow.db")
    (run,) = client.search_runs(["1"], "params.`learning.seed` = '0'")
    assert run.info.status == "FINISHED"
    assert run.data.params["learning.batch_size"] == "8"
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 10 // 2
    assert [point.step for point in client.get_metric_history(run.info.run_id, "val/top1_error")] == [5, 10]
    (model,) = client.search_registered_models()
    assert model.name == "alexnet-drawn"
    assert model.aliases == {}, "ten steps of learning cannot be told from guessing"


@contextlib.contextmanager
def cluster(folder):
    """A Ray cluster on loopback with a token and a dashboard; returns its clients' environment, its port and the dashboard's."""
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port",
             "ray-client-server-port", "metrics-export-port")  # fmt: skip
    ports = free_ports(len(names))
    known = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(access.token(folder)),
             "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "ALEXNET_MACHINE": str(folder / "machine.yaml")}  # fmt: skip
    environment = os.environ | known | {"RAY_USAGE_STATS_ENABLED": "0"}
    address, log = f"127.0.0.1:{ports[0]}", folder / "ray.log"
    with log.open("w") as said:
        head = subprocess.Popen(
            [BIN / "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1",
             "--num-cpus=2", "--min-worker-port=30000", "--max-worker-port=30999", f"--temp-dir={folder}/ray",
             *(f"--{name}={port}" for name, port in zip(names, ports, strict=True))],
            env=environment, stdout=said, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while True:
            assert head.poll() is None, f"ray start has ended:\n{log.read_text()}"
            assert time.monotonic() < deadline, f"no Ray at {address}:\n{log.read_text()}"
            asked = [BIN / "ray", "health-check", "--address", address]
            with contextlib.suppress(subprocess.TimeoutExpired):
                if subprocess.run(asked, env=environment, capture_output=True, check=False, timeout=30).returncode == 0:
                    break
        yield known, *ports[:2]
    finally:
        head.terminate()
        head.wait(60)


def free_ports(number):
    """Free ports below the range of ephemeral ports, which Ray's workers use."""
    found = []
    for port in random.sample(range(20000, 30000), 100):
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("127.0.0.1", port))
            found.append(str(port))
    return found[:number]


def test_a_job_trains_in_the_storage_and_dvc_takes_it_over(workflow, tmp_path):
    short = Path(tempfile.mkdtemp(prefix="alexnet-"))  # the path of Ray's sockets has to be short
    try:
        copy = Copy(tmp_path)
        (short / "machine.yaml").write_text(f"storage: {short}/storage\nworkers: 1\n")
        with cluster(short) as (environment, port, dashboard):
            on_node = environment | {"RAY_ADDRESS": f"127.0.0.1:{port}"}
            copy.run("dvc", "repro", "mean", **on_node)
            assert [file.name for file in (tmp_path / "data/shards").glob("train*")] == []
            submit = ["ray", "job", "submit", "--working-dir", ".", "--", "python", "-m", "pipeline", "train"]
            api = environment | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
            copy.run(*submit, **api)
            (trained,) = (short / "storage/runs").glob("*/model.pt")
            said = copy.run("dvc", "repro", "train", **on_node)
            assert "its results are taken over" in said
            assert (tmp_path / "data/model.pt").read_bytes() == trained.read_bytes()
            ours, theirs = copy.outs(), workflow.outs()
            assert {"data/index", "data/mean.npz", "data/model.pt", "data/history"} <= set(ours)
            assert {path for path in ours if ours[path] != theirs[path]} == {"data/shards"}
            (stored,) = (short / "storage/shards").glob("*/manifest.json")
            for file in (workflow.folder / "data/shards").iterdir():
                assert (stored.parent / file.name).read_bytes() == file.read_bytes(), "the same with other workers"
            copy.change({"learning": {"rate": -1}})
            code, said = copy.run(*submit, check=False, **api)
            assert code != 0
            assert "params.yaml: learning: rate has to be 0 or more, is -1.0" in said
    finally:
        shutil.rmtree(short)
