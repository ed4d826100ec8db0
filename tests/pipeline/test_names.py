"""Unusual names in everything that stores, shows or refuses them, from the data store to the report and MLflow."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from alexnet.names import NO_ANSWER
from pipeline import download, evaluate, resize
from pipeline.archives.contents import Contents
from pipeline.comparing import ensemble
from pipeline.comparing.markdown import cell as markdown
from pipeline.evaluation import scores, trained, vectors
from pipeline.evaluation.reporting import page as pages
from pipeline.evaluation.reporting import reading
from pipeline.evaluation.results import Results
from pipeline.runtime import digests, params, printing, stage, web
from pipeline.runtime.machines import Machine
from pipeline.runtime.progress import Progress
from pipeline.shards import lookup, tables
from pipeline.shards.census import Census
from pipeline.shards.manifest import Manifest
from pipeline.shards.tables import Shard, Synset
from pipeline.sources import huggingface
from pipeline.tracking import runs
from studies.study import Study, Variant
from tests.names import NASTY, UNUSABLE
from tests.pipeline import layouts, reported
from tests.pipeline.miniature import jpeg
from tests.sections import PREPARATION

ROOT = Path(__file__).parents[2]

CLASSES = tuple(Synset(wnid=wnid, words=words) for wnid, words in zip(sorted(map(repr, NASTY)), NASTY, strict=True))
"""The ids are as unusual as the words, but never empty."""

HEAD = ["label", "wnid", "words", "images", "top1_error", "top5_error"]


def manifest(classes: tuple[Synset, ...] = CLASSES) -> Manifest:
    shards = {split: (Shard(file=f"{split}-0", rows=len(classes), bytes=9, sha256=""),) for split in ("train", "val")}
    return Manifest(
        side=256,
        classes=classes,
        shards=shards,
        indexed=len(classes) + 1,
        rejected=1,
        drawn=False,
        preparation=PREPARATION,
    )


def results() -> Results:
    return params.check(
        {**params.load(ROOT / "params.yaml")["results"], "neighbours": 0, "code_bits": 0},
        Results,
        Path("params.yaml"),
        "results",
    )


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outs of `resize` and `evaluate` with a picture of each class; the guess is the next class, and once there is none."""
    folder, count = tmp_path_factory.mktemp("nasty"), len(CLASSES)
    shares = torch.eye(count).roll(1, 1)
    shares[NASTY.index("crane")] = torch.nan
    table = pa.table(
        {
            "id": pa.array(NASTY),
            "label": pa.array(range(count), pa.int64()),
            "features": vectors.to_column(shares, "float32"),
        }
        | dict.fromkeys(("probabilities", "centre"), vectors.to_column(shares, "float32"))
    )
    tables.write(table, table.schema, folder / "part.parquet", 16)
    (folder / "data/evaluation").mkdir(parents=True)
    (folder / "data/shards").mkdir()
    said = scores.summarize({"val": [folder / "part.parquet"]}, manifest(), results(), folder / "data/evaluation")
    (folder / "metrics.json").write_text(json.dumps(said))
    lost = [
        {**dict.fromkeys(("id", "split", "wnid", "archive", "reason"), name), "label": 0, "offset": 0, "length": 1}
        for name in NASTY
    ]
    for name in ("rejected", "damaged", "duplicates"):
        file = folder / f"data/shards/{name}.parquet"
        tables.write(pa.Table.from_pylist(lost, schema=tables.REJECTED), tables.REJECTED, file)
    census = Census(formats=dict.fromkeys(NASTY, 1), rejected=dict.fromkeys(NASTY, 1), damaged=len(NASTY))
    census.duplicates = {"val": len(NASTY)}
    (folder / "data/shards/pictures.json").write_text(census.to_json())
    evaluate.seal(folder / "data/evaluation", json.dumps(said))
    digests.seal(folder / "data/shards")
    return folder


