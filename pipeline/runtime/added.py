"""Keys added to params.yaml later, with the value that means "as before": older files and records stay valid.

A file that lacks such a key has that value, and a document that has the value is the same as one without the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ADDED: dict[str, Any] = {}
"""By `section.key`. A key that is added to params.yaml, and with one value changes no result, belongs here."""


def completed(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with those keys added to its sections where they are missing."""
    return {
        section: {**_of(section), **values} if isinstance(values, Mapping) else values
        for section, values in document.items()
    }


def older(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document without the keys that say "as before", for a hash of it."""
    return {
        section: {key: value for key, value in values.items() if not means_nothing(f"{section}.{key}", value)}
        if isinstance(values, Mapping)
        else values
        for section, values in document.items()
    }


def means_nothing(key: str, value: object) -> bool:
    """Whether a key with this value is the same as no such key."""
    return key in ADDED and bool(ADDED[key] == value)


def _of(section: str) -> dict[str, Any]:
    above = f"{section}."
    return {key.removeprefix(above): value for key, value in ADDED.items() if key.startswith(above)}
