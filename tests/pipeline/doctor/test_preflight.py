"""Preflight: all faults of the settings and the machine are reported at once, before the first stage works."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from pipeline.commands import STAGES
from pipeline.doctor import preflight, room
from pipeline.runtime import params

ROOT = Path(__file__).parents[3]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the repository's params.yaml, which passes."""
    monkeypatch.chdir(tmp_path)
    for name in ("ALEXNET_MACHINE", "RAY_ADDRESS", "DVC_ROOT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path


def settle(**changes: Any) -> None:
    """Rewrites params.yaml: `section=None` removes a section, `section__key=value` sets a key."""
    document = params.load(Path("params.yaml"))
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key:
            document[section][key] = value
        elif value is None:
            del document[section]
        else:
            document[section] = value
    YAML(typ="safe").dump(document, Path("params.yaml"))


def faults(name: str = "download") -> list[str]:
    try:
        preflight.check(name)
    except params.ParamsError as error:
        return str(error).splitlines()
    return []


@pytest.mark.slow
def test_what_is_in_the_repository_is_good(here: Path) -> None:
    assert [faults(name) for name in STAGES] == [[]] * 6


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"results__sede": 1}, r"params.yaml: results.sede: unknown key \(its value: 1\), did you mean 'seed'\?"),
        ({"report__pictures": -1}, "params.yaml: report: pictures has to be 0 or more, is -1"),
        ({"learning__rate": "fast"}, "params.yaml: learning.rate: .*found 'fast'"),
        ({"augmentation__patches": "some"}, "params.yaml: augmentation.patches: "),
        ({"start__layers": 3}, "params.yaml: start.layers: "),
        ({"resize__quality": 101}, "params.yaml: resize: quality has to be 1 to 100"),
        ({"source": {"name": "samlpe"}}, "params.yaml: source.name: unknown name 'samlpe', did you mean 'sample'"),
        ({"reslts": {}}, "params.yaml: unknown section 'reslts', did you mean 'results'"),
        ({"report": None}, "params.yaml: section 'report' is missing"),
        ({"resize__side": 200}, r"params.yaml: resize.side: 200 pixels are stored, and the network's patches have 224"),
        ({"results__split": "test"}, "params.yaml: results.split: test, but the sample has only train and val"),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
def test_a_fault_in_any_section_is_told_before_the_first_stage(here: Path, changes: dict[str, Any], said: str) -> None:
    settle(**changes)
    (only,) = faults("download")
    assert re.match(said, only)
    assert faults("resize") == [only], "noted as good"


def test_a_file_of_before_a_key_was_added_is_good(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.runtime.added.ADDED", {"report.pictures": 8})
    document = params.load(Path("params.yaml"))
    del document["report"]["pictures"]
    YAML(typ="safe").dump(document, Path("params.yaml"))
    assert faults() == []


def test_two_faults_of_different_kinds_are_told_together(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(results__sede=1)
    (here / "machine.yaml").write_text("workers: 0\n")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    settings, section, disk = faults()
    assert settings == f"{here}/machine.yaml: workers has to be at least 1, is 0"
    assert section.startswith("params.yaml: results.sede: ")
    assert disk.startswith(f"{here}: 0.0 GB are free on this disk, and at least 0.1 GB will be written")


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        ("ray_address: http://head:8265\n", "machine.yaml: ray_address: http://head:8265 is a dashboard's address"),
        ("ray_address: head\n", "machine.yaml: ray_address: head is no cluster's address: it has to be host:port"),
        (
            "ray_address: head:99999\n",
            "machine.yaml: ray_address: head:99999 is no cluster's address: it has to be host:port",
        ),
        ("tracking: http://server:port\n", "machine.yaml: tracking: http://server:port: its port is not a number"),
        ("storage: /proc/x\n", "/proc/x: cannot be written to"),
        ("storege: /tmp\n", ".*machine.yaml: storege: unknown key"),
    ],
)
def test_a_machine_that_cannot_be_is_told(here: Path, machine: str, said: str) -> None:
    (here / "machine.yaml").write_text(machine)
    assert re.match(said, faults()[0])


@pytest.mark.slow
def test_a_machine_file_and_a_cluster_of_the_environment_are_looked_at(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "https://head:8265")
    assert faults()[0].startswith("RAY_ADDRESS=https://head:8265 is a dashboard's address")
    monkeypatch.setenv("ALEXNET_MACHINE", "/nowhere/machine.yaml")
    assert faults()[0].startswith("/nowhere/machine.yaml: no such file here")


