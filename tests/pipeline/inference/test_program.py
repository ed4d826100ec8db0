"""`alexnet predict` on the pictures that people have: each gets five names or a reason, and none stops another."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from alexnet.appearance import Appearance
from pipeline import commands
from pipeline.inference import answers, batch, inputs, program
from pipeline.inference.predictor import Predictor
from pipeline.runtime import digests
from pipeline.runtime.machines import Machine
from tests.pipeline import noise
from tests.pipeline.inference.test_predictor import model, original
from tests.pipeline.object_store import CREDENTIALS
from tests.pipeline.object_store import serving as object_stores
from tests.pipeline.server import File, serving

ROOT = Path(__file__).parents[3]


def saved(picture: Image.Image, kind: str, **how: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **how)
    return file.getvalue()


def kinds() -> dict[str, bytes]:
    """Files of each kind that people have, by name; the last four are rejected."""
    whole = Image.open(io.BytesIO(original(3))).convert("RGB").resize((300, 280))
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray((np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64))
    jpeg = saved(whole, "JPEG", quality=90)
    return {
        "alpha.png": saved(whole.convert("RGBA"), "PNG"),
        "sixteen.png": saved(deep, "PNG"),
        "cmyk.jpg": saved(whole.convert("CMYK"), "JPEG"),
        "rotated.jpg": saved(whole, "JPEG", exif=exif),
        "animated.gif": saved(whole.convert("P"), "GIF", save_all=True, append_images=[whole.rotate(90).convert("P")]),
        "web.webp": saved(whole, "WEBP"),
        "scan.tiff": saved(whole, "TIFF"),
        "no ending": jpeg,
        "lies.png": jpeg,
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "text.jpg": b"not a picture",
        "empty.jpg": b"",
        "new.avif": b"\0\0\0\x1cftypavif" + bytes(100),
    }


REJECTED = ("truncated.jpg", "text.jpg", "empty.jpg", "new.avif")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "DVC_", "ALEXNET_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/model.pt").write_bytes(model())
    return tmp_path


def put(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


@pytest.mark.slow
def test_each_kind_of_picture_has_its_answer_or_its_reason(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(here / "mine/deeper", kinds())
    put(here / "mine", {".hidden.jpg": b"x", "__MACOSX/a.jpg": b"x", "Thumbs.db": b"x"})
    assert program.predict(["mine"], json="out.json", csv=Path("out.csv")) == program.REJECTED
    said = capsys.readouterr()
    written = json.loads((here / "out.json").read_text())
    pictures = {Path(each["path"]).name: each for each in written["pictures"]}
    assert pictures.keys() == kinds().keys()
    assert {name for name, each in pictures.items() if each["reason"]} == set(REJECTED)
    assert (written["rejected"], written["passed_over"], written["run"]) == (4, 3, "f" * 16)
    assert "predict: 9 pictures answered, 4 rejected, 3 hidden or left-over files passed over\n" in said.err
    assert "mine/deeper/new.avif: rejected: a format that is not read: AVIF" in said.err
    shown = Predictor.load(model())
    for name, each in pictures.items():
        assert each["bytes"] == len(kinds()[name])
        if not each["reason"]:
            (answer,) = shown.answer([shown.prepare(kinds()[name])])
            assert each["guesses"] == [dataclasses.asdict(guess) for guess in answer]
            assert f"mine/deeper/{name}\n  {100 * answer[0].probability:5.1f} %" in said.out
    with (here / "out.csv").open(newline="") as file:
        rows = {Path(row["path"]).name: row for row in csv.DictReader(file)}
    assert rows.keys() == pictures.keys()
    assert rows["text.jpg"]["reason"].startswith("no known format of pictures")
    assert (rows["text.jpg"]["wnid_1"], rows["lies.png"]["reason"]) == ("", "")
    assert rows["lies.png"]["wnid_5"] == pictures["lies.png"]["guesses"][4]["wnid"]
    assert pictures["lies.png"]["guesses"] == pictures["no ending"]["guesses"], "the bytes decide"


def test_a_name_that_is_not_there_stops_no_other_and_is_said_by_the_exit_code(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(here, {"a.png": original(1)})
    assert program.predict(["a.png"], top=2, views=1) == 0
    alone = capsys.readouterr()
    assert alone.err == ""
    assert len(alone.out.splitlines()) == 4, "path, two guesses, an empty line"
    assert program.predict(["none.png", "a.png"], top=2, views=1) == 1
    said = capsys.readouterr()
    assert said.out == alone.out
    assert said.err.startswith("none.png: rejected: no such file or folder\n")


def test_names_are_escaped_on_the_terminal_and_whole_in_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The class `\\x1b[2J` clears a terminal, and so would a file of that name; the names are those of noise's classes."""
    put(here, {"\x1b[2Ja.png": original(1)})
    name = os.fsdecode(b"\x1b[2J\xffa.png")
    (here / "\x1b[2Ja.png").rename(here / name)
    assert program.predict([name], top=7) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert r"\x1b[2J\xffa.png" in said
    assert r"%  \x1b[2J" in said
    assert program.predict([name], top=7, json="-") == 0
    (picture,) = json.loads(capsys.readouterr().out)["pictures"]
    assert picture["path"] == "\x1b[2J\\xffa.png"
    assert {guess["name"] for guess in picture["guesses"]} == set(Predictor.load(model()).names)
    assert len(noise.CLASSES) == 7


