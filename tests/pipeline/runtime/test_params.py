"""Settings: what is refused and in which words; the numbers that DVC writes; the files of this repository."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from ruamel.yaml import YAML

from alexnet.augmentation import Augmentation
from alexnet.learning import Learning
from alexnet.network import Model
from pipeline.download import SOURCES
from pipeline.evaluation.reporting.section import Report
from pipeline.evaluation.results import Results
from pipeline.resize import Resize
from pipeline.runtime import params
from pipeline.runtime.params import ParamsError
from pipeline.training.spec import Start

ROOT = Path(__file__).parents[3]

SECTIONS = {
    "source": SOURCES,
    "resize": Resize,
    "model": Model,
    "start": Start,
    "augmentation": Augmentation,
    "learning": Learning,
    "results": Results,
    "report": Report,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Leaf:
    name: str
    weights: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    count: int
    rate: float
    word: str
    switch: bool
    kind: Literal["on", "off"]
    pairs: tuple[tuple[int, ...], ...]
    leaves: tuple[Leaf, ...]

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count has to be at least 1, is {self.count}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Disk:
    name: Literal["disk"]
    radius: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Square:
    name: Literal["square"]
    side: float


GOOD = """\
section:
  count: 3
  rate: 1e-05
  word: no
  switch: true
  kind: off
  pairs: [[1, 2], [3]]
  leaves:
    - {name: a, weights: [1, 2.5]}