def manifest(train: int) -> None:
    Path("data/shards").mkdir(parents=True)
    shards = {"train": [{"rows": train}], "val": [{"rows": 300}], "test": []}
    Path("data/shards/manifest.json").write_text(json.dumps({"shards": shards}))


def test_a_batch_that_the_memory_cannot_hold_is_refused_with_what_it_can(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "machine.yaml").write_text("devices: cpu\n")
    settle(learning__batch_size=4096)
    manifest(1499)
    monkeypatch.setattr(room, "_free", lambda: 9 * 10**9)
    monkeypatch.setattr(room, "_whole", lambda: 9 * 10**9)
    for name in ("download", "train"):
        (said,) = faults(name)
        assert re.match(
            r"params.yaml: learning.batch_size: 4096: a step with 1,(499|500) pictures takes some 14.\d GB of memory, "
            r"and 9.0 GB are available. Set at most \d{3}",
            said,
        )
    assert faults("evaluate") == []
    settle(learning__batch_size=256)
    assert faults("train") == []
    settle(learning__batch_size=4096)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert faults("train") == [], "the nodes of a cluster are not this machine"


def test_a_disk_is_asked_for_what_will_be_written_on_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(source__train_images=40_000, resize__quality="raw")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5 * 10**9))
    (said,) = faults("download")
    assert re.match(rf"{here}: 5.0 GB are free on this disk, and at least 8.\d GB will be written \(.*shards", said)
    manifest(40_000)
    assert faults("train") == [], "the shards are there"


@pytest.mark.parametrize(
    ("source", "needed"),
    [
        ({"name": "ilsvrc2012", "classes": "all", "complete": True}, "154.9"),
        ({"name": "imagenette", "size": 320, "classes": "all", "complete": True}, "0.9"),
        ({"name": "tiny_imagenet", "classes": "all", "complete": True}, "0.7"),
        ({"name": "cifar10", "classes": "all", "complete": True}, "0.6"),
        ({"name": "imagenette", "size": 320, "classes": "all", "complete": False}, ""),
    ],
    ids=lambda value: "".join(str(part) for part in value.values()) if isinstance(value, dict) else "",
)
def test_the_disk_is_asked_for_what_will_be_fetched(
    here: Path, monkeypatch: pytest.MonkeyPatch, source: dict[str, Any], needed: str
) -> None:
    settle(source=source)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3 * 10**8))
    said = faults("download")
    assert [bool(re.search(rf"at least {needed} GB will be written .*archives", line)) for line in said] == [
        True
    ] * bool(needed)
    assert not any("archives" in line for line in faults("resize")), "they are there by then"
    if needed:
        (here / "data/store" / source["name"]).mkdir(parents=True)
        for name in (
            "cifar-10-binary.tar.gz",
            "tiny-imagenet-200.zip",
            "imagenette2-320.tgz",
            "ILSVRC2012_img_train.tar",
        ):
            (here / "data/store" / source["name"] / name).touch()
        assert not any(f"{needed} GB" in line for line in faults("download"))


def index(train: int) -> None:
    Path("data/index").mkdir(parents=True)
    pq.write_table(pa.table({"split": ["train"] * train + ["val"] * 10}), "data/index/index.parquet")


@pytest.mark.parametrize(
    ("config", "system", "copied"),
    [
        ("", "ext4", True),
        ("", "xfs", False),
        ("[cache]\n    type = reflink,hardlink,symlink\n", "ext4", False),
        ("[cache]\n    type = copy\n", "xfs", True),
        ("[cache]\n    dir = ../../cache\n", "", True),
    ],
)
def test_dvc_s_cache_has_a_copy_of_an_out_where_it_is_one(
    here: Path, monkeypatch: pytest.MonkeyPatch, config: str, system: str, copied: bool
) -> None:
    (here / ".dvc").mkdir()
    (here / ".dvc/config").write_text(config)
    settle(resize__quality="raw", source={"name": "tiny_imagenet", "classes": "all", "complete": True})
    index(40_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: [SimpleNamespace(mountpoint="/", fstype=system)])
    (alone,) = faults("resize")
    assert re.search(r"at least 8.\d GB will be written", alone), "this many rows are in the index"
    monkeypatch.setenv("DVC_STAGE", "resize")
    (below,) = faults("resize")
    assert bool(re.search(r"at least 16.\d GB will be written .*DVC's cache", below)) == copied
    assert copied or below == alone


