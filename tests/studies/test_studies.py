"""Studies: which runs are made and which are not made again, and the table against statistics done by hand."""

from __future__ import annotations

import csv
import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML
from scipy import stats

from pipeline.comparing import seeds
from pipeline.runtime import params, stage
from studies import __main__ as entry
from studies import experiments, rows, table
from studies.rows import Result
from studies.study import Run, Study, Variant, names, read, run_of, runs_of, select

ROOT = Path(__file__).parents[2]


def study(**changes: Any) -> Study:
    variants = (
        Variant(name="base", changes={}, section="", paper=""),
        Variant(name="other", changes={"model.dropout": 0.0}, section="§4.2", paper="worse"),
        Variant(name="untried", changes={"model.width": 0.5}, section="", paper=""),
    )
    plain = Study(name="x", target="evaluate", seeds=(0, 1, 2), variants=variants)
    return dataclasses.replace(plain, **changes)


def asked(folder: Path, of: Study) -> None:
    """The study's folder as a person writes it."""
    made = folder / of.folder
    made.mkdir(parents=True)
    shutil.copy(ROOT / "params.yaml", made / "base.yaml")
    document = dataclasses.asdict(of) | {"seeds": [*of.seeds], "variants": [*map(dataclasses.asdict, of.variants)]}
    with (made / "study.yaml").open("w") as handle:
        YAML(typ="safe").dump({key: value for key, value in document.items() if key != "name" and value}, handle)


def recorded(folder: Path, errors: dict[str, list[float]]) -> None:
    asked(folder, study())
    variants = {variant.name: variant for variant in study().variants}
    with (folder / "studies/x/runs.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, rows.RUNS, restval="")
        writer.writeheader()
        for variant, values in errors.items():
            for seed, value in enumerate(values):
                key = run_of(study(), variants[variant], seed).key
                row = {"variant": variant, "seed": seed, "key": key, "classes": 10}
                row |= {"top1_error": value, "top5_error": value / 2}
                writer.writerow(row | {"centre_top1_error": value + 0.02, "centre_top5_error": 0.3})


def test_the_table_has_means_deviations_and_paired_intervals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base, other = [0.40, 0.42, 0.41], [0.45, 0.46, 0.48]
    recorded(tmp_path, {"base": base, "other": other})
    lines = cells(table.table(study()))
    assert [line[0] for line in lines] == ["base", "other", "one view"]
    assert lines[0][2:7] == ["3", "41.00 ± 1.00", "20.50 ± 0.50", "", ""]
    differences = 100 * (np.array(other) - base)
    low, high = stats.t.interval(0.95, 2, differences.mean(), stats.sem(differences))
    assert lines[1] == [
        "other",
        "§4.2",
        "3",
        "46.33 ± 1.53",
        "23.17 ± 0.76",
        "3",
        f"46.33 - 41.00 = +5.33 ({low:+.2f} to {high:+.2f})",
        "worse",
    ]
    assert seeds.interval(differences.tolist()) == pytest.approx((low, high), rel=1e-3)
    assert lines[2][6].startswith("43.00 - 41.00 = +2.00")
    assert table.view_differences(rows.by_variant(study())["base"]).differences == pytest.approx([2.0, 2.0, 2.0])


def cells(text: str) -> list[list[str]]:
    """The cells of a Markdown table, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def contradictions(text: str) -> list[list[str]]:
    """The rows of a study's table whose difference is not that of the numbers beside it, or has too many pairs."""
    wrong, base = [], cells(text)[0]
    for row in cells(text)[1:]:
        own, others, apart = map(float, re.findall(r"[+-]?\d+\.\d+", row[6])[:3])
        if abs(own - others - apart) > 0.0101 or int(row[5]) > min(int(row[2]), int(base[2])):
            wrong.append(row)
        if row[5] == row[2] and row[3].split()[0] != f"{own:.2f}":
            wrong.append(row)
        if row[5] == base[2] and row[0] != "one view" and base[3].split()[0] != f"{others:.2f}":
            wrong.append(row)
    return wrong


@pytest.mark.parametrize("seeds_of", [(3, 1), (1, 3), (2, 3), (3, 3)])
def test_no_row_contradicts_its_difference_whatever_seeds_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds_of: tuple[int, int]
) -> None:
    """With one seed a variant's error was below the base's mean, and its difference from the base's same seed above 0."""
    monkeypatch.chdir(tmp_path)
    base, other = [0.5896, 0.6, 0.61], [0.592, 0.7, 0.8]
    recorded(tmp_path, {"base": base[: seeds_of[0]], "other": other[: seeds_of[1]]})
    made = table.table(study())
    assert contradictions(made) == []
    row, both = cells(made)[1], min(seeds_of)
    assert row[5] == str(both)
    assert row[6].startswith(f"{100 * np.mean(other[:both]):.2f} - {100 * np.mean(base[:both]):.2f} = ")
    assert f"= {100 * np.mean(np.subtract(other, base)[:both]):+.2f}" in row[6]


