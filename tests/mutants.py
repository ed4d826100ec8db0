"""Mutation tests: breaks the code one line at a time, and checks that the named test fails.

`make mutants`, or `python tests/mutants.py [--only SUBSTRING]`. tests/mutants.yaml lists the breakages; each has

    file   the file to break, in alexnet/, pipeline/, studies/, docs/ or .dvc/, or Makefile, or dvc.yaml
    old    a part of one line, which occurs exactly once
    new    its replacement
    why    the consequence, in a few words
    test   the test that has to fail, or a list of them: file::test
    hangs  optional: seconds after which the test counts as failed, if the breakage makes it hang

In a temporary copy of this working copy all these tests have to pass first. Then, for every breakage by itself, its tests
have to fail: one of them, in its own body. An error before that, as of a module that cannot be imported or of a fixture,
shows nothing and makes the entry invalid. This working copy is only read.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]

PACKAGES = ("alexnet", "pipeline", "studies", "docs")

FILES = ("Makefile", "dvc.yaml")
"""Files outside of the packages that can be broken, too."""

LIST = Path(__file__).with_suffix(".yaml")

SHARED = ("numpy", "torch", "torchvision", "pyarrow.parquet", "PIL.Image", "scipy.io", "matplotlib.figure", "pydantic")
"""Libraries that are imported once and inherited by each process, since importing takes longer than most tests. Not this
project's modules, which the mutants change, and not Ray, which starts threads."""

LIMIT = 900.0
"""Seconds after which the tests of a breakage count as hanging."""

OURS = ("ALEXNET_", "DVC_", "MLFLOW_", "RAY_")
"""Prefixes of environment variables that could name other folders or servers."""


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """An entry of the list."""

    file: str
    old: str
    new: str
    why: str
    tests: tuple[str, ...]
    hangs: float = 0.0
    """Seconds; 0: the tests' own limits."""

    def __str__(self) -> str:
        return f"{self.file}: {self.why}"

    def applied(self, text: str) -> str:
        """The file's text with the breakage."""
        return text.replace(self.old, self.new)


@dataclass(eq=False)
class Outcome:
    """The result of a run of pytest: the tests that passed, and the errors of the others."""

    code: int = -1
    passed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    """Tests that failed in their own body."""
    said: str = ""
    """The message of the first test that failed."""
    errors: list[str] = field(default_factory=list)
    """Errors in collection and in fixtures."""
    skipped: list[str] = field(default_factory=list)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Called by pytest for each file."""
        if report.failed:
            self.errors.append(report.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest for each test's setup, body and end."""
        if report.skipped:
            self.skipped.append(report.nodeid)
        elif report.failed:
            (self.failed if report.when == "call" else self.errors).append(report.nodeid)
            crash = getattr(report.longrepr, "reprcrash", None)
            self.said = self.said or str(getattr(crash, "message", "")).partition("\n")[0]
        elif report.when == "call":
            self.passed.append(report.nodeid)


