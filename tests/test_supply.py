"""The supply chain: DVC's pickles, advisories and licences of the locked packages, and the environment of `make`."""

from __future__ import annotations

import csv
import fcntl
import importlib.util
import inspect
import os
import re
import shutil
import stat
import subprocess
import sys
import venv
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from pipeline.runtime import revisions
from pipeline.runtime.revisions import SITE
from pipeline.workflow import recipe
from studies import experiments, workspace

ROOT = Path(__file__).parents[1]

RUNS = "-m pipeline runs --last 5"

GUARD = """
import sys
def refuse(event, words):
    if event in ("os.mkdir", "open", "sqlite3.connect") and str(words[0]).startswith("/var/tmp/dvc"):
        raise RuntimeError(f"{event} of {words[0]}")
sys.addaudithook(refuse)
"""

CHEAP = """
stages:
  one:
    cmd: python -c "open('one.txt', 'w').write('1')"
    params: [learning.rate]
    outs: [one.txt]
"""

READ = "import dvc.api, sys; print(dvc.api.read('one.txt', rev=sys.argv[1]))"


LOCKED = (ROOT / "requirements.lock").read_text()


def table(name: str) -> list[dict[str, str]]:
    with (ROOT / "docs" / name).open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def pinned(lock: str) -> dict[str, list[Version]]:
    """Package → versions in the lock; some packages have one for each Python."""
    found: dict[str, list[Version]] = {}
    for line in re.findall(r"^([\w.-]+==[^\\\n]+)", lock, re.M):
        requirement = Requirement(line.strip())
        (specifier,) = requirement.specifier
        found.setdefault(canonicalize_name(requirement.name), []).append(Version(specifier.version))
    return found


def below(lock: str) -> list[str]:
    """The advisories that the lock does not fix and that have no recorded reason."""
    versions = pinned(lock)
    return [
        row["advisory"]
        for row in table("advisories.csv")
        if not row["why_still_here"] and not min(versions[row["package"]]) >= Version(row["fixed_in"])
    ]


def test_the_lock_is_at_or_above_every_fixed_version() -> None:
    rows = table("advisories.csv")
    assert len(rows) > 50
    assert below(LOCKED) == []
    assert below(LOCKED.replace("pillow==13.0.0", "pillow==12.2.0")) == ["PYSEC-2026-2253", "PYSEC-2026-3451"]
    assert below(re.sub(r"^numpy==.*$", "torch==2.9.1 \\\\", LOCKED, count=1, flags=re.M)) != [], "the lowest counts"


def test_every_advisory_has_a_fixed_version_or_a_reason_and_a_day_and_a_place() -> None:
    rows = table("advisories.csv")
    assert list(rows[0]) == ["package", "advisory", "fixed_in", "why_still_here", "read_on", "read_at"]
    keys = [(row["package"], row["advisory"]) for row in rows]
    assert keys == sorted(set(keys))
    for row in rows:
        assert row["package"] in pinned(LOCKED), "no longer in the lock"
        assert re.fullmatch(r"CVE-20\d\d-\d{4,}|GHSA(-[0-9a-z]{4}){3}|PYSEC-20\d\d-\d+", row["advisory"])
        assert bool(row["fixed_in"]) != bool(row["why_still_here"]), row
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", row["read_on"])
        assert row["read_at"].startswith("https://")