def test_a_difference_is_minus_the_other_way_round() -> None:
    one, other = {"0": 0.5, "1": 0.6, "3": 0.9}, {"1": 0.55, "0": 0.41, "2": 0.1}
    there, back = seeds.paired(one, other), seeds.paired(other, one)
    assert sorted(there.differences) == pytest.approx(sorted(-value for value in back.differences))
    (low, high), (least, most) = seeds.interval(there.differences), seeds.interval(back.differences)
    assert (low, high) == pytest.approx((-most, -least))
    assert str(seeds.paired(one, {})) == ""


@pytest.mark.parametrize("count", [2, 3, 11, 40])
def test_an_interval_is_student_s_for_any_number_of_seeds(count: int) -> None:
    differences = np.random.default_rng(0).normal(size=count)
    expected = stats.t.interval(0.95, count - 1, differences.mean(), stats.sem(differences))
    assert seeds.interval(differences.tolist()) == pytest.approx(expected)


def test_a_run_of_other_parameters_has_no_part_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recorded(tmp_path, {"base": [0.40, 0.42, 0.41], "other": [0.45, 0.46, 0.48]})
    before = table.table(study())
    file = tmp_path / "studies/x/runs.csv"
    lines = file.read_text().splitlines()
    key = rows.read(study())[0]["key"]
    file.write_text("\n".join([lines[0], lines[1].replace(key, "0" * 16).replace("0.4", "0.9"), *lines[1:]]) + "\n")
    assert len(rows.read(study())) == 7
    assert table.table(study()) == before
    assert [run.seed for run in rows.missing(study(), [study().variants[2]])] == [0, 1, 2]
    assert rows.missing(study(), study().variants[:2]) == []


def test_a_run_has_the_base_s_parameters_but_for_its_changes_and_its_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked(tmp_path, study())
    base, other = study().variants[:2]
    document = run_of(study(), other, 7).parameters
    plain = params.load(ROOT / "params.yaml")
    assert (document["model"]["dropout"], document["learning"]["seed"]) == (0.0, 7)
    document["model"]["dropout"], document["learning"]["seed"] = plain["model"]["dropout"], plain["learning"]["seed"]
    assert document == plain
    keys = {run_of(study(), variant, seed).key for variant in (base, other) for seed in range(3)}
    assert len(keys) == 6
    wrong = dataclasses.replace(other, changes={"model.dropuot": 0.0})
    with pytest.raises(ValueError, match=r"variant other: model.dropuot: studies/x/base.yaml has no such key"):
        run_of(study(), wrong, 0)


def test_every_recorded_run_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    missing = {name: len(rows.missing(read(name), read(name).variants)) for name in names()}
    assert missing == {"ablations": 0, "plateau": 0, "ablations_quarter_width": 20, "sample": 0}
    for name in names():
        points = rows.curves(read(name))
        assert [row["key"] for row in rows.read(read(name)) if not points[row["key"]]] == []
        said = (read(name).folder / "table.md").read_text()
        assert said == table.table(read(name)) + "\n"
        assert contradictions(said) == []


def test_the_plateau_is_that_of_the_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    plateau = read("plateau")
    printed, run, base = (
        {f"{section}.{key}": value for section, keys in params.load(Path(file)).items() for key, value in keys.items()}
        for file in ("recipes/paper.yaml", "recipes/original-2012.yaml", plateau.base)
    )
    differ = {key: value for key, value in run.items() if value != printed.get(key)}
    later = {"augmentation.colour_epochs", "learning.epochs", "learning.plateau_epochs", "learning.rate_changes"}
    changes = {variant.name: variant.changes for variant in plateau.variants}
    assert changes["original-2012"] == {
        key: differ[key]
        for key in differ
        if key not in later | {"resize.filter"}  # which would be other pictures
    }
    only = {"model.first_std": differ["model.first_std"]}
    assert changes["paper-with-03"] == only
    assert changes["original-with-01"] == changes["original-2012"] | {"model.first_std": printed["model.first_std"]}
    assert changes["paper"] == {}
    others = {key for key in base if base[key] != printed.get(key) and not key.startswith("source.")}
    assert others == {"resize.images_per_shard", "learning.epochs", "learning.streams", "results.neighbours"}


