"""The code of a training: its list is dvc.yaml's, and any change of it is seen."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.driver import provenance
from pipeline.driver.provenance import Code

ROOT = Path(__file__).parents[3]

BEFORE = Code({"a.py": "1", "b.py": "2"}, {"torch": "2.15.0"})


def test_the_list_is_the_code_that_dvc_knows_train_to_depend_on_and_two_libraries() -> None:
    deps = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]["train"]["deps"]
    here = provenance.here()
    assert set(here.files) == {dep for dep in deps if not dep.startswith("data/")}
    assert "pipeline/training/trainer.py" in here.files
    assert set(here.libraries) == {"torch", "simplejpeg"}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (dataclasses.replace(BEFORE, files={"a.py": "1", "b.py": "3"}), "b.py"),
        (dataclasses.replace(BEFORE, files={"a.py": "1"}), "b.py"),
        (dataclasses.replace(BEFORE, files={**BEFORE.files, "c.py": "1"}), "c.py"),
        (dataclasses.replace(BEFORE, libraries={"torch": "2.16.0"}), "torch 2.15.0, here 2.16.0"),
        (dataclasses.replace(BEFORE, libraries={}), "torch 2.15.0, here not recorded"),
        (Code(dict.fromkeys("abcdef", "1"), BEFORE.libraries), "a; a.py; b; 5 more files"),
    ],
)
def test_what_is_other_code_is_named(other: Code, said: str) -> None:
    assert provenance.differences(BEFORE, other) == said
    assert other.digest != BEFORE.digest


def test_equal_code_is_no_other_and_a_record_says_all_of_it() -> None:
    again = provenance.of(BEFORE.record())
    assert again == BEFORE
    assert provenance.differences(BEFORE, BEFORE) == ""
    assert again is not None
    assert again.digest == BEFORE.digest


@pytest.mark.parametrize("record", [None, "0" * 64, {}, []])
def test_a_run_of_before_has_no_record(record: object) -> None:
    assert provenance.of(record) is None


def test_what_a_library_was_built_for_is_no_other_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance.metadata, "version", lambda name: "2.15.0+cu130")
    assert provenance.version("torch") == "2.15.0"