def test_what_makes_an_answer_doubtful_is_said_with_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged picture that is kept, and one unlike the training pictures."""
    looks = Appearance.of(np.random.default_rng(0).normal(size=(60, 11))).plain
    whole = saved(Image.open(io.BytesIO(original(3))).convert("RGB"), "JPEG", quality=90)
    middle = len(whole) * 2 // 3
    put(here, {"model.pt": model(appearance=looks), "a.jpg": whole[:middle] + bytes(80) + whole[middle + 80 :]})
    assert program.predict(["a.jpg"], model="model.pt", json="out.json") == 0
    (picture,) = json.loads((here / "out.json").read_text())["pictures"]
    damaged, unlike = picture["warnings"]
    assert damaged.startswith("damaged: Corrupt JPEG data")
    assert unlike.startswith("unlike the training pictures")
    assert f"  warning: {unlike}" in capsys.readouterr().out


def test_standard_input_and_addresses_give_the_answer_of_the_file(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = original(1)
    put(here, {"a.png": data})
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    monkeypatch.setattr(inputs, "FETCHED", len(data))
    with serving() as server:
        server.files |= {"/a.png": File(data=data), "/more.png": File(data=data + b"x"), "/gone": File(status=404)}
        words = ["a.png", "-", f"{server.url}/a.png?key=secret", f"{server.url}/more.png", f"{server.url}/gone"]
        assert program.predict(words, json="-") == 1
    pictures = json.loads(capsys.readouterr().out)["pictures"]
    assert pictures[0]["guesses"] == pictures[1]["guesses"] == pictures[2]["guesses"] != []
    assert f"answers with more than {len(data):,} bytes" in pictures[3]["reason"]
    assert pictures[4]["reason"].startswith("answered 404")
    assert "secret" not in json.dumps(pictures)
    with pytest.raises(ValueError, match="- is there twice"):
        program.predict(["-", "-"])


def test_an_address_that_does_not_answer_is_asked_twice(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "PAUSE", 0.01)
    with serving() as server:
        server.files |= {"/a": File(data=b"a", status=503, failures=1), "/b": File(status=503)}
        server.files["/c"] = File(data=bytes(1000), cut=lambda _: 10)
        assert inputs.fetch(f"{server.url}/a") == b"a"
        with pytest.raises(OSError, match=r"^answered 503 .*, 2 times"):
            inputs.fetch(f"{server.url}/b")
        with pytest.raises(OSError, match=r"^broke off \(.*\), 2 times"):
            inputs.fetch(f"{server.url}/c")
        url = server.url
    with pytest.raises(inputs.Unreadable, match=r"^no answer \(ConnectionError\), 2 times"):
        inputs.read(inputs.Item("a", f"{url}/a", None))


def test_a_slow_server_is_given_up(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "SECONDS", 0.3)
    with serving() as server:
        server.files["/slow"] = File(data=bytes(2**20), drip=(2**15, 0.1))
        with pytest.raises(inputs.Unreadable, match=r"bytes came in 0\.3 s, which is too slow"):
            inputs.read(inputs.Item("slow", f"{server.url}/slow", None))


def test_what_cannot_be_asked_is_said_before_any_work(here: Path) -> None:
    (here / "empty").mkdir()
    for words, options, said in (
        (["empty"], {}, "no picture in empty, only 0 hidden or left-over files"),
        (["a"], {"top": 0}, "--top has to be at least 1, is 0"),
        (["a"], {"csv": Path("gone/x.csv")}, "--csv: .*/gone: no such folder"),
        (["a"], {"explain": Path("gone/why")}, "--explain: .*/gone: no such folder"),
        (["a"], {"parquet": "data"}, "data: is a folder. Name a file in it"),
        (["-"], {"parquet": "t.parquet"}, "- cannot be read by workers"),
        (
            ["a"],
            {"similar": 3},
            r"features-train\.parquet: not there.* results: neighbours: 6, and run: dvc repro evaluate",
        ),
    ):
        with pytest.raises((ValueError, OSError), match=said):
            program.predict(words, **options)
    with pytest.raises(click.UsageError, match="--parquet is for any number of pictures, without"):
        program.predict(["a"], parquet="t.parquet", similar=3)


def test_grad_cam_is_written_for_each_picture_that_has_an_answer(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(here, {"a b.png": original(1), "../a b.png": original(2), "no.png": b""})
    program.predict(["a b.png", "no.png", "../a b.png"], explain=Path("why"))
    assert capsys.readouterr().err.splitlines()[-1] == "predict: written: why"
    figures = sorted((here / "why").iterdir())
    assert [file.name for file in figures] == ["0001-a_b.png", "0002-a_b.png"]
    assert all(Image.open(io.BytesIO(file.read_bytes())).size[0] > 200 for file in figures)
    assert figures[0].read_bytes() != figures[1].read_bytes()


@pytest.mark.slow
def test_the_nearest_training_pictures_are_those_of_evaluate(
    here: Path, summarized: tuple[Path, Any, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stored training picture, shown again, is its own nearest, at no distance."""
    monkeypatch.chdir(summarized[0])
    folder = Path("data/evaluation")
    digests.seal(folder)
    row = noise.rows_of(Path(), "train")[4]
    put(here, {"same.jpg": row["image"]["bytes"]})
    raw = model(dataclasses.replace(noise.PREPARATION, quality="raw"))
    put(here, {"raw.pt": raw, "other.pt": model(mean_kind="patch", mean=noise_mean())})
    assert program.predict([str(here / "same.jpg")], model=str(here / "raw.pt"), similar=3, json="-") == 0
    near = json.loads(capsys.readouterr().out)["pictures"][0]["near"]
    assert [near[0]["id"], len(near)] == [row["id"], 3]
    assert near[0]["distance"] < 0.01 * near[1]["distance"]
    program.predict([str(here / "same.jpg")], model=str(here / "raw.pt"), similar=3, explain=here / "why")
    assert (here / "why/0001-same-similar.png").exists()
    with pytest.raises(ValueError, match="has the features of another network than this"):
        program.predict([str(here / "same.jpg")], model=str(here / "other.pt"), similar=3)


