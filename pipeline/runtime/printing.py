"""Printing to a terminal: control characters are escaped, as are characters that its encoding lacks."""

from __future__ import annotations

import sys
from typing import TextIO

from alexnet.names import shown


def say(*texts: str, to: TextIO | None = None) -> None:
    """Prints each text on its own line, to stdout if `to` is None."""
    stream = to or sys.stdout
    encoding = stream.encoding or "utf-8"
    for text in texts:
        print(shown(text).encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
