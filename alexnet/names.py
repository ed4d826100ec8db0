"""Display of names from the data: on one line, without control characters, cut to a length, and still distinct."""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

NAMELESS = "(no name)"

NO_ANSWER = "none"
"""In a table of answers, that there is none. `of_classes` gives no class this name."""


def shown(text: str) -> str:
    """The text with every unprintable character escaped: line breaks, terminal control, bidi overrides and the like."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def cut(text: str, most: int) -> str:
    """The text as `shown`, cut to at most `most` characters, at the end of a word where possible."""
    text = shown(text)
    if len(text) <= most:
        return text if text.strip() else NAMELESS[:most]
    whole = textwrap.shorten(text, most, placeholder="…") if " " in text.strip()[:most] else ""
    return whole if len(whole) > 1 else f"{text[: most - 1]}…"


def short(name: str, most: int) -> str:
    """The first of a class's comma-separated synonyms, cut to at most `most` characters."""
    return cut(name.split(",")[0] or name, most)


def of_classes(classes: Sequence[tuple[str, str]]) -> list[str]:
    """A distinct short name for each class, a pair of WordNet id and synonyms separated by commas.

    It is the first synonym, followed by the WordNet id if two classes share that. `<` is replaced: DVC's plots put these names
    into a script, which a `</script>` in a name would end.
    """
    first = [_unscripted(words.split(",")[0] or wnid) for wnid, words in classes]
    counts = Counter([*first, NO_ANSWER])
    taken = {word for word in counts if counts[word] == 1} | {NO_ANSWER}
    unique = []
    for label, (word, (wnid, _)) in enumerate(zip(first, classes, strict=True)):
        name = f"{word} ({_unscripted(wnid)})" if counts[word] > 1 else word
        while counts[word] > 1 and name in taken:  # another class's first synonym may look like "word (wnid)"
            name += f" [{label}]"
        taken.add(name)
        unique.append(name)
    return unique


def _unscripted(name: str) -> str:
    return name.replace("<", "‹")


_NUMBERED = re.compile(r".* #[0-9]+", re.DOTALL)


def told_apart(names: Sequence[str], most: int, look: Callable[[str, int], str]) -> list[str]:
    """Each name, cut by `look(name, most)`; names that would look the same get ` #` and their index in the list."""
    looks = [look(name, most) for name in names]
    counts = Counter(map(_form, looks))
    return [
        _numbered(name, index, most, look) if counts[_form(seen)] > 1 or _NUMBERED.fullmatch(seen) else seen
        for index, (name, seen) in enumerate(zip(names, looks, strict=True))
    ]


def _numbered(name: str, index: int, most: int, look: Callable[[str, int], str]) -> str:
    suffix = f" #{index}"
    return look(name, most - len(suffix)) + suffix


def _form(text: str) -> str:
    """The NFC form, equal for texts that look the same: an accent may be part of a character or follow it."""
    return unicodedata.normalize("NFC", text)


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode()
