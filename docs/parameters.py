"""The page of parameters, made from the classes of params.yaml's sections: each key's values, unit, range, source and meaning.

A range is found by asking the class which values it takes, so it cannot become stale. `docs/conf.py` puts the text into
docs/parameters.md.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pipeline.doctor.preflight import KINDS
from pipeline.runtime import params
from pipeline.runtime.machines import Machine

ROOT = Path(__file__).parents[1]

UNITS = {
    "source.train_images": "pictures",
    "source.val_images": "pictures",
    "source.val_share": "fraction of a class's pictures",
    "resize.side": "pixels",
    "resize.quality": "quality of libjpeg, or `raw`",
    "resize.images_per_shard": "pictures",
    "resize.max_rejected": "fraction of the indexed pictures",
    "resize.max_megapixels": "million pixels",
    "model.columns": "columns",
    "model.kernels": "kernels",
    "model.units": "units",
    "model.width": "fraction of kernels and units",
    "model.deviation": "grey levels, 0–255",
    "model.dropout": "probability",
    "model.dropout_layers": "numbers of layers",
    "model.first_std": "standard deviation of a weight",
    "model.first_bias": "value of a bias",
    "start.unsupervised_layers": "layers",
    "start.unsupervised_patches": "patches",
    "start.unsupervised_iterations": "iterations",
    "augmentation.chunk": "pictures",
    "augmentation.colour_std": "standard deviations of the colours along a component",
    "augmentation.colour_epochs": "epochs",
    "learning.batch_size": "pictures",
    "learning.epochs": "epochs",
    "learning.rate": "learning rate",
    "learning.bias_rate": "ratio of two learning rates",
    "learning.rate_falls": "epochs, counted from 0",
    "learning.rate_divisor": "factor",
    "learning.plateau_epochs": "epochs",
    "learning.plateau_falls": "falls",
    "learning.held_out": "fraction of the training pictures",
    "learning.momentum": "factor per step",
    "learning.decay": "factor per step, times the learning rate",
    "learning.bias_decay": "factor per step, times the learning rate",
    "learning.log_steps": "steps",
    "learning.streams": "streams",
    "results.neighbours": "pictures",
    "results.queries": "pictures",
    "results.code_bits": "bits",
    "results.code_hidden": "units",
    "results.code_epochs": "epochs",
    "results.code_batch_size": "rows",
    "results.code_rate": "learning rate",
    "report.pictures": "pictures",
    "report.queries": "pictures",
    "machine.workers": "processes",
    "machine.devices": "GPUs",
    "machine.checkpoint_steps": "steps",
    "machine.patience": "seconds",
}
"""Unit of each number; words, switches and seeds have none."""

FARTHEST = 2**62
"""A number that a class takes at this distance from 0 has no limit."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Key:
    """A key of a section, as the page shows it."""

    name: str
    """`section.key`."""
    values: str
    """What it may be: words, or a number with its range."""
    unit: str
    """Unit of a number; "" for others."""
    source: str
    """The section of the paper; "" if the paper says nothing about it."""
    meaning: str
    """The field's docstring."""


def text() -> str:
    """All sections in Markdown: a heading for each key, so that each has an address."""
    parts = []
    recipes = {name: params.flat(params.load(ROOT / file)) for name, file in FILES.items()}
    for section in sorted(KINDS, key=lambda name: name == "source"):  # its many classes last
        for title, kind, example in classes(section):
            parts.append(f"## {title}\n\n{about(kind)}")
            parts += [_shown(key, recipes, section) for key in keys(section, kind, example)]
    parts.append(f"## machine.yaml\n\n{about(Machine)}")
    parts += [_shown(key, {}, "machine") for key in keys("machine", Machine, Machine())]
    return "\n\n".join(parts)


FILES = {
    "the paper": "recipes/paper.yaml",
    "run in 2012": "recipes/original-2012.yaml",
    "the sample": "params.yaml",
}
"""The files whose values the page shows."""


def classes(section: str) -> Iterator[tuple[str, Any, Any]]:
    """Heading, class and a valid value of each class that a section may have."""
    module, _, name = KINDS[section].partition(":")
    found = getattr(import_module(module), name)
    if not isinstance(found, tuple):
        yield section, found, _read(found, params.load(ROOT / FILES["the paper"])[section], section)
        return
    examples = [params.load(ROOT / "params.yaml")[section], *_examples()]
    for kind in found:
        names = get_args(get_type_hints(kind)["name"])
        example = next(value for value in examples if value["name"] in names)
        yield f"{section}: {', '.join(names)}", kind, _read(kind, example, section)


def _read(kind: Any, value: object, section: str) -> Any:
    return params.check(value, kind, Path("params.yaml"), section)


def _examples() -> list[dict[str, Any]]:
    """The sections `source` that docs/sources.md shows."""
    from ruamel.yaml import YAML

    lines = re.findall(r"^source: .*$", (ROOT / "docs/sources.md").read_text(encoding="utf-8"), re.M)
    return [YAML(typ="safe").load(line)["source"] for line in lines]


