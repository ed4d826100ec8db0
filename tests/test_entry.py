"""The command line of every program: it shows its usage and refuses unknown arguments before it does anything."""

from __future__ import annotations

import ast
import os
import re
import resource
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import pytest

from pipeline.commands import STAGES, alexnet

ROOT = Path(__file__).parents[1]


def tracked() -> list[Path]:
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return [Path(name) for name in names if name and (ROOT / name).is_file()]


def runnable() -> list[Path]:
    """Every module that can be run as a program."""
    files = [file for file in tracked() if file.suffix == ".py"]
    return [file for file in files if re.search(r'^if __name__ == "__main__":', (ROOT / file).read_text(), re.M)]


def command(file: Path) -> list[str]:
    """The command that starts a program from the root; modules of pipeline and studies by their names."""
    if file.parts[0] not in ("pipeline", "studies"):
        return [file.as_posix()]
    return ["-m", ".".join(file.with_suffix("").parts).removesuffix(".__main__")]


NAMES = alexnet.list_commands(click.Context(alexnet))

EVERY = [command(file) for file in runnable()] + [["-m", "pipeline", name] for name in NAMES]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working copy with a finished run, which no invalid argument may change."""
    folder = tmp_path_factory.mktemp("copy")
    for file in tracked():
        if file.suffix not in (".png", ".csv"):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / file, folder / file)
    for name in ("runs/0123456789abcdef/finished.json", "data/model.pt", "work/outs/x"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    files = [file for file in folder.rglob("*") if "__pycache__" not in file.parts]
    return {str(file.relative_to(folder)): (file.lstat().st_mtime_ns, file.lstat().st_size) for file in files}


def ran(copy: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs a program in the copy, where importing a slow library is an error."""
    heavy = copy.with_name("heavy")
    for name in ("torch", "ray", "mlflow", "pyarrow"):
        (heavy / name).mkdir(parents=True, exist_ok=True)
        (heavy / name / "__init__.py").write_text("raise SystemExit('imported')")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "ALEXNET_", "RAY_"))}
    path = f"{heavy}{os.pathsep}{copy}"
    environment = kept | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *words], cwd=copy, env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def test_the_stages_and_programs_are_among_those_that_are_found() -> None:
    names = {" ".join(words) for words in EVERY}
    assert {f"-m pipeline.{name}" for name in STAGES} <= names
    assert {"-m pipeline", "tests/kills.py", "tests/mutants.py", "benchmarks/kernel.py"} <= names
    assert "-m studies" in names


@pytest.mark.slow
def test_every_program_shows_its_usage_and_refuses_what_it_does_not_know_and_does_nothing_else(copy: Path) -> None:
    asked = {"--help": 0, "-h": 0, "nonsense": 2, "--nonsense": 2, "--verb": 2, "--hel": 2}
    before = snapshot(copy)
    # to `predict` any word may be a picture, to `compare` a run in MLflow
    free = (("predict", "nonsense"), ("compare", "nonsense"))
    every = [(words, word) for words in EVERY for word in asked if (words[-1], word) not in free]
    with ThreadPoolExecutor(2) as programs:
        done = list(programs.map(lambda pair: ran(copy, [*pair[0], pair[1]]), every))
    wrong = []
    for (words, word), said in zip(every, done, strict=True):
        text = said.stdout if asked[word] == 0 else said.stderr
        if said.returncode != asked[word] or not text.lower().startswith("usage: ") or "Traceback" in said.stderr:
            wrong.append((" ".join([*words, word]), said.returncode, (said.stdout + said.stderr)[-300:]))
    assert wrong == []
    assert snapshot(copy) == before


@pytest.mark.parametrize(
    "words", [["train", "nonsense"], ["train", "--verbose", "again"], [], ["trian"], ["train", ""]]
)
def test_a_stage_takes_no_other_word(copy: Path, words: list[str]) -> None:
    before = snapshot(copy)
    done = ran(copy, ["-m", "pipeline", *words])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: python -m pipeline")
    assert snapshot(copy) == before


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_s_usage_is_the_head_of_its_docstring(name: str) -> None:
    text = ast.get_docstring(ast.parse((ROOT / f"pipeline/{name}.py").read_text()))
    assert text is not None
    command = alexnet.get_command(click.Context(alexnet), name)
    assert command
    shown = command.get_help(click.Context(command))
    for line in ("Run: ", "Reads: ", "Writes: ", "Expect: "):
        assert line in shown
    assert text.splitlines()[0] in shown