def noise_mean() -> Any:
    import torch

    return torch.zeros(3, 256, 256)


def test_the_command_takes_paths_from_the_folder_where_it_was_typed(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "deeper").mkdir()
    put(here / "deeper", {"a.png": original(1), "sent.pt": model()})
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(program, "predict", lambda words, **options: asked.append({"words": words, **options}) or 1)
    monkeypatch.setattr(commands, "_typed_in", [here / "deeper"])
    words = ["a.png", "-", "http://host/x", "--model", "sent.pt", "--views", "1", "--csv", "x.csv", "--json", "-"]
    for more in ([], ["--parquet", "t.parquet"], ["--model", "models:/alexnet@champion"]):
        done = CliRunner().invoke(commands.alexnet, ["predict", *words, *more])
        assert (done.exit_code, done.output) == (1, "")
    first, second, third = asked
    assert first["words"] == (str(here / "deeper/a.png"), "-", "http://host/x")
    assert (first["model"], first["views"], first["json"]) == (str(here / "deeper/sent.pt"), 1, "-")
    assert first["csv"] == here / "deeper/x.csv"
    assert second["parquet"] == str(here / "deeper/t.parquet")
    assert third["model"] == "models:/alexnet@champion"


# Any number of pictures


@pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning")  # of Ray Data's code
def test_a_table_has_a_row_for_each_picture_with_the_answers_of_few(here: Path, ray_session: None) -> None:
    put(here / "mine", kinds() | {f"{number}.png": original(number) for number in range(40)})
    assert program.predict(["mine", "none.png"], top=3, parquet="t.parquet") == 1
    rows = pq.read_table(here / "t.parquet").to_pylist()
    program.predict(["mine", "none.png"], top=3, json="few.json")
    few = json.loads((here / "few.json").read_text())["pictures"]
    assert [row["path"] for row in rows] == [each["path"] for each in few]
    assert len(rows) == 54
    for row, each in zip(rows, few, strict=True):
        assert (row["reason"] or "") == each["reason"]
        assert [row[f"wnid_{rank}"] for rank in (1, 2, 3)] == (
            [guess["wnid"] for guess in each["guesses"]] or [None] * 3
        )
        for rank, guess in enumerate(each["guesses"], 1):
            assert row[f"probability_{rank}"] == pytest.approx(guess["probability"], abs=1e-5)
    assert sum(row["reason"] is not None for row in rows) == 5
    assert sorted(path.name for path in here.iterdir()) == ["data", "few.json", "mine", "t.parquet"]


@pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning")  # of Ray Data's code
def test_finished_parts_are_taken_over_if_they_are_whole_and_of_the_same_pictures(
    here: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(here / "mine", {f"{number:02}.png": original(number) for number in range(40)})
    found = inputs.find(["mine"])
    data = model()
    batch.write(found, data, 1, 2, here / "t.parquet", Machine())
    whole = (here / "t.parquet").read_bytes()
    job = batch.Job(
        items=[dataclasses.replace(item, where=item.where.absolute()) for item in found.items],
        model=data, views=1, top=2, table=here / "t.parquet",
    )  # fmt: skip
    shown = Predictor.load(data)
    first, second = job.parts()
    assert (first, second["end"]) == ({"part": 0, "first": 0, "end": 32}, 40)
    assert batch.answer_part(job, shown, first) == batch.Counts(32, 0)
    assert batch.finished(job.work, 0) == batch.Counts(32, 0)
    file = job.work / "000000.parquet"
    sound = file.read_bytes()
    file.write_bytes(sound[:-9] + b"x" + sound[-8:])
    assert batch.finished(job.work, 0) is None
    file.write_bytes(sound)
    asked: list[int] = []
    each = batch._each

    def watched(job: batch.Job, parts: Any, machine: Machine) -> Any:
        asked.extend(part["part"] for part in parts)
        return each(job, parts, machine)

    monkeypatch.setattr(batch, "_each", watched)
    batch.write(found, data, 1, 2, here / "t.parquet", Machine())
    assert asked == [1]
    assert (here / "t.parquet").read_bytes() == whole
    batch.answer_part(job, shown, first)
    os.utime(here / "mine/00.png", (1, 1))
    asked.clear()
    batch.write(inputs.find(["mine"]), data, 1, 2, here / "t.parquet", Machine())
    assert asked == [0, 1], "a file was changed since"


@pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning")  # of Ray Data's code
def test_pictures_and_table_may_be_on_an_object_store(
    here: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    put(here / "mine", {f"{number}.png": original(number) for number in range(3)} | {"no.png": b"no"})
    with object_stores() as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        bucket = store.bucket()
        store.fill(here / "mine", f"{bucket}/mine")
        table = f"s3://{bucket}/made/t.parquet"
        assert program.predict([f"s3://{bucket}/mine"], parquet=table) == 1
        assert program.predict([f"s3://{bucket}/mine"], json="few.json") == 1
        rows = pq.read_table(pa.BufferReader(store.contents(f"{bucket}/made")["t.parquet"])).to_pylist()
        assert list(store.contents(f"{bucket}/made")) == ["t.parquet"]
    few = json.loads((here / "few.json").read_text())["pictures"]
    assert [row["path"] for row in rows] == [each["path"] for each in few]
    assert [row["path"] for row in rows][:1] == [f"s3://{bucket}/mine/0.png"]
    assert [row["wnid_1"] for row in rows] == [each["guesses"][0]["wnid"] for each in few[:3]] + [None]


RUN = """
import sys
from pipeline.inference import program
sys.exit(program.predict(["mine"], parquet="t.parquet"))
"""


@pytest.mark.slow
def test_a_folder_killed_in_the_middle_ends_as_undisturbed(here: Path) -> None:
    put(here / "mine", {f"{number:03}.png": original(number % 20) for number in range(200)} | {"x.png": b"no"})
    (here / "machine.yaml").write_text("workers: 1\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def started() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", RUN], cwd=here, env=environment, stderr=subprocess.DEVNULL)

    def marks() -> int:
        return len(list(here.glob("t.parquet.parts/*/*.json")))

    process = started()
    end = time.monotonic() + 120
    while not marks() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    family = [process, *psutil.Process(process.pid).children(recursive=True)]
    for each in family:
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            os.kill(each.pid, signal.SIGKILL)
    process.wait()
    kept = marks()
    assert 0 < kept < 7, "it was not in the middle"
    assert not (here / "t.parquet").exists()
    assert started().wait(240) == 1
    resumed = (here / "t.parquet").read_bytes()
    (here / "t.parquet").unlink()
    assert started().wait(240) == 1
    assert (here / "t.parquet").read_bytes() == resumed
    rows = pq.read_table(here / "t.parquet").to_pylist()
    assert [row["path"] for row in rows] == [f"mine/{number:03}.png" for number in range(200)] + ["mine/x.png"]
    assert not list(here.glob("*.parts"))


def test_a_row_that_ray_data_never_gives_is_waited_for_with_a_limit() -> None:
    class Never:
        def iter_rows(self) -> Any:
            yield {"part": 1}
            time.sleep(5)

    rows = batch._in_time(Never(), 0.2)
    assert next(rows) == {"part": 1}
    with pytest.raises(TimeoutError, match=r"no part of the pictures was done in 0\.2 s. Finished parts are kept"):
        next(rows)


@pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning")  # of Ray Data's code
def test_a_worker_that_does_not_see_the_folder_says_where_pictures_have_to_lie(here: Path, ray_session: None) -> None:
    """The error of a worker is raised here as it was there."""
    found = inputs.Found([inputs.Item("a", here / "gone/a.png", 5)], 0, 1)
    with pytest.raises(OSError, match=r"^\S+/gone: not there on the node .* s3://bucket/folder"):
        batch.write(found, model(), 1, 2, here / "t.parquet", Machine())
    assert not (here / "t.parquet").exists()
    assert answers.rejected(answers.Answer("a\n", None, reason="r")) == r"a\n: rejected: r"
