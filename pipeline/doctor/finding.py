"""What the doctor finds: ok, a warning or a fault, what was seen, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

State: TypeAlias = Literal["ok", "warning", "fault"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's."""

    about: str
    """What was looked at, in a word."""
    state: State
    """A fault stops a run; a warning may."""
    seen: str
    todo: str = ""
    """What to do; empty if all is well."""


Probe: TypeAlias = Callable[[], Sequence[Finding]]
"""A look at one thing; it may fail, and it may hang."""
