"""The report: one page without external files, with intervals for its numbers, and with escaped text."""

from __future__ import annotations

import base64
import dataclasses
import html.parser
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alexnet.model import AlexNet
from pipeline import report
from pipeline.evaluation import mistakes, trained
from pipeline.evaluation.reporting import drawing, gallery, reading
from pipeline.evaluation.reporting.section import Report
from pipeline.runtime import digests, params, run_record
from pipeline.runtime.machines import Machine
from pipeline.shards import lookup
from pipeline.shards.census import Census
from pipeline.shards.manifest import Manifest
from pipeline.shards.tables import Synset
from pipeline.tracking import runs
from tests.pipeline.flips import unsaid
from tests.pipeline.noise import CLASSES, as_test, rows_of
from tests.pipeline.reported import BEFORE, CENSUS, RECORD, after_evaluate, page

ROOT = Path(__file__).parents[2]

SECTION = Report(pictures=3, queries=2, seed=0)

ALWAYS = {"loss", "errors", "rate", "first-layer", "confusion"}
"""The figures of every report."""


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("evaluated")
    return folder, after_evaluate(folder)


@pytest.fixture
def here(evaluated: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch) -> Manifest:
    monkeypatch.chdir(evaluated[0])
    return evaluated[1]


def figures(manifest: Manifest, section: Report = SECTION, split: str = "val") -> dict[str, bytes]:
    network, facts = trained.load(Path("data/model.pt").read_bytes(), manifest, split)
    return drawing.draw(section, split, manifest, Path("data/shards"), network, facts["mean"])


def measured(**changed: Any) -> dict[str, Any]:
    """The contents of metrics.json, with some keys replaced."""
    return json.loads(Path("metrics.json").read_text()) | changed


def unrecorded(text: str) -> str:
    """The page without the sections that tell of one training, and of the run before it."""
    return re.sub(r'<section class="record">.*?</section>', "", text, flags=re.S)


def shown(text: str) -> str:
    """The page without its style and its comparisons of runs and parameters."""
    text = unrecorded(text.split("</style>")[1])
    return text.split("<h2>What differs")[0] + text.split("</details>")[1]


