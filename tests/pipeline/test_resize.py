"""The stage `resize` on a small set with every oddity: nothing is lost, and the number of workers changes nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch
from PIL import Image

from alexnet import dataset, limits, preparation
from alexnet.dataset import Mean, Sums
from alexnet.pictures import Undecodable, decode, encode
from pipeline import resize
from pipeline.archives import reader
from pipeline.resize import Resize
from pipeline.runtime import digests, files, params
from pipeline.runtime.machines import Machine
from pipeline.shards import artifacts, rejected, tables
from pipeline.shards.census import Census
from pipeline.shards.manifest import Manifest
from pipeline.shards.tables import Synset
from tests.pipeline.flips import unsaid
from tests.pipeline.sections import RESIZE

CLASSES = (Synset(wnid="n01440764", words="tench"), Synset(wnid="n01443537", words="goldfish"))
SECTION = dataclasses.replace(RESIZE, side=32, shuffle_seed=3, images_per_shard=8, max_rejected=0.2)
PARAMS = """source:
  kind: none
resize:
  side: 32
  filter: bilinear
  quality: 95
  shuffle_seed: 3
  images_per_shard: 8
  fit: crop
  max_rejected: 0.2
  max_megapixels: 200
  damaged: keep
"""


def file(picture: Image.Image, kind: str = "JPEG", **how: Any) -> bytes:
    written = io.BytesIO()
    picture.save(written, kind, **how)
    return written.getvalue()


def drawn(seed: int, height: int = 40, width: int = 50) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def with_zeros(data: bytes) -> bytes:
    """A JPEG with zeros in the middle."""
    middle = len(data) * 2 // 3
    return data[: middle - 40] + bytes(80) + data[middle + 40 :]


def pictures() -> dict[str, bytes]:
    """Thirty files by id; three of them cannot be decoded, and one is damaged."""
    exif = Image.Exif()
    exif[0x0112] = 6
    odd = [
        file(drawn(0).convert("L")),
        file(drawn(1).convert("CMYK")),
        file(drawn(2), "PNG"),
        file(drawn(3), exif=exif),
        file(drawn(4, 500, 9)),
        file(drawn(5, 1, 1)),
        b"",
        b"<html>404</html>",
        file(drawn(6))[:-300],
    ]
    usual = [file(drawn(seed, 40 + seed, 90 - seed)) for seed in range(len(odd), 30)]
    usual[0] = with_zeros(usual[0])
    named = {f"{CLASSES[place % 2].wnid}_{place}": data for place, data in enumerate(odd + usual)}
    return {f"{name}\x1b[2J" if data == usual[0] else name: data for name, data in named.items()}


FORMATS = {"JPEG colour": 24, "JPEG grey": 1, "JPEG CMYK": 1, "PNG colour": 1}
REASONS = {"the file is empty": 1, "no known format of pictures": 1, "damaged": 1}
DAMAGED = "n01443537_9\x1b[2J"
REJECTED = {"n01440764_6": "empty", "n01443537_7": "no known format", "n01440764_8": "truncated"}


def lay_out(folder: Path) -> None:
    """A working copy as `download` leaves it: two archives, the index, params.yaml."""
    (folder / "data/store/deep").mkdir(parents=True)
    (folder / "data/index").mkdir()
    rows = []
    for archive, split in (("deep/train.tar", "train"), ("val.tar", "val")):
        path = folder / "data/store" / archive
        members = [item for place, item in enumerate(pictures().items()) if (place % 5 == 4) == (split == "val")]
        with tarfile.open(path, "w") as tar:
            for name, data in members:
                member = tarfile.TarInfo(f"{name}.JPEG")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        with tarfile.open(path) as tar:
            rows += [
                {
                    "id": member.name.removesuffix(".JPEG"),
                    "split": split,
                    "label": int(member.name.startswith(CLASSES[1].wnid)),
                    "wnid": member.name.split("_")[0],
                    "archive": archive,
                    "offset": member.offset_data,
                    "length": member.size,
                    "crc32": zlib.crc32(pictures()[member.name.removesuffix(".JPEG")]),
                }
                for member in tar
            ]
    tables.write(pa.Table.from_pylist(rows, schema=tables.INDEX), tables.INDEX, folder / "data/index/index.parquet")
    contents = {"drawn": True, "classes": [dataclasses.asdict(synset) for synset in CLASSES]}
    (folder / "data/index/contents.json").write_text(json.dumps(contents))
    archives = [
        {
            "name": archive,
            "bytes": (folder / "data/store" / archive).stat().st_size,
            "sha256": hashlib.sha256((folder / "data/store" / archive).read_bytes()).hexdigest(),
        }
        for archive in ("deep/train.tar", "val.tar")
    ]
    listed = pa.Table.from_pylist(archives, schema=tables.ARCHIVES)
    tables.write(listed, tables.ARCHIVES, folder / "data/index/archives.parquet")
    digests.seal(folder / "data/index")
    (folder / "params.yaml").write_text(PARAMS)


@pytest.fixture
def copy(tmp_path: Path) -> Any:
    lay_out(tmp_path)
    with contextlib.chdir(tmp_path):
        yield tmp_path


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    """The working copy after the stage, run with two workers."""
    folder = tmp_path_factory.mktemp("made")
    lay_out(folder)
    (folder / "machine.yaml").write_text("workers: 2\n")
    with contextlib.chdir(folder):
        resize.run()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    manifest = Manifest.read(folder)
    files = [shard.file for split in ("train", "val") for shard in manifest.shards[split]]
    return [row for name in files for row in tables.read(folder / name).to_pylist()]


def alone(folder: Path, section: Resize = SECTION) -> Manifest:
    """Runs the stage without Ray, as a loop in this process."""
    index = resize.read_index(resize.INDEX)
    name = resize.key(section, index)
    machine = Machine()
    work = resize.prepare_work(name, machine)
    done = {task.file: resize.make_shard(task) for task in resize.plan(section, index, work, folder / "data/store")}
    resize.publish(done, section, index, work, machine)
    return Manifest.read(artifacts.SHARDS)


def test_bytes_do_not_depend_on_the_workers(made: Path, copy: Path) -> None:
    alone(copy)
    assert contents(copy / "data/shards") == contents(made / "data/shards")


@pytest.mark.slow
def test_nor_on_four_of_them(made: Path, copy: Path) -> None:
    (copy / "machine.yaml").write_text("workers: 4\n")
    resize.run()
    assert contents(copy / "data/shards") == contents(made / "data/shards")


def test_nothing_is_lost_and_the_rest_has_a_reason(made: Path) -> None:
    manifest = Manifest.read(made / "data/shards")
    rejected = tables.read(made / "data/shards/rejected.parquet").to_pylist()
    kept = {row["id"] for row in rows_of(made / "data/shards")}
    assert kept | {row["id"] for row in rejected} == pictures().keys()
    assert (manifest.indexed, manifest.rejected) == (30, 3)
    assert manifest.rows("train") + manifest.rows("val") == len(kept) == 27
    assert {row["id"] for row in rejected} == REJECTED.keys()
    for row in rejected:
        assert REJECTED[row["id"]] in row["reason"]


def test_what_the_pictures_were_is_counted_each_once(made: Path) -> None:
    census = Census.read(made / "data/shards/pictures.json")
    assert census.formats == FORMATS
    assert census.rejected == REASONS
    assert census.kept + 3 == census.indexed == 30
    assert census.orientations == {"6": 1}
    assert census.smaller == 2  # 9 x 500 and 1 x 1
    assert census.damaged == 1
    kept = rows_of(made / "data/shards")
    assert census.pixels == sum(row["width"] * row["height"] for row in kept)
    assert census.file_bytes == sum(len(pictures()[row["id"]]) for row in kept)


def test_the_stage_says_what_the_pictures_were(
    copy: Path, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    resize.run()
    *said, first = capsys.readouterr().out.splitlines()
    assert said == [f"resize: {line}" for line in Census.read(copy / "data/shards/pictures.json").lines()]
    assert said[-1] == "resize: damaged, kept: 1; damaged.parquet lists them"
    assert re.fullmatch(r"resize:   n01443537_9\\x1b\[2J in \S+\.tar at byte \d+: Corrupt JPEG data: [\w: ]+", first)
    assert said[:2] == [
        "resize: 30 pictures: 24 JPEG colour, 1 JPEG CMYK, 1 JPEG grey, 1 PNG colour",
        "resize: rejected: 1 damaged, 1 no known format of pictures, 1 the file is empty",
    ]


def test_a_damaged_picture_is_kept_and_listed_with_the_decoder_s_warning(made: Path) -> None:
    assert DAMAGED in {row["id"] for row in rows_of(made / "data/shards")}
    (row,) = tables.read(made / "data/shards/damaged.parquet").to_pylist()
    assert (row["id"], row["label"]) == (DAMAGED, 1)
    assert row["reason"].startswith("Corrupt JPEG data: ")


def test_or_is_rejected_with_the_key_and_counted_in_the_budget(copy: Path) -> None:
    manifest = alone(copy, dataclasses.replace(SECTION, damaged="reject"))
    assert manifest.rejected == 4
    reasons = {row["id"]: row["reason"] for row in tables.read(copy / "data/shards/rejected.parquet").to_pylist()}
    assert reasons.keys() == {*REJECTED, DAMAGED}
    assert re.fullmatch(r"damaged: Corrupt JPEG data: .* \(resize\.damaged: reject\)", reasons[DAMAGED])
    assert tables.read(copy / "data/shards/damaged.parquet").num_rows == 0
    census = Census.read(copy / "data/shards/pictures.json")
    assert (census.rejected["damaged"], census.damaged) == (2, 0)


def test_pictures_of_more_megapixels_are_rejected_with_the_key(copy: Path) -> None:
    """Whether a codec, Pillow or nothing decodes them; one of exactly so many pixels is taken."""
    allowed = 40 * 50
    larger = {name for name, data in pictures().items() if name not in REJECTED and pixels(data) > allowed}
    assert {pixels(data) == allowed for name, data in pictures().items() if name not in REJECTED} == {True, False}
    assert 0 < len(larger) < 27
    alone(copy, dataclasses.replace(SECTION, max_megapixels=allowed / 1e6))
    reasons = {row["id"]: row["reason"] for row in tables.read(copy / "data/shards/rejected.parquet").to_pylist()}
    assert reasons.keys() == {*REJECTED} | larger
    for name in larger:
        said = r"too many pixels: \d+ x \d+, more than 2,000 \(resize\.max_megapixels: 0\.002\)"
        assert re.fullmatch(said, reasons[name])
    ppm = b"P6\n50 41\n255\n" + bytes(3 * 50 * 41)
    for data in (ppm, file(drawn(0, 41, 50), "PNG"), file(drawn(0, 41, 50)), file(drawn(0, 41, 50).convert("CMYK"))):
        with pytest.raises(Undecodable, match="too many pixels: 50 x 41, more than 2,049"):
            dataclasses.replace(SECTION, max_megapixels=0.002049).accept(data)
        assert dataclasses.replace(SECTION, max_megapixels=0.00205).accept(data)[0].shape == (3, 41, 50)


def pixels(data: bytes) -> int:
    width, height = Image.open(io.BytesIO(data)).size
    return width * height


def test_raw_shards_hold_the_pixels_that_jpegs_were_made_of(copy: Path, made: Path) -> None:
    """The pixels are read by Pillow; the other columns equal those of JPEG shards, row by row."""
    section = dataclasses.replace(SECTION, quality="raw")
    alone(copy, section)
    known = pictures()
    raw, compressed = rows_of(copy / "data/shards"), rows_of(made / "data/shards")
    assert len(raw) == 27
    for row, other in zip(raw, compressed, strict=True):
        assert {**row, "image": None} == {**other, "image": None}
        assert row["image"]["path"] == other["image"]["path"].replace(".jpg", ".ppm")
        stored = Image.open(io.BytesIO(row["image"]["bytes"]))
        assert (stored.format, stored.mode, stored.size) == ("PPM", "RGB", (32, 32))
        expected_CHW = dataset.resize(decode(known[row["id"]]), 32, "bilinear")
        np.testing.assert_array_equal(np.asarray(stored).transpose(2, 0, 1), expected_CHW)
        np.testing.assert_array_equal(decode(row["image"]["bytes"]), expected_CHW)
        assert other["image"]["bytes"] == encode(expected_CHW, 95)


def test_a_row_group_is_some_megabytes_also_of_raw_pixels(copy: Path) -> None:
    """Training keeps one row group in memory for each of its streams."""
    index = resize.read_index(resize.INDEX)
    many = dataclasses.replace(index, rows=pa.concat_tables([index.rows] * 5))
    sizes = {}
    for quality in ("raw", 95):
        section = dataclasses.replace(SECTION, quality=quality, images_per_shard=1000)
        work = resize.prepare_work(str(quality), Machine())
        file = resize.make_shard(resize.plan(section, many, work, copy / "data/store")[0]).shard.file
        sizes[quality] = [group.num_rows for group in tables.groups(work / "shards" / file, ["label"])]
    assert sum(sizes["raw"]) == sum(sizes[95]) == 5 * 21
    assert max(sizes["raw"]) * len(encode(torch.zeros(3, 256, 256, dtype=torch.uint8), "raw")) < 7e6
    assert sizes[95] == [5 * 21]


def test_hugging_face_shows_raw_pictures(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(copy / "home"))
    import datasets  # it reads the two settings when imported

    alone(copy, dataclasses.replace(SECTION, quality="raw"))
    files = str(copy / "data/shards/val-*.parquet")
    loaded = datasets.load_dataset("parquet", data_files={"val": files}, cache_dir=str(copy / "cache"), split="val")
    rows = rows_of(copy / "data/shards")[-len(loaded) :]
    for shown, row in zip(loaded, rows, strict=True):
        assert shown["id"] == row["id"]
        np.testing.assert_array_equal(np.asarray(shown["image"]).transpose(2, 0, 1), decode(row["image"]["bytes"]))


def test_names_and_sizes_are_those_of_the_manifest(made: Path) -> None:
    manifest = Manifest.read(made / "data/shards")
    assert [shard.file for shard in manifest.shards["train"]] == [f"train-0000{n}-of-00003.parquet" for n in range(3)]
    assert [shard.file for shard in manifest.shards["val"]] == ["val-00000-of-00001.parquet"]
    assert manifest.shards["test"] == ()
    for shard in (*manifest.shards["train"], *manifest.shards["val"]):
        data = (made / "data/shards" / shard.file).read_bytes()
        assert (shard.bytes, shard.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert manifest.drawn
    assert not (made / "work/resize").exists()


def test_each_row_is_its_picture(made: Path) -> None:
    known = pictures()
    for row in rows_of(made / "data/shards"):
        data = known[row["id"]]
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        assert CLASSES[row["label"]].wnid == row["wnid"] == row["id"].split("_")[0]
        original = Image.open(io.BytesIO(data))
        assert (row["width"], row["height"]) == original.size
        small = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])), np.float64)
        assert small.shape == (32, 32, 3)
        width, height = original.size
        left, top, side = (width - min(width, height)) / 2, (height - min(width, height)) / 2, min(width, height)
        box = (left, top, left + side, top + side)
        expected = np.asarray(original.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR, box), np.float64)
        assert np.abs(small - expected).mean() < 6  # JPEG's loss, and half a pixel


def test_the_order_is_a_shuffle_that_the_seed_decides() -> None:
    orders = [resize.random_order(1000, seed, split).tolist() for seed in (0, 1) for split in ("train", "val")]
    for order in orders:
        assert sorted(order) == list(range(1000))
        # Of two random orders, 1 place in 1,000 agrees
        assert sum(place == row for place, row in enumerate(order)) < 10
    assert len({tuple(order) for order in orders}) == 4
    assert resize.random_order(1000, 1, "val").tolist() == orders[3]


def test_the_order_does_not_depend_on_the_index_s(copy: Path) -> None:
    """The same pictures, listed in another order."""
    index = resize.read_index(resize.INDEX)
    turned = dataclasses.replace(index, rows=index.rows.take(np.arange(30)[::-1].copy()))
    plans = [resize.plan(SECTION, each, copy, copy) for each in (index, turned)]
    assert [task.rows["id"].to_pylist() for task in plans[0]] == [task.rows["id"].to_pylist() for task in plans[1]]


def test_what_was_finished_is_taken_over_if_it_is_whole(copy: Path, made: Path) -> None:
    index = resize.read_index(resize.INDEX)
    work = resize.prepare_work(resize.key(SECTION, index), Machine())
    tasks = resize.plan(SECTION, index, work, copy / "data/store")
    for task in tasks[:3]:
        resize.make_shard(task)
    (work / "shards/train-00000-of-00003.parquet.01234567.part").write_bytes(b"PAR1")
    (work / "shards" / tasks[1].file).unlink()  # killed between the sidecar of an older run and this shard
    damaged = work / "shards" / tasks[2].file
    damaged.write_bytes(damaged.read_bytes()[:-1])
    word = work / "done" / f"{tasks[3].file}.json"
    resize.make_shard(tasks[3])
    word.write_text(word.read_text().replace('"rows": ', '"rows": 1'))  # a digit more, and JSON all the same
    whole = work / "shards" / tasks[0].file
    before = whole.stat().st_mtime_ns
    alone_again = [resize.make_shard(task) for task in tasks]
    assert whole.stat().st_mtime_ns == before
    resize.publish(
        {task.file: done for task, done in zip(tasks, alone_again, strict=True)}, SECTION, index, work, Machine()
    )
    assert contents(copy / "data/shards") == contents(made / "data/shards")


@pytest.mark.slow
def test_killed_and_run_again_is_the_same(copy: Path, made: Path) -> None:
    # its pictures are too small for a network, so that all of params.yaml would not be found good
    command = [
        sys.executable,
        "-c",
        "from pipeline import resize; from pipeline.runtime import stage; stage.main('resize', resize.run)",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(resize.__file__).parents[1])}
    environment.pop("RAY_ADDRESS", None)
    process = subprocess.Popen(command, cwd=copy, env=environment, start_new_session=True)
    while process.poll() is None and not list(copy.glob("work/resize/*/done/*")):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (copy / "data/shards").exists()
    subprocess.run(command, cwd=copy, env=environment, check=True)
    assert contents(copy / "data/shards") == contents(made / "data/shards")


def test_other_settings_forget_what_was_begun(copy: Path) -> None:
    old = resize.prepare_work("old", Machine())
    new = resize.prepare_work("new", Machine())
    assert not old.exists()
    assert new.exists()
    assert resize.prepare_work("new", Machine()) == new


def test_the_key_knows_what_decides_the_bytes(copy: Path) -> None:
    index = resize.read_index(resize.INDEX)
    key = resize.key(SECTION, index)
    assert resize.key(dataclasses.replace(SECTION, max_rejected=1.0), index) == key
    for change in (
        {"side": 31},
        {"fit": "warp"},
        {"filter": "area"},
        {"quality": 94},
        {"quality": "raw"},
        {"shuffle_seed": 4},
        {"images_per_shard": 7},
        {"max_megapixels": 80.0},
        {"damaged": "reject"},
    ):
        assert resize.key(dataclasses.replace(SECTION, **change), index) != key
    for archive in index.archives["name"].to_pylist():
        sums = [None if name == archive else "0" * 64 for name in index.archives["name"].to_pylist()]
        others = index.archives.set_column(2, "sha256", pa.array(sums, pa.string()))
        tables.write(others, tables.ARCHIVES, copy / "data/index/archives.parquet")
        digests.seal(copy / "data/index")
        assert resize.key(SECTION, resize.read_index(resize.INDEX)) != key


def test_too_many_rejected_stop_the_stage_with_the_first_of_them(copy: Path, ray_session: None) -> None:
    (copy / "params.yaml").write_text(PARAMS.replace("max_rejected: 0.2", "max_rejected: 0.0"))
    first = r"  n0144\d+_\d in deep/train\.tar at byte \d+: .*(empty|truncated|no known)"
    message = rf"[123] or more of 30 pictures are rejected; .*max_rejected: 0\.0 allows 0\..*\n{first}"
    with pytest.raises(ValueError, match=message):
        resize.run()
    assert not (copy / "data/shards").exists()


def index_of(count: int, *, drawn: bool = False, alone: bool = False) -> SimpleNamespace:
    """As much of an index as `check_rejected` asks for."""
    sizes = {"length": [10] * count, "archive_bytes": [10 if alone else 100 * count] * count}
    return SimpleNamespace(rows=pa.table(sizes), drawn=drawn)


REJECTED_ROW = {"id": "a", "archive": "x.tar", "offset": 3, "reason": "damaged"}


@pytest.mark.parametrize(
    ("share", "indexed", "allowed"), [(0.1, 30, 3), (0.01, 60, 1), (0.01, 1, 1), (0.0, 10**6, 0), (1.0, 4, 4)]
)
def test_the_allowed_fraction_is_of_the_indexed_and_never_less_than_one_picture(
    share: float, indexed: int, allowed: int
) -> None:
    rejected.check_rejected([REJECTED_ROW] * allowed, index_of(indexed), share)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"^{allowed + 1} or more of {indexed} .* allows {allowed}\. "):
        rejected.check_rejected([REJECTED_ROW] * (allowed + 1), index_of(indexed), share)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        ({"drawn": True}, r"The sample has a truncated picture on purpose: draw more of them \(source\.train_images\)"),
        ({"alone": True}, "Replace or remove these files"),
        ({}, "Fetch the archives again"),
    ],
)
def test_what_to_do_about_rejected_pictures_depends_on_the_source(kind: dict[str, bool], advice: str) -> None:
    with pytest.raises(
        ValueError, match=rf"allows 1\. {advice}, or raise it\. The first are:\n  a in x\.tar at byte 3: damaged"
    ):
        rejected.check_rejected([REJECTED_ROW] * 2, index_of(60, **kind), 0.01)  # type: ignore[arg-type]


def test_where_parameters_reject_most_of_them_the_advice_names_these() -> None:
    large, damaged = (
        REJECTED_ROW | {"reason": f"too many pixels: 9 x 9 ({preparation.MEGAPIXELS}: 80)"},
        REJECTED_ROW | {"reason": f"damaged: bad code ({preparation.DAMAGED}: reject)"},
    )
    for rows, advice in (
        ([large, large, REJECTED_ROW], r"Change resize\.max_megapixels, or raise it\."),
        ([large, damaged, REJECTED_ROW], r"Change resize\.damaged and resize\.max_megapixels, or raise it\."),
        ([large, REJECTED_ROW, REJECTED_ROW], r"Fetch the archives again, or raise it\."),
    ):
        with pytest.raises(ValueError, match=advice):
            rejected.check_rejected(rows, index_of(60), 0.01)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["gone", "cut"])
def test_an_archive_that_is_not_what_was_indexed_is_named(
    copy: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resize.cluster, "connected", lambda _: pytest.fail("the work has begun"))
    archive = copy / "data/store/val.tar"
    data = archive.read_bytes()
    archive.unlink()
    if how == "cut":
        archive.write_bytes(data[:-1])
    message = r"val\.tar: " + ("missing" if how == "gone" else f"has {len(data) - 1} bytes, had {len(data)}")
    with pytest.raises(ValueError, match=message):
        resize.run()


def test_the_index_with_any_other_byte_is_refused(copy: Path) -> None:
    before = resize.read_index(resize.INDEX)
    for name in ("index.parquet", "archives.parquet", "contents.json", "SHA256SUMS"):
        file = resize.INDEX / name
        assert unsaid(file, lambda: dataclasses.replace(resize.read_index(resize.INDEX), digest=""), mask=4) == []
    assert resize.read_index(resize.INDEX) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"drawn": "no"}, r"drawn: .*boolean \(found 'no'\)"),
        ({"classes": {"n01440764": "tench"}}, r"classes: .*array"),
        ({"classes": [{"wnid": 1440764, "words": "tench"}]}, r"classes\.0\.wnid: .*string \(found 1440764\)"),
        ({"classes": []}, "not the rank of its WordNet id"),
        ({"note": ""}, "note: unknown key"),
    ],
)
def test_contents_of_another_kind_are_named(copy: Path, change: dict[str, Any], said: str) -> None:
    file = copy / resize.INDEX / "contents.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    digests.seal(file.parent)
    with pytest.raises(ValueError, match=rf"{said}.*Run: dvc repro --force (--single-item )?download$"):
        resize.read_index(file.parent)


def first_row(folder: Path) -> dict[str, Any]:
    """The row of a picture in the middle of an archive, as in a worker's task."""
    rows: list[dict[str, Any]] = resize.read_index(folder / resize.INDEX).rows.to_pylist()
    return rows[10]