def main() -> int:
    """Runs the program; returns 1 if a breakage survived or an entry is invalid."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="entries in whose file, words or tests this is")
    only = parser.parse_args().only
    everything = read()
    mutants = [mutant for mutant in everything if only in f"{mutant} {' '.join(mutant.tests)}"]
    if not mutants:
        raise SystemExit(f"mutants: {LIST.name} has no entry with '{only}'")
    begun = time.monotonic()
    with copied() as copy:
        check_unbroken(mutants, copy)
        verdicts = [judged(mutant, copy) for mutant in mutants]
    for module in [] if only else untouched(everything):
        print(f"no mutant of {module}")
    caught, survived = verdicts.count("caught"), verdicts.count("SURVIVED")
    invalid = len(verdicts) - caught - survived
    also = f", {invalid} invalid" if invalid else ""
    print(f"{time.monotonic() - begun:.0f} s in all")
    print(f"{caught} caught, {survived} survived{also}")
    return int(caught < len(verdicts))


def read() -> list[Mutant]:
    """Reads the list; `SystemExit` with every entry that does not fit the code."""
    mutants, wrong = [], []
    for number, entry in enumerate(YAML(typ="safe").load(LIST), start=1):
        if set(entry) - {"hangs"} != {"file", "old", "new", "why", "test"}:
            raise SystemExit(f"mutants: {LIST.name}: entry {number} has the keys {', '.join(entry)}")
        tests = entry.pop("test")
        mutant = Mutant(**entry, tests=tuple([tests] if isinstance(tests, str) else tests))
        wrong += [f"{LIST.name}: entry {number}: {mutant}: {fault}" for fault in faults(mutant)]
        mutants.append(mutant)
    if wrong:
        raise SystemExit("\n".join(["mutants: the list does not fit the code:", *wrong]))
    return mutants


def faults(mutant: Mutant) -> Iterator[str]:
    """The faults of an entry."""
    file = ROOT / mutant.file
    folders = *(f"{name}/" for name in PACKAGES), ".dvc/"
    if not (mutant.file.startswith(folders) or mutant.file in FILES) or not file.is_file():
        yield f"no file of {', '.join(PACKAGES)} or .dvc, and neither of {', '.join(FILES)}"
        return
    text = file.read_text()
    if "\n" in mutant.old or mutant.old == mutant.new:
        yield "one line, and not the same again"
    if text.count(mutant.old) != 1:
        yield f"has to be there once, is there {text.count(mutant.old)} times: {mutant.old!r}"
    elif file.suffix == ".py":
        try:
            compile(mutant.applied(text), mutant.file, "exec")
        except SyntaxError as error:
            yield f"broken, it is no Python: {error}"
    for test in mutant.tests:
        if "::" not in test or not (ROOT / test.partition("::")[0]).is_file():
            yield f"no test: {test}"


def untouched(mutants: Sequence[Mutant]) -> list[str]:
    """The modules without a mutant."""
    modules = [file for name in PACKAGES for file in (ROOT / name).rglob("*.py")]
    names = {file.relative_to(ROOT).as_posix() for file in modules if file.stem != "__init__"}
    return sorted(names - {mutant.file for mutant in mutants})


@contextlib.contextmanager
def copied() -> Iterator[Path]:
    """A temporary copy of all files that git tracks or would add; this process changes into it and imports from it."""
    folder = Path(tempfile.mkdtemp(prefix="alexnet-mutants-"))
    try:
        copy = folder / "copy"
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
        for name in names:
            if name and (ROOT / name).is_file():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, copy / name)
        for words in (["init", "-q"], ["add", "-A"]):  # some tests ask git for the files
            subprocess.run(["git", *words], cwd=copy, check=True)
        for name in SHARED:
            importlib.import_module(name)
        gc.freeze()  # else every process that tests looks through all of it, at its end
        for name in [name for name in os.environ if name.startswith(OURS)]:
            del os.environ[name]
        # Bytecode is told from its source by size and seconds, and a breakage may change neither
        sys.dont_write_bytecode = True
        os.environ.update(PYTHONPATH=str(copy), PYTHONDONTWRITEBYTECODE="1", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
        ours = {Path(), ROOT, Path(__file__).resolve().parent}
        sys.path[:] = [str(copy), *(path for path in sys.path if Path(path) not in ours)]
        os.chdir(copy)
        yield copy
    finally:
        gc.unfreeze()
        os.chdir(ROOT)
        shutil.rmtree(folder)


def check_unbroken(mutants: Sequence[Mutant], copy: Path) -> None:
    """`SystemExit` if one of the tests fails on the unbroken code."""
    tests = list(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
    outcome = tested(tests, copy, 0.0)
    passed = {known for nodeid in outcome.passed for known in (nodeid, nodeid.partition("[")[0])}
    missing = [test for test in tests if test not in passed]
    if outcome.code or outcome.skipped or missing:
        print((copy.parent / "log.txt").read_text(errors="replace")[-20_000:])
        named = [*outcome.failed, *outcome.errors, *outcome.skipped] or missing
        raise SystemExit(f"mutants: unbroken, these do not pass: {', '.join(named)}")
    print(f"unbroken: {len(tests)} tests pass", flush=True)


def judged(mutant: Mutant, copy: Path) -> str:
    """Breaks the code, tests it, and restores it; prints and returns the verdict."""
    file, begun = copy / mutant.file, time.monotonic()
    text = file.read_text()
    file.write_text(mutant.applied(text))
    try:
        outcome = tested(mutant.tests, copy, mutant.hangs)
    finally:
        file.write_text(text)
    verdict, words = "invalid", f"pytest ended with {outcome.code}, errors: {', '.join(outcome.errors) or 'none'}"
    if outcome.code == 1 and outcome.failed:
        verdict, words = "caught", f"{outcome.failed[0].rpartition('::')[2]}: {outcome.said:.80}"
    elif outcome.code == 0:
        verdict, words = "SURVIVED", ", ".join(test.rpartition("::")[2] for test in mutant.tests)
    print(f"{verdict:8} {time.monotonic() - begun:5.1f} s  {mutant}  ({words})", flush=True)
    if verdict == "invalid":
        print((copy.parent / "log.txt").read_text(errors="replace")[-4000:])
    return verdict


def tested(tests: Sequence[str], copy: Path, hangs: float) -> Outcome:
    """Runs pytest on the copy in a separate process, up to the first failure; a test that exceeds `hangs` seconds has failed."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=run, args=(list(tests), copy, theirs, hangs))
    process.start()
    theirs.close()
    pid = process.pid
    assert pid
    outcome = Outcome()
    try:
        if ours.poll(LIMIT):
            outcome = Outcome(**ours.recv())
            process.join(30)
    except EOFError:
        process.join()  # it died; -1 says so
    finally:
        # its session: with what tests have left
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        process.kill()
        process.join()
        ours.close()
    return outcome


def run(tests: list[str], copy: Path, answer: Connection, hangs: float) -> None:
    """Runs pytest; called in the separate process."""
    os.setsid()
    with (copy.parent / "log.txt").open("wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    # processes that tests spawn import the main module again, which is to be none of this
    sys.modules["__main__"] = types.ModuleType("__main__")
    outcome = Outcome()
    options = ["-x", "-q", "-pno:cacheprovider", "-ppytest_timeout", f"--basetemp={copy.parent / 'tests'}"]
    options += [f"--timeout={hangs:g}"] if hangs else []
    outcome.code = int(pytest.main([*options, *tests], plugins=[outcome]))
    for name in PACKAGES:
        module = sys.modules.get(name)
        assert module is None or Path(str(module.__file__)).is_relative_to(copy), module
    answer.send(vars(outcome))


if __name__ == "__main__":
    sys.exit(main())
