"""A page of tables, figures and sentences, as text for a terminal, as Markdown, and as one HTML page that needs no network."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from alexnet.names import shown
from pipeline.comparing import markdown

WIDTH = 110
"""The most columns of a terminal that text takes."""

LEAST = 12
"""A column of text is not made narrower than this."""

PIPELINE = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Table:
    """A table; `note` is the text below it."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure: SVG without scripts and links. Text and Markdown have its title and note alone."""

    title: str
    svg: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Words:
    """Sentences below a title."""

    title: str
    lines: Sequence[str]


Part = Table | Figure | Words


def text(parts: Sequence[Part]) -> str:
    """The parts for a terminal, at most `WIDTH` wide; a figure is left out."""
    blocks = []
    for part in parts:
        match part:
            case Table():
                blocks.append([part.title, *columns([part.head, *part.rows]), *_wrapped(part.note)])
            case Words():
                blocks.append([part.title, *(line for words in part.lines for line in _wrapped(words))])
            case Figure():
                pass
    return "\n\n".join("\n".join(block) for block in blocks)


def columns(rows: Sequence[Sequence[str]], width: int = WIDTH) -> list[str]:
    """The lines of a table whose columns are two spaces apart; the widest columns are wrapped until all fit in `width`."""
    cells = [[shown(cell) for cell in row] for row in rows]
    wide = [max(1, *(len(row[index]) for row in cells)) for index in range(len(cells[0]))]
    while sum(wide) + 2 * (len(wide) - 1) > width and max(wide) > LEAST:
        wide[wide.index(max(wide))] -= 1
    lines = []
    for row in cells:
        wrapped = [textwrap.wrap(cell, size) or [""] for cell, size in zip(row, wide, strict=True)]
        for number in range(max(map(len, wrapped))):
            parts = [part[number] if number < len(part) else "" for part in wrapped]
            lines.append("  ".join(f"{part:{size}}" for part, size in zip(parts, wide, strict=True)).rstrip())
    return lines


def _wrapped(words: str) -> list[str]:
    return textwrap.wrap(shown(words), WIDTH)


def to_markdown(title: str, parts: Sequence[Part]) -> str:
    """The parts as Markdown, below a heading."""
    blocks = [f"# {markdown.cell(title)}"]
    for part in parts:
        if isinstance(part, Figure):
            continue
        blocks.append(f"## {markdown.cell(part.title)}")
        if isinstance(part, Table):
            blocks += [markdown.table(part.head, part.rows), *[markdown.cell(part.note)] * bool(part.note)]
        else:
            blocks += [markdown.cell(line) for line in part.lines]
    return "\n\n".join(blocks) + "\n"


def environment() -> jinja2.Environment:
    """The house's templates: all text is escaped, and page.css is the style of every page."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader([PIPELINE, PIPELINE / "comparing"]), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    made.filters["shown"] = shown
    return made


def to_html(title: str, parts: Sequence[Part]) -> str:
    """The parts as a page of HTML."""
    kinds = [(type(part).__name__, part) for part in parts]
    return environment().get_template("parts.html.j2").render(title=title, parts=kinds)