def test_any_other_byte_of_a_picture_in_an_archive_is_refused_and_nowhere_rejected(copy: Path) -> None:
    row = first_row(copy)
    file, start = copy / "data/store" / row["archive"], row["offset"]
    status, data = file.stat(), file.read_bytes()
    assert reader.Archives(file.parents[1]).read(row) == pictures()[row["id"]]
    for place in range(start, start + row["length"], row["length"] // 20):
        file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # no other size, and no later
        said = rf"^\S+{row['archive']}: byte {start}: {row['id']}: other bytes than were indexed: their CRC-32 is \w{{8}}, "
        with pytest.raises(ValueError, match=said + r"was \w{8}\. Run: dvc repro --force download$"):
            reader.Archives(file.parents[1]).read(row)
    with pytest.raises(ValueError, match=said):
        alone(copy)
    assert not (copy / "data/shards").exists()


def test_an_archive_that_grows_or_shrinks_while_pictures_are_read_is_refused(copy: Path) -> None:
    row = first_row(copy)
    file = copy / "data/store" / row["archive"]
    data = file.read_bytes()
    for other in (data + b"x", data[:-1], b""):
        file.write_bytes(other)
        with pytest.raises(
            ValueError, match=rf"has {len(other)} bytes, had {len(data)} when it was indexed\. Run: dvc"
        ):
            reader.Archives(file.parents[1]).read(row)


def test_a_file_that_is_too_large_for_a_picture_is_read_so_far_and_no_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_BYTES", 10)
    (tmp_path / "large.jpg").write_bytes(b"x" * 1000)
    row = {"archive": "large.jpg", "id": "large", "offset": 0, "length": 1000, "archive_bytes": 1000, "crc32": 0}
    assert reader.Archives(tmp_path).read(row) == b"x" * 11
    with pytest.raises(Undecodable, match="too many bytes"):
        decode(b"x" * 11)


def test_what_is_read_ahead_is_bounded_by_bytes_and_not_by_pictures_alone() -> None:
    small, large = ({"length": length} for length in (100_000, reader.AHEAD // 8))
    rows = [*[small] * 20, *[large] * 5, small]
    sizes = [len(piece) for piece in reader.pieces([*range(len(rows))], rows)]
    assert sizes == [8, 8, 5, 2, 2, 1]
    assert [place for piece in reader.pieces([*range(len(rows))], rows) for place in piece] == [*range(len(rows))]


def test_a_picture_by_itself_that_became_another_is_refused(tmp_path: Path) -> None:
    """The new picture has as many bytes, or more with the old ones first."""
    row = {"archive": "cat.jpg", "id": "cat", "offset": 0, "length": 3, "archive_bytes": 3, "crc32": zlib.crc32(b"cat")}
    for data, said in ((b"dog", "byte 0: cat: other bytes than were indexed"), (b"cats", "has 4 bytes, had 3")):
        (tmp_path / "cat.jpg").write_bytes(data)
        with pytest.raises(ValueError, match=rf"cat\.jpg: {said}.* Run: dvc repro --force download$"):
            reader.Archives(tmp_path).read(row)


def test_what_is_made_is_sealed_as_coreutils_reads_it(made: Path) -> None:
    said = subprocess.run(["sha256sum", "-c", "--quiet", "--strict", "SHA256SUMS"], cwd=made / "data/shards")
    assert said.returncode == 0
    assert digests.recorded(made / "data/shards").keys() | {"SHA256SUMS"} == contents(made / "data/shards").keys()


def test_a_worker_s_error_arrives_as_it_is(copy: Path, ray_session: None) -> None:
    index = resize.read_index(resize.INDEX)
    work = resize.prepare_work("any", Machine())
    tasks = resize.plan(SECTION, index, work, copy / "data/store")
    (copy / "data/store/deep/train.tar").write_bytes(b"")
    said = r"^\S+deep/train\.tar: has 0 bytes, had \d+ when it was indexed\. Run: dvc repro --force download$"
    with pytest.raises(ValueError, match=said):
        resize.make(tasks, SECTION, index, Machine(workers=1))


def test_an_index_that_is_not_there_says_what_to_run(copy: Path) -> None:
    (copy / "data/index/contents.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"contents\.json: not there\. Run: dvc repro download"):
        resize.run()


@pytest.mark.parametrize(
    "change",
    [
        {"side": 0},
        {"quality": 101},
        {"quality": 0},
        {"shuffle_seed": -1},
        {"images_per_shard": 0},
        {"max_rejected": 1.5},
        {"max_megapixels": 0.0},
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any]) -> None:
    ((name, value),) = change.items()
    with pytest.raises(ValueError, match=f"{name} has to be .*, is {value}"):
        dataclasses.replace(SECTION, **change)


def test_the_quality_is_a_number_or_the_word_raw(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    for word, quality in (("raw", "raw"), ("1", 1), ("100", 100)):
        file.write_text(PARAMS.replace("quality: 95", f"quality: {word}"))
        assert params.read("resize", Resize, file).quality == quality
    for word in ("rough", "true", "'95'", "95.5"):
        file.write_text(PARAMS.replace("quality: 95", f"quality: {word}"))
        with pytest.raises(params.ParamsError, match=r"resize\.quality: .*'raw', or .*integer"):
            params.read("resize", Resize, file)


def test_in_a_shared_storage_lie_the_shards_and_what_a_job_needs(copy: Path, made: Path, ray_session: None) -> None:
    storage = copy / "storage"
    (copy / "machine.yaml").write_text(f"workers: 2\nstorage: {storage}\nstore: {copy / 'data/store'}\n")
    resize.run()
    machine = Machine(storage=str(storage))
    manifest = Manifest.read(artifacts.SHARDS)
    assert contents(artifacts.locate(manifest, machine)) == contents(made / "data/shards")
    small = {name: data for name, data in contents(made / "data/shards").items() if name in contents(artifacts.SHARDS)}
    assert contents(artifacts.SHARDS) == small
    lists = {f"{name}.parquet" for name in ("rejected", "damaged", "duplicates")}
    assert small.keys() == {"manifest.json", "pictures.json", "SHA256SUMS"} | lists
    assert list((storage / "shards/work").iterdir()) == []
    files.discard(Path("data"))  # as in a job, which brings code and params.yaml alone
    with pytest.raises(FileNotFoundError, match=r"mean\.npz: not there\. Run: dvc repro --force --single-item mean"):
        artifacts.inputs(machine)
    folder = artifacts.prepared(machine)
    assert folder is not None
    mean = Mean.of(Sums(manifest.rows("train"), np.zeros((3, 32, 32), np.int64), np.eye(3, dtype=np.int64)))
    mean.save(folder / "mean.npz")
    with pytest.raises(ValueError, match=r"SHA256SUMS: has no line for mean\.npz\. Run: dvc repro --force"):
        artifacts.inputs(machine)
    digests.add(folder / "mean.npz")
    assert artifacts.inputs(machine) == (manifest, folder / "mean.npz")
    for file in (folder / "mean.npz", folder / "manifest.json"):
        assert unsaid(file, lambda: artifacts.inputs(machine), always=True) == []
    (copy / "params.yaml").write_text(PARAMS.replace("quality: 95", "quality: 94"))
    with pytest.raises(FileNotFoundError, match="never prepared"):
        artifacts.inputs(machine)


def test_a_shard_that_is_gone_or_cut_is_named(made: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(made / "data/shards")
    with contextlib.chdir(made):
        assert artifacts.locate(manifest, Machine()) == made / "data/shards"
    with (
        contextlib.chdir(tmp_path),
        pytest.raises(ValueError, match=r"train-00000.*: not there\. Run: dvc repro --force"),
    ):
        artifacts.locate(manifest, Machine())
    with contextlib.chdir(tmp_path):
        artifacts.SHARDS.mkdir(parents=True)
        for shard in manifest.shards["train"]:
            (artifacts.SHARDS / shard.file).write_bytes(b"PAR1")
        with pytest.raises(ValueError, match=r"train-00000.*: has 4 bytes, was made with \d+"):
            artifacts.locate(manifest, Machine())


def test_a_set_of_files_needs_no_more_open_files_than_threads(tmp_path: Path) -> None:
    known = {"offset": 0, "length": 2, "archive_bytes": 2, "crc32": zlib.crc32(b"xy")}
    rows: list[dict[str, Any]] = [{"archive": f"{number}.jpg", "id": str(number)} | known for number in range(100)]
    for row in rows:
        (tmp_path / row["archive"]).write_bytes(b"xy")
    archives = reader.Archives(tmp_path)
    before = psutil.Process().num_fds()
    assert [archives.read(row) for row in rows] == [b"xy"] * 100
    assert psutil.Process().num_fds() == before + 1
    archives.close()
    assert psutil.Process().num_fds() == before
    (tmp_path / "5.jpg").unlink()
    with pytest.raises(ValueError, match=r"5\.jpg: not there\. Run: dvc repro --force download"):
        archives.read(rows[5])


def test_of_very_many_archives_a_thousand_are_looked_at(tmp_path: Path) -> None:
    names = [f"{number}.jpg" for number in range(2500)]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    archives = pa.table({"name": names, "bytes": [1] * 2500, "sha256": [""] * 2500, "md5": [None] * 2500})
    index = resize.Index(
        rows=pa.table({"archive": names}),
        classes=CLASSES,
        archives=archives.cast(tables.ARCHIVES),
        drawn=False,
        digest="",
    )
    resize.check_store(index, tmp_path)
    for name in names[1000:1010]:
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=r"10\d\d\.jpg: missing, but the index names it"):
        resize.check_store(index, tmp_path)