def table(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def test_tables_of_names_read_back_equal(evaluated: Path) -> None:
    rows = table(evaluated / "data/evaluation/per_class.csv")
    assert list(rows[0]) == HEAD
    assert [(row["wnid"], row["words"]) for row in rows] == [(synset.wnid, synset.words) for synset in CLASSES]
    written = tables.read(evaluated / "data/evaluation/predictions.parquet", ["id"])["id"].to_pylist()
    assert written == [*NASTY]
    assert (
        Manifest(
            **json.loads(manifest().to_json())
            | {"classes": CLASSES, "shards": manifest().shards, "preparation": PREPARATION}
        )
        == manifest()
    )


def test_tables_of_answers_have_a_name_for_each_class_and_no_tag(evaluated: Path) -> None:
    for name, column in (("confusion", "actual"), ("errors", "class")):
        rows = table(evaluated / f"data/evaluation/{name}.csv")
        assert len(rows) == len({row[column] for row in rows}) == len(NASTY)
        assert not [row for row in rows if "<" in "".join(row.values())]


def test_no_two_classes_are_one_and_none_is_no_answer(evaluated: Path) -> None:
    names = trained.names(CLASSES)
    assert len(set(names)) == len(names)
    assert NO_ANSWER not in names
    matrix_KK = reading.confusion(evaluated / "data/evaluation/confusion.csv", names)
    expected = np.roll(np.eye(len(names), dtype=np.int64), 1, axis=1)
    expected[NASTY.index("crane")] = 0
    np.testing.assert_array_equal(matrix_KK, expected)


def test_names_that_others_are_made_into_stay_apart() -> None:
    words = ["crane", "crane, bird", "crane (n0)", "crane (n0) [0]", "none", "none", "", ", x"]
    classes = [Synset(wnid=f"n{number}", words=each) for number, each in enumerate(words)]
    names = trained.names(classes)
    assert len(set(names)) == len(words)
    assert names[1:4] == ["crane (n1)", "crane (n0)", "crane (n0) [0]"]
    assert names[4:] == ["none (n4)", "none (n5)", "n6", "n7"]


class Elements(html.parser.HTMLParser):
    """All elements of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text = Counter[str](), Counter[str](), ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes.update(f"{tag} {name}" for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def page(evaluated: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]) -> str:
    monkeypatch.chdir(evaluated)
    monkeypatch.setattr(pages, "LISTED", 10**6)
    return reported.page(manifest(), settings)


def test_a_page_of_names_has_no_element_of_theirs(evaluated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"source": {f"{number}": name for number, name in enumerate(NASTY)} | {"classes": [*NASTY, *UNUSABLE]}}
    text = page(evaluated, monkeypatch, keys)
    found, plain = (
        Elements(text),
        Elements(page(evaluated, monkeypatch, {"source": dict.fromkeys(keys["source"], "x")})),
    )
    assert found.tags == plain.tags
    assert found.attributes == plain.attributes
    assert found.tags["tr"] > 4 * len(NASTY)
    assert "script" not in found.tags
    assert not [name for name in found.attributes if name.split()[1].startswith("on") or name.split()[1] == "href"]
    assert not {*text} & {*"\x00\x1b\r\t\u202e\u200b\u2028"}
    for name in (r"$\frac{$", "<script>alert(1)</script>", "{{ 7 * 7 }}", "猫", r"\x1b[31mred", r"\u202egnp.exe"):
        assert name in found.text
    assert max(map(len, found.text.split("\n"))) < 60_000  # all 10 kB names at once are one parameter
    text.encode()


class Terminal(io.TextIOWrapper):
    """A stream of another encoding than UTF-8."""

    def __init__(self, encoding: str = "utf-8", terminal: bool = False) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, newline="")
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    def written(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_what_is_said_is_no_command_to_a_terminal(encoding: str) -> None:
    stream = Terminal(encoding)
    printing.say(*NASTY, *UNUSABLE, to=stream)
    lines = stream.written().split("\n")
    assert len(lines) == len(NASTY) + len(UNUSABLE) + 1
    assert all(line.isprintable() for line in lines)


def test_an_error_or_a_progress_about_a_name_is_no_command_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.delenv("ALEXNET_TRACEBACK", raising=False)

    with pytest.raises(SystemExit):
        stage.fail("resize", ValueError("a.tar: \x1b]0;owned\x07 is no picture\nb\rc"))
    assert capsys.readouterr().err == "resize: a.tar: \\x1b]0;owned\\x07 is no picture\nb\\rc\n"
    stream = Terminal(terminal=False)
    with Progress("download: \x1b[2J\r\n.tar", 1, "files", stream) as progress:
        progress.add(1)
    assert stream.written().startswith(r"download: \x1b[2J\r\n.tar: 1 of 1 files")
    assert stream.written().count("\n") == 1


def test_a_summary_of_the_store_is_a_line_for_each_note(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {name: pa.array([], kind.type) for name, kind in zip(tables.INDEX.names, tables.INDEX, strict=True)}
    empty = tables.collect([], tables.ARCHIVES)
    found = Contents(classes=CLASSES, pictures=pa.table(rows), archives=empty, drawn=False, notes=NASTY)
    printing.say(*download.summary("imagefolder", found))
    out = capsys.readouterr().out
    assert len(out.splitlines()) == len(NASTY) + 1
    assert "\x1b" not in out


def test_tables_on_a_terminal_and_in_markdown_keep_their_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NASTY:
        cell = markdown(name)
        assert cell.isprintable()
        assert cell.replace("\\\\", "").replace("\\|", "").count("|") == 0
        assert "<" not in cell
    rows = [{"name": name, "weight": 1.0, **dict.fromkeys(ERRORS, 0.5)} for name in NASTY]
    text = ensemble.table({"members": rows, "ensemble": dict.fromkeys(ERRORS, 0.5), "images": 1})
    assert len(text.split("\n")) == len(NASTY) + 3
    assert max(map(len, text.split("\n"))) < 200


ERRORS = tuple(f"top{top}_{what}" for top in (1, 5) for what in ("error", "low", "high"))


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "", " ", "-x", "a b", "a|b", "x" * 101, "a..b", "x.lock", "a\n", "猫", "~", "a:b"]
)
def test_a_variant_or_study_that_could_be_no_file_is_refused_before_it_runs(name: str) -> None:
    with pytest.raises(ValueError, match="name: has to be made of letters, digits"):
        Variant(name=name, changes={}, section="", paper="")
    good = Variant(name="paper-with-0.3_x", changes={}, section="", paper="a | b")
    with pytest.raises(ValueError, match="name: has to be made of letters, digits"):
        Study(name=name, target="train", seeds=(0,), variants=(good,))


def test_two_variants_of_one_name_are_refused() -> None:
    twice = tuple(Variant(name=name, changes={}, section="", paper="") for name in ("Base", "base"))
    with pytest.raises(ValueError, match="two variants are called 'base'"):
        Study(name="x", target="train", seeds=(0,), variants=twice)


# What the store may be called, and what is refused before anything is trained


def settle(folder: Path, section: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DVC_ROOT", "DVC_STAGE", "ALEXNET_MACHINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(folder)
    Path("params.yaml").write_text(json.dumps({"source": section}))


PETS = {"name": "imagefolder", "folder": "pets", "classes": "all", "val_share": 0.5, "seed": 0}


def test_a_class_folder_of_any_name_is_indexed_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {name for name in NASTY if name and not {*"/\x00"} & {*name} and len(name.encode()) < 256}
    names |= {"x" * 255, "猫" * 85}
    settle(tmp_path, PETS, monkeypatch)
    layouts.write({f"{name}/{number}.jpg": b"x" for name in names for number in (1, 2)}, tmp_path / "data/store/pets")
    download.run()
    index = tables.read(tmp_path / "data/index/index.parquet")
    classes = json.loads((tmp_path / "data/index/contents.json").read_text())["classes"]
    assert [each["wnid"] for each in classes] == sorted(names)
    assert set(index["wnid"].to_pylist()) == names
    assert set(index["id"].to_pylist()) == {f"{name}/{number}" for name in names for number in (1, 2)}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_pictures_of_classes_of_any_name_come_to_shards_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each folder has two pictures, one of them damaged; a picture is found in its shard by its id, as in the report."""
    names = sorted(name for name in NASTY if name and not {*"/\x00"} & {*name} and len(name.encode()) < 256)
    settle(tmp_path, PETS, monkeypatch)
    resizing = {**params.load(ROOT / "params.yaml")["resize"], "side": 32, "max_rejected": 0.9}
    Path("params.yaml").write_text(json.dumps({"source": PETS | {"val_share": 0.34}, "resize": resizing}))
    pictures = {f"{name}/{number}.jpg": jpeg(number, 40) for name in names for number in range(2)}
    layouts.write(pictures | {f"{name}/damaged \x1b[2J.jpg": b"x" for name in names}, tmp_path / "data/store/pets")
    download.run()
    resize.run()
    assert "\x1b" not in capsys.readouterr().out
    made = Manifest.read(Path("data/shards"))
    assert [synset.wnid for synset in made.classes] == names
    lost = tables.read(Path("data/shards/rejected.parquet"))["id"].to_pylist()
    assert {*lost} == {f"{name}/damaged \x1b[2J" for name in names}
    ids = {f"{name}/{number}": names.index(name) for name in names for number in range(2)}
    found = {}
    for split in ("train", "val"):
        rows = [
            row
            for shard in made.shards[split]
            for row in tables.read(Path("data/shards") / shard.file, ["id"])["id"].to_pylist()
        ]
        found |= lookup.fetch(rows, split, made, Path("data/shards"))
    assert {name: label for name, (_, label) in found.items()} == ids


def of_folder(folder: Path, name: str) -> dict[str, Any]:
    layouts.write(
        {f"{each}/{number}.jpg": b"x" for each in ("a", name) for number in (1, 2)}, folder / "data/store/pets"
    )
    return PETS


def of_hub(folder: Path, *names: str) -> dict[str, Any]:
    place = folder / "data/store/huggingface/me/pets"
    place.mkdir(parents=True)
    pictures = [{"image": {"bytes": b"x", "path": None}, "label": n % (1 + len(names))} for n in range(6)]
    for split in ("train", "validation"):
        layouts.parquet(pictures, place / f"{split}-00000-of-00001.parquet", ["a", *names])
    return {"name": "huggingface", "dataset": "me/pets", "revision": "main", "classes": "all", "complete": False}


@pytest.mark.parametrize("make", [of_folder, pytest.param(of_hub, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", UNUSABLE)
def test_a_name_that_is_no_text_is_refused_before_the_training_with_what_to_do(
    make: Callable[..., dict[str, Any]], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if make is of_folder:
        name = UNUSABLE[0]  # half a letter is no name of a file
    settle(tmp_path, make(tmp_path, name), monkeypatch)
    with pytest.raises(ValueError, match=r"pets.*(xff|udcff|ud83d).*Rename") as told:
        download.run()
    assert str(told.value).isprintable()
    assert not (tmp_path / "data/index").exists()


def test_a_name_that_is_no_text_anywhere_else_in_a_store_is_told_as_plainly(tmp_path: Path) -> None:
    def contents(store: object) -> Contents:
        tables.collect([Synset(wnid="n1", words=UNUSABLE[1])], pa.schema({"words": pa.string()}))
        raise AssertionError

    with pytest.raises(ValueError, match=r"store: the name 'half \\ud83d' is no Unicode text. Rename"):
        download.read_contents(contents, tmp_path / "store")


def test_classes_whose_words_are_no_text_or_that_have_no_name_are_refused() -> None:
    contents = Contents(
        classes=(Synset(wnid="n1", words=UNUSABLE[1]),),
        pictures=tables.collect([], tables.INDEX), archives=tables.collect([], tables.ARCHIVES), drawn=False, notes=(),
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"class 'n1': the name 'half \\ud83d' is no Unicode text"):
        download.check(contents)
    nameless = Contents(**{**vars_of(contents), "classes": (Synset(wnid="", words="x"),)})
    with pytest.raises(ValueError, match="a class has no name"):
        download.check(nameless)


def vars_of(contents: Contents) -> dict[str, Any]:
    return {name: getattr(contents, name) for name in Contents.__slots__}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["b/c", "b_c"], r"labels 1 and 2, 'b/c' and 'b_c', would both be the class 'b_c'"),
        (["crane", "crane"], r"labels 1 and 2, 'crane' and 'crane', would both be the class 'crane'"),
        (["."], r"label 1 is called '.', which names no folder"),
        ([""], r"label 1 is called '', which names no folder"),
    ],
)
def test_two_classes_of_the_hub_are_never_one(
    names: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(tmp_path, of_hub(tmp_path, *names), monkeypatch)
    with pytest.raises(ValueError, match=said):
        download.run()


def test_a_name_is_quoted_in_the_address_that_it_is_fetched_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []

    def page(url: str, headers: Any) -> tuple[int, dict[str, str], bytes]:
        asked.append(url)
        path = "c d/a?b#c%20 d/train-00000-of-00001.parquet"
        return 200, {}, json.dumps([{"type": "file", "path": path, "size": 1, "oid": "1"}]).encode()

    monkeypatch.setattr(web, "page", page)
    monkeypatch.setattr(huggingface, "fetch", lambda remote, file, headers: asked.append(remote.url))
    section = huggingface.HuggingFace(
        name="huggingface", dataset="me/a", revision="r/1?", classes="all", complete=True, config="c d"
    )
    section._fetch(tmp_path)
    for url in asked:
        parts = web.urlsplit(url)
        assert parts.fragment == ""
        assert "recursive=true" in parts.query or not parts.query
        assert "/me/a/" in parts.path
        assert "r%2F1%3F" in parts.path
    assert asked[0].partition("?")[0].endswith("/tree/r%2F1%3F/c%20d")
    assert asked[1].endswith("/c%20d/a%3Fb%23c%2520%20d/train-00000-of-00001.parquet")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of MLflow, whose code runs here
def test_names_in_mlflow_are_kept_as_far_as_it_keeps_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "DVC_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("DVC_EXP_NAME", NASTY[0] + "<b>猫\u202e")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "a b'; -- 猫 <script>")
    monkeypatch.chdir(tmp_path)
    given = {"source": {"classes": [*NASTY], "folder": "a\x1b\nb"} | {f"n{k}": name for k, name in enumerate(NASTY)}}
    for _ in range(2):
        with runs.run(Machine(), "f" * 16, given, manifest(), "train", adopt=True) as record:
            pass
    from mlflow import MlflowClient

    kept = MlflowClient(runs.address(Machine())).get_run(record.run_id).data
    assert kept.params["source.folder"] == "a\x1b\nb"
    for number, name in enumerate(NASTY):
        assert kept.params[f"source.n{number}"] == name[:6000]
    assert not [tag for tag in kept.tags if tag.startswith("now.")], "the same parameters are told apart"
