"""A study: variants that differ from a base in a few parameters, each trained with several seeds, to answer one question.

A study is a folder in studies/ with a `study.yaml` and a `base.yaml`, which is a complete params file. A run is identified by
its parameters (`Run.key`), not by its name.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.comparing import measured
from pipeline.runtime import added, params

STUDIES = Path("studies")


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """A variant of the base."""

    name: str
    changes: dict[str, Any]
    """Key of params.yaml, with dots (learning.rate) → value."""
    section: str
    """The section of the paper."""
    paper: str
    """The paper's result, in a few words; empty if there is none."""
    adds: float | None = None
    """Percentage points that the variant adds to the top-1 error in the paper; None if the paper gives no number."""

    def __post_init__(self) -> None:
        check_name("name", self.name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """A `study.yaml`, with the name of its folder."""

    name: str
    """The name of the folder in studies/."""
    target: Literal["train", "evaluate"]
    """The last stage of each run. train: errors by the centre patch; evaluate: errors by ten views, too."""
    seeds: tuple[int, ...]
    """Values of learning.seed."""
    variants: tuple[Variant, ...] = ()
    """The first variant is the base, with which the others are compared."""
    variants_of: str = ""
    """Name of another study, to use its variants on this study's base."""
    besides: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Extra changes for single variants: variant name → {key: value}."""

    def __post_init__(self) -> None:
        check_name("name", self.name)
        folded = [variant.name.casefold() for variant in self.variants]
        if twice := next((name for name in folded if folded.count(name) > 1), None):
            raise ValueError(f"two variants are called '{twice}', up to capital letters. Give one another name")
        if bool(self.variants) == bool(self.variants_of):
            raise ValueError("either variants or variants_of has to be given")
        if self.besides and not self.variants_of:
            raise ValueError("besides changes the variants of another study, which variants_of has to name")

    @property
    def folder(self) -> Path:
        """The study's folder, relative to the repository's root."""
        return STUDIES / self.name

    @property
    def base(self) -> Path:
        """The complete params file that the variants change."""
        return self.folder / "base.yaml"


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One training of a study."""

    variant: Variant
    seed: int
    parameters: Mapping[str, Any]
    """The contents of the complete params file."""

    def __str__(self) -> str:
        return f"{self.variant.name}, seed {self.seed}"

    @property
    def key(self) -> str:
        """A hash of the parameters: 16 hexadecimal digits. Keys added later that mean "as before" do not change it."""
        return measured.key(self.parameters)


_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,98}[A-Za-z0-9])?")


def check_name(what: str, name: str) -> None:
    """`ValueError` if the name is not usable for files, DVC experiments and tables."""
    if not _NAME.fullmatch(name) or ".." in name or name.endswith(".lock"):
        raise ValueError(
            f"{what}: has to be made of letters, digits, '-', '_' and '.', 100 at most, since files and DVC experiments are "
            f"called by it; is {name[:200]!a}"
        )


def names() -> list[str]:
    """The names of all studies that have a study.yaml."""
    return sorted(file.parent.name for file in STUDIES.glob("*/study.yaml"))


def read(name: str) -> Study:
    """Reads a study; `variants_of` is replaced by the variants of that study. `ValueError` if a file is invalid."""
    file = STUDIES / name / "study.yaml"
    study = params.check({"name": name, **params.load(file)}, Study, file)
    if study.name != name:
        raise ValueError(f"{file}: name: is {study.name!r}, but the folder gives the name. Remove the key")
    if not study.variants_of:
        return study
    variants = {variant.name: variant for variant in read(study.variants_of).variants}
    for variant, changes in study.besides.items():
        if variant not in variants:
            raise ValueError(f"{file}: besides: there is no variant {variant!r}; there are {', '.join(variants)}")
        variants[variant] = dataclasses.replace(variants[variant], changes={**variants[variant].changes, **changes})
    return dataclasses.replace(study, variants=(*variants.values(),), variants_of="", besides={})


def select(study: Study, chosen: Sequence[str]) -> list[Variant]:
    """The variants with these names; all if `chosen` is empty. `ValueError` for an unknown name."""
    known = {variant.name: variant for variant in study.variants}
    for name in chosen:
        if name not in known:
            raise ValueError(f"{study.folder}: there is no variant {name!r}; there are {', '.join(known)}")
    return [known[name] for name in chosen] if chosen else [*known.values()]


def run_of(study: Study, variant: Variant, seed: int) -> Run:
    """The run of a variant with a seed; `ValueError` if the base lacks a key that the variant changes."""
    return _run(study, params.load(study.base), variant, seed)


def runs_of(study: Study, variants: Sequence[Variant]) -> list[Run]:
    """The runs of these variants: variant by variant, with each seed."""
    base = params.load(study.base)
    return [_run(study, base, variant, seed) for variant in variants for seed in study.seeds]


def _run(study: Study, base: Mapping[str, Any], variant: Variant, seed: int) -> Run:
    document = copy.deepcopy(added.completed(base))
    for key, value in {**variant.changes, "learning.seed": seed}.items():
        section, _, last = key.partition(".")
        if last not in document.get(section, {}):
            raise ValueError(f"variant {variant.name}: {key}: {study.base} has no such key")
        document[section][last] = value
    return Run(variant=variant, seed=seed, parameters=document)