"""


def written(folder: Path, text: str | bytes) -> Path:
    file = folder / "params.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def refusal(folder: Path, text: str | bytes) -> str:
    with pytest.raises(ParamsError) as caught:
        params.read("section", Section, written(folder, text))
    return str(caught.value)


def test_a_section_becomes_its_plain_dataclass(tmp_path: Path) -> None:
    section = params.read("section", Section, written(tmp_path, GOOD))
    leaf = Leaf(name="a", weights=(1.0, 2.5))
    assert section == Section(
        count=3, rate=0.00001, word="no", switch=True, kind="off", pairs=((1, 2), (3,)), leaves=(leaf,)
    )
    assert type(section) is Section
    assert type(section.leaves[0]) is Leaf
    assert type(section.leaves[0].weights[0]) is float


@pytest.mark.parametrize("number", ["1e-05", "5e-4", "1E3", "1.", ".5", "7"])
def test_what_yaml_1_2_calls_a_number_is_one(tmp_path: Path, number: str) -> None:
    section = params.read("section", Section, written(tmp_path, GOOD.replace("1e-05", number)))
    assert section.rate == float(number)
    assert type(section.rate) is float


def test_an_unknown_key_is_named_with_its_value_and_the_nearest(tmp_path: Path) -> None:
    words = refusal(tmp_path, GOOD.replace("count: 3", "cuont: 3"))
    assert "section.cuont: unknown key (its value: 3), did you mean 'count'?" in words
    assert "section.count: is missing" in words


def test_an_unknown_key_that_resembles_none_is_answered_with_all_of_them(tmp_path: Path) -> None:
    words = refusal(tmp_path, GOOD + "  zzzzzz: 1\n")
    assert "section.zzzzzz: unknown key" in words
    for field in dataclasses.fields(Section):
        assert field.name in words


def test_an_unknown_key_inside_a_list_is_named_with_its_place(tmp_path: Path) -> None:
    words = refusal(tmp_path, GOOD.replace("weights: [1, 2.5]", "weights: [1], weihgts: [2]"))
    assert "section.leaves.0.weihgts" in words
    assert "'weights'" in words


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    assert "section.count: is missing" in refusal(tmp_path, GOOD.replace("  count: 3\n", ""))


def test_a_name_says_which_of_several_dataclasses_a_section_is(tmp_path: Path) -> None:
    def shape(text: str) -> object:
        return params.read("shape", (Disk, Square), written(tmp_path, f"shape: {text}"))

    assert shape("{name: disk, radius: 2}") == Disk(name="disk", radius=2.0)
    assert shape("{name: square, side: 2}") == Square(name="square", side=2.0)
    for text, said in (
        ("{name: squre, side: 2}", "shape.name: unknown name 'squre', did you mean 'square'? Known are disk, square"),
        ("{name: 3, side: 2}", "shape.name: unknown name 3. Known are disk, square"),
        ("{name: [disk]}", "shape.name: unknown name ['disk'], did you mean 'disk'? Known are disk, square"),
        ("{side: 2}", "shape.name: is missing. Known are disk, square"),
        ("3", "shape.name: is missing. Known are disk, square"),
        ("{name: square, radius: 2}", "shape.radius: unknown key (its value: 2); known are name, side"),
    ):
        with pytest.raises(ParamsError) as caught:
            shape(text)
        assert said in str(caught.value)


def test_a_missing_section_is_named_with_the_nearest(tmp_path: Path) -> None:
    words = refusal(tmp_path, GOOD.replace("section:", "sectoin:"))
    assert "section 'section' is missing, did you mean 'sectoin'?" in words


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("count", "count: 3", 'count: "3"'),
        ("count", "count: 3", "count: true"),
        ("count", "count: 3", "count: 1.5"),
        ("count", "count: 3", "count: 3.0"),
        ("count", "count: 3", "count: 3e0"),
        ("count", "count: 3", "count:"),
        ("rate", "rate: 1e-05", 'rate: "1e-05"'),
        ("rate", "rate: 1e-05", "rate: .nan"),
        ("rate", "rate: 1e-05", "rate: .inf"),
        ("rate", "rate: 1e-05", "rate: -.inf"),
        ("rate", "rate: 1e-05", "rate: true"),
        ("rate", "rate: 1e-05", "rate: [1]"),
        ("word", "word: no", "word: 3"),
        ("word", "word: no", "word: 2012-09-30"),
        ("switch", "switch: true", "switch: 1"),
        ("switch", "switch: true", "switch: yes"),
        ("kind", "kind: off", "kind: of"),
        ("pairs", "pairs: [[1, 2], [3]]", "pairs: [[1, 2.5], [3]]"),
        ("pairs", "pairs: [[1, 2], [3]]", "pairs: {a: 1}"),
        ("leaves", "leaves:", "leaves: 3\n  other:"),
    ],
)
def test_a_value_of_another_type_is_refused_with_its_key(tmp_path: Path, key: str, good: str, bad: str) -> None:
    assert good in GOOD
    words = refusal(tmp_path, GOOD.replace(good, bad))
    assert words.startswith(str(tmp_path / "params.yaml"))
    assert f"section.{key}" in words


def test_an_impossible_value_is_refused_in_the_words_of_the_dataclass(tmp_path: Path) -> None:
    words = refusal(tmp_path, GOOD.replace("count: 3", "count: 0"))
    assert words == f"{tmp_path / 'params.yaml'}: section: count has to be at least 1, is 0"


def test_all_faults_of_a_section_are_listed(tmp_path: Path) -> None:
    words = refusal(tmp_path, GOOD.replace("count: 3", "count: x").replace("rate: 1e-05", "rate: y"))
    assert "section.count" in words
    assert "section.rate" in words


@pytest.mark.parametrize("text", ["", "3", "- a\n- b\n", "section:\n", "section: 3\n", "section: [1]\n"])
def test_what_is_no_mapping_is_refused_and_the_file_named(tmp_path: Path, text: str) -> None:
    assert str(tmp_path / "params.yaml") in refusal(tmp_path, text)


@pytest.mark.parametrize(
    "text", [b"section: {count: 3", b"a: b: c", b"\xff\xfe\x00", b"word: caf\xe9\n", b"a: 1\na: 2\n"]
)
def test_what_is_not_yaml_is_refused_and_the_file_named(tmp_path: Path, text: bytes) -> None:
    words = refusal(tmp_path, text)
    assert words.startswith(f"{tmp_path / 'params.yaml'}: not YAML")


def test_a_missing_file_is_named_with_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParamsError, match=r"params\.yaml: no such file here") as caught:
        params.read("section", Section)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "file", [ROOT / "params.yaml", *sorted((ROOT / "recipes").glob("*.yaml"))], ids=lambda f: f.stem
)
def test_every_committed_file_is_read_by_every_stage(file: Path) -> None:
    document = params.load(file)
    assert list(document) == list(SECTIONS)
    for name, kind in SECTIONS.items():
        section: Any = params.read(name, kind, file)
        assert type(section) in (kind if isinstance(kind, tuple) else (kind,))


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("learning.rate=0.00001", 0.00001),
        ("learning.rate=1e-7", 1e-7),
        ("learning.rate=1", 1.0),
        ("learning.decay=5e-4", 0.0005),
        ("learning.rate_falls=[2,5]", (2, 5)),
        ("learning.precision=float64", "float64"),
        ("learning.seed=7", 7),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_dvc_exp_run_writes_is_read_back(tmp_path: Path, override: str, value: object) -> None:
    from dvc.utils.hydra import apply_overrides

    file = written(tmp_path, (ROOT / "params.yaml").read_text())
    apply_overrides(file, [override])
    section = params.read("learning", Learning, file)
    key = override.partition("=")[0].removeprefix("learning.")
    assert getattr(section, key) == value
    assert type(getattr(section, key)) is type(value)


@pytest.mark.parametrize("number", [1e-300, 1 / 3, 123456789.125, 2.5e17, math.pi * 1e-9])
def test_a_number_that_ruamel_writes_is_read_back_to_the_last_bit(tmp_path: Path, number: float) -> None:
    document = params.load(written(tmp_path, GOOD))
    document["section"]["rate"] = number
    with (tmp_path / "params.yaml").open("w") as handle:
        YAML().dump(document, handle)
    assert params.read("section", Section, tmp_path / "params.yaml").rate == number
