"""The stage `download`: its outs compared with the archives, reruns, kills, settings."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any, cast

import pytest
from scipy.io import loadmat

from pipeline import download
from pipeline.runtime import digests, params
from pipeline.shards import tables
from pipeline.sources import sample
from pipeline.sources.ilsvrc import YEAR_2012 as YEAR

TRAIN, VAL, DEVKIT = YEAR.archives

ROOT = Path(__file__).parents[2]
SETTINGS = {"name": "sample", "seed": 3, "train_images": 30, "val_images": 10, "level": "easy"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working copy with a params.yaml and no machine.yaml."""
    for name in ("DVC_ROOT", "DVC_STAGE", "ALEXNET_MACHINE", "ALEXNET_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    settle()
    return tmp_path


def settle(**changes: Any) -> None:
    Path("params.yaml").write_text(json.dumps({"source": SETTINGS | changes}))


def outs(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((folder / "data/index").iterdir())}


def read(tar: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        return {member.name: cast("io.BufferedReader", opened.extractfile(member)).read() for member in opened}


def test_every_row_is_the_picture_that_an_independent_reader_finds(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    download.run()
    rows = tables.read(Path("data/index/index.parquet"))
    assert rows.schema.equals(tables.INDEX)
    (folder,) = (path for path in (place / "data/store").iterdir() if path.is_dir())
    kit = read((folder / DEVKIT).read_bytes())
    meta = io.BytesIO(kit["ILSVRC2012_devkit_t12/data/meta.mat"])
    synsets = loadmat(meta, squeeze_me=True)["synsets"]  # type: ignore[arg-type]
    leaves = [synset for synset in synsets if synset["num_children"] == 0]
    wnids = sorted(str(synset["WNID"]) for synset in leaves)
    by_id = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in leaves}
    truth = kit["ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"].decode().split()
    train = [item for tar in read((folder / TRAIN).read_bytes()).values() for item in read(tar).items()]
    val = list(read((folder / VAL).read_bytes()).items())
    expected = [("train", name, data, name.split("_")[0]) for name, data in train]
    expected += [("val", name, data, by_id[int(truth[int(name[15:23]) - 1])]) for name, data in val]
    assert len(expected) == rows.num_rows == 40
    for row, (split, name, data, wnid) in zip(rows.to_pylist(), expected, strict=True):
        archive = (place / "data/store" / row["archive"]).read_bytes()
        assert archive[row["offset"] : row["offset"] + row["length"]] == data
        assert (row["split"], row["id"], row["wnid"]) == (split, name.removesuffix(".JPEG"), wnid)
        assert row["label"] == wnids.index(wnid)
    classes = json.loads(Path("data/index/contents.json").read_text())["classes"]
    assert [synset["wnid"] for synset in classes] == wnids
    assert {synset["wnid"]: synset["words"] for synset in classes} == {
        str(synset["WNID"]): str(synset["words"]) for synset in leaves
    }
    assert capsys.readouterr().out.startswith("sample: 30 train + 10 val pictures of 10 classes in ")


def test_the_archives_are_listed_with_their_sizes_and_checksums_and_said_to_be_drawn(place: Path) -> None:
    download.run()
    assert json.loads(Path("data/index/contents.json").read_text())["drawn"] is True
    archives = tables.read(Path("data/index/archives.parquet")).to_pylist()
    assert len(archives) == 3
    assert set(digests.recorded(place / "data/index")) == set(outs(place)) - {"SHA256SUMS"}
    for name in outs(place).keys() - {"SHA256SUMS"}:
        digests.check(place / "data/index" / name, "download")
    for archive in archives:
        data = (place / "data/store" / archive["name"]).read_bytes()
        assert archive["bytes"] == len(data)
        assert archive["md5"] == hashlib.md5(data, usedforsecurity=False).hexdigest()
        assert archive["sha256"] == hashlib.sha256(data).hexdigest()


def test_the_outs_are_the_same_wherever_the_store_is_and_whenever_it_was_filled(
    place: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    download.run()
    first = outs(place)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    other = tmp_path_factory.mktemp("other")
    (other / "machine.yaml").write_text(json.dumps({"store": str(elsewhere)}))
    monkeypatch.chdir(other)
    settle()
    download.run()
    assert outs(other) == first
    assert not (other / "data/store").exists()
    assert [path.is_dir() for path in sorted(elsewhere.iterdir())] == [True, False]
    text = b"".join(first.values())
    assert str(place).encode() not in text
    assert str(elsewhere).encode() not in text


@pytest.mark.slow
def test_an_altered_archive_is_mended_before_it_is_indexed(place: Path) -> None:
    download.run()
    first = outs(place)
    (archive,) = (place / "data/store").glob(f"*/{TRAIN}")
    data = bytearray(archive.read_bytes())
    data[1000:2000] = bytes(1000)
    archive.write_bytes(data)
    download.run()
    assert outs(place) == first


@pytest.mark.slow
def test_another_seed_has_its_own_archives_beside_the_others(place: Path) -> None:
    download.run()
    first = outs(place)
    settle(seed=4)
    download.run()
    assert outs(place)["index.parquet"] != first["index.parquet"]
    assert outs(place)["contents.json"] == first["contents.json"]
    assert len(list((place / "data/store").glob(f"sample-*/{TRAIN}"))) == 2


def test_an_archive_that_cannot_be_indexed_leaves_the_old_outs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download.run()
    first = outs(place)
    (truth,) = (place / "data/store").glob(f"*/{DEVKIT}")
    truth.write_bytes(b"")
    monkeypatch.setattr(sample, "make", lambda *_: None)
    with pytest.raises(ValueError, match=f"{DEVKIT}: not a whole"):
        download.run()
    assert outs(place) == first


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "smaple"}, "source.name: unknown name 'smaple', did you mean 'sample'\\? Known are sample, "),
        ({"seed": -1}, "source: seed has to be at least 0, is -1"),
        ({"train_images": 19}, "source: train_images has to be from 20 to 100000, is 19"),
        ({"val_images": 9}, "source: val_images has to be from 10 to 100000, is 9"),
        ({"val_images": "10"}, "source.val_images: .*found '10'"),
        ({"image": 3}, "source.image: unknown key"),
        ({"level": "harder"}, "source.level: .*'easy'.*'hard'.*found 'harder'"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_the_value(place: Path, changes: dict[str, Any], said: str) -> None:
    settle(**changes)
    with pytest.raises(params.ParamsError, match=said):
        download.run()
    assert not (place / "data").exists()


def test_a_file_from_before_a_key_is_told_what_to_add(place: Path) -> None:
    before = {key: value for key, value in SETTINGS.items() if key != "level"}
    Path("params.yaml").write_text(json.dumps({"source": before}))
    said = (
        r"source\.level: is missing\. Add `level: easy` for the pictures as they were before this key, or `level: hard`"
    )
    with pytest.raises(params.ParamsError, match=said):
        download.run()
    assert not (place / "data").exists()


def program(place: Path) -> subprocess.Popen[str]:
    whole = params.load(ROOT / "params.yaml") | params.load(place / "params.yaml")
    (place / "params.yaml").write_text(json.dumps(whole))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pipeline", "download"]
    return subprocess.Popen(command, cwd=place, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_as_a_program_it_says_what_is_wrong_in_one_line(place: Path) -> None:
    settle(seed=-1)
    with program(place) as process:
        said = cast("Any", process.stderr).read()
    assert process.returncode == 1
    assert said == "download: params.yaml: source: seed has to be at least 0, is -1\n"


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_killed_at_any_moment_a_rerun_ends_with_the_same_bytes(
    place: Path, sign: signal.Signals, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(train_images=300)
    download.run()
    undisturbed = outs(place)
    other = tmp_path_factory.mktemp("other")
    monkeypatch.chdir(other)
    settle(train_images=300)
    killed = 0
    for after in (f"{TRAIN}.*.part", f"{VAL}.*.part", sample.RECORD):
        with program(other) as process:
            while process.poll() is None and not list(other.glob(f"data/store/*/{after}")):
                time.sleep(0.005)
            process.send_signal(sign)
        killed += process.returncode != 0
    assert killed >= 1
    download.run()
    assert outs(other) == undisturbed
    assert not list(other.glob("data/store/*/*.part"))
