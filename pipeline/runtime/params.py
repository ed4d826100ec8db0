"""params.yaml and machine.yaml → one section's typed object, every key checked."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import pydantic
from pydantic.dataclasses import dataclass as checked
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.runtime import added, redaction

T = TypeVar("T")

PARAMS = Path("params.yaml")

_TYPE = re.compile(r"int|float|str|bool|\w+\[.*\]")


_QUERY = re.compile(r"(://[^\s?'\"]*)\?[^\s'\"]+")


class ParamsError(ValueError):
    """A params.yaml or machine.yaml that cannot be used; says file, key, value and what is allowed."""


def read(section: str, kind: type[T] | tuple[type[T], ...], file: Path = PARAMS) -> T:
    """Reads one section of `params.yaml` into `kind`, a frozen dataclass, or into the one of several that its `name` says.

    Raises `ParamsError` if the file or the section is missing, a key is unknown or missing, a value has another
    type (`"12"` is no number, `true` is no 1) or the dataclass refuses it. All faults of the section are listed.
    """
    document = added.completed(load(file))
    if section not in document:
        raise ParamsError(f"{file}: section '{section}' is missing{nearest(section, document)}")
    return check(document[section], kind, file, section)


def _named(value: object, kinds: tuple[type[T], ...], file: Path, section: str) -> type[T]:
    """The one of the dataclasses whose field `name` takes the name that stands in the section."""
    by_name = {name: kind for kind in kinds for name in get_args(get_type_hints(kind)["name"])}
    known = f". Known are {', '.join(by_name)}"
    if not isinstance(value, Mapping) or "name" not in value:
        raise ParamsError(f"{file}: {section}.name: is missing{known}")
    name = value["name"]
    if not isinstance(name, str) or name not in by_name:
        near = difflib.get_close_matches(str(name), by_name, n=1, cutoff=0.5)
        known = f", did you mean '{near[0]}'?{known[1:]}" if near else known
        raise ParamsError(f"{file}: {section}.name: unknown name {name!r}{known}")
    return by_name[name]


def load(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file, read as YAML 1.2: what DVC reads, so that `1e-05` is a number and `no` a word."""
    try:
        document = YAML(typ="safe").load(file)
    except FileNotFoundError:
        raise ParamsError(f"{file}: no such file here ({Path.cwd()}). Run from the root of the repository") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{file}: not YAML: {error}") from None
    if not isinstance(document, dict):
        raise ParamsError(f"{file}: has to be a mapping of sections, is {type(document).__name__}")
    return document


def check(value: object, kind: type[T] | tuple[type[T], ...], file: Path, where: str = "") -> T:
    """`value`, as read from `file` at the key `where`, as a `kind`; or a `ParamsError` that lists every fault."""
    if isinstance(kind, tuple):
        kind = _named(value, kind, file, where)
    # pydantic checks, but what comes back is the plain dataclass: alexnet/ knows no pydantic
    strict = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    frozen = vars(kind)["__dataclass_params__"].frozen  # a subclass has to be as its dataclass is
    adapter = pydantic.TypeAdapter(checked(kind, config=strict, frozen=frozen))
    try:
        adapter.validate_json(_json(value))
    except pydantic.ValidationError as error:
        faults = [_fault(fault, kind, where) for fault in _without_alternatives(error.errors(include_url=False))]
        raise ParamsError("\n".join(f"{file}: {fault}" for fault in faults)) from None
    plain: T = _plain(kind, value)
    return plain


def _json(value: object) -> bytes:
    # JSON is pydantic's strict mode with lists allowed for tuples. What YAML knows beyond it, dates and bytes, fits no key
    return json.dumps(value, default=lambda other: {type(other).__name__: str(other)}).encode()


def _plain(kind: Any, value: Any) -> Any:
    """`value`, already checked, as plain dataclasses and tuples."""
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        hints = get_type_hints(kind)
        return kind(**{key: _plain(hints[key], item) for key, item in value.items()})  # type: ignore[operator]
    if isinstance(value, Mapping):
        inner = next(reversed(get_args(kind)), object)
        return {key: _plain(inner, item) for key, item in value.items()}
    if isinstance(value, list):
        inner = next((arg for arg in get_args(kind) if arg is not Ellipsis), object)
        return tuple(_plain(inner, item) for item in value)
    if isinstance(value, int) and not isinstance(value, bool) and (kind is float or float in get_args(kind)):
        return float(value)
    return value


def _without_alternatives(faults: Iterable[Any]) -> Iterator[Any]:
    """Yields one fault for a value that has none of several types, instead of one for each type."""
    together: dict[tuple[Any, ...], list[Any]] = {}
    for fault in faults:
        # pydantic names the type that was tried behind the key
        loc = tuple(part for part in fault["loc"] if not _TYPE.fullmatch(str(part)))
        together.setdefault(loc, []).append({**fault, "loc": loc})
    for alike in together.values():
        yield {**alike[0], "msg": ", or ".join(dict.fromkeys(fault["msg"] for fault in alike))}


def _fault(fault: Any, kind: type, where: str) -> str:
    path = [str(part) for part in fault["loc"]]
    key = ".".join(([where] if where else []) + path)
    match fault["type"]:
        case "unexpected_keyword_argument" | "extra_forbidden":
            return f"{key}: unknown key (its value: {_shown(path[-1], fault['input'])}){nearest(path[-1], _keys(kind, path))}"
        case "missing" | "missing_argument":
            return f"{key}: is missing"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if not path:
        return f"{where}: {message}" if where else message
    return f"{key}: {message} (found {_shown(path[-1], fault['input'])})"


def _shown(key: str, value: object) -> str:
    """The value as it is printed, without secrets, logins and queries of addresses."""
    if redaction.NAMES.search(key):
        return redaction.HIDDEN
    return _QUERY.sub(rf"\1?{redaction.HIDDEN}", redaction.redact(repr(value)))


def _keys(kind: Any, path: list[str]) -> list[str]:
    """The keys allowed where `path` ends, following nested dataclasses and tuples of them."""
    for part in path[:-1]:
        hint = kind if part.isdigit() else get_type_hints(kind).get(part, object)
        kind = next(_dataclasses(hint), kind)
    return [field.name for field in dataclasses.fields(kind)]


def _dataclasses(hint: Any) -> Iterator[Any]:
    if dataclasses.is_dataclass(hint):
        yield hint
    for arg in get_args(hint):
        yield from _dataclasses(arg)


def flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """The leaves of nested mappings, by their path with dots: `{"learning": {"rate": 0.01}}` has `learning.rate`."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value}
    return found


def nearest(key: str, known: Any) -> str:
    """Words to add to an unknown key: the nearest known key, else all of them."""
    near = difflib.get_close_matches(key, [str(name) for name in known], n=1, cutoff=0.5)
    return f", did you mean '{near[0]}'?" if near else f"; known are {', '.join(str(name) for name in known)}"
