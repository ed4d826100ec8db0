"""Printing to a terminal: names cannot command it, and characters that it lacks are no error."""

from __future__ import annotations

import sys
from typing import TextIO

from alexnet.names import shown


def say(*texts: str, to: TextIO | None = None) -> None:
    """Prints each text as a line of its own."""
    stream = to or sys.stdout
    known = stream.encoding or "utf-8"
    for text in texts:
        print(shown(text).encode(known, "backslashreplace").decode(known), file=stream, flush=True)
