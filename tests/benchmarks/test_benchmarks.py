"""Each benchmark runs on a few pictures and prints what it promises; how fast it is, no test asks."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import rows, turns

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures in two folders, one of them grey and one small, beside what is no JPEG."""
    top = tmp_path_factory.mktemp("pictures")
    for number, size in enumerate([(300, 400), (400, 300), (257, 300), (500, 260), (300, 300), (100, 120)]):
        lots = np.random.default_rng(number)
        coarse = Image.fromarray(lots.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        picture = coarse.resize(size[::-1], Image.Resampling.BICUBIC)
        file = top / f"n{number % 2}" / f"{number}.{('jpg', 'JPEG')[number % 2]}"
        file.parent.mkdir(exist_ok=True)
        (picture.convert("L") if number == 4 else picture).save(file, "JPEG")
    (top / "notes.txt").write_text("no picture")
    return top


def printed(benchmark: str, *arguments: str, where: Path) -> str:
    """What it says; run from elsewhere, since a user may."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHON"))}
    program = [sys.executable, str(ROOT / "benchmarks" / benchmark), *arguments]
    done = subprocess.run(program, cwd=where, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found, (pattern, text)
    return float(found[1].replace(",", ""))


@pytest.mark.slow
def test_kernel_prints_two_ratios_the_difference_and_a_projection(folder: Path, tmp_path: Path) -> None:
    text = printed("kernel.py", str(folder), "--rounds", "2", where=tmp_path)
    assert text.startswith("6 pictures of ")
    assert "; 1 with a shorter side under 256" in text
    assert number(r"PSNR ([\d.]+) dB over all", text) >= number(r"([\d.]+) dB for the farthest", text) > 40
    for what in ("raw pixels", "JPEG of quality 95"):
        assert number(rf"to {what}: .* on one core: ([\d.]+) times as fast \(median of 2 rounds", text) > 0
    assert number(r"ILSVRC-2012, 1,331,167 pictures: ([\d.]+) core-hours", text) > 0


@pytest.mark.slow
def test_stage_prints_its_share_of_the_bare_processes_speed(folder: Path, tmp_path: Path) -> None:
    arguments = ("--pictures", "60", "--rounds", "1", "--workers", "2", "--work", str(tmp_path))
    text = printed("stage.py", str(folder), *arguments, where=tmp_path)
    assert "60 of them in turn, 2 at once" in text
    assert text.count("\nround ") == 1
    for what in ("time", "processor time"):
        assert 0 < number(rf"reaches ([\d.]+)% of the bare processes' speed by {what} \(median of 1", text) < 300
    assert number(r"ILSVRC-2012, 1,331,167 pictures: ([\d.]+) core-hours", text) > 0
    assert list(tmp_path.iterdir()) == [], "something was left behind"


@pytest.mark.slow
def test_index_prints_what_a_large_set_costs_beside_its_pictures(tmp_path: Path) -> None:
    arguments = ("--rows", "5000", "--pictures", "60", "--small", "50", "--folder", str(tmp_path))
    arguments = (*arguments, "--layout", "a file each")
    text = printed("index.py", *arguments, where=tmp_path)
    line = r"driver, 5,000 pictures a file each: -?[\d.]+ s and -?[\d.]+ GB more than for 50 \(in all "
    assert 0 < number(rf"{line}([\d.]+) s", text) < 100
    assert 0.05 < number(rf"{line}.* and ([\d.]+) GB", text) < 10
    for count in ("50", "60"):
        assert 50 < number(rf"worker, archive of {count} pictures: (\d+) MB", text) < 5000
    assert list(tmp_path.iterdir()) == [], "something was left behind"


@pytest.mark.slow
def test_neighbours_prints_minutes_memory_and_that_a_plain_search_agrees(tmp_path: Path) -> None:
    arguments = ("--rows", "300", "--queries", "8", "--code-bits", "16", "--folder", str(tmp_path))
    text = printed("neighbours.py", *arguments, where=tmp_path)
    assert text.startswith("300 rows of 4096 features in 0.00 GiB")
    assert "float64 for 2 of the queries: 0 neighbours differ" in text
    for what in ("neighbours", "with codes of 16 bits"):
        line = rf"{what}: [\d,]+ rows/s, ([\d.]+) minutes, [\d.]+ of a core; memory ([\d.]+) GiB at most"
        assert number(line, text) < 10
    assert list(tmp_path.iterdir()) == [], "something was left behind"


@pytest.mark.slow
def test_step_prints_a_rate_for_each_recipe_and_precision(tmp_path: Path) -> None:
    arguments = (
        "--recipes",
        "paper",
        "caffe",
        "--precisions",
        "bfloat16",
        "--steps",
        "1",
        "--rounds",
        "2",
        "--batch",
        "2",
    )
    text = printed("step.py", *arguments, where=tmp_path)
    assert "batches of 2, 2 rounds of 1 steps" in text
    for recipe in ("paper", "caffe"):
        assert number(rf"{recipe} bfloat16 +([\d,.]+) images/s \(.* of the floor's ", text) > 0


@pytest.mark.slow
def test_feeding_prints_a_rate_for_ours_and_the_peer_and_their_ratio(folder: Path, tmp_path: Path) -> None:
    text = printed("feeding.py", str(folder), "--pictures", "40", "--rounds", "2", "--threads", "1", where=tmp_path)
    assert text.startswith("40 pictures of 256 × 256 an epoch, batches of 128, 1 threads each\n")
    for name in ("ours", "imagefolder"):
        assert number(rf"(?m)^{name} +([\d,]+) pictures/s, +[\d,]+ MiB$", text) > 0
    assert number(r"ours is ([\d.]+) times as fast as imagefolder \(2 rounds; [\d.]+ to [\d.]+\)", text) > 0


@pytest.mark.slow
def test_all_of_them_make_one_table_and_a_file_with_a_row_for_each_target(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "--quick",
        "--only",
        "resize",
        "--pictures",
        "100",
        "--out",
        str(out),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    (row,) = json.loads(out.read_text())
    assert set(row) == {"name", "ours", "peer", "ratio", "target", "low", "high", "unit", "limit", "machine"}
    assert row["low"] <= row["ratio"] <= row["high"]
    assert row["target"] == 0.9
    assert f"| {row['name']} | {row['ours']:,.0f} | {row['peer']:,.0f} | {row['ratio']:.2f} |" in done.stdout


def test_a_ratio_is_taken_within_a_round_and_a_verdict_says_by_how_much_it_falls_short() -> None:
    made = rows.row("a", [100.0, 30.0, 90.0], [50.0, 10.0, 60.0], target=4.0)
    assert (made.ours, made.peer) == (90.0, 50.0)
    assert (made.ratio, made.low, made.high) == (2.0, 1.5, 3.0)
    assert made.verdict == "50% short"
    assert rows.row("b", [2.0], [1.0], target=2.0).verdict == "met"
    lost = rows.missing("c", "no GPU here", 4.0)
    assert lost.verdict == "not measured"
    assert rows.table([lost]).splitlines()[-1] == "| c |  |  |  |  | 4.00 | not measured; no GPU here |"


@pytest.mark.slow
def test_a_comparison_whose_program_ends_is_a_row_and_the_others_stay(tmp_path: Path) -> None:
    from benchmarks.__main__ import in_a_process

    arguments = argparse.Namespace(folder=None, quick=True, pictures=None, peers=None)
    (row,) = in_a_process("no such comparison", tmp_path, arguments)
    assert (row.name, row.verdict) == ("no such comparison", "not measured")
    assert row.limit.startswith("its program ended with code 2")


@pytest.mark.slow
def test_contenders_take_turns_and_one_that_fails_is_left_out_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order = tmp_path / "order"
    write = f"open({str(order)!r}, 'a').write(sys.argv[1])"
    program = f"from benchmarks.turns import work; import sys; work(lambda: {write} and int(sys.argv[2]))"
    here = {"PYTHONPATH": str(ROOT)}
    good = [turns.Contender(name, [sys.executable, "-c", program, name, "3"], tmp_path, here) for name in ("a", "b")]
    bad = turns.Contender("bad", [sys.executable, "-c", "raise SystemExit('no such library')"], tmp_path, here)
    with turns.ready([*good, bad]) as there:
        assert [each.name for each in there] == ["a", "b"]
        found = turns.rounds(there, 2)
    said = capsys.readouterr().err
    assert said.startswith("left out: bad ended")
    assert "no such library" in said
    assert {name: [turn.count for turn in each] for name, each in found.items()} == {"a": [3, 3], "b": [3, 3]}
    assert order.read_text() == "ba" + "ab" + "ba", "the first one alternates"


@pytest.mark.slow
def test_a_folder_without_pictures_is_named(tmp_path: Path) -> None:
    program = [sys.executable, str(ROOT / "benchmarks/kernel.py"), str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"{tmp_path}: no file below it ends in .jpg or .jpeg" in done.stderr
