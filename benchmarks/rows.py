"""The rows of a benchmark's table: ours beside a peer, their ratio with its spread, what was wanted, and what bounds it."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Row:
    """A comparison; `results.json` has a list of these."""

    name: str
    ours: float | None
    """Median of our rounds, in `unit`; None if it was not measured here, and `limit` says why."""
    peer: float | None
    ratio: float | None
    """Median over the rounds of ours by the peer's, each within its round; so are `low` and `high` their least and most."""
    target: float | None
    """The ratio that is wanted; None: shown for comparison alone."""
    low: float | None
    high: float | None
    unit: str
    limit: str
    """What bounds it, or why it was not measured."""
    machine: str

    @property
    def verdict(self) -> str:
        """Whether the target is met, or by how much not."""
        if self.ratio is None:
            return "not measured"
        if self.target is None:
            return ""
        return "met" if self.ratio >= self.target else f"{1 - self.ratio / self.target:.0%} short"


def row(
    name: str,
    ours: Sequence[float],
    peers: Sequence[float],
    *,
    target: float | None = None,
    unit: str = "pictures/s",
    limit: str = "",
) -> Row:
    """A row of rates that were measured in turn: the first of ours and the first of the peer's are one round."""
    ratios = [one / other for one, other in zip(ours, peers, strict=True)]
    median = statistics.median
    return Row(
        name, median(ours), median(peers), median(ratios), target, min(ratios), max(ratios), unit, limit, machine()
    )


def missing(name: str, why: str, target: float | None = None, unit: str = "pictures/s") -> Row:
    """A row of a comparison that could not be made here."""
    return Row(name, None, None, None, target, None, None, unit, why, machine())


def machine() -> str:
    """This machine in words."""
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(errors="replace"), re.M)
        processor = found[1].strip() if found else processor
    return f"{processor}, {len(os.sched_getaffinity(0))} cores"


def table(rows: Sequence[Row]) -> str:
    """The rows as a table of Markdown."""
    lines = [
        "| comparison | ours | peer | ours / peer | least to most | wanted | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in rows:
        cells = [each.name, _number(each.ours), _number(each.peer), _ratio(each.ratio)]
        cells += [f"{_ratio(each.low)} to {_ratio(each.high)}" if each.ratio is not None else "", _ratio(each.target)]
        cells.append("; ".join(filter(None, (each.verdict, each.limit))))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write(rows: Sequence[Row], file: Path) -> None:
    """Writes results.json."""
    file.write_text(json.dumps([asdict(each) for each in rows], indent=1) + "\n")


def read(file: Path) -> list[Row]:
    """The rows of a results.json."""
    return [Row(**each) for each in json.loads(file.read_text())]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
