"""docs/paper.md: every claim has a reference, and every reference exists."""

import re
from pathlib import Path

import pytest

from pipeline.runtime import params

ROOT = Path(__file__).parents[1]
ROWS = [
    tuple(cell.strip() for cell in line.strip().strip("|").split("|"))
    for line in (ROOT / "docs/paper.md").read_text().splitlines()
    if line.startswith("|") and not re.match(r"\| (---|the paper)", line)
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:60])
def test_a_claim_leads_to_what_is_there(row):
    claim, *here = row
    assert claim
    assert len(here) == 1
    named = re.findall(r"`([^`]+)`", here[0])
    assert named, "an empty row"
    tests = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    keys = set(params.flat(params.load(ROOT / "params.yaml")))
    for name in named:
        if name.startswith("test_"):
            assert f"def {name}(" in tests, name
        elif "/" in name:
            assert (ROOT / name).exists(), name
        else:
            assert name in keys, name


def test_every_section_of_the_paper_is_there():
    sections = re.findall(r"^## §(\d)", (ROOT / "docs/paper.md").read_text(), re.M)
    assert sections == list("1234567")
    assert len(ROWS) > 40
