"""Statistics over seeds: mean and standard deviation, and differences that are paired by seed, with Student's 95 % interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.special import stdtrit


@dataclass(frozen=True, kw_only=True, slots=True)
class Paired:
    """The errors of one run and of another with the same seed, for each seed that both have; in per cent, in order of seeds."""

    own: tuple[float, ...]
    others: tuple[float, ...]

    @property
    def differences(self) -> list[float]:
        """Own error minus the other's, in percentage points, one per pair."""
        return [own - other for own, other in zip(self.own, self.others, strict=True)]

    def __str__(self) -> str:
        """Both means, their difference and its interval: `59.20 - 58.96 = +0.24`; empty without a pair.

        The means are those of the paired runs alone, so that the difference is theirs whatever other runs there are.
        """
        if not self.own:
            return ""
        own, others = statistics.mean(self.own), statistics.mean(self.others)
        return f"{own:.2f} - {others:.2f} = {difference(self.differences)}"


def paired(own: Mapping[str, float], others: Mapping[str, float]) -> Paired:
    """Pairs errors (0 to 1, by seed) by the seeds that both have."""
    seeds = [seed for seed in own if seed in others]
    return Paired(own=tuple(100 * own[seed] for seed in seeds), others=tuple(100 * others[seed] for seed in seeds))


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's 95 % interval of the mean; None for fewer than two values."""
    count = len(values)
    if count < 2:
        return None
    mean, deviation = statistics.mean(values), statistics.stdev(values)
    half = float(stdtrit(count - 1, 0.975)) * deviation / math.sqrt(count)
    return mean - half, mean + half


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation; only the mean for one value."""
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def difference(values: Sequence[float]) -> str:
    """The mean of differences with its 95 % interval; empty if there is no difference."""
    if not values:
        return ""
    ends = interval(values)
    return f"{statistics.mean(values):+.2f}" + (f" ({ends[0]:+.2f} to {ends[1]:+.2f})" if ends else "")
