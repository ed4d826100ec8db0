"""The command `alexnet`: it runs the code of the working copy that it is typed in, from any folder of it, and no other code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PROBE = '''"""Prints where this code is, and where it runs."""

import json
import os
import sys
import click
import pipeline
import alexnet
from pipeline.commands import TypedPath, lazily

def show(model, file):
    here = [str(os.path.dirname(os.path.dirname(each.__file__))) for each in (pipeline, alexnet)]
    left = os.environ.get("ALEXNET_TYPED_IN", "")
    print(json.dumps([*here, os.getcwd(), sys.prefix, str(file), left, os.path.exists(file)]))

params = [click.Option(["--model"]), click.Argument(["file"], type=TypedPath(), default="some file")]
command = click.Command("predict", params=params, callback=lazily(__name__, "show"))
'''

STAGE = "stages:\n  one:\n    cmd: alexnet predict > {out}\n    params: [learning.rate]\n"


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with this code, a probe in place of `predict`, and an environment that make has completed."""
    folder = tmp_path_factory.mktemp("launcher") / "clone"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "alexnet", "pipeline", ".dvc"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in (*filter(None, names), "Makefile", "pyproject.toml", "params.yaml", ".gitignore"):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / "dvc.yaml").write_text(STAGE.format(out=folder.with_name("said.json")))
    (folder / "pipeline/commands/predict.py").write_text(PROBE)
    (folder / "deep/down").mkdir(parents=True)
    (folder / "deep/down/some file").touch()
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "as it is")
    venv.create(folder / ".venv", symlinks=True)
    (packages,) = (folder / ".venv/lib").glob("python*/site-packages")
    (packages / "these.pth").write_text(sysconfig.get_path("purelib"))
    (folder / "requirements.lock").touch()
    (folder / ".venv/installed").touch()
    outer = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}
    kept = {name: value for name, value in os.environ.items() if name not in outer}
    subprocess.run(["make", ".venv/ready"], cwd=folder, env=kept, check=True, capture_output=True)
    return folder


def run(launcher: Path, folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "ALEXNET_TYPED_IN")}
    return subprocess.run(
        [launcher / ".venv/bin/alexnet", *words], cwd=folder, env=kept | more, text=True, check=False, timeout=60,
        capture_output=True,
    )  # fmt: skip


def said(done: subprocess.CompletedProcess[str]) -> list[object]:
    assert (done.returncode, done.stderr) == (0, "")
    return list(json.loads(done.stdout))


def expected(code: Path, file: str, environment: Path, there: bool = False) -> list[object]:
    return [str(code), str(code), str(code), str(environment / ".venv"), file, "", there]


def test_it_runs_the_code_of_the_working_copy_and_files_mean_the_folder_where_it_was_typed(first: Path) -> None:
    deep = first / "deep/down"
    assert said(run(first, first, "predict")) == expected(first, "some file", first)
    assert said(run(first, deep, "predict")) == expected(first, str(deep / "some file"), first, there=True)
    assert said(run(first, deep, "predict", "/else")) == expected(first, "/else", first)


def test_in_a_worktree_it_runs_the_worktree_s_code(first: Path, tmp_path: Path) -> None:
    git(first, "worktree", "add", "-q", str(tmp_path / "tree"), "-b", "other")
    (tmp_path / "tree/sub folder").mkdir()
    for typed in (tmp_path / "tree", tmp_path / "tree/sub folder"):
        file = "some file" if typed.name == "tree" else str(typed / "some file")
        assert said(run(first, typed, "predict")) == expected(tmp_path / "tree", file, first)
    assert f"in {tmp_path / 'tree'}\n" in run(first, tmp_path / "tree", "--version").stdout


def test_a_copy_inside_another_one_and_no_variable_leads_to_other_code(first: Path, tmp_path: Path) -> None:
    inner = first / ".dvc/tmp/exps/one"
    shutil.copytree(first, inner, ignore=shutil.ignore_patterns(".venv", ".git", "tmp"))
    for variables in ({}, {"PYTHONPATH": str(first)}, {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(first)}):
        assert said(run(first, inner, "predict", **variables)) == expected(inner, "some file", first)
    link = tmp_path / "alexnet"
    link.symlink_to(first / ".venv/bin/alexnet")
    done = subprocess.run([link, "predict"], cwd=inner, check=True, capture_output=True, text=True)
    assert said(done) == expected(inner, "some file", first)


def test_a_clone_that_was_moved_runs_its_own_code(first: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved here"
    shutil.copytree(first, moved, symlinks=True)
    assert said(run(moved, moved, "predict")) == expected(moved, "some file", moved)
    assert str(first) not in (moved / ".venv/bin/alexnet").read_text()


def test_outside_it_refuses_all_but_a_prediction_by_a_network_that_is_named(first: Path, tmp_path: Path) -> None:
    for words in (["train"], ["--help"], [], ["predict", "x.jpg"], ["train", "--model", "x"], ["runs", "predict"]):
        done = run(first, tmp_path, *words)
        assert (done.returncode, done.stdout) == (1, ""), words
        assert f"no working copy in {tmp_path} or above it" in done.stderr
        assert "alexnet predict --model FILE PICTURE" in done.stderr
    (tmp_path / "a.jpg").touch()
    for words in (["predict", "--model", "m.pt", "a.jpg"], ["-q", "predict", "--model=m.pt", "a.jpg"]):
        done = run(first, tmp_path, *words)
        assert said(done) == expected(first, str(tmp_path / "a.jpg"), first, there=True)
    completing = run(first, tmp_path, _ALEXNET_COMPLETE="bash_complete", COMP_WORDS="alexnet ", COMP_CWORD="1")
    assert (completing.returncode, completing.stdout, completing.stderr) == (0, "", "")


@pytest.mark.slow
def test_in_an_experiment_s_copy_it_runs_that_copy_s_code(first: Path) -> None:
    bins = os.pathsep.join([str(first / ".venv/bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "GIT_"))}
    kept |= {f"GIT_{role}_{part}": "a@b" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}
    subprocess.run(
        ["dvc", "exp", "run", "--temp", "-S", "learning.rate=0.5"], cwd=first, check=True, capture_output=True,
        env=kept | {"PATH": bins, "DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(first / ".dvc/site")},
    )  # fmt: skip
    code, other, folder, *_ = json.loads(first.with_name("said.json").read_text())
    assert code == other == folder
    assert Path(code).is_relative_to(first / ".dvc/tmp/exps")


def test_words_are_completed(first: Path) -> None:
    script = run(first, first, "completion", "bash").stdout
    typed = f'{script}\nCOMP_WORDS=(alexnet tr); COMP_CWORD=1; _alexnet_completion alexnet; echo "${{COMPREPLY[@]}}"'
    path = f"{first / '.venv/bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", typed], cwd=first, env=os.environ | {"PATH": path}, check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == ["train", "tracking"]
    for shell in ("zsh", "fish"):
        assert "_ALEXNET_COMPLETE" in run(first, first, "completion", shell).stdout
    assert run(first, first, "completion", "csh").returncode == 2
