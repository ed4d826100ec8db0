"""Keys that were added to params.yaml later, with the value that means "as before": older files and records stay valid.

A file without such a key is read as if it had that value; a document with that value has the same hash as one without the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ADDED: dict[str, Any] = {
    "resize.max_megapixels": 200,  # the limit was 80, and no recorded run had a larger picture
    "resize.damaged": "keep",
}
"""`section.key` → the value with which the new key changes no result."""


def completed(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document, with each missing key of `ADDED` added to its section."""
    return {
        section: {**_of(section), **values} if isinstance(values, Mapping) else values
        for section, values in document.items()
    }


def older(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document without the keys whose value means "as before", so that its hash does not depend on them."""
    return {
        section: {key: value for key, value in values.items() if not means_nothing(f"{section}.{key}", value)}
        if isinstance(values, Mapping)
        else values
        for section, values in document.items()
    }


def means_nothing(key: str, value: object) -> bool:
    """Whether the key with this value is equivalent to a missing key."""
    return key in ADDED and bool(ADDED[key] == value)


def _of(section: str) -> dict[str, Any]:
    above = f"{section}."
    return {key.removeprefix(above): value for key, value in ADDED.items() if key.startswith(above)}
