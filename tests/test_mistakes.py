"""First mistakes: what is typed wrongly, lies elsewhere, or may not be read, is told in one message with what to do.

Each row types real words. The message has to say what is wrong, where, which value, and what to type or change instead.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from pipeline.commands import alexnet
from pipeline.runtime import params
from tests.pipeline import layouts

ROOT = Path(__file__).parents[1]

CAT, DOG = ({f"{name}/{number}.jpg": b"x" for number in range(4)} for name in ("cat", "dog"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working copy without results, which is the current folder."""
    for name in ("ALEXNET_MACHINE", "RAY_ADDRESS", "MLFLOW_TRACKING_URI", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("recipes", "studies"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def typed(*words: str) -> tuple[int, str]:
    """Exit code and error of `alexnet WORDS`, typed in the current folder."""
    done = CliRunner().invoke(alexnet, words, prog_name="alexnet")
    return done.exit_code, done.stderr


def index(section: dict[str, Any]) -> str:
    """What the stage `download` says to a source that cannot be used."""
    from pipeline import download
    from pipeline.runtime import edges

    document = params.load(Path("params.yaml")) | {"source": section}
    YAML(typ="safe").dump(document, Path("params.yaml"))
    with pytest.raises((ValueError, OSError)) as error:
        download.run()
    said = edges.message(error.value)
    assert said is not None
    assert said.count("\n") < 3
    return said


# Words


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["pred", "a.jpg"], 2, r"no command 'pred', did you mean 'predict'\?"),
        (["predict"], 2, r"Missing argument 'PICTURE\.\.\.'"),
        (["predict", "a.jpg", "--top", "0"], 2, r"'--top': 0 is not in the range x>=1"),
        (
            ["predict", "a.jpg", "--model", "gone.pt"],
            1,
            r"gone\.pt: no such file here \(.*\)\..*\n.* such as data/model\.pt",
        ),
        (["predict", "a.jpg", "--model", "params.yaml"], 1, r"params\.yaml: .*not a network saved here.* Restore"),
        (["predict", "a.jpg"], 1, r"data/model\.pt: no such file.*dvc repro|dvc repro.*data/model\.pt"),
        (["predict", "a.jpg", "--csv", "gone/a.csv"], 1, r"--csv: .*/gone: no such folder\. Make it, or name another"),
        (["compare"], 2, r"Missing argument 'NAME\.\.\.'"),
        pytest.param(
            ["compare", "ablation"],
            1,
            r"ablation: no folder with metrics\.json, .*; did you mean 'ablations'\? See: alexnet runs",
            marks=pytest.mark.slow,
        ),
        (["compare", "ablations:bse"], 1, r"bse.*base"),
        (["runs", "--last", "0"], 2, r"'--last': 0 is not in the range 1<=x"),
        (
            ["export", "--to", "tensorflow", "out"],
            2,
            r"'tensorflow' is not one of 'onnx', 'torch-export', 'safetensors'",
        ),
        (["export", "--to", "onnx", "studies"], 2, r"studies: exists\. Name another folder, or replace it: --force"),
        (["run", "--recipe", "papr"], 2, r"recipes/papr\.yaml: not there; did you mean 'paper'\? there are caffe, "),
        (["run", "--source", "imagenet"], 2, r"recipes/sources/imagenet\.yaml: not there; did you mean 'imagenette'\?"),
        (["run", "-S", "learning.rtae=1"], 2, r"-S learning\.rtae=1: .*did you mean 'learning\.rate'\?"),
        (["run", "-S", "learning.rate"], 2, r"-S learning\.rate: has to be section\.key=value, such as"),
        (["run", "train"], 2, r"unexpected extra argument \(train\)"),
        (["tracking", "ui", "--port", "five"], 2, r"'--port': 'five' is not a valid integer"),
        (["tracking", "ui", "--port", "99999"], 2, r"'--port': 99999 is not in the range"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_typed_wrongly(here: Path, words: list[str], code: int, said: str) -> None:
    before = sorted(here.iterdir())
    assert (done := typed(*words))[0] == code, done
    assert re.search(said, done[1], re.DOTALL), done[1]
    assert sorted(here.iterdir()) == before, "nothing was written"


@pytest.mark.slow
def test_a_run_s_error_of_dvc_is_said_without_its_advice(here: Path) -> None:
    """DVC's last line is where to ask for help."""
    (here / "dvc.yaml").write_text("stages: {download: {cmd: 3}}\n")
    subprocess.run(["dvc", "init", "--no-scm", "--quiet"], check=True, env=os.environ | {"DVC_NO_ANALYTICS": "1"})
    code, said = typed("run")
    assert code == 1
    assert re.match(
        r"run: dvc status: '\./dvc\.yaml' validation failed\. expected str, in stages -> download -> cmd, line 1", said
    )
    (here / "dvc.yaml").write_text("stages: {}\n")
    (here / ".dvc/config").write_text("[core\n")
    code, said = typed("run")
    assert re.match("run: dvc status: .*config", said), said
    assert "troubles" not in said


# Pictures of one's own

FOLDERS: dict[str, tuple[Callable[[Path], object], dict[str, Any], str]] = {
    "flat": (
        lambda pets: layouts.write({"1.jpg": b"x", "2.jpg": b"x"}, pets),
        {},
        r"pets: no folder of pictures; 2 pictures lie directly in it\. Each class has to be a folder, such as \S+/pets/cat/1",
    ),
    "empty": (
        lambda pets: pets.mkdir(),
        {},
        r"pets: no folder of pictures; it has 0 files and no picture\. Each class has",
    ),
    "texts": (
        lambda pets: layouts.write({"cat/a.txt": b"x", "dog/a.txt": b"x"}, pets),
        {},
        r"pets: no folder of pictures; it has 2 files and no picture\. Each class has to be a folder",
    ),
    "a folder too deep": (
        lambda pets: layouts.write({f"photos/{path}": data for path, data in (CAT | DOG).items()}, pets),
        {},
        r"pets: its only folder with pictures is photos/, which holds cat/, dog/\. .*source\.folder to this folder and /photos",
    ),
    "a file": (lambda pets: pets.write_bytes(b"x"), {}, r"pets: is a file\. .*unpack it, or name its folder"),
    "a link to nothing": (
        lambda pets: pets.symlink_to("/data/pest"),
        {},
        r"pets: is a link to /data/pest, which is not there\. Link it anew: ln -sfn /where/it/is \S+/pets$",
    ),
    "nothing": (lambda _: None, {}, r"pets: no such folder in the data store\. If it lies elsewhere, link it: ln -s"),
    "one class": (
        lambda pets: layouts.write(CAT, pets),
        {},
        r"pets: needs training pictures of at least 2 classes, found 'cat'",
    ),
    "no share": (
        lambda pets: layouts.write(CAT | DOG, pets),
        {"val_share": 0.0},
        r"pets: has none of val/, valid/, .*set params\.yaml: source\.val_share: 0\.1",
    ),
    "a class that is not there": (
        lambda pets: layouts.write(CAT | DOG, pets),
        {"classes": ["cat", "dgo"]},
        r"source\.classes: the set has no class 'dgo', did you mean 'dog'\?",
    ),
    "more classes than there are": (
        lambda pets: layouts.write(CAT | DOG, pets),
        {"classes": 5},
        r"source\.classes: 5, but the set has 2",
    ),
    "a path": (
        lambda _: None,
        {"folder": "/data/pets"},
        r"folder has to be the name of a folder in the data store, is '/data/pets'",
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_of_pictures_that_cannot_be_used(here: Path, case: str) -> None:
    make, changes, said = FOLDERS[case]
    (here / "data/store").mkdir(parents=True)
    make(here / "data/store/pets")
    section = {"name": "imagefolder", "folder": "pets", "classes": "all", "val_share": 0.25, "seed": 0}
    assert re.search(said, index(section | changes)), index(section | changes)
    assert not (here / "data/index").exists()


def test_class_folders_where_tars_are_expected(here: Path) -> None:
    layouts.write(CAT | DOG, here / "data/store/pets")
    section = {"name": "synsets", "folder": "pets", "classes": "all", "val_share": 0.25, "seed": 0}
    assert re.search(r"pets: no tar is in it, and .*synsets reads n01440764\.tar.*read by imagefolder", index(section))
    shutil.rmtree(here / "data/store/pets")
    assert "pets: no such folder in the data store" in index(section)


# What may not be read or written

ALL_CAPABILITIES = os.geteuid() == 0
"""The superuser reads and writes whatever it likes, unless it gives this up."""

UNPRIVILEGED = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if ALL_CAPABILITIES else []


def without_rights(words: list[str], folder: Path) -> tuple[int, str]:
    done = subprocess.run(
        [*UNPRIVILEGED, sys.executable, "-m", "pipeline", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "mode", "words", "said"),
    [
        (
            ".",
            0o555,
            ["download"],
            r"cannot be written to \(Permission denied\)\. Allow that, or name another folder in",
        ),
        ("params.yaml", 0, ["download"], r"params\.yaml: Permission denied"),
        ("data/store/pets", 0, ["download"], r"pets: Permission denied\n?.*Allow it \(chown, chmod\)"),
        ("data/store/pets/cat/1.jpg", 0, ["download"], r"pets/cat/1\.jpg: Permission denied"),
        (
            "mlflow.db",
            0,
            ["runs"],
            r"mlflow\.db: unable to open database file\. .*chmod u\+rw, or name another one in machine\.yaml \(tracking\)",
        ),
        ("model.pt", 0, ["predict", "a.jpg", "--model", "model.pt"], r"model\.pt: Permission denied\n?.*Allow it"),
    ],
    ids=["working copy", "params", "folder", "picture", "database", "network"],
)
def test_what_may_not_be_read_or_written(here: Path, place: str, mode: int, words: list[str], said: str) -> None:
    if UNPRIVILEGED and not shutil.which("setpriv"):
        pytest.skip("the superuser cannot give up its rights here")
    layouts.write(CAT | DOG, here / "data/store/pets")
    for name in ("mlflow.db", "model.pt", "a.jpg"):
        (here / name).write_bytes(b"")
    document = params.load(here / "params.yaml")
    document["source"] = {"name": "imagefolder", "folder": "pets", "classes": "all", "val_share": 0.25, "seed": 0}
    YAML(typ="safe").dump(document, here / "params.yaml")
    before = stat.S_IMODE((here / place).stat().st_mode)
    (here / place).chmod(mode)
    try:
        code, error = without_rights(words, here)
    finally:
        (here / place).chmod(before)
    assert code == 1, error
    assert re.search(said, error), error
    assert len(error.strip().splitlines()) <= 4, error