def test_an_audit_passes_over_what_has_a_reason_and_nothing_that_it_could_not_ask_about(tmp_path: Path) -> None:
    target = re.search(r"^audit:.*?\n\n", (ROOT / "Makefile").read_text(), re.M | re.S)
    assert target
    (tmp_path / ".audit/bin").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs/advisories.csv", tmp_path / "docs")
    auditor = tmp_path / ".audit/bin/pip-audit"
    auditor.write_text('#!/bin/sh\necho "$@"; exit 3\n')
    auditor.chmod(0o755)
    head = "SHELL := /bin/bash\n.ONESHELL:\n.SHELLFLAGS := -euo pipefail -c\n"
    (tmp_path / "Makefile").write_text(head + target.group())
    done = subprocess.run(["make", "audit"], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode != 0
    assert {"--strict", "--require-hashes", "requirements.lock"} <= {*done.stdout.split()}
    passed = re.findall(r"--ignore-vuln (\S+)", done.stdout)
    assert passed == [row["advisory"] for row in table("advisories.csv") if row["why_still_here"]]
    assert "/.audit/" in (ROOT / ".gitignore").read_text().split()


COPYLEFT = re.compile(r"GPL|EPL|MPL|CDDL|SSPL|EUPL|CC-BY-SA|OSL")


def binds(licence: str) -> bool:
    """Whether all of the alternative licences demand more than a notice."""
    return all(COPYLEFT.search(choice) for choice in re.split(r" OR (?![^()]*\))", licence)) or "Proprietary" in licence


@pytest.mark.parametrize(
    ("licence", "bound"),
    [
        ("MIT", False),
        ("Apache-2.0 OR GPL-2.0-or-later", False),
        ("EPL-2.0 OR GPL-2.0-only", True),
        ("LGPL-3.0", True),
        ("MPL-2.0 AND (MIT OR X)", True),
    ],
)
def test_what_binds(licence: str, bound: bool) -> None:
    assert binds(licence) is bound


def test_the_list_of_licences_is_of_the_locked_packages_and_none_is_unknown_or_binds_unsaid() -> None:
    spec = importlib.util.spec_from_file_location("licences", ROOT / "docs/licences.py")
    assert spec
    assert spec.loader
    licences = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(licences)
    rows = [(row["package"], row["licence"], row["note"]) for row in table("licences.csv")]
    here = {*licences.wanted(LOCKED)}
    assert [row for row in rows if row[0] in here] == licences.rows(), "run: make licences"
    assert here <= {name for name, _, _ in rows} <= {*pinned(LOCKED)}
    for name, licence, note in rows:
        assert licence, name
        assert licence.lower() not in ("unknown", "dual license", "other/proprietary license"), name
        assert bool(note) == binds(licence), name


def tracked(folder: Path) -> list[str]:
    return subprocess.run(
        ["git", "ls-files", "-z"], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.split("\0")


def test_dvc_s_pickles_lie_in_a_folder_that_git_makes_and_nobody_else_writes_to() -> None:
    assert f"{SITE}/repo/README" in tracked(ROOT)  # else DVC makes it, with mode 777
    for folder in (ROOT / SITE, ROOT / SITE / "repo"):
        assert not folder.stat().st_mode & stat.S_IWOTH
    ignored = ["git", "check-ignore", "-q", f"{SITE}/repo/0123abc/hashes"]
    assert subprocess.run(ignored, cwd=ROOT, check=False).returncode == 0


def ready(folder: Path) -> None:
    """An environment with only the files that the Makefile puts into it."""
    venv.create(folder / ".venv", symlinks=True)
    (packages,) = (folder / ".venv/lib").glob("python*/site-packages")
    shutil.copy(ROOT / ".dvc/site.pth", packages)
    shutil.copy(ROOT / ".dvc/rwlock.py", packages / "alexnet_rwlock.py")


@pytest.mark.parametrize("half", ["", '{"write": {"data/x": {"pid": 1, "cm', "\0\0\0"])
def test_a_dvc_that_was_killed_while_it_wrote_its_lock_stops_no_other(tmp_path: Path, half: str) -> None:
    ready(tmp_path)
    lock, below = tmp_path / ".dvc/tmp/rwlock", tmp_path / "work"
    lock.parent.mkdir(parents=True)
    below.mkdir()
    (tmp_path / "dvc").write_text("print('dvc')\n")

    def run(program: str = "dvc") -> bool:
        (tmp_path / program).write_text("")
        subprocess.run([tmp_path / ".venv/bin/python", tmp_path / program], cwd=below, check=True)
        return lock.exists()

    assert not run(), "there was none"
    lock.write_text(half)
    assert run("other"), "another program has no business with it"
    with lock.with_name("rwlock.lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert run(), "another dvc is writing it"
    assert not run()
    whole = '{"write": {}, "read": {}}'
    lock.write_text(whole)
    assert run()
    assert lock.read_text() == whole


@pytest.mark.slow
def test_dvc_takes_such_a_lock_for_none(tmp_path: Path) -> None:
    copy = Copy(tmp_path)
    lock = copy.folder / ".dvc/tmp/rwlock"
    copy.run("dvc", "repro")
    lock.write_text("")
    code = "import sys; from dvc.cli import main; sys.exit(main(['repro', '--force']))"
    with pytest.raises(AssertionError, match="JSON structure is corrupted"):  # else rwlock.py can go
        copy.run(sys.executable, "-c", code)
    copy.run(sys.executable, "-c", f"exec(open({str(ROOT / '.dvc/rwlock.py')!r}).read()); {code}")


def test_the_environment_that_make_makes_says_so_to_every_dvc(tmp_path: Path) -> None:
    ready(tmp_path)
    python, ask = tmp_path / ".venv/bin/python", "import os; print(os.environ['DVC_SITE_CACHE_DIR'])"
    said = [
        subprocess.run([python, "-c", ask], cwd="/", env=given, check=True, capture_output=True, text=True).stdout
        for given in ({}, {"DVC_SITE_CACHE_DIR": "/else/where"})
    ]
    assert said == [f"{tmp_path / SITE}\n", "/else/where\n"]
    targets = (ROOT / "Makefile").read_text()
    needy = set(re.findall(r"^([a-z]+): .*\.venv/installed", targets, re.M))
    (having,) = re.findall(r"^(.*): \.venv/ready$", targets, re.M)
    assert needy - set(having.split()) == set()


def test_a_stage_that_is_run_as_a_file_finds_the_packages_beside_its_folder(tmp_path: Path) -> None:
    ready(tmp_path)
    (tmp_path / "pipeline").mkdir()
    for name, code in (
        ("__init__", ""),
        ("other", "word = 'found'"),
        ("mean", "import pipeline.other as o; print(o.word)"),
    ):
        (tmp_path / f"pipeline/{name}.py").write_text(code)

    def run(folder: Path, file: Path) -> str:
        words = [tmp_path / ".venv/bin/python", file]
        done = subprocess.run(words, cwd=folder, check=False, capture_output=True, text=True)
        return done.stdout or done.stderr.splitlines()[-1]

    missing = "ModuleNotFoundError: No module named 'pipeline'"
    assert run(tmp_path, Path("pipeline/mean.py")) == missing, "it is no working copy"
    (tmp_path / "dvc.yaml").touch()
    for folder, file in (
        (tmp_path, "pipeline/mean.py"),
        (tmp_path / "pipeline", "mean.py"),
        (Path("/"), tmp_path / "pipeline/mean.py"),
    ):
        assert run(folder, Path(file)) == "found\n"


def test_the_image_has_what_the_environment_is_made_of_before_it_is_made() -> None:
    """The image copies these files first, so that an edit of the code does not make the environment anew."""
    (needed,) = re.findall(r"^\.venv/ready: (.*)$", (ROOT / "Makefile").read_text(), re.M)
    before = (ROOT / "Dockerfile").read_text().partition("RUN make .venv/ready")[0]
    copied = {word for line in re.findall(r"^COPY \S+ (.*)$", before, re.M) for word in line.split()[:-1]}
    assert {"Makefile", "requirements.lock", *needed.split()} - {".venv/installed"} <= copied


def test_an_environment_behind_a_link_is_not_emptied(tmp_path: Path) -> None:
    """`venv --clear` empties what the link leads to: the environment of another working copy."""
    other = tmp_path / "other/.venv"
    (other / "bin").mkdir(parents=True)
    (other / "bin/python").touch()
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / ".venv").symlink_to(other)
    shutil.copy(ROOT / "Makefile", copy)
    (copy / "requirements.lock").touch()
    kept = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}}
    done = subprocess.run(
        ["make", ".venv/installed"], cwd=copy, env=kept, check=False, text=True, capture_output=True, timeout=60
    )
    assert done.returncode == 2
    assert (
        f"make: .venv is a link to {other}, which making an environment here would empty. Remove the link: rm .venv"
        in (done.stderr)
    )
    assert (other / "bin/python").exists()