def heavy(folder: Path) -> Iterator[str]:
    for name in ("torch", "ray", "jinja2"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise SystemExit('imported')")
        yield name


@pytest.mark.slow
def test_only_the_first_stage_after_a_change_imports_what_takes_long(here: Path) -> None:
    list(heavy(here / "heavy"))
    code = "import sys; from pipeline.doctor import preflight; preflight.check(sys.argv[1])"

    def check(path: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": path}
        words = [sys.executable, "-c", code, "mean"]
        return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)

    assert check(f"{here}/heavy{os.pathsep}{ROOT}").stderr == "imported\n"
    preflight.check("download")
    assert check(f"{here}/heavy{os.pathsep}{ROOT}").returncode == 0
    begun = time.process_time()
    preflight.check("resize")
    assert time.process_time() - begun < 0.5
    settle(resize__quality="raw")
    settle(source__train_images=1000)
    preflight.check("resize")
    settle(source__train_images=1499)
    settle(learning__rate=0.007)
    assert check(f"{here}/heavy{os.pathsep}{ROOT}").stderr == "imported\n"


@pytest.mark.slow
def test_an_edit_of_code_asks_only_for_the_sections_that_it_can_change(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("pipeline", "alexnet"):
        shutil.copytree(ROOT / folder, here / folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(preflight, "PACKAGE", here / "pipeline")
    monkeypatch.setattr(preflight, "ALEXNET", here / "alexnet")
    monkeypatch.setattr(preflight, "CODE", tuple(here / place.relative_to(ROOT) for place in preflight.CODE))
    preflight.check("download")
    asked, kind = list[str](), preflight._kind
    monkeypatch.setattr(preflight, "_kind", lambda name: asked.append(name) or kind(name))

    def edited(file: str) -> list[str]:
        asked.clear()
        with (here / file).open("a") as handle:
            handle.write("# edited\n")
        preflight.check("download")
        return list(asked)

    without_torch = [name for name in preflight.KINDS if name not in preflight.WITH_TORCH]
    assert edited("pipeline/report.py") == without_torch
    for file in ("alexnet/network.py", "pipeline/training/spec.py", "pipeline/runtime/params.py"):
        assert edited(file) == list(preflight.KINDS)
    code = "import sys; from importlib import import_module as load; [load(name) for name in sys.argv[1:]]; "
    modules = [preflight.KINDS[name].split(":")[0] for name in without_torch]
    subprocess.run(
        [sys.executable, "-c", f"{code}sys.exit('torch' in sys.modules)", *modules], check=True, cwd=ROOT, timeout=60
    )


def test_notes_of_what_was_found_good_do_not_heap_up(here: Path) -> None:
    folder = here / "work/checked"
    folder.mkdir(parents=True)
    for number in range(220):
        (folder / f"{number}.json").touch()
    preflight.check("download")
    assert len(list(folder.iterdir())) == preflight.KEPT


def test_a_note_that_is_damaged_is_none(here: Path) -> None:
    assert faults() == []
    notes = sorted((here / "work/checked").iterdir())
    for note, damage in zip(
        notes, (b"", b"{}", b"\xff\xfe", *[note.read_bytes()[:-1] for note in notes]), strict=False
    ):
        note.write_bytes(damage)
    assert faults() == []
    assert sorted((here / "work/checked").iterdir()) == notes


@pytest.mark.faults
def test_on_a_disk_that_is_really_full_a_typo_is_told_too(here: Path) -> None:
    disk = here / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        settle(results__sede=1)
        shutil.copy("params.yaml", disk)
        subprocess.run(["dd", "if=/dev/zero", "of=full", "bs=4k"], cwd=disk, check=False, capture_output=True)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        words = [sys.executable, "-m", "pipeline", "download"]
        done = subprocess.run(words, cwd=disk, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "download: params.yaml: results.sede: unknown key" in done.stderr
        assert f"{disk}: 0.0 GB are free" in done.stderr
        assert "Traceback" not in done.stderr
    finally:
        subprocess.run(["umount", disk], check=True)