class Links(html.parser.HTMLParser):
    """Collects all URLs that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]


@pytest.mark.slow
def test_the_page_needs_nothing_else(here: Manifest) -> None:
    text = page(here, params.load(Path("params.yaml")), figures=figures(here))
    links = Links()
    links.feed(text)
    assert len(links.links) == 8
    assert all(link.startswith("data:image/png;base64,") for link in links.links)
    assert not links.tags & {"script", "link", "iframe", "object"}
    assert not re.search(r"url\(|@import|https?:", text.replace("data:image/png;base64,", ""))


def test_drawn_pictures_are_said_to_be_drawn(here: Manifest) -> None:
    assert "drawn by a program, not photographed" in page(here)
    assert "not comparable" in page(here)
    photographed = dataclasses.replace(here, drawn=False)
    assert "drawn by a program" not in page(photographed)
    assert "pictures or classes of this run differ from the paper's, ILSVRC-2012" in page(photographed)
    whole = dataclasses.replace(photographed, classes=tuple(Synset(wnid=f"n{k}", words="x") for k in range(1000)))
    assert "compar" not in shown(page(whole, metrics=measured(images=50_000)))
    assert "40.7\u00a0%" in page(whole, metrics=measured(images=50_000))
    assert "not comparable" in page(whole, metrics=measured(images=5_000))
    assert "not comparable" in page(dataclasses.replace(whole, drawn=True), metrics=measured(images=50_000))


def test_pictures_of_2010_are_set_beside_table_1(here: Manifest) -> None:
    whole = dataclasses.replace(
        as_test(here), drawn=False, classes=tuple(Synset(wnid=f"n{k}", words="x") for k in range(1000))
    )
    source, metrics = {"source": {"name": "ilsvrc2010"}}, measured(images=150_000)
    text = page(whole, source, split="test", metrics=metrics)
    assert "compar" not in shown(text)
    rows = [re.sub(r"<[^>]+>", " ", row).split() for row in re.findall(r'<tr class="paper">.*?</tr>', text, re.S)]
    assert [[word for word in row if re.match(r"\d+\.\d", word)] for row in rows] == [
        ["37.5", "17.0"],
        ["39.0", "18.3"],
    ]
    assert "40.7" not in text
    # other pictures than those of the table: its validation set, and the test pictures of another year
    assert "not comparable" in page(whole, source, metrics=metrics)
    assert "not comparable" in page(whole, {"source": {"name": "ilsvrc2012"}}, split="test", metrics=metrics)


def test_the_numbers_are_those_of_the_metrics(here: Manifest) -> None:
    errors = {
        "top1_error": 0.1234,
        "top1_low": 0.1,
        "top1_high": 0.15,
        "top5_error": 0.05,
        "top5_low": 0.0,
        "top5_high": 1,
    }
    text = page(here, metrics=measured(ten_views=errors))
    for words in ("12.3", "10.0", "15.0", "5.0", "0.0", "100.0"):
        assert f"{words}\u00a0%" in text


def test_what_is_quoted_is_escaped(here: Manifest) -> None:
    text = page(here, {"source": {"where": "<script>alert(1)</script>"}})
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert "&lt;b&gt;cut short&lt;/b&gt;" in text  # the reason of the rejected picture
    assert "&lt;i&gt;bad code&lt;/i&gt;" in text  # the warning about the damaged one


def test_what_the_pictures_were_is_a_table_that_adds_up(here: Manifest) -> None:
    text = page(here).split("<h2>The source's picture files")[1].split("<h2>")[0]
    table = text.split("</table>")[0]
    cells = re.findall(r'<t[dh]>([^<]*)</t[dh]><t[dh] class="n">([\d,]+)<', table)
    assert cells == [
        ("pictures", "25"),
        ("JPEG colour", "21"),
        ("GIF &lt;palette&gt;", "2"),
        ("JPEG grey", "1"),
        ("rejected: damaged", "1"),
        ("damaged, kept (counted above by their format)", "1"),
    ]
    assert sum(int(count) for _, count in cells[1:-1]) == CENSUS.indexed == here.indexed
    assert "17 had a shorter side of less than 256 pixels" in text
    assert re.search(
        r"4 have an EXIF orientation other than 1\n\(3 with orientation 6, 1 with orientation 8\), which was not applied",
        text,
    )
    assert "<p>1 of 25 pictures were rejected:</p>" in text
    assert "<p>JPEGs with damaged data, kept: 1; <code>resize.damaged: reject</code> rejects them:</p>\n<table " in text
    alike = "Pictures with the same bytes as a training picture: 1,200 val; the network has learned them, so that its error rates"
    assert f"<p>{alike} are too low. The first of them:</p>\n<table " in text
    assert "the same as &lt;u&gt;y&lt;/u&gt;" in text


def test_parameters_are_printed_by_section(here: Manifest) -> None:
    assert re.search(r"<code>learning</code></caption>.*<code>rate</code></td><td>0.01</td>", page(here), re.S)


def test_what_differs_from_run_to_run_is_in_its_own_sections(here: Manifest) -> None:
    text = page(here, params.load(Path("params.yaml")), record=RECORD, before=BEFORE)
    assert str(Path.cwd()) not in text
    for words in ("2026-11-27 16:40 +01:00", "c0ffee", "4f00", "2.9.1", "an older run", "Data-bound"):
        assert words in text
        assert words not in unrecorded(text)
    assert unrecorded(text) == unrecorded(page(here, params.load(Path("params.yaml"))))
    assert not re.search(r"\d\d:\d\d", unrecorded(text))


def test_the_head_says_when_where_how_fast_and_by_which_code(here: Manifest) -> None:
    text = page(here, record=RECORD)
    rows = re.findall(r"<tr><th>([^<]*)</th><td>([^<]*)</td></tr>", text)
    assert dict(rows) == {
        "trained": "2026-11-27 16:40 +01:00",
        "time": "1:02:03, in 2 sessions; 1 more were killed, and their time is not known",
        "pictures a second": "30",
        "commit": "c0ffee, with changed files",
        "parameters changed from it": "learning.rate: 0.02",
        "MLflow run": "4f00",
        "machine": "&lt;b&gt;node&lt;/b&gt;, 16 CPU cores, some CPU, H100, 128 GiB of memory",
        "processes": "2 processes",
        "versions": "python 3.12.1, torch 2.9.1",
    }
    assert "It has 1,234,567 parameters" in text
    assert "is not recorded here" in page(here)
    bare = page(here, record=dataclasses.replace(RECORD, facts={}, epochs=[]))
    assert "not measured" in bare
    assert "Not measured: no epoch" in bare


def test_the_time_is_shown_in_shares_that_add_up(here: Manifest) -> None:
    text = page(here, record=RECORD).split("<h2>Where the time went")[1].split("</section>")[0]
    assert "<strong>Data-bound</strong>" in text
    rows = re.findall(r'<tr><td>([^<]*)</td><td class="n">([\d.]*)', text)
    assert rows[:2] == [("waiting for data", "30.0"), ("computing", "70.0")]
    assert sum(float(share) for _, share in rows) == pytest.approx(100)


def test_the_run_before_is_beside_this_one(here: Manifest) -> None:
    text = page(here, record=RECORD, before=BEFORE).split("<h2>Beside the run before")[1].split("</section>")[0]
    this, other = re.findall(r"<tr>(.*?)</tr>", text.split("<tbody>")[1], re.S)
    assert "&lt;i&gt;an older run&lt;/i&gt;" in other
    assert re.findall(r"<span>([^<]*)</span>", other)[1:] == [
        "2026\u201111\u201120 03:04 +00:00", "20.0\u00a0%", "15.0\u00a0% – 26.0\u00a0%", "10.0\u00a0%", "",
        "1:00", "not recorded",
    ]  # fmt: skip
    assert "1:02:03" in this
    assert "beside that of the run before: better by 7.70 points than it" in text
    half = dataclasses.replace(BEFORE, errors={"top1_error": 0.2}, begun="")
    assert "20.0\u00a0%" in page(here, before=half), "an older run may lack the others"
    assert "There is no run to compare with: MLflow is &lt;away&gt;" in page(here, no_run_before="MLflow is <away>")


def test_what_differs_from_the_recipe_and_from_the_paper_comes_before_all_parameters(here: Manifest) -> None:
    document = params.load(ROOT / "recipes/original-2012.yaml")
    document["learning"]["rate"], document["model"]["width"] = 0.5, 1
    text = page(here, document)
    table, folded = text.split("<h2>What differs")[1].split("<h2>Where the time")[0].split("<details>")
    assert "1 of" in table
    assert "recipes/original-2012.yaml" in table
    rows = {
        key: re.findall(r"<span>([^<]*)</span>", cells)
        for key, cells in re.findall(r"<tr>.*?<code>([^<]*)</code></span></td>(.*?)</tr>", table, re.S)
    }
    assert rows["learning.rate"] == ["0.5", "0.01", "0.01"]
    assert rows["model.normalization"] == ["original", "original", "printed"]
    assert "model.width" not in rows, "1 is 1.0"
    assert "learning.momentum" not in rows
    assert not [key for key in rows if key.startswith(("source", "report"))]
    assert "<code>momentum</code>" in folded
    printed = page(here, params.load(ROOT / "recipes/paper.yaml"))
    assert "Nothing: all" in printed


def test_mistakes_are_shown_with_their_pictures_and_none_is_hard_where_none_is_wrong(here: Manifest) -> None:
    shown = gallery.pick(2, "val", here, Path("data/shards"))
    with (trained.OUT / "predictions.parquet").open("rb") as handle:
        answers = mistakes.read("", handle)
    assert shown.wrong == sum(answer.wrong for answer in answers) > 2
    assert [each.answer for each in shown.confident] == mistakes.most_confident(answers)[:2]
    assert [each.answer for each in shown.unsure] == mistakes.least_sure(answers)[:2]
    stored = {row["id"]: row["image"]["bytes"] for row in rows_of(Path(), "val")}
    assert [base64.b64decode(each.jpeg) for each in shown.confident] == [
        lookup.as_jpeg(stored[each.answer.id]) for each in shown.confident
    ]
    text = page(here, gallery=shown)
    assert "Most confident mistakes" in text
    assert text.count("data:image/jpeg;base64,") == 4
    assert "Most confident mistakes" not in page(here, gallery=dataclasses.replace(shown, confident=()))
    assert gallery.pick(0, "val", here, Path("data/shards")).confident == []


def test_classes_without_mistakes_are_not_called_hard(here: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = reading.hard_classes(trained.OUT / "per_class.csv")
    assert any(row["top1_error"] > 0 for row in rows)
    for errors in (0.0, 0.5):
        changed = [row | {"top1_error": errors * (row is rows[0])} for row in rows]
        monkeypatch.setattr(reading, "hard_classes", lambda file, changed=changed: changed)
        text = page(here)
        assert ("the hardest first" in text) == bool(errors)
        assert text.count('data-label="WordNet id"') == bool(errors)


@pytest.mark.slow
def test_the_same_bytes_twice_and_other_pictures_for_another_seed(here: Manifest) -> None:
    first = figures(here)
    assert figures(here) == first
    assert set(first) == {*ALWAYS, "guesses", "saliency", "neighbours"}
    other = figures(here, dataclasses.replace(SECTION, seed=1))
    assert {name for name in first if first[name] != other[name]} == {"guesses", "saliency", "neighbours"}


def test_nothing_to_show_is_left_out(here: Manifest) -> None:
    none = figures(here, Report(pictures=0, queries=0, seed=0))
    assert set(none) == ALWAYS
    assert "Figure 4" not in page(here)
    assert "Grad-CAM" not in page(here)


def test_every_plot_of_dvc_has_its_file_whatever_is_left_out(here: Manifest) -> None:
    wanted = {name for plot in params.load(ROOT / "dvc.yaml")["plots"] for name in plot}
    assert len(wanted) == len(ALWAYS) + 3
    none = figures(here, Report(pictures=0, queries=0, seed=0))
    full = none | dict.fromkeys(("guesses", "saliency", "neighbours"), b"\x89PNG of their own")
    for drawn in (full, none):
        made = drawing.plots(drawn)
        assert wanted <= {f"report/{name}.png" for name in made}
        assert all(made[name] == png for name, png in drawn.items())
        assert all(png.startswith(b"\x89PNG") for png in made.values())
    assert set(drawing.plots(full)) == set(full) == set(drawing.plots(none))


def test_the_page_says_how_alike_neighbours_are_and_what_codes_find_of_them(here: Manifest) -> None:
    shares = {"same_class": 0.87654, "same_class_by_code": 0.7654, "found_by_code": 0.321}
    text = page(here, None, "neighbours", metrics=measured(neighbours=measured()["neighbours"] | shares))
    for words in ("87.7", "76.5", "32.1"):
        assert f"{words}\u00a0%" in text
    uncoded = page(here, None, "neighbours", metrics=measured(neighbours={"queries": 128, "same_class": 0.87654}))
    assert "87.7\u00a0%" in uncoded
    assert "code" not in re.sub(r"</?code>", "", uncoded.split("<h2>Confusion")[0].split("<h2>Learning")[1])


@pytest.mark.slow
def test_the_test_split_is_shown_as_what_it_is(here: Manifest) -> None:
    one = Report(pictures=1, queries=1, seed=0)
    assert figures(as_test(here), one, "test") == figures(here, one)
    for split, manifest, words in (("val", here, "validation"), ("test", as_test(here), "test")):
        text = page(manifest, {}, split=split, figures=dict.fromkeys(figures(here, one), b""))
        for expected in (f"tested on 13 {words} pictures", f"<th>{words} set</th>", f"First a {words} picture"):
            assert expected in text


def test_what_a_network_has_no_guess_for_has_no_map(here: Manifest) -> None:
    network, facts = trained.load(Path("data/model.pt").read_bytes(), here, "val")
    assert isinstance(network, AlexNet)
    pictures = np.random.default_rng(0).integers(256, size=(1, 256, 256, 3), dtype=np.uint8)
    shares = np.full((1, 7), np.nan)
    png = drawing._saliency(network, facts["mean"], pictures, [0], shares, trained.names(CLASSES))
    assert png.startswith(b"\x89PNG")
    assert next(network.parameters()).dtype.itemsize == 4, "the network was changed"


def test_pictures_are_found_in_their_shards(here: Manifest) -> None:
    stored = {row["id"]: row["label"] for row in rows_of(Path(), "train")}
    found = lookup.fetch(stored, "train", here, Path("data/shards"))
    assert {name: label for name, (_, label) in found.items()} == stored
    assert {picture.shape for picture, _ in found.values()} == {(256, 256, 3)}
    with pytest.raises(ValueError, match=r"no picture zebra in val, .* Run: dvc repro --force --single-item evaluate"):
        lookup.fetch(["zebra"], "val", here, Path("data/shards"))


def test_history_has_gaps_where_nothing_was_measured(here: Manifest) -> None:
    epochs, panels = reading.history(Path("data/history/epochs.csv"))
    assert epochs == [1, 2]
    assert panels["loss"]["training"] == [2.5, 2.0]
    assert str(panels["loss"]["validation"]) == "[2.4, nan]"
    assert panels["error, %"]["validation, top-5"] == [60, 50]


def test_confusion_is_counted(here: Manifest) -> None:
    classes = trained.names(CLASSES)
    matrix_KK = reading.confusion(Path("data/evaluation/confusion.csv"), classes)
    assert matrix_KK.sum() == 13
    error = json.loads(Path("metrics.json").read_text())["ten_views"]["top1_error"]
    assert 1 - np.trace(matrix_KK) / 13 == pytest.approx(error)


def test_missing_inputs_say_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"not there. Run: dvc repro train"):
        reading.history(tmp_path / "epochs.csv")
    with pytest.raises(ValueError, match="queries has to be 0 or more, is -1"):
        Report(pictures=1, queries=-1, seed=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of MLflow, whose code runs here
def test_the_stage_writes_equal_bytes_twice(here: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    fingerprint = trained.load(Path("data/model.pt").read_bytes(), here, "val")[1]["fingerprint"]
    errors = {"ten_views/top1_error": 0.125, "ten_views/top5_error": 0.0}
    for name in ("an older one", fingerprint):
        with runs.run(Machine(), name, {"results": {"split": "val"}}, here, "train") as record:
            record.score(errors)
    folder = tmp_path / "runs" / fingerprint
    folder.mkdir()
    run_record.append(folder, "began", {"at": "2026-01-02T03:04:05+00:00"})
    run_record.append(folder, "ended", {"seconds": 77.0, "model": digests.of(Path("data/model.pt"))})
    seen = []
    for _ in range(2):
        report.run()
        seen.append({file.name: file.read_bytes() for file in sorted(Path("report").iterdir())})
    assert seen[0] == seen[1]
    assert set(seen[0]) == {"index.html", *(f"{name}.png" for name in figures(here))}
    text = Path("report/index.html").read_text()
    assert "2026-01-02 03:04 +00:00" in text
    table = text.split("<h2>Beside the run before")[1].split("</section>")[0]
    assert re.findall(r'data-label="top-1"><span>([^<]*)<', table)[1] == "12.5\u00a0%"
    assert "which has 12.50 " in table
    assert table.count("1:17") == 1, "the older one has no record"
    assert Path("report/neighbours.png").stat().st_size > 10_000, "the figure is only a note"
    assert list((tmp_path / "mlartifacts").glob("*/artifacts/report/index.html"))


def test_any_other_byte_of_what_the_page_shows_is_refused(here: Manifest) -> None:
    """Each byte of metrics.json, the curves, the tables and the counts."""
    classes = trained.names(CLASSES)
    for file, read in (
        (trained.METRICS, lambda: reading.read_metrics(trained.METRICS)),
        (reading.HISTORY, lambda: str(reading.history(reading.HISTORY))),
        (trained.OUT / "confusion.csv", lambda: reading.confusion(Path("data/evaluation/confusion.csv"), classes)),
        (trained.OUT / "per_class.csv", lambda: reading.hard_classes(Path("data/evaluation/per_class.csv"))),
        (reading.REJECTED, lambda: reading.listed_pictures(reading.REJECTED)),
        (reading.DAMAGED, lambda: reading.listed_pictures(reading.DAMAGED)),
        (reading.PICTURES, lambda: Census.read(reading.PICTURES)),
        (trained.OUT / "neighbours.parquet", lambda: reading.random_rows("neighbours.parquet", 2, 0, 1)),
        (trained.OUT / "predictions.parquet", lambda: gallery.pick(1, "val", here, Path("data/shards"))),
        (trained.OUT / "predictions.parquet", lambda: reading.random_rows("predictions.parquet", 2, 0, 0)),
    ):
        assert unsaid(file, lambda read=read: repr(read()), mask=2, always=True) == []


def test_any_other_byte_of_a_shard_is_refused_where_its_pictures_are_shown(here: Manifest) -> None:
    file = Path("data/shards") / here.shards["val"][1].file
    ids = [row["id"] for row in rows_of(Path(), "val")[9:11]]
    size = file.stat().st_size
    places = [*range(0, size, size // 25), *range(size - 1500, size, 60)]
    assert unsaid(file, lambda: repr(lookup.fetch(ids, "val", here, Path("data/shards"))), places, always=True) == []


def test_a_table_that_is_gone_is_not_a_figure_left_out(here: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("curves", "first_layer", "confusion"):
        monkeypatch.setattr(f"alexnet.figures.{name}", lambda *_, **__: b"")
    file = trained.OUT / "neighbours.parquet"
    data = file.read_bytes()
    file.unlink()
    try:
        with pytest.raises(FileNotFoundError, match=r"neighbours\.parquet: not there\. Run: dvc repro evaluate"):
            figures(here, dataclasses.replace(SECTION, pictures=0))
    finally:
        file.write_bytes(data)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: has no column epoch"),
        ("step,rate\n1,2\n", "line 1: has no column epoch"),
        ("epoch,rate\n0\n", "line 2: 1 values for 2 columns"),
        ("epoch,rate\n0,1,2\n", "line 2: 3 values for 2 columns"),
        ("epoch,rate\n0,fast\n", "line 2: could not convert string to float: 'fast'"),
        ("epoch,rate\n,1\n", "line 2: could not convert"),
        ('epoch,rate\n0,"1\n', "line 1: unexpected end of data"),
        ("epoch,rate\n0,1\0\n", "line"),
        ("epoch,rate\n0," + "9" * 200_000 + "\n", "line 1: field larger than field limit"),
        ("epoch,rate\n0,\udcff\n", "line 1: 'utf-8' codec"),
    ],
)
def test_a_history_that_is_no_table_is_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    """Even if it is sealed: other code may have written it."""
    file = tmp_path / "epochs.csv"
    file.write_bytes(text.encode(errors="surrogateescape"))
    digests.seal(tmp_path)
    with pytest.raises(
        ValueError, match=rf"^{re.escape(str(file))}: {said}.*Run: dvc repro --force --single-item train$"
    ):
        reading.history(file)