@pytest.mark.parametrize("there", ["nothing", "an environment", "git"])
def test_without_git_make_says_so_before_it_installs_and_runs_all_the_same(there: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements.lock").touch()
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config.local").write_text("[core]\n    no_scm = true\n" if there == "git" else "")
    if there != "nothing":
        (tmp_path / ".venv/bin").mkdir(parents=True)
        for name in ("installed", "ready"):
            (tmp_path / ".venv" / name).touch()
        for name in (".dvc/site.pth", ".dvc/rwlock.py", ".dvc/alexnet"):
            (tmp_path / name).touch()
            os.utime(tmp_path / name, (0, 0))
        for name in ("dvc", "python"):
            (tmp_path / ".venv/bin" / name).write_text(f'#!/bin/sh\necho "{name} $@"\n')
            (tmp_path / ".venv/bin" / name).chmod(0o755)
    if there == "git":
        subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)

    outer = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}  # of the make that runs these tests: it would say more

    def make(*words: str) -> tuple[int, str]:
        kept = {name: value for name, value in os.environ.items() if name not in outer}
        environment = kept | {"GIT_CEILING_DIRECTORIES": str(tmp_path.parent), "PYTHON": "/nowhere/python"}
        done = subprocess.run(
            ["make", *words], cwd=tmp_path, env=environment, check=False, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return done.returncode, done.stdout

    code, said = make("repro")
    if there == "nothing":
        assert said.startswith("make: this folder has no git: the run is recorded as of no commit")
        for words in (["repro", "RECIPE=paper"], ["study", "NAME=ablations"]):
            code, said = make(*words)
            assert code != 0
            assert said.startswith(
                "make: this folder has no git, which an experiment of DVC needs. Run: git init && git add"
            )
            assert "python" not in said, "nothing is installed"
    elif there == "an environment":
        assert said.splitlines()[1:] == ["dvc config --local core.no_scm true", "dvc repro", f"python {RUNS}"]
    else:
        assert said.splitlines() == ["dvc config --local --unset core.no_scm", "dvc repro", f"python {RUNS}"]
        for words, asked in (
            (["RECIPE=paper"], "--recipe paper"),
            (["RECIPE=paper", "SOURCE=cifar10"], "--recipe paper --source cifar10"),
        ):
            assert make("repro", *words)[1].splitlines()[-1] == f"python -m pipeline run {asked}"
    assert code == (0 if there != "nothing" else code)


def test_it_holds_the_signals_that_stop_a_stage_before_the_first_line_of_the_stage(tmp_path: Path) -> None:
    ready(tmp_path)
    for name in ("pipeline/__init__.py", "pipeline/mean.py", "other.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("import signal\nheld = signal.pthread_sigmask(signal.SIG_BLOCK, ())\n")
    (tmp_path / "pipeline/__main__.py").write_text("from pipeline import held; print(len(held))")
    for name in ("pipeline/mean.py", "other.py"):
        with (tmp_path / name).open("a") as file:
            file.write("print(len(held))\n")
    said = [
        subprocess.run([".venv/bin/python", *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
        for words in (
            ["-m", "pipeline"],
            ["-m", "pipeline.mean"],
            ["-m", "other"],
            ["other.py"],
            ["-c", "import other"],
        )
    ]
    assert said == ["3\n", "3\n", "0\n", "0\n", "0\n"]


class Copy:
    """A working copy with a trivial stage, in which nothing may touch /var/tmp/dvc."""

    def __init__(self, folder: Path, says: bool = True) -> None:
        self.folder = folder / "copy"
        (folder / "guard").mkdir(parents=True)
        (folder / "guard/sitecustomize.py").write_text(GUARD)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "GIT_"))}
        who = {f"GIT_{role}_{part}": "a@b" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
        self.environment = (
            kept | who | {"PATH": path, "PYTHONPATH": f"{folder / 'guard'}{os.pathsep}{ROOT}", "DVC_NO_ANALYTICS": "1"}
        )
        for name in (".dvc/config", ".dvc/.gitignore", ".gitignore", "params.yaml", f"{SITE}/repo/README"):
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.folder / name)
        (self.folder / "dvc.yaml").write_text(CHEAP)
        self.says = says
        self.run("git", "init", "-q")
        self.commit()

    def commit(self) -> None:
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", "as it is")

    def run(self, *words: str) -> str:
        # empty is as good as not said, and keeps what an environment of make's would say out of this
        where = {"DVC_SITE_CACHE_DIR": str(self.folder / SITE) if self.says else ""}
        done = subprocess.run(
            words, cwd=self.folder, env=self.environment | where, check=False, text=True, timeout=120,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout

    def databases(self) -> list[Path]:
        return sorted((self.folder / SITE / "repo").glob("*/**/*.db"))


@pytest.mark.slow
def test_dvc_keeps_its_pickles_in_the_working_copy_whatever_is_run_and_wherever_it_is_moved(tmp_path: Path) -> None:
    copy = Copy(tmp_path)
    copy.run("dvc", "repro")
    copy.commit()
    copy.run("dvc", "exp", "run", "--temp", "--name", "other", "-S", "learning.rate=0.5")
    assert copy.run("dvc", "exp", "list", "--name-only").split() == ["other"]
    copy.run("dvc", "params", "diff", "other")
    found = copy.databases()
    assert found
    for folder in {parent for file in found for parent in file.parents if parent.is_relative_to(copy.folder)}:
        assert not folder.stat().st_mode & stat.S_IWOTH, folder
    assert copy.run("git", "status", "--porcelain") == ""
    copy.folder = copy.folder.rename(tmp_path / "moved, and called otherwise")
    copy.run("dvc", "status")
    assert len(copy.databases()) > len(found)
    assert not (tmp_path / "copy").exists()


@pytest.mark.slow
def test_what_runs_dvc_here_says_where_its_pickles_lie_without_make(tmp_path: Path) -> None:
    copy = Copy(tmp_path, says=False)
    for words in (["dvc", "status"], [sys.executable, "-c", READ, "HEAD"]):
        with pytest.raises(AssertionError, match="of /var/tmp/dvc"):
            copy.run(*words)
    say = "from pipeline.runtime import revisions; revisions.keep_here()\n"
    copy.run(sys.executable, "-c", say + "import subprocess; subprocess.run(['dvc', 'repro'], check=True)")
    copy.commit()
    assert copy.run(sys.executable, "-c", say + READ, "HEAD").strip() == "1"
    assert copy.databases()


@pytest.mark.parametrize("module", [experiments, workspace, revisions, recipe])
def test_every_module_that_runs_or_reads_dvc_says_where_first(module: ModuleType) -> None:
    text = inspect.getsource(module)
    uses = re.findall(r"dvc\.api\.(?:open|read)\b|\[\"dvc\", |return \[dvc", text)
    assert len(uses) == len(re.findall(r"\bkeep_here\(\)\n", text)) > 0
