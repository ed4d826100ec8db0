"""`alexnet run`: it says what will run, leaves all here as it is for a changed run, and refuses wrong changes first."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from pipeline.runtime import durations, params
from pipeline.workflow import run as program

ROOT = Path(__file__).parents[1]

CHEAP = """
stages:
  one:
    cmd: echo one >> said.txt && mkdir -p data && cp params.yaml data/one.txt
    params: [learning.rate]
    outs: [data]
  two:
    cmd: echo two >> said.txt && cp given.json metrics.json
    deps: [data/one.txt]
    metrics: [metrics.json: {cache: false}]
  three:
    cmd: echo three > three.txt
    params: [report.seed]
    outs: [three.txt]
"""


class Copy:
    """A working copy with the repository's settings and three trivial stages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "GIT_", "ALEXNET_"))}
        who = {f"GIT_{role}_{part}": "a@b" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
        self.environment = kept | who | {"PATH": path, "PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1"}
        for name in (".dvc/config", ".dvc/.gitignore", ".gitignore", "params.yaml", ".dvc/site/repo/README", "recipes"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, folder / name)
        (folder / "dvc.yaml").write_text(CHEAP)
        shutil.copy(ROOT / "metrics.json", folder / "given.json")
        for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "as it is"]):
            self.run("git", *words)

    def run(self, *words: str, code: int = 0) -> str:
        done = subprocess.run(
            words, cwd=self.folder, env=self.environment, check=False, text=True, timeout=120,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == code, done.stdout
        return done.stdout

    def alexnet(self, *words: str, code: int = 0) -> list[str]:
        return self.run(sys.executable, "-m", "pipeline", "run", *words, code=code).splitlines()

    def lines(self, said: list[str]) -> dict[str, str]:
        return {line.split()[0]: " ".join(line.split()[1:]) for line in said if line.startswith("  ")}


@pytest.mark.slow
def test_it_says_what_runs_and_why_and_runs_it_and_a_change_leaves_all_here_as_it_is(tmp_path: Path) -> None:
    copy = Copy(tmp_path / "copy")
    said = copy.lines(copy.alexnet("--dry"))
    assert {name: words.split()[0] for name, words in said.items() if name in ("one", "two", "three")} == dict.fromkeys(
        ("one", "two", "three"), "runs"
    )
    assert not (copy.folder / "said.txt").exists(), "--dry runs nothing"
    out = copy.alexnet()
    assert (copy.folder / "said.txt").read_text() == "one\ntwo\n"
    assert "ten_views.top1_error" in out[-2], "the metrics, as make repro shows them"
    said = copy.lines(copy.alexnet("--dry"))
    assert said == dict.fromkeys(("one", "two", "three"), "up to date")
    copy.run("git", "add", "-A")
    copy.run("git", "commit", "-qm", "results")

    before = {
        file: (copy.folder / file).read_bytes() for file in ("params.yaml", "dvc.lock", "data/one.txt", "said.txt")
    }
    (copy.folder / "work").mkdir()
    row = json.dumps({"stage": "one", "seconds": 125, "params": "other"})
    (copy.folder / "work/durations.jsonl").write_text(f"damaged\n{row}\n")
    out = copy.alexnet("-S", "learning.rate=0.5")
    assert out[0].startswith("run: in a copy, as experiment rate-0.5;")
    said = copy.lines(out)
    assert said["learning.rate=0.5"] == ""
    assert said["one"] == "runs last time 2:05, other params learning.rate changes"
    assert (said["two"], said["three"]) == ("runs after one", "up to date")
    assert "2:05 and the stages that have not run yet" in "\n".join(out)
    assert "Errors, ten views" in out, "\n".join(out)
    rows = [line.split()[:2] for line in out]
    assert ["here", "1"] in rows
    assert ["rate-0.5", "1"] in rows
    assert {file: (copy.folder / file).read_bytes() for file in before} == before
    assert copy.run("git", "status", "--porcelain", "--untracked-files=no") == ""
    assert copy.run("dvc", "exp", "list", "--name-only").split() == ["rate-0.5"]
    ref = copy.run("git", "for-each-ref", "--format=%(refname)", "refs/exps/**/rate-0.5").strip()
    assert "rate: 0.5" in copy.run("git", "show", f"{ref}:params.yaml")
    copy.run(sys.executable, "-m", "pipeline", *out[-2].partition(":  alexnet ")[2].split())
    assert (copy.folder / "compared.html").read_text().count("rate-0.5")
    copy.run(*out[-1].partition(":    ")[2].split())
    assert params.load(copy.folder / "params.yaml")["learning"]["rate"] == 0.5

    (copy.folder / "dvc.yaml").write_text(CHEAP.replace("echo two >>", "false && echo two >>"))
    copy.alexnet("-S", "learning.rate=0.25", code=255)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the repository's settings; to start a program is an error."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)

    def refuse(*words: object, **_: object) -> None:
        raise AssertionError(words)

    monkeypatch.setattr(program, "_done", refuse)
    monkeypatch.setattr(program, "plan", refuse)
    return tmp_path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("learning.rtae=1", "params.yaml has no key 'learning.rtae', did you mean 'learning.rate'?"),
        ("seed_of=1", "no key 'seed_of'"),
        ("batch_size=1", "did you mean 'learning.batch_size'?"),
        ("xyzzy=1", "its sections are augmentation, learning, model, "),
        ("learning.rate", "has to be section.key=value"),
        ("learning.rate=[1", "the value is not YAML"),
        pytest.param("learning.rate=fast", "learning.rate: .*found 'fast'", marks=pytest.mark.slow),
        pytest.param("learning.rate=", "learning.rate: .*found None", marks=pytest.mark.slow),
        pytest.param("learning.epochs=-1", "learning: epochs has to be", marks=pytest.mark.slow),
        pytest.param(
            "resize.side=200",
            "resize.side: 200 pixels are stored, and the network's patches have 224",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_wrong_change_is_refused_before_anything_runs(here: Path, change: str, said: str) -> None:
    with pytest.raises(click.UsageError, match=said.replace("'?", "'.")):
        program.run(None, None, [change], dry=False)
    assert sorted(file.name for file in here.iterdir()) in (
        ["params.yaml", "recipes"],
        ["params.yaml", "recipes", "work"],
    )


def test_without_git_a_changed_run_is_refused_with_what_to_do(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program.preflight, "judged", lambda _: ([], None))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(here.parent))
    with pytest.raises(
        ValueError, match=rf"needs a git commit, which this folder \({here}\) has not. Run: git init && git"
    ):
        program.run("paper", None, ["learning.seed=5"], dry=False)


def test_changes_stand_above_the_source_and_the_source_above_the_recipe(here: Path) -> None:
    file, wanted = program.recipe.contents("paper", "cifar10")
    changed = program.with_changes(wanted, ["source.name=x", "learning.rate=1e-3", "model.columns=1"])
    assert (changed["source"]["name"], changed["learning"]["rate"], changed["model"]["columns"]) == ("x", 1e-3, 1)
    assert wanted["source"]["name"] == "cifar10", "what it is made from stays"
    assert file == Path("recipes/paper.yaml")


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("paper", "cifar10", []), "paper-cifar10"),
        ((None, None, ["learning.rate=0.5", "learning.seed=3"]), "rate-0.5-seed-3"),
        ((None, None, ["model.kernels=[1, 2]"]), "kernels-1-2"),
        ((None, None, ["start.network=../a b~^:?*[\\.lock"]), "network-a-b-lock"),
        ((None, None, [f"learning.seed={'1' * 90}"]), f"seed-{'1' * 43}"),
    ],
)
def test_an_experiment_has_a_name_that_git_takes(words: tuple[str | None, str | None, list[str]], name: str) -> None:
    assert program.title(*words) == name
    subprocess.run(["git", "check-ref-format", f"refs/exps/{name}"], check=True)


def test_the_last_duration_of_a_stage_counts_and_says_whether_it_had_these_params(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert durations.last() == {}
    durations.record("train", 5.04)
    durations.record("train", 7.0)
    assert durations.last() == {"train": durations.Duration(7.0, same_params=True)}
    (here / "params.yaml").write_text("{}")
    assert durations.last() == {"train": durations.Duration(7.0, same_params=False)}
    (here / "copy").mkdir()
    monkeypatch.chdir(here / "copy")
    monkeypatch.setenv("DVC_ROOT", str(here))
    durations.record("mean", 1.0)
    monkeypatch.chdir(here)
    assert set(durations.last()) == {"train", "mean"}, "an experiment's copy is removed, and its times stay"
    assert durations.record("mean", 1.0) is None
    (here / "work/durations.jsonl").unlink()
    (here / "work").rmdir()
    (here / "work").write_text("no folder")
    durations.record("mean", 1.0)
    assert durations.last() == {}
