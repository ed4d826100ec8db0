"""Names that come with the data, as people see them: on one line, obeyed by no terminal, and told apart where they are cut."""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

NAMELESS = "(no name)"


def shown(text: str) -> str:
    """The text with each character escaped that ends a line, moves a cursor, turns a text round or is not seen."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def cut(text: str, most: int) -> str:
    """The text as `shown`, of at most so many letters, at the end of a word if it has several."""
    text = shown(text)
    if len(text) <= most:
        return text if text.strip() else NAMELESS[:most]
    whole = textwrap.shorten(text, most, placeholder="…") if " " in text.strip()[:most] else ""
    return whole if len(whole) > 1 else f"{text[: most - 1]}…"


def short(name: str, most: int) -> str:
    """The first of a class's synonyms, cut."""
    return cut(name.split(",")[0] or name, most)


_NUMBERED = re.compile(r".* #[0-9]+", re.DOTALL)


def told_apart(names: Sequence[str], most: int, look: Callable[[str, int], str]) -> list[str]:
    """Each name as it looks when it is cut; where two would look the same, their places in the list behind them."""
    looks = [look(name, most) for name in names]
    counts = Counter(map(_form, looks))
    return [
        _numbered(name, place, most, look) if counts[_form(seen)] > 1 or _NUMBERED.fullmatch(seen) else seen
        for place, (name, seen) in enumerate(zip(names, looks, strict=True))
    ]


def _numbered(name: str, place: int, most: int, look: Callable[[str, int], str]) -> str:
    behind = f" #{place}"
    return look(name, most - len(behind)) + behind


def _form(text: str) -> str:
    """The same for texts that look the same: an accent may be a letter's own or stand behind it."""
    return unicodedata.normalize("NFC", text)


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode()