@pytest.mark.parametrize(
    ("word", "said"), [("trian", "did you mean 'train'?"), ("xyz", f"there are {', '.join(NAMES)}")]
)
def test_a_word_that_is_no_command_is_refused_with_the_nearest_or_all(copy: Path, word: str, said: str) -> None:
    done = ran(copy, ["-m", "pipeline", word])
    assert done.returncode == 2
    assert f"no command '{word}'" in done.stderr
    assert said in done.stderr


def test_the_list_of_commands_says_what_each_does_and_the_exit_codes(copy: Path) -> None:
    done = ran(copy, ["-m", "pipeline", "--help"])
    assert (done.returncode, done.stderr) == (0, "")
    for name in NAMES:
        file = ROOT / "pipeline" / ("" if name in STAGES else "commands") / f"{name.replace('-', '_')}.py"
        text = ast.get_docstring(ast.parse(file.read_text()))
        assert text
        first = text.splitlines()[0].rstrip(".:")
        assert f"{name} {first}" in " ".join(done.stdout.split()), name
    assert "2 words that the command does not know" in " ".join(done.stdout.split())


STUB = """
from pipeline.runtime.progress import Progress
def run():
    print("so far")
    with Progress("mean", 1, "images") as progress:
        progress.add(1)
    {end}
"""


@pytest.fixture
def stub(copy: Path, tmp_path: Path) -> Path:
    """A working copy whose stage `mean` says a little and imports nothing slow, and whose checks all pass."""
    folder = tmp_path / "stub"
    shutil.copytree(copy, folder, ignore=shutil.ignore_patterns("data", "runs"))
    (folder / "pipeline/doctor/preflight.py").write_text("def check(name): ...")
    return folder


@pytest.mark.parametrize("end", ["pass", "raise ValueError('mean: is 3')", "1 / 0"])
def test_a_quiet_stage_prints_errors_alone(stub: Path, end: str) -> None:
    (stub / "pipeline/mean.py").write_text(STUB.format(end=end))
    loud, quiet = (ran(stub, ["-m", "pipeline", "mean", *words]) for words in ([], ["-q"]))
    assert (loud.stdout, "1 of 1 images" in loud.stderr) == ("so far\n", True)
    assert quiet.stdout == ""
    assert "images" not in quiet.stderr
    assert quiet.returncode == loud.returncode == (end != "pass")
    assert bool(quiet.stderr) == (end != "pass")
    assert quiet.stderr.endswith("mean: mean: is 3\n") == ("3" in end)
    assert ("Traceback" in quiet.stderr) == ("/" in end), "a fault of ours"


@pytest.mark.parametrize("words", [["mean", "--verbose"], ["-v", "mean"]])
def test_an_error_has_its_traceback_for_the_asking(stub: Path, words: list[str]) -> None:
    (stub / "pipeline/mean.py").write_text(STUB.format(end="raise ValueError('is 3')"))
    assert "Traceback" not in ran(stub, ["-m", "pipeline", "mean"]).stderr
    done = ran(stub, ["-m", "pipeline", *words])
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("mean: is 3\n")


def test_every_command_has_the_same_options_of_help_and_loudness() -> None:
    def check(command: click.Command) -> None:
        options = {word for each in command.params for word in each.opts}
        assert {"-q", "--quiet", "-v", "--verbose"} <= options, command.name
        assert command.context_settings["help_option_names"] == ["-h", "--help"]
        for inner in getattr(command, "commands", {}).values():
            check(inner)

    for name in NAMES:
        command = alexnet.get_command(click.Context(alexnet), name)
        assert command
        check(command)


def test_a_stage_that_ran_to_its_end_leaves_its_time_and_no_other_does(stub: Path) -> None:
    for end, lines in (("raise ValueError('is 3')", 0), ("pass", 1), ("pass", 2)):
        (stub / "pipeline/mean.py").write_text(STUB.format(end=end))
        ran(stub, ["-m", "pipeline", "mean"])
        file = stub / "work/durations.jsonl"
        assert (len(file.read_text().splitlines()) if file.exists() else 0) == lines


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["train", "--help"]])
def test_help_takes_no_half_second_of_a_cpu(copy: Path, words: list[str]) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ran(copy, ["-m", "pipeline", *words]).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5
