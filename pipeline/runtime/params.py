"""Reading params.yaml and machine.yaml: a section becomes a dataclass, with every key and value checked."""

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
    """An error in params.yaml or machine.yaml; the message has file, key, value and what is allowed."""


def read(section: str, kind: type[T] | tuple[type[T], ...], file: Path = PARAMS) -> T:
    """Reads one section of `params.yaml` into the frozen dataclass `kind`; of several, the section's key `name` selects one.

    Raises `ParamsError`, with all faults of the section, if the file or the section is missing, a key is unknown or missing,
    a value has another type (`"12"` is not a number, `true` is not 1), or the dataclass refuses it.
    """
    document = added.completed(load(file))
    if section not in document:
        raise ParamsError(f"{file}: section '{section}' is missing{nearest(section, document)}")
    return check(document[section], kind, file, section)


def _named(value: object, kinds: tuple[type[T], ...], file: Path, section: str) -> type[T]:
    """The dataclass whose field `name` allows the section's name; `ParamsError` if there is none."""
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
    """Reads a YAML file with a mapping, as YAML 1.2 like DVC: `1e-05` is a number, `no` a string; raises `ParamsError`."""
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
    """Turns `value`, read from `file` at the key `where`, into a `kind`; raises a `ParamsError` that lists all faults."""
    if isinstance(kind, tuple):
        kind = _named(value, kind, file, where)
    # pydantic only checks; the result is the plain dataclass, since alexnet/ does not depend on pydantic
    strict = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    frozen = vars(kind)["__dataclass_params__"].frozen  # pydantic's subclass has to be frozen if the dataclass is
    adapter = pydantic.TypeAdapter(checked(kind, config=strict, frozen=frozen))
    try:
        adapter.validate_json(_json(value))
    except pydantic.ValidationError as error:
        faults = [_fault(fault, kind, where) for fault in _without_alternatives(error.errors(include_url=False))]
        raise ParamsError("\n".join(f"{file}: {fault}" for fault in faults)) from None
    plain: T = _plain(kind, value)
    return plain


def _json(value: object) -> bytes:
    # In strict mode pydantic accepts lists for tuples only from JSON. YAML's dates and bytes, which JSON lacks, fit no key
    return json.dumps(value, default=lambda other: {type(other).__name__: str(other)}).encode()


def _plain(kind: Any, value: Any) -> Any:
    """Converts `value`, already checked, to plain dataclasses and tuples."""
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
    """Merges the faults of a value that fits none of several types into one."""
    by_key: dict[tuple[Any, ...], list[Any]] = {}
    for fault in faults:
        # behind the key, pydantic adds the type that it tried
        loc = tuple(part for part in fault["loc"] if not _TYPE.fullmatch(str(part)))
        by_key.setdefault(loc, []).append({**fault, "loc": loc})
    for same_key in by_key.values():
        yield {**same_key[0], "msg": ", or ".join(dict.fromkeys(fault["msg"] for fault in same_key))}


def _fault(fault: Any, kind: type, where: str) -> str:
    path = [str(part) for part in fault["loc"]]
    key = ".".join(([where] if where else []) + path)
    match fault["type"]:
        case "unexpected_keyword_argument" | "extra_forbidden":
            return f"{key}: unknown key (its value: {_shown(path[-1], fault['input'])}){nearest(path[-1], _keys(kind, path))}"
        case "missing" | "missing_argument":
            return f"{key}: is missing{_what_to_add(kind, path)}"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if not path:
        return f"{where}: {message}" if where else message
    return f"{key}: {message} (found {_shown(path[-1], fault['input'])})"


def _shown(key: str, value: object) -> str:
    """The value for a message, without secrets, and addresses without login and query."""
    if redaction.NAMES.search(key):
        return redaction.HIDDEN
    return _QUERY.sub(rf"\1?{redaction.HIDDEN}", redaction.redact(repr(value)))


def _keys(kind: Any, path: list[str]) -> list[str]:
    """The keys that are allowed beside the last one of `path`."""
    return [field.name for field in dataclasses.fields(_innermost(kind, path))]


def _innermost(kind: Any, path: list[str]) -> Any:
    """The dataclass that has the last key of `path`, through nested dataclasses and tuples of them."""
    for part in path[:-1]:
        hint = kind if part.isdigit() else get_type_hints(kind).get(part, object)
        kind = next(_dataclasses(hint), kind)
    return kind


def _what_to_add(kind: Any, path: list[str]) -> str:
    """What the key at `path` says, in its field's metadata under `missing`, to those whose file is from before that key."""
    fields = {field.name: field for field in dataclasses.fields(_innermost(kind, path))}
    said = fields[path[-1]].metadata.get("missing") if path and path[-1] in fields else None
    return f". {said}" if said else ""


def _dataclasses(hint: Any) -> Iterator[Any]:
    if dataclasses.is_dataclass(hint):
        yield hint
    for arg in get_args(hint):
        yield from _dataclasses(arg)


def flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Flattens nested mappings to dotted keys: `{"learning": {"rate": 0.01}}` becomes `{"learning.rate": 0.01}`."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value}
    return leaves


def nearest(key: str, known: Any) -> str:
    """The end of a message about an unknown key: the most similar known key, otherwise all known keys."""
    near = difflib.get_close_matches(key, [str(name) for name in known], n=1, cutoff=0.5)
    return f", did you mean '{near[0]}'?" if near else f"; known are {', '.join(str(name) for name in known)}"
