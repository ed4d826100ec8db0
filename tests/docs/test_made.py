"""What the site takes from the code: every key, every command and every module is there, and a range is what the class takes."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import re
from pathlib import Path

import click
import pytest

from docs import commands, modules, parameters
from pipeline.commands import STAGES, alexnet
from pipeline.download import SOURCES
from pipeline.runtime import params
from pipeline.runtime.machines import Machine

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def page() -> str:
    return parameters.text()


def headings(text: str) -> list[str]:
    return re.findall(r"^### (.+)$", text, re.M)


def test_every_key_of_every_params_file_and_of_every_source_and_machine_has_its_heading(page: str) -> None:
    wanted = {f"machine.{field.name}" for field in dataclasses.fields(Machine)}
    wanted |= {f"source.{field.name}" for kind in SOURCES for field in dataclasses.fields(kind)}
    for file in (ROOT / "params.yaml", *(ROOT / "recipes").rglob("*.yaml")):
        wanted |= {*params.flat(params.load(file))}
    assert set(headings(page)) == wanted - {"source.name"}
    assert {name for kind in SOURCES for name in re.findall(r"`name: (\w+)`", str(kind.__doc__))} <= set(
        re.findall(r"\w+", " ".join(re.findall(r"^## source: (.+)$", page, re.M)))
    )


def test_every_number_has_its_unit_and_every_unit_its_number(page: str) -> None:
    numbers = {
        heading
        for heading, facts in re.findall(r"^### (.+)\n\n(.+)$", page, re.M)
        if re.search(r"\b[Aa] (?:whole )?number|`1`, `2`", facts) and not heading.endswith(("seed", ".classes"))
    }
    assert numbers == set(parameters.UNITS)


@pytest.mark.parametrize(
    ("key", "facts"),
    [
        ("source.train_images", "**A whole number from 20 to 100,000** · unit: pictures"),
        ("resize.side", "**A whole number from 1 to 4,096** · unit: pixels · in the paper: §2"),
        ("model.width", "**A number, above 0 and at most 1** · unit: fraction of kernels and units"),
        ("learning.momentum", "**A number, at least 0 and below 1** · unit: factor per step · in the paper: §5"),
        ("model.activation", "**`relu`, `tanh`, `sigmoid`** · in the paper: §3.1"),
        ("results.code_bits", "**A whole number, at least 0, in steps of 8** · unit: bits · in the paper: §6.1"),
    ],
)
def test_a_key_says_what_it_may_be(page: str, key: str, facts: str) -> None:
    assert f"### {key}\n\n{facts}\n" in page


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
    """A class with one number and limits of any kind."""

    number: float
    low: float
    high: float
    open_low: bool
    open_high: bool

    def __post_init__(self) -> None:
        if self.number < self.low or self.number > self.high:
            raise ValueError("outside")
        if (self.open_low and self.number == self.low) or (self.open_high and self.number == self.high):
            raise ValueError("on the edge")


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.0, 0.5), (0.25, 1000.0)])
@pytest.mark.parametrize(("open_low", "open_high"), [*itertools.product([False, True], repeat=2)])
def test_a_range_of_any_class_is_found_by_asking_it(low: float, high: float, open_low: bool, open_high: bool) -> None:
    example = Drawn(number=(low + high) / 3, low=low, high=high, open_low=open_low, open_high=open_high)
    said = parameters.values(float, "number", example)
    if not open_low and not open_high:
        assert said == f"a number from {low:g} to {high:,g}"
    else:
        left, right = "above" if open_low else "at least", "below" if open_high else "at most"
        assert said == f"a number, {left} {low:g} and {right} {high:,g}"


def test_every_command_has_its_help() -> None:
    text = commands.text()
    names = set(alexnet.list_commands(click.Context(alexnet))) - set(STAGES)
    assert names | {"tracking ui"} <= set(re.findall(r"^## alexnet (.+)$", text, re.M))
    assert text.count("Usage: alexnet ") == text.count("\n## ") + 1
    assert "--explain FOLDER" in text


def test_every_module_of_the_paper_and_of_the_network_in_use_is_listed_and_can_be_imported() -> None:
    listed = [*modules.names()]
    for package in ("alexnet", "pipeline/inference"):
        assert {f.stem for f in (ROOT / package).glob("*.py")} - {"__init__"} <= {
            name.split(".")[-1] for name in listed
        }
    for name in listed:
        assert importlib.util.find_spec(name), name
    assert modules.text().count(".. automodule:: ") == len(listed)


def test_a_warning_of_sphinx_is_an_error_and_ci_makes_the_site() -> None:
    (target,) = re.findall(r"^docs: .*\n\t@(.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert {"-W", "--keep-going", "-E"} <= set(target.split())
    assert re.search(r"^make docs$", (ROOT / ".ci/run").read_text(encoding="utf-8"), re.M)
    assert "/docs/_build/" in (ROOT / ".gitignore").read_text(encoding="utf-8").split()
