"""Every command that a page says to type is run by a test: tests/commands.yaml says by which."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from docs import typed

ROOT = Path(__file__).parents[2]

LIST = YAML(typ="safe").load(ROOT / "tests/commands.yaml")

NAMED = {
    command: page
    for page in typed.pages()
    for command in typed.commands(
        page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix() not in typed.LEFT_OUT
    )
}
"""Command → a page that has it."""

RUN = {*LIST["typed"], *LIST["shell"], *LIST["make"], *LIST["tested"]}


def begins(command: str, other: str) -> bool:
    """Whether `other` is `command` with further words: a page may name `dvc exp run` where it speaks of it."""
    return other.startswith(f"{command} ")


def test_every_command_on_a_page_is_run_by_a_test() -> None:
    missing = {
        command: str(page)
        for command, page in NAMED.items()
        if command not in RUN and not any(begins(command, other) for other in RUN)
    }
    assert missing == {}, "add it to tests/commands.yaml, with a test that runs it"
    assert RUN - set(NAMED) == set(), "on no page any more"
    assert len(NAMED) > 80


def test_commands_are_found_in_blocks_and_in_the_text() -> None:
    page = (
        "Type `make repro` or `alexnet`, not `data/x`, or\n\n  ```sh\n  a b  # why\n  c d && e \\\n  f   # x\n  ```\n"
        "```yaml\ng: h\n```\n`dvc exp apply X`, `exp run`\n"
    )
    assert [*typed.commands(page)] == ["a b", "c d", "e f", "make repro", "dvc exp apply X"]
    assert [*typed.commands(page, in_text=False)] == ["a b", "c d", "e f"]


def test_each_test_is_there_and_knows_the_words_of_its_commands() -> None:
    """A test that has neither the command's options nor the first word that is not the reader's own would run something else."""
    for command, test in LIST["tested"].items():
        file, _, name = test.partition("::")
        text = (ROOT / file).read_text(encoding="utf-8")
        body = re.search(rf"^def {name}\(.*?(?=^(?:def|@|class) |\Z)", text, re.M | re.S)
        assert body, test
        options = re.findall(r"(?<=\s)--[a-z-]+", command)
        for word in options:
            if word not in ("--generate", "--head", "--help"):  # read from the page, or an argument of a helper
                assert re.search(rf"{re.escape(word)}|\b{word[2:].replace('-', '_')}\b|typed\.commands", text), (
                    command,
                    word,
                )


def make(folder: Path, words: str) -> list[str]:
    """What make runs in a folder where each program prints its words instead."""
    programs = folder / ".venv/bin"
    programs.mkdir(parents=True, exist_ok=True)
    for name in ("python", "dvc", "pytest", "ruff", "mypy", "lint-imports", "sphinx-build"):
        (programs / name).write_text(f'#!/bin/sh\necho "{name} $@"\n')
        (programs / name).chmod(0o755)
    for name in (
        ".dvc/site.pth",
        ".dvc/rwlock.py",
        ".dvc/alexnet",
        "requirements.lock",
        "benchmarks/requirements.lock",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
        os.utime(folder / name, (0, 0))
    for name in ("installed", "ready"):
        (folder / ".venv" / name).touch()
    (folder / "benchmarks/.env").mkdir(exist_ok=True)
    (folder / "benchmarks/.env/ready").touch()
    (folder / "Makefile").write_text((ROOT / "Makefile").read_text(encoding="utf-8"))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        ["bash", "-c", words], cwd=folder, env=kept, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_make_runs_what_the_list_says(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    for command, runs in LIST["make"].items():
        said = make(tmp_path, command)
        pattern = ".*".join(map(re.escape, runs.split()))
        assert any(re.match(pattern, line) for line in said), (command, said)


def test_what_make_runs_is_run_by_ci_or_by_a_test_below() -> None:
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8")
    tested = {
        "dvc repro": "dvc repro",
        "python -m studies": "python -m studies NAME",
        "python -m benchmarks": "python -m benchmarks",
        "python -m pipeline run --recipe": "alexnet run --recipe paper",
        "python -m pipeline run --source": "alexnet run --source pets",
    }
    for command, runs in LIST["make"].items():
        by = next((known for start, known in tested.items() if runs.startswith(start)), "")
        if by:
            assert any(each.startswith(by) for each in LIST["tested"]), command
        elif "tracking ui" in runs:
            pages = (ROOT / "tests/test_network.py").read_text(encoding="utf-8")
            assert "test_the_pages_of_mlflow_listen_on_loopback_alone" in ci + pages
        else:  # make test runs lint and all that make fast runs
            wanted = {"make fast": "make test", "make lint": "make test"}.get(command, command)
            assert re.search(rf"^{wanted}$", ci, re.M), command
    assert re.search(r"^test: lint ##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)


def test_shell_lines_can_be_typed(tmp_path: Path) -> None:
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").touch()
    lines = sorted(LIST["shell"], key=lambda line: (not line.startswith("mkdir"), line))
    script = "\n".join(re.sub(r"/(data|shared)(?=/[a-z]+)(?!/store)", rf"{tmp_path}/\1", line) for line in lines)
    script = script.replace(f"data{tmp_path}/", "data/")
    subprocess.run(["bash", "-euc", script], cwd=tmp_path, check=True)
    assert (tmp_path / "shared/alexnet/machine.yaml").read_text().startswith(f"storage: {tmp_path}")
    assert len([*(tmp_path / "data/store").iterdir()]) == 3


@pytest.mark.slow
def test_a_cluster_s_token_is_made_where_the_page_says(tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    words = [Path(sys.executable).with_name("ray"), "get-auth-token", "--generate"]
    done = subprocess.run(
        words, env=kept | {"HOME": str(tmp_path)}, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "~/.ray/auth_token" in (ROOT / "docs/clusters.md").read_text(encoding="utf-8")
    assert (tmp_path / ".ray/auth_token").read_text().strip() in done.stdout
