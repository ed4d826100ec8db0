"""Runs that differ in their seed alone as one group, and the parameters in which groups differ."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.comparing import seeds
from pipeline.comparing.measured import SEED, MeasuredRun, Rate
from pipeline.comparing.seeds import Paired

IDLE = ("report.", SEED)
"""Parameters that change no number of a comparison, and the seed, which has a column of its own."""

UNKNOWN = "–"
"""In place of a value that a run does not record, or does not have."""


@dataclass(frozen=True, slots=True)
class Group:
    """Runs of equal parameters with different seeds, in the order in which they were named."""

    runs: tuple[MeasuredRun, ...]

    @property
    def first(self) -> MeasuredRun:
        """The first of the runs."""
        return self.runs[0]

    @property
    def name(self) -> str:
        """The runs' names without their seeds, each once."""
        names = dict.fromkeys(run.name.removesuffix(f", seed {run.seed}") for run in self.runs)
        return " + ".join(names)

    @property
    def seeds(self) -> str:
        """The seeds of the runs, in words."""
        return ", ".join(UNKNOWN if run.seed is None else str(run.seed) for run in self.runs)

    def errors(self, top: int) -> dict[str, float]:
        """Error (0 to 1) by seed, of the runs that were evaluated; a seed that is not recorded is its run's own."""
        rates = {_seed(run): run.rate(top) for run in self.runs}
        return {seed: rate.error for seed, rate in rates.items() if rate is not None}

    def error(self, top: int) -> str:
        """The error in per cent: mean ± standard deviation over seeds, or for one run its interval over the test pictures."""
        rates = [rate for run in self.runs if (rate := run.rate(top)) is not None]
        if len(rates) == 1:
            return str(rates[0])
        return seeds.spread([100 * rate.error for rate in rates]) if rates else ""

    def mean(self, top: int = 1) -> float | None:
        """The mean error in per cent; None if no run was evaluated."""
        errors = self.errors(top)
        return 100 * statistics.mean(errors.values()) if errors else None

    def paired(self, other: Group, top: int = 1) -> Paired:
        """The errors of both, paired by seed."""
        return seeds.paired(self.errors(top), other.errors(top))

    def rate(self) -> Rate | None:
        """The top-1 error of the only run; None for several, or if it was not evaluated."""
        return self.first.rate() if len(self.runs) == 1 else None


def _seed(run: MeasuredRun) -> str:
    return f"{run.origin}: {run.name}" if run.seed is None else str(run.seed)


def grouped(runs: Sequence[MeasuredRun]) -> list[Group]:
    """The runs in groups, in their order. A run whose seed its group has already begins another group."""
    groups: list[list[MeasuredRun]] = []
    for run in runs:
        for group in groups:
            if group[0].repeated == run.repeated and run.seed not in [other.seed for other in group]:
                group.append(run)
                break
        else:
            groups.append([run])
    return [Group(tuple(group)) for group in groups]


def differing(documents: Sequence[Mapping[str, Any]]) -> list[str]:
    """The parameters in which runs differ, sorted. A run that records no parameter of a section does not differ in it."""
    sections = [{key.partition(".")[0] for key in document} for document in documents]
    keys = sorted({key for document in documents for key in document if not key.startswith(IDLE)})
    found = []
    for key in keys:
        known = [each for each, recorded in zip(documents, sections, strict=True) if key.partition(".")[0] in recorded]
        if len({word(document, key) for document in known}) > 1:
            found.append(key)
    return found


def _plain(value: Any) -> Any:
    """The value with whole numbers as integers, also in lists: `1.0` and `1` are one value of a parameter."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e15
    return int(value) if whole else value


def word(document: Mapping[str, Any], key: str) -> str:
    """A parameter's value for a person; equal values give equal words, whether YAML or MLflow had them."""
    if key not in document:
        return UNKNOWN
    value = _plain(document[key])
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
