"""Redaction of secrets in output and records: passwords in addresses, tokens in queries, secrets in the environment."""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO
from urllib.parse import quote, unquote

HIDDEN = "***"

SHORTEST = 8
"""The fewest characters of a secret that is replaced wherever it occurs: a shorter one is part of too many words."""

NAMES = re.compile(
    r"(^|_|PG)(PASSWORD|PASSWD|PASSPHRASE|PASS|PAT|TOKEN|SECRET|(API)?KEY)$|^(MYSQL_PWD|SSHPASS)$", re.IGNORECASE
)
"""Names of environment variables and of keys whose values are secrets."""

USER = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)[^\s/?#'\"<>`]*@", re.I)
"""The login before the host of an address: a user, and perhaps a password."""

LOGIN = re.compile(r"(?<![\w/:.@-])[\w.+%-]+:[^\s:/@'\"<>()]+@(?=\w)")
"""User and password before the host of an address without its scheme."""

PASSWORDS = (
    re.compile(r"://[^:/?#\s]*:(\S*)@"),
    re.compile(r"https?://([^:/?#\s]*)@"),
    re.compile(r"\b(?:AccountKey|SharedAccessKey|SharedAccessSignature|Password|Pwd)=([^;\s]+)", re.I),
)
"""A password in an address, as SQLAlchemy reads it, even with a slash; a token in place of the user; a connection string's."""

QUERY = re.compile(
    r"(?P<name>[?&;](?:[\w.-]*(?:token|signature|secret|password|passwd|credential|api_?key)|sig|key|pwd|auth)=)[^&;\s'\"<>]+",
    re.I,
)

HEADER = re.compile(r"\b(?P<kind>Bearer|Basic)\s+[A-Za-z0-9+/=._~-]{8,}")


def redact(text: str) -> str:
    """The text without secrets: those of the environment, logins before hosts, and tokens in queries and headers."""
    for secret in _secrets():
        text = text.replace(secret, HIDDEN)
    text = QUERY.sub(rf"\g<name>{HIDDEN}", LOGIN.sub("", USER.sub(r"\g<scheme>", text)))
    return HEADER.sub(rf"\g<kind> {HIDDEN}", text)


def _secrets() -> list[str]:
    """The secrets to hide, the longest first, since one may be a part of another."""
    secrets = set(_added)
    for name, value in os.environ.items():
        secrets |= _spellings(value) if NAMES.search(name) else _of_address(value)
    return sorted(secrets, key=len, reverse=True)


def hide_password(address: str) -> str:
    """Hides the password in an address from now on, if it is not in the environment; returns the address."""
    _added.update(_of_address(address))
    return address


_added: set[str] = set()
"""Secrets that are not in the environment."""


def _spellings(secret: str) -> set[str]:
    secret = secret.strip()  # one read from a file may end in a newline, which messages do not repeat
    plain = unquote(secret)
    return {word for word in (secret, plain, quote(plain, safe="")) if len(word) >= SHORTEST}


def _of_address(words: str) -> set[str]:
    passwords = [password for pattern in PASSWORDS for password in pattern.findall(words)]
    return {spelling for password in passwords for spelling in _spellings(password)}


class Redacted:
    """A text stream that writes to another one without secrets."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes the text without its secrets."""
        self._stream.write(redact(text))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Writes each line without its secrets."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def guarded() -> Iterator[None]:
    """Hides secrets in all output while the block runs, and in a traceback after it."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Redacted(sys.stdout), Redacted(sys.stderr)
    sys.excepthook = _print_traceback
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(redact("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def word(value: object) -> str:
    """A parameter's value as text, without secrets: `0.01`, `[6, 7]`, `relu`."""
    return redact(value if isinstance(value, str) else json.dumps(value))
