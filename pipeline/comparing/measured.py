"""A measured run, whatever it comes from: parameters, errors with intervals, curves, cost, and the pictures it was tested on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from alexnet.errors import wilson
from pipeline.runtime import added, params

SEED = "learning.seed"
"""The parameter that is the run's seed: runs that differ in it alone are repetitions of each other."""

VIEWS = {"ten_views": "ten views", "centre": "centre patch"}
"""Key of metrics.json → how the pictures were tested, in words."""

Points = Sequence[Mapping[str, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """An error rate, from 0 to 1."""

    error: float
    images: int | None
    """Number of tested pictures; None if it is not recorded, and there is no interval."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's 95 % interval; it covers the choice of the test pictures. None without their number."""
        return wilson(self.error * self.images, self.images) if self.images and not math.isnan(self.error) else None

    def __str__(self) -> str:
        ends = self.interval
        return f"{100 * self.error:.2f}" + (f" ({100 * ends[0]:.2f} to {100 * ends[1]:.2f})" if ends else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureSet:
    """What identifies the pictures of a test; an empty value is not recorded."""

    split: str = ""
    pictures: str = ""
    """Digest of the tested split's shards and of the classes."""
    manifest: str = ""
    """Digest of all shards, those of training included."""
    made: str = ""
    """Digest of the sections of params.yaml that decide the pictures: source and resize."""
    images: int | None = None
    classes: int | None = None
    drawn: bool | None = None
    """Whether a program drew them."""
    source: str = ""
    """`source.name`."""

    def same(self, other: PictureSet) -> bool | None:
        """Whether two tests were of the same pictures; None if that is not recorded."""
        for name in ("split", "images", "classes"):
            one, two = getattr(self, name), getattr(other, name)
            if one not in ("", None) and two not in ("", None) and one != two:
                return False
        for name in ("pictures", "manifest", "made"):
            one, two = getattr(self, name), getattr(other, name)
            if one and two:
                return bool(one == two)
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a run took; None or empty where it is not known."""

    minutes: float | None = None
    images_per_second: float | None = None
    machine: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredRun:
    """One run with everything that is known of it."""

    name: str
    origin: str
    """Where it comes from, in words."""
    state: str = "finished"
    """finished, or why it is not, in words."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """Key with dots → value."""
    rates: Mapping[str, Rate] = field(default_factory=dict)
    """`ten_views/top1_error`, `centre/top5_error`, … → error rate; empty if the run was not evaluated."""
    tested: PictureSet = PictureSet()
    steps: Points = ()
    epochs: Points = ()
    """Rows of data/history/steps.csv and epochs.csv."""
    cost: Cost = Cost()
    date: str = ""
    commit: str = ""
    fingerprint: str = ""
    notes: tuple[str, ...] = ()
    """What is missing, and what to do; one sentence each."""
    predictions: Callable[[], AbstractContextManager[BinaryIO]] | None = None
    """Opens predictions.parquet; None if the run has none at hand."""

    @property
    def seed(self) -> Any:
        """`learning.seed`; None if it is not recorded."""
        return self.params.get(SEED)

    @property
    def repeated(self) -> str:
        """Equal for runs that differ in their seed alone and were tested on the same pictures."""
        rest = {key: value for key, value in self.params.items() if key != SEED}
        tested = (self.tested.split, self.tested.manifest or self.tested.made, self.tested.images)
        return json.dumps([rest or self.name, tested, sorted(self.rates)], sort_keys=True, default=str)

    def rate(self, top: int = 1) -> Rate | None:
        """The error of the best test there is: ten views, or else the centre patch."""
        return next((self.rates[key] for view in VIEWS if (key := f"{view}/top{top}_error") in self.rates), None)

    @property
    def view(self) -> str:
        """The key of the view that `rate` takes; empty if the run was not evaluated."""
        return next((view for view in VIEWS if f"{view}/top1_error" in self.rates), "")


def flat(document: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a params file by key with dots; keys that were added later have the value that means "as before"."""
    return params.flat(added.completed(document))


def made(document: Mapping[str, Any]) -> str:
    """A digest of the sections that decide the pictures; empty if one is missing."""
    sections = added.older({name: document[name] for name in ("source", "resize") if name in document})
    return "" if len(sections) < 2 else hashlib.sha256(json.dumps(sections, sort_keys=True).encode()).hexdigest()


def key(document: Mapping[str, Any]) -> str:
    """A hash of a params file's contents: 16 hexadecimal digits. Keys added later that mean "as before" do not change it."""
    return hashlib.sha256(json.dumps(added.older(document), sort_keys=True).encode()).hexdigest()[:16]


def rates(metrics: Mapping[str, Any]) -> dict[str, Rate]:
    """The error rates in the contents of metrics.json."""
    images = metrics.get("images")
    return {
        f"{view}/top{top}_error": Rate(error=float(metrics[view][f"top{top}_error"]), images=images)
        for view in VIEWS
        for top in (1, 5)
        if f"top{top}_error" in metrics.get(view, {})
    }
