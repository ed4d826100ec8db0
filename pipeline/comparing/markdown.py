"""Tables in Markdown: names from data stay in their cells, and are no markup."""

from __future__ import annotations

from collections.abc import Sequence

from alexnet.names import shown


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the cells are text that `cell` escapes."""
    lines = [f"| {' | '.join(map(cell, row))} |" for row in (head, *rows)]
    return "\n".join([lines[0], f"|{' --- |' * len(head)}", *lines[1:]])


def cell(text: str) -> str:
    """A text escaped for a cell of a table."""
    return shown(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