def test_variants_are_given_here_or_there_and_not_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked(tmp_path, study())
    text = "target: train\nseeds: [0]\n"
    file = tmp_path / "studies/y/study.yaml"
    file.parent.mkdir()
    file.write_text(text + "variants_of: x\n")
    found = read("y")
    assert found.variants == read("x").variants
    assert (found.name, found.base) == ("y", Path("studies/y/base.yaml"))
    file.write_text(text + "variants_of: x\nbesides: {other: {learning.rate: 0.02}}\n")
    others = read("y").variants
    assert others[1].changes == {**found.variants[1].changes, "learning.rate": 0.02}
    assert (others[0], others[2]) == (found.variants[0], found.variants[2])
    file.write_text(text + "variants_of: x\nbesides: {ohter: {learning.rate: 0.02}}\n")
    with pytest.raises(ValueError, match="besides: there is no variant 'ohter'"):
        read("y")
    for wrong in ("", "variants_of: x\nvariants: [{name: a, section: '', paper: '', changes: {}}]\n"):
        file.write_text(text + wrong)
        with pytest.raises(ValueError, match="either variants or variants_of has to be given"):
            read("y")
    file.write_text(text + "name: z\nvariants_of: x\n")
    with pytest.raises(ValueError, match="name: is 'z', but the folder gives the name"):
        read("y")


def test_a_run_that_fails_costs_none_after_it_and_what_is_there_is_drawn_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    short = study(seeds=(0,), target="train")
    asked(tmp_path, short)
    monkeypatch.setattr("sys.argv", ["studies", "x"])
    monkeypatch.setattr(entry, "HERE", tmp_path / "studies")
    monkeypatch.setattr(experiments, "check_cache", lambda: None)

    def experiment(study: Study, run: Run) -> Result:
        if run.variant.name == "base":
            raise ValueError("base, seed 0: ended with 1")
        short = run.variant.name == "untried"  # than learning.log_steps
        steps, epochs = [] if short else [{"step": 1.0, "loss": 2.0}], [{"val_top1_error": 0.5, "val_top5_error": 0.25}]
        return Result(steps=steps, epochs=epochs, cells={"classes": 10})

    monkeypatch.setattr(experiments, "experiment", experiment)
    with pytest.raises(SystemExit, match="studies: base, seed 0: ended with 1"):
        entry.main()
    assert [row["variant"] for row in rows.read(short)] == ["other", "untried"]
    assert "| untried |" in capsys.readouterr().out
    figure = tmp_path / "studies/x/losses.png"
    figure.write_bytes(b"drawn")
    with pytest.raises(SystemExit):
        entry.main()
    assert figure.read_bytes() == b"drawn", "drawn anew, though no run has come"


def test_a_study_is_run_by_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked(tmp_path, study(seeds=(0,)))
    monkeypatch.setattr("sys.argv", ["studies", "x"])
    monkeypatch.setattr(entry, "HERE", tmp_path / "studies")
    monkeypatch.setattr(stage, "PATIENCE", 0.1)
    with stage.alone("study-x"), pytest.raises(SystemExit, match="another 'study-x' that is at work"):
        entry.main()


def test_a_run_that_was_killed_between_its_points_and_its_row_has_its_points_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked(tmp_path, study())
    first, second = (run_of(study(), study().variants[0], seed) for seed in (0, 1))
    for run in (first, second):
        result = Result(
            steps=[{"step": 20, "loss": 2.5}], epochs=[{"epoch": 0, "val_loss": 2.0}], cells={"classes": 10}
        )
        rows.record(study(), run, result)
    kept = (tmp_path / "studies/x/runs.csv").read_text().splitlines(keepends=True)
    (tmp_path / "studies/x/runs.csv").write_text("".join(kept[:-1]))
    rows.record(study(), second, Result(steps=[{"step": 20, "loss": 1.5}], epochs=[{"epoch": 0}], cells={}))
    points = rows.curves(study())
    assert {key: [float(point["loss"]) for point in of_run] for key, of_run in points.items()} == {
        first.key: [2.5],
        second.key: [1.5],
    }
    assert [row["seed"] for row in rows.read(study())] == ["0", "1"]


def test_variants_are_chosen_by_name() -> None:
    assert [variant.name for variant in select(study(), ["other"])] == ["other"]
    assert len(select(study(), [])) == 3
    with pytest.raises(ValueError, match="studies/x: there is no variant 'ohter'; there are base, other, untried"):
        select(study(), ["ohter"])


def test_the_runs_of_the_studies_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for name in names():
        keys = [run.key for run in runs_of(read(name), read(name).variants)]
        assert len(set(keys)) == len(keys), name
