"""The report and DVC's plots in a browser: on a phone, in the dark, on paper, and without network."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from alexnet import figures
from pipeline.evaluation import mistakes
from pipeline.evaluation.reporting import drawing, gallery
from pipeline.runtime import params
from pipeline.shards.manifest import Manifest
from tests import chromium
from tests.pipeline.reported import BEFORE, RECORD, after_evaluate, page

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, chromium.needed]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("evaluated")
    return folder, after_evaluate(folder)


@pytest.fixture
def report(evaluated: tuple[Path, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page with everything that a page may have, and with long words."""
    folder, here = evaluated
    monkeypatch.chdir(folder)
    document = params.load(ROOT / "recipes/original-2012.yaml")
    document["start"]["network"] = "s3://" + "a_long_name_without_a_space_" * 8
    shown = gallery.pick(8, "val", here, Path("data/shards"))
    long = dataclasses.replace(
        shown.confident[0], answer=mistakes.Answer(id="x" * 200, label=0, guess=1, probability=0.5)
    )
    shown = dataclasses.replace(shown, confident=[long, *shown.confident])
    png = figures.note("a figure")
    names = ("loss", "errors", "rate", "first-layer", "confusion", "guesses", "saliency", "neighbours")
    before = dataclasses.replace(BEFORE, name="another_run_" * 20)
    text = page(here, document, figures=dict.fromkeys(names, png), gallery=shown, record=RECORD, before=before)
    file = tmp_path / "index.html"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize("width", [360, 390, 700, 850])
def test_a_phone_and_a_narrow_window_show_the_whole_report(report: Path, tmp_path: Path, width: int) -> None:
    seen = chromium.measured(report, width, tmp_path)
    assert seen["width"] == width
    assert seen["wider"] == []
    assert seen["cut"] == []
    assert seen["scroll"] <= width
    assert seen["pictures"] == seen["drawn"] > 10
    assert seen["scripts"] == 0
    # the measure itself: a page that is too wide
    report.write_text(report.read_text().replace("<h1>", '<p style="width:900px;max-width:none">wide</p><h1>', 1))
    assert chromium.measured(report, width, tmp_path)["wider"] == ["P. wide"]


def test_in_the_dark_the_page_is_dark_and_its_ink_light(report: Path, tmp_path: Path) -> None:
    shades = {}
    for mode, words in (("light", ()), ("dark", ("--blink-settings=preferredColorScheme=0",))):
        seen = chromium.measured(report, 1200, tmp_path, *words)
        assert seen["scroll"] <= 1200
        shades[mode] = {name: sum(map(int, re.findall(r"\d+", seen[name])[:3])) for name in ("background", "ink")}
    assert shades["light"]["background"] - shades["light"]["ink"] > 400
    assert shades["dark"]["ink"] - shades["dark"]["background"] > 400


def test_on_paper_it_is_a4_on_several_pages(report: Path, tmp_path: Path) -> None:
    pdf = chromium.printed(report, tmp_path)
    sizes = re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", pdf)
    assert len(sizes) > 3
    assert {(round(float(width)), round(float(height))) for width, height in sizes} == {(595, 842)}


def test_dvc_s_plots_are_drawn_without_network(tmp_path: Path) -> None:
    plots = params.load(ROOT / "dvc.yaml")["plots"]
    (tmp_path / "dvc.yaml").write_text(json.dumps({"plots": plots}))
    (tmp_path / "report").mkdir()
    for name in (*drawing.CURVES.values(), "first-layer", "confusion", *drawing.ABSENT):
        (tmp_path / "report" / f"{name}.png").write_bytes(figures.note(name))
    environment = os.environ | {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(tmp_path / "site")}
    dvc = str(Path(sys.executable).with_name("dvc"))
    for words in (["init", "--quiet", "--no-scm"], ["plots", "show"]):
        subprocess.run([dvc, *words], cwd=tmp_path, env=environment, check=True, capture_output=True)
    seen = chromium.measured(tmp_path / "dvc_plots/index.html", 1200, tmp_path)
    assert seen["pictures"] == seen["drawn"] == len(plots)
    assert seen["scripts"] == 0, "what DVC's own charts need is loaded from the network"