def keys(section: str, kind: Any, example: Any) -> Iterator[Key]:
    """The keys of a class, in its order; `name` is in the heading."""
    hints, said = get_type_hints(kind), documented(kind)
    for field in dataclasses.fields(kind):
        if field.name == "name":
            continue
        name, meaning = f"{section}.{field.name}", said[field.name]
        yield Key(
            name=name,
            values=values(hints[field.name], field.name, example),
            unit=UNITS.get(name, ""),
            source=source(name, meaning),
            meaning=meaning,
        )


def source(name: str, meaning: str) -> str:
    """The sections and figures of the paper that the docstring names, or recipes/paper.yaml beside the key; "" if none."""
    section, _, key = name.partition(".")
    block = re.search(rf"^{section}:.*\n((?: .*\n)+)", (ROOT / FILES["the paper"]).read_text(encoding="utf-8"), re.M)
    line = re.search(rf"^  {key}:.*?(#.*)$", block.group(1), re.M) if block else None
    found = re.findall(r"§\d(?:\.\d)?|Figure \d", f"{line.group(1) if line else ''} {meaning}")
    return ", ".join(sorted(set(found), key=lambda words: (words[0] == "F", words)))


@functools.cache
def documented(kind: Any) -> Mapping[str, str]:
    """Field → its docstring on one line, of a class and those that it inherits from."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__[:-1]):
        (tree,) = ast.parse(inspect.getsource(each)).body
        assert isinstance(tree, ast.ClassDef)
        for field, below in zip(tree.body, tree.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                found[ast.unparse(field.target)] = " ".join(str(below.value.value).split())
    return found


def about(kind: Any) -> str:
    """The class's docstring."""
    return " ".join(str(inspect.getdoc(kind)).split())


def values(hint: Any, name: str, example: Any) -> str:
    """What a field may be, in words."""
    if get_origin(hint) in (Union, UnionType):
        return ", or ".join(values(part, name, example) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return ", ".join(f"`{word}`" for word in get_args(hint))
    if hint in (int, float):
        return f"{'a whole number' if hint is int else 'a number'}{_limits(hint, name, example)}"
    if get_origin(hint) is tuple:
        part, *others = get_args(hint)
        some = "a list" if Ellipsis in others else f"a list of {len(others) + 1}"
        inner = "keys" if dataclasses.is_dataclass(part) else values(part, name, example)
        return f"{some}, each {inner}"
    return {str: "text", bool: "`true` or `false`", NoneType: "`null`"}.get(hint, "a mapping")


def _limits(kind: type[int | float], name: str, example: Any) -> str:
    """The range of numbers that the class takes, as words that follow "a number"."""
    now = getattr(example, name)
    several = isinstance(now, tuple)
    start = now[-1] if several and now else now
    if isinstance(start, bool | str) or not isinstance(start, int | float):
        start = 2

    def takes(number: float) -> bool:
        try:
            dataclasses.replace(example, **{name: (*now[:-1], number) if several else number})
        except (ValueError, TypeError):
            return False
        return True

    if kind is float:
        return _between(_edge(takes, float(start), -1.0, float), _edge(takes, float(start), 1.0, float), takes)
    step = next(step for step in range(1, 65) if takes(start + step) or takes(start - step))
    low, high = (_edge(takes, start, sign * step, int) for sign in (-1, 1))
    return _between(low, high, takes) + (f", in steps of {step}" if step > 1 else "")


def _edge(takes: Callable[[float], bool], start: float, step: float, kind: type[int | float]) -> float | None:
    """The last number that is taken in steps from `start`; None if there is no limit. Of floats to nine digits."""
    far = 1
    while takes(kind(start + far * step)):
        far *= 2
        if far > FARTHEST:
            return None
    near = far // 2 if far > 1 else 0
    while kind is int and far - near > 1:
        middle = (near + far) // 2
        near, far = (middle, far) if takes(kind(start + middle * step)) else (near, middle)
    if kind is int:
        return kind(start + near * step)
    inside, outside = start + near * step, start + far * step
    for _ in range(200):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if takes(middle) else (inside, middle)
    return round((inside + outside) / 2, 9) + 0.0  # no -0


def _between(low: float | None, high: float | None, takes: Callable[[float], bool]) -> str:
    """A range in words; a limit that is not taken itself is "above" or "below"."""
    if low is not None and high is not None and takes(low) and takes(high):
        return f" from {low:,g} to {high:,g}" if low != high else f", {low:,g}"
    words = []
    if low is not None:
        words.append(("at least" if takes(low) else "above") + f" {low:,g}")
    if high is not None:
        words.append(("at most" if takes(high) else "below") + f" {high:,g}")
    return f", {' and '.join(words)}" if words else ""


def _shown(key: Key, recipes: Mapping[str, Mapping[str, Any]], section: str) -> str:
    """A key in Markdown."""
    facts = [key.values]
    if key.unit:
        facts.append(f"unit: {key.unit}")
    if key.source:
        facts.append(f"in the paper: {key.source}")
    facts[0] = f"**{facts[0][0].upper()}{facts[0][1:]}**"
    lines = [f"### {key.name}", " · ".join(facts)]
    if section != "source":
        shown = [f"{name} `{_plain(flat[key.name])}`" for name, flat in recipes.items() if key.name in flat]
        lines.append("Values: " + ", ".join(shown) + "." if shown else "")
    return "\n\n".join([*filter(None, lines), key.meaning])


def _plain(value: object) -> str:
    return str(value).replace("True", "true").replace("False", "false").replace("'", "")
