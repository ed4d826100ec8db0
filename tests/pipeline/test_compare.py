"""Comparisons: what is run, what is not run again, and the table against statistics done by hand."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pipeline import compare
from pipeline.compare import Comparison, Variant
from pipeline.runtime import params

ROOT = Path(__file__).parents[2]


def comparison(**changes: Any) -> Comparison:
    variants = (
        Variant(name="base", changes={}, section="", paper=""),
        Variant(name="other", changes={"model.dropout": 0.0}, section="§4.2", paper="worse"),
        Variant(name="untried", changes={"model.width": 0.5}, section="", paper=""),
    )
    plain = Comparison(record="x", base="params.yaml", target="evaluate", seeds=(0, 1, 2), variants=variants)
    return dataclasses.replace(plain, **changes)


def recorded(folder: Path, errors: dict[str, list[float]]) -> None:
    (folder / "records/x").mkdir(parents=True)
    shutil.copy(ROOT / "params.yaml", folder)
    variants = {variant.name: variant for variant in comparison().variants}
    with (folder / "records/x/runs.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, compare.COLUMNS, restval="")
        writer.writeheader()
        for variant, values in errors.items():
            for seed, value in enumerate(values):
                key = compare.key(compare.wanted(comparison(), variants[variant], seed))
                row = {"variant": variant, "seed": seed, "key": key, "classes": 10}
                row |= {"top1_error": value, "top5_error": value / 2}
                writer.writerow(row | {"centre_top1_error": value + 0.02, "centre_top5_error": 0.3})


def test_the_table_has_means_deviations_and_paired_intervals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base, other = [0.40, 0.42, 0.41], [0.45, 0.46, 0.48]
    recorded(tmp_path, {"base": base, "other": other})
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in compare.table(comparison()).splitlines()[2:]]
    assert [line[0] for line in lines] == ["base", "other", "one view"]
    assert lines[0][2:6] == ["3", "41.00 ± 1.00", "20.50 ± 0.50", ""]
    differences = 100 * (np.array(other) - base)
    low, high = stats.t.interval(0.95, 2, differences.mean(), stats.sem(differences))
    assert lines[1] == [
        "other",
        "§4.2",
        "3",
        "46.33 ± 1.53",
        "23.17 ± 0.76",
        f"+5.33 ({low:+.2f} to {high:+.2f})",
        "worse",
    ]
    assert compare.interval(differences.tolist()) == pytest.approx((low, high), rel=1e-3)
    assert lines[2][5].startswith("+2.00")
    assert compare.less_views(compare.by_variant(comparison())["base"]) == pytest.approx([2.0, 2.0, 2.0])


@pytest.mark.parametrize("count", [2, 3, 11, 40])
def test_an_interval_is_student_s_for_any_number_of_seeds(count: int) -> None:
    differences = np.random.default_rng(0).normal(size=count)
    expected = stats.t.interval(0.95, count - 1, differences.mean(), stats.sem(differences))
    assert compare.interval(differences.tolist()) == pytest.approx(expected)


def test_a_run_of_other_parameters_has_no_part_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recorded(tmp_path, {"base": [0.40, 0.42, 0.41], "other": [0.45, 0.46, 0.48]})
    before = compare.table(comparison())
    file = tmp_path / "records/x/runs.csv"
    lines = file.read_text().splitlines()
    key = compare.rows(comparison())[0]["key"]
    file.write_text("\n".join([lines[0], lines[1].replace(key, "0" * 16).replace("0.4", "0.9"), *lines[1:]]) + "\n")
    assert len(compare.rows(comparison())) == 7
    assert compare.table(comparison()) == before
    assert [seed for _, seed, _ in compare.missing(comparison(), [comparison().variants[2]])] == [0, 1, 2]
    assert compare.missing(comparison(), comparison().variants[:2]) == []


def test_a_run_has_the_base_s_parameters_but_for_its_changes_and_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    base, other = comparison().variants[:2]
    document = compare.wanted(comparison(), other, 7)
    plain = params.load(ROOT / "params.yaml")
    assert (document["model"]["dropout"], document["learning"]["seed"]) == (0.0, 7)
    document["model"]["dropout"], document["learning"]["seed"] = plain["model"]["dropout"], plain["learning"]["seed"]
    assert document == plain
    keys = {compare.key(compare.wanted(comparison(), variant, seed)) for variant in (base, other) for seed in range(3)}
    assert len(keys) == 6
    wrong = dataclasses.replace(other, changes={"model.dropuot": 0.0})
    with pytest.raises(ValueError, match=r"variant other: model.dropuot: params.yaml has no such key"):
        compare.wanted(comparison(), wrong, 0)


@pytest.mark.slow
def test_the_ablations_are_of_the_size_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    ablations = compare.read(Path("experiments/ablations.yaml"))
    base = params.load(Path(ablations.base))
    assert (base["source"]["name"], base["source"]["classes"]) == ("tiny_imagenet", 25)
    assert base["model"]["width"] == 0.25
    assert len(ablations.seeds) == 3
    text = " ".join((ROOT / "docs/studies.md").read_text().split())
    assert "at a quarter of its width, on 25 classes of Tiny ImageNet, three seeds each" in text
    known = {row["key"] for row in compare.rows(ablations)}
    missing = [
        sum(compare.key(compare.wanted(ablations, variant, seed)) not in known for seed in ablations.seeds)
        for variant in ablations.variants
    ]
    assert missing.count(2) == 10 and set(missing) == {0, 2}
    assert "two seeds of ten variants are still to be run" in text
    for name in ("full-width", "plateau"):
        whole = compare.read(Path(f"experiments/{name}.yaml"))
        assert compare.missing(whole, whole.variants) == []
    assert "All of these runs, and those of the plateau, have their rows" in text


def test_the_plateau_is_that_of_the_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    plateau = compare.read(Path("experiments/plateau.yaml"))
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
    monkeypatch.chdir(ROOT)
    text = "record: x\nbase: params.yaml\ntarget: train\nseeds: [0]\n"
    file = tmp_path / "other.yaml"
    file.write_text(text + "variants_of: experiments/plateau.yaml\n")
    found = compare.read(file)
    assert found.variants == compare.read(Path("experiments/plateau.yaml")).variants
    assert (found.record, found.base) == ("x", "params.yaml")
    file.write_text(text + "variants_of: experiments/plateau.yaml\nbesides: {paper-with-03: {learning.rate: 0.02}}\n")
    others = compare.read(file).variants
    assert others[2].changes == {**found.variants[2].changes, "learning.rate": 0.02}
    assert (*others[:2], *others[3:]) == (*found.variants[:2], *found.variants[3:])
    file.write_text(text + "variants_of: experiments/plateau.yaml\nbesides: {papre: {learning.rate: 0.02}}\n")
    with pytest.raises(ValueError, match="besides: there is no variant 'papre'"):
        compare.read(file)
    for wrong in (
        "",
        "variants_of: experiments/plateau.yaml\nvariants: [{name: a, section: '', paper: '', changes: {}}]\n",
    ):
        file.write_text(text + wrong)
        with pytest.raises(ValueError, match="either variants or variants_of has to be given"):
            compare.read(file)


def test_a_run_that_fails_costs_none_after_it_and_what_is_there_is_drawn_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    asked = dataclasses.replace(comparison(), seeds=(0,), target="train")
    (tmp_path / "x.yaml").write_text(json.dumps(dataclasses.asdict(asked)))
    monkeypatch.setattr("sys.argv", ["compare", "x.yaml"])
    monkeypatch.setattr(compare, "check_cache", lambda: None)

    def run(asked: Comparison, variant: Variant, seed: int, document: dict[str, Any]) -> None:
        if variant.name == "base":
            raise ValueError("base, seed 0: ended with 1")
        steps, epochs = [{"step": 1.0, "loss": 2.0}], [{"val_top1_error": 0.5, "val_top5_error": 0.25}]
        compare.record(asked, variant, seed, document, steps, epochs, {"classes": 10})

    monkeypatch.setattr(compare, "run", run)
    with pytest.raises(SystemExit, match="compare: base, seed 0: ended with 1"):
        compare.main()
    assert [row["variant"] for row in compare.rows(asked)] == ["other", "untried"]
    assert "| untried |" in capsys.readouterr().out
    figure = tmp_path / "records/x/losses.png"
    figure.write_bytes(b"drawn")
    with pytest.raises(SystemExit):
        compare.main()
    assert figure.read_bytes() == b"drawn", "drawn anew, though no run has come"


def test_variants_are_chosen_by_name() -> None:
    assert [variant.name for variant in compare.select(comparison(), ["other"], Path("file"))] == ["other"]
    assert len(compare.select(comparison(), [], Path("file"))) == 3
    with pytest.raises(ValueError, match="file: there is no variant 'ohter'; there are base, other, untried"):
        compare.select(comparison(), ["ohter"], Path("file"))


@pytest.mark.parametrize("file", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_comparisons_that_are_here_can_be_run(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = compare.read(file)
    keys = [compare.key(compare.wanted(found, variant, 0)) for variant in found.variants]
    assert len(set(keys)) == len(keys)
