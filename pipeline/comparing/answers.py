"""Two networks' answers to the same pictures: which of them is right more often, and whether by more than chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import binomtest

from alexnet.errors import Z95
from pipeline.evaluation.mistakes import Answer

Answers = Mapping[str, tuple[int, bool]]
"""Id of a picture → its label, and whether the first guess was right."""


@dataclass(frozen=True, kw_only=True, slots=True)
class McNemar:
    """McNemar's test of the top-1 answers: only pictures on which the two networks differ say which is better.

    It covers the choice of the test pictures; another seed would have given other networks.
    """

    images: int
    only_first: int
    """Pictures that only the first network answered right."""
    only_second: int

    @property
    def difference(self) -> float:
        """The second's error minus the first's, in percentage points."""
        return 100 * (self.only_first - self.only_second) / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the difference, in points: Wald's, with one more in each count (Bonett and Price, 2012)."""
        first, second = ((count + 1) / (self.images + 2) for count in (self.only_first, self.only_second))
        half = Z95 * math.sqrt((first + second - (first - second) ** 2) / (self.images + 2))
        return 100 * (first - second - half), 100 * (first - second + half)

    @property
    def p(self) -> float:
        """The two-sided probability of counts at least as uneven if both networks were equally good (exact binomial)."""
        differ = self.only_first + self.only_second
        return float(binomtest(self.only_first, differ).pvalue) if differ else 1.0

    @property
    def verdict(self) -> str:
        """The result in words."""
        return "more than chance" if self.p < 0.05 else "chance alone can explain it"


def of(found: Sequence[Answer]) -> Answers:
    """The answers by picture; no answer is a wrong one."""
    return {answer.id: (answer.label, answer.label == answer.guess) for answer in found}


def mcnemar(first: Answers, second: Answers) -> McNemar:
    """Compares two networks; `ValueError` if they were tested on other pictures or with other labels."""
    if first.keys() != second.keys():
        apart = min(first.keys() ^ second.keys())
        raise ValueError(f"picture {apart} was tested with one network only")
    if other := next((name for name, (label, _) in first.items() if second[name][0] != label), None):
        raise ValueError(f"picture {other} has label {first[other][0]} in one test and {second[other][0]} in the other")
    pairs = [(right, second[name][1]) for name, (_, right) in first.items()]
    return McNemar(images=len(pairs), only_first=pairs.count((True, False)), only_second=pairs.count((False, True)))
