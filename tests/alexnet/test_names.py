"""Names as they are shown: on one line, never a command, and never two that look the same."""

from __future__ import annotations

import unicodedata

import pytest

from alexnet.names import cut, short, shown, told_apart
from tests.names import NASTY, UNUSABLE


@pytest.mark.parametrize("name", [*NASTY, *UNUSABLE], ids=lambda name: ascii(name[:20]))
def test_what_is_shown_is_on_one_line_and_no_command(name: str) -> None:
    for text in (shown(name), cut(name, 30), short(name, 20)):
        assert text.isprintable()
        text.encode()
    assert 0 < len(cut(name, 30)) <= 30
    assert 0 < len(short(name, 20)) <= 20


def test_a_plain_name_is_shown_as_it_is() -> None:
    for name in ("king snake", r"$\frac{$", "猫", "<b>", "a | b", "Bär"):
        assert shown(name) == cut(name, 30) == short(name, 30) == name
    assert short("king snake, kingsnake", 20) == "king snake"
    assert cut("a name of some words", 12) == "a name of…"
    assert cut("a" * 30, 12) == "a" * 11 + "…"
    assert shown("\x1b[2J\r\u202e") == r"\x1b[2J\r\u202e"


@pytest.mark.parametrize("most", [10, 20, 40])
def test_names_that_would_look_the_same_are_told_apart(most: int) -> None:
    for look in (cut, short):
        seen = told_apart(NASTY, most, look)
        assert len({unicodedata.normalize("NFC", text) for text in seen}) == len(NASTY)
        assert max(map(len, seen)) <= most
    assert told_apart(["crane", "other", "crane"], 20, short) == ["crane #0", "other", "crane #2"]
    assert told_apart(["x #2", "y", "x", "x"], 20, short) == ["x #2 #0", "y", "x #2", "x #3"]
