"""The repository's consistency: README, docs, dvc.yaml, settings and imports agree with the code."""

import ast
import dataclasses
import functools
import hashlib
import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from alexnet.pictures import encode
from pipeline.download import SOURCES
from pipeline.runtime import params
from pipeline.runtime.machines import Machine

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCS = {file.name: file.read_text() for file in (ROOT / "docs").glob("*.md")}
PAGES = {name: (ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")}
PAGES |= {f"docs/{name}": text for name, text in DOCS.items()}
PAGES |= {str(file.relative_to(ROOT)): file.read_text() for file in (ROOT / "studies").rglob("README.md")}
STUDIES = (ROOT / "studies/README.md").read_text()
DVC = YAML(typ="safe").load(ROOT / "dvc.yaml")
STAGES = DVC["stages"]

IDLE = ("pipeline/runtime/", "pipeline/driver/", "pipeline/tracking/", "pipeline/commands/", "pipeline/__main__.py")
"""Modules that decide where, when and by which process a stage's bytes are made, but not the bytes: no stage depends on them."""


def modules():
    return [
        file
        for room in ("alexnet", "pipeline", "studies", "benchmarks", "docs")
        for file in sorted((ROOT / room).rglob("*.py"))
    ]


@functools.cache
def imported(file):
    """The files of this repository that a module imports, at module level or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            path = ROOT / (name.replace(".", "/") + ".py")
            if name.split(".")[0] in ("alexnet", "pipeline", "studies") and path.exists():
                found.add(path)
    return found


def decides(file):
    """Whether a module may decide a byte of an out."""
    return not file.relative_to(ROOT).as_posix().startswith(IDLE)


def closure(file):
    """The module and all modules of this repository that it needs, without the exempt ones."""
    needed, waiting = set(), {file}
    while waiting:
        module = waiting.pop()
        needed.add(module)
        waiting |= {other for other in imported(module) if other not in needed and decides(other)}
    return {module.relative_to(ROOT).as_posix() for module in needed}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_the_modules_that_decide_its_bytes(name):
    declared = set()
    for dep in STAGES[name]["deps"]:
        folder = ROOT / dep
        if dep == "pipeline/sources":
            files = [file for file in folder.glob("*.py") if file.name != "__init__.py"]
            declared |= {file.relative_to(ROOT).as_posix() for file in files}
        elif dep.startswith(("alexnet/", "pipeline/")) and dep.endswith(".py"):
            declared.add(dep)
    assert declared == closure(ROOT / "pipeline" / f"{name}.py")


def test_no_module_of_a_stage_knows_what_is_checked_before_it():
    """Otherwise all sections would be params, and all their modules deps, of every stage."""
    for name in STAGES:
        files = {ROOT / module for module in closure(ROOT / "pipeline" / f"{name}.py")} | {
            ROOT / "pipeline/runtime/stage.py"
        }
        assert [file for file in files if {"preflight.py", "room.py"} & {each.name for each in imported(file)}] == []


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_declares_the_sections_it_reads(name):
    read = set()
    for module in closure(ROOT / "pipeline" / f"{name}.py"):
        if module.startswith("pipeline/") and (module == f"pipeline/{name}.py" or Path(module).stem not in STAGES):
            for node in ast.walk(ast.parse((ROOT / module).read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "params.read":
                    read.add(ast.literal_eval(node.args[0]))
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SECTIONS":
                    read |= set(ast.literal_eval(node.value))
    assert set(STAGES[name].get("params", [])) == read


def test_stages_are_named_as_their_modules_and_read_as_the_flow():
    assert list(STAGES) == ["download", "resize", "mean", "train", "evaluate", "report"]
    for name, stage in STAGES.items():
        assert stage["cmd"] == f"python -m pipeline {name}"


def test_a_dependency_on_a_folder_is_one_on_its_sources_alone():
    # else what Python compiles beside them would change dvc.lock
    assert "__pycache__" in (ROOT / ".dvcignore").read_text().split()


def test_every_section_of_params_is_a_stage_s_dependency():
    sections = set(params.load(ROOT / "params.yaml"))
    assert {section for stage in STAGES.values() for section in stage.get("params", [])} == sections


LONGEST_FILE, LONGEST_FUNCTION = 400, 60
"""The most lines of a file and of a function; longer ones contain a second idea."""


def test_no_file_and_no_function_is_longer_than_a_few_screens():
    for file in modules():
        text = file.read_text()
        assert len(text.splitlines()) <= LONGEST_FILE, file
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.lineno < LONGEST_FUNCTION, f"{file}: {node.name}"


def test_pipeline_has_at_most_twenty_doors():
    doors = [path for path in (ROOT / "pipeline").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    assert len([path for path in doors if path.name != "__init__.py"]) <= 20


def test_no_docstring_dangles():
    for file in modules():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not node.value.startswith("Of "), f"{file}:{node.lineno}"


def test_the_tree_of_files_is_the_first_line_of_every_module():
    for file in modules():
        first = ast.get_docstring(ast.parse(file.read_text())).splitlines()[0].rstrip(".")
        if file.name != "__init__.py" or file.parent.name in ("alexnet", "pipeline", "sources", "studies", "figure_1"):
            name = f"{file.parent.name}/" if file.name == "__init__.py" else file.name
            assert re.search(rf"^\s*{re.escape(name)} +{re.escape(first)}\.?$", DOCS["inside.md"], re.M), (
                f"{name}  {first}"
            )


def test_the_tree_of_files_names_nothing_that_is_not_there():
    tree = re.search(r"## Packages and modules\n+```\n(.*?)```", DOCS["inside.md"], re.S).group(1)
    names = [line.split()[0] for line in tree.splitlines() if line.strip()]
    tops = [path for path in ROOT.iterdir() if path.name not in (".venv", ".git", ".dvc")]
    there = {path.name for top in tops for path in [top, *top.rglob("*")]}
    assert [name for name in names if name.strip("/").split("/")[-1] not in there] == []


def test_every_command_of_make_on_a_page_is_a_target():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    quoted = [
        part
        for page, text in PAGES.items()
        if not page.startswith("studies/")
        for part in re.findall(r"`[^`]+`|```.*?```", text, re.S)
    ]
    named = set(re.findall(r"\bmake ([a-z]+)\b", " ".join(quoted)))
    assert named
    assert named <= targets


def test_readme_s_numbers_are_those_of_the_sample_and_of_its_last_run():
    source = params.load(ROOT / "params.yaml")["source"]
    assert source["name"] == "sample"
    assert f"{source['train_images']:,} training and {source['val_images']:,} validation pictures" in README
    metrics = json.loads((ROOT / "metrics.json").read_text())
    best = metrics["ten_views"]
    printed = (
        f"evaluate: {metrics['images']:,} pictures, top-1 error {best['top1_error']:.1%} "
        f"({best['top1_low']:.1%} to {best['top1_high']:.1%}), top-5 error {best['top5_error']:.1%}"
    )
    assert printed in README
    with (ROOT / "pyproject.toml").open("rb") as handle:
        project = tomllib.load(handle)["project"]
    assert project["requires-python"] == ">=3.11,<3.14"
    assert "Python 3.11, 3.12 or 3.13" in README


def file_md5(file):
    return hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()


def folder_md5(folder):
    """DVC's MD5 of a folder: that of the list of its files and their hashes."""
    files = [file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    listed = [{"md5": file_md5(file), "relpath": file.relative_to(folder).as_posix()} for file in files]
    text = json.dumps(sorted(listed, key=lambda entry: entry["relpath"]))
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() + ".dir"


def test_the_lock_of_dvc_is_that_of_the_committed_params_and_code():
    lock = YAML(typ="safe").load(ROOT / "dvc.lock")["stages"]
    here = params.load(ROOT / "params.yaml")
    for name, stage in STAGES.items():
        recorded = lock[name].get("params", {}).get("params.yaml", {})
        assert recorded == {key: here[key] for key in stage.get("params", [])}
        for dep in lock[name]["deps"]:
            file = ROOT / dep["path"]
            if dep["path"].startswith(("alexnet/", "pipeline/")):
                md5 = folder_md5(file) if file.is_dir() else file_md5(file)
                assert dep["md5"] == md5, f"{dep['path']} changed since dvc.lock. Run: make repro, and commit dvc.lock"


def test_readme_says_for_each_source_what_to_type_and_it_is_valid():
    shown = DOCS["sources.md"]
    blocks = [YAML(typ="safe").load(line)["source"] for line in re.findall(r"^source: .*$", shown, re.M)]
    read = {type(params.check(block, SOURCES, Path("docs/sources.md"), "source")) for block in blocks}
    assert read == set(SOURCES)


def test_what_readme_says_to_type_for_a_source_can_be_typed(tmp_path):
    shown = DOCS["sources.md"]
    lines = re.findall(r"(?:mkdir -p \S+ && )?ln -s .*", shown)
    assert len(lines) >= 8
    for line in [re.search(r"`(mkdir -p data/store)`", shown).group(1), *lines]:
        subprocess.run(line, shell=True, check=True, cwd=tmp_path)
    assert len([link for link in (tmp_path / "data/store").rglob("*") if link.is_symlink()]) == len(lines)


def test_no_advice_makes_more_anew_than_it_says():
    """`dvc repro --force X` also forces all stages before X; only download has none."""
    files = [*(ROOT / "pipeline").rglob("*.py"), ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    forced = [
        found for file in files for found in re.findall(r"dvc repro --force( --single-item)? (\w+)", file.read_text())
    ]
    assert len(forced) > 10
    assert {name for single, name in forced if not single} == {"download"}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_and_every_module_on_a_page_is_there(page):
    text, folder = PAGES[page], (ROOT / page).parent
    for link in re.findall(r"\]\(([^)]+)\)", text):
        file, _, heading = link.partition("#")
        assert file or heading
        if file.startswith("https://"):
            continue
        assert (folder / file).exists() if file else True, link
        there = text if not file else (folder / file).read_text() if heading else ""
        headings = {
            re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.*)$", there, re.M)
        }
        assert not heading or heading in headings, link
    if page.startswith("studies/"):
        return  # commands there are those of the commit that was measured
    for module in re.findall(r"python -m ((?:pipeline|alexnet|studies)[\w.]*)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


def test_readme_and_the_index_lead_to_every_page_and_readme_is_read_in_ten_minutes():
    listed = re.findall(r"^.+ <(\w+)>$", DOCS["index.md"], re.M)
    assert [name for name in DOCS if name != "index.md" and name.removesuffix(".md") not in listed] == []
    assert [name for name in DOCS if f"](docs/{name})" not in README and f"]({name})" not in DOCS["index.md"]] == [
        "index.md"
    ]
    assert len(README.splitlines()) <= 120
    assert len(README.split()) <= 1200


def test_every_number_of_the_results_is_in_the_study_that_its_row_links_to():
    rows = re.findall(r"^\| §.*\|$", README, re.M)
    assert len(rows) > 5
    for row in rows:
        *_, here, _, seeds, study = [cell.strip() for cell in row.strip("|").split(" |")]
        (folder,) = re.findall(r"\((studies/[^)]+)/\)", study)
        text = (ROOT / folder / "README.md").read_text()
        assert f"n = {seeds}" in text
        numbers = re.findall(
            r"(?<![\w.,])(?:\d*\.\d+|\d{1,3}(?:,\d{3})+|\d{2,}(?! %))", re.sub(r"of 2012|in 2012|\.01", "", here)
        )
        assert numbers or "they do" in row, row
        for number in numbers:
            assert re.search(rf"(?<![\d.,]){re.escape(number)}(?!\d)", text), f"{number}: {row}"


def test_every_row_of_the_ledger_has_its_test():
    rows = DOCS["differences.md"].split("| --- |")[-1]
    rows = [line for line in rows.splitlines() if line.startswith("| ")]
    assert len(rows) > 15
    assert [row for row in rows if not re.search(r"\| `test_\w+`[^|]*\|$", row)] == []


@pytest.mark.parametrize(
    "folder", sorted(file.parent for file in (ROOT / "studies").glob("*/README.md")), ids=lambda folder: folder.name
)
def test_a_study_is_listed_and_whole(folder):
    (row,) = re.findall(rf"^\| \[{folder.name}\]\({folder.name}/\) \| (.*) \|$", STUDIES, re.M)
    files = {file.name for file in folder.iterdir()}
    assert "log.txt" in files
    assert {"base.yaml", "params.yaml"} & files
    assert [*folder.glob("*.csv")]
    if "study.yaml" in files:
        assert {"base.yaml", "runs.csv", "curves.csv", "table.md", "losses.png"} <= files
    text = (folder / "README.md").read_text()
    numbers = re.findall(r"(?<![\w.,])(?:\d*\.\d+|\d{1,3}(?:,\d{3})+|\d+(?= %))", row)
    missing = [
        number for number in numbers if not re.search(rf"(?<![\d.,])0?{re.escape(number.lstrip('0'))}(?!\d)", text)
    ]
    assert missing == [], "the row says what the study does not"
    for words in (
        r"\*\*Question\.\*\*",
        r"\*\*Verdict",
        r"\*\*Measured\*\*",
        r"\*\*Commands?\*\*",
        r"\*\*Machine\*\*",
        "commit",
    ):
        assert re.search(words, text), words
    logs = "".join(file.read_text() for file in folder.glob("log*.txt"))
    assert not re.search(r"/(work|root|home|tmp)/", text.replace("work/studies/", "") + logs)


def test_every_program_that_a_page_says_to_run_is_there():
    named = [name for text in PAGES.values() for name in re.findall(r"^python ([\w/]+\.py)", text, re.M)]
    assert {f"benchmarks/{name}.py" for name in ("kernel", "stage", "index", "neighbours")} <= set(named)
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_the_size_of_raw_pixels_is_that_of_a_file():
    raw = encode(torch.zeros(3, 256, 256, dtype=torch.uint8), "raw")
    assert f"{len(raw):,} bytes for a picture of 256 × 256" in DOCS["changing.md"]


def test_every_test_that_a_page_names_exists():
    named = [name for text in PAGES.values() for name in re.findall(r"`(test_\w+)`", text)]
    tests = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    assert named
    assert [name for name in named if f"def {name}(" not in tests] == []


def test_no_docstring_begins_with_of():
    """Such a docstring says nothing without the name above it."""
    folders = ("alexnet", "pipeline", "studies", "benchmarks", "docs")
    found = [
        f"{file.relative_to(ROOT)}: {text}"
        for folder in folders
        for file in (ROOT / folder).rglob("*.py")
        for text in re.findall(r'"""(Of .*)', file.read_text())
    ]
    assert found == []


def test_machine_example_has_every_key_and_only_those():
    example = params.load(ROOT / "machine.example.yaml")
    assert set(example) == {field.name for field in dataclasses.fields(Machine)}
    assert params.check(example, Machine, Path("machine.example.yaml")) == Machine()


def test_the_lock_is_hashed_and_names_no_index():
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    assert "--index" not in lock
    pins = re.findall(r"^([\w.-]+)==", lock, re.M)
    assert len(pins) > 150
    assert len(re.findall(r"--hash=sha256:", lock)) >= len(pins)


@pytest.mark.slow  # `make mutants` asks it as well
def test_every_breakage_fits_the_code_and_names_tests_that_are_there():
    """`make mutants` takes too long for every day; without this test, entries would go stale unnoticed."""
    stale = []
    for entry in YAML(typ="safe").load(ROOT / "tests/mutants.yaml"):
        named = [entry["test"]] if isinstance(entry["test"], str) else entry["test"]
        for file, _, name in (test.partition("::") for test in named):
            if f"def {name.partition('[')[0]}(" not in (ROOT / file).read_text():
                stale.append((entry["why"], name))
        if (ROOT / entry["file"]).read_text().count(entry["old"]) != 1:
            stale.append((entry["why"], entry["old"]))
    assert stale == []


@functools.cache
def functions(file):
    """The names of a file's functions and methods."""
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)}


def test_each_row_of_the_faults_is_four_cells_and_a_test_that_is_there():
    rows = [line for line in (ROOT / "docs/faults.md").read_text().splitlines() if line.startswith("|")]
    rows = [row for row in rows if not re.match(r"\| (fault|---) ", row)]
    assert len(rows) > 10
    for row in rows:
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
        assert len(cells) == 4, row
        assert cells[0], row
        assert cells[1], row
        for test in cells[3].split(", "):
            file, _, name = test.partition("::")
            assert name in functions(ROOT / file), row
