"""Statistics over seeds, against scipy and by symmetry; tables whose cells stay cells."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pipeline.comparing import layout, markdown, seeds
from pipeline.comparing.layout import Table, Words
from tests.names import NASTY


@pytest.mark.parametrize("count", [2, 3, 9])
def test_a_paired_difference_is_scipys_paired_t(count: int) -> None:
    lots = np.random.default_rng(count)
    one, other = lots.uniform(size=count), lots.uniform(size=count)
    own = {str(seed): float(value) for seed, value in enumerate(one)}
    others = {str(seed): float(value) for seed, value in reversed([*enumerate(other)])}
    expected = stats.ttest_rel(100 * one, 100 * other).confidence_interval(0.95)
    assert seeds.interval(seeds.paired(own, others).differences) == pytest.approx((expected.low, expected.high))


def test_seeds_that_only_one_has_are_in_no_pair_and_in_neither_mean() -> None:
    paired = seeds.paired({"0": 0.5, "7": 0.1}, {"0": 0.25, "8": 0.9})
    assert str(paired) == "50.00 - 25.00 = +25.00"


def test_names_stay_in_their_cells() -> None:
    lines = markdown.table(["name", "x"], [[name, "1"] for name in NASTY]).split("\n")
    assert len(lines) == len(NASTY) + 2
    for line in lines:
        assert line.isprintable()
        assert "<" not in line
        assert line.replace("\\\\", "").replace("\\|", "").count("|") == 3


def test_text_is_as_wide_as_a_terminal_and_says_everything() -> None:
    rows = [["a", "word " * 40, "one" * 20, "1.00 (0.50 to 2.00)"], ["b", "", "\x1b[2J", "猫"]]
    text = layout.text([Table("T", ["run", "what", "name", "error"], rows, "note " * 60), Words("W", ["said " * 50])])
    assert max(map(len, text.split("\n"))) <= layout.WIDTH
    assert text.count("word") == 40
    assert text.count("note") == 60
    assert all(line.isprintable() for line in text.split("\n"))
