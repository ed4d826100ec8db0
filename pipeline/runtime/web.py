"""HTTP requests with timeouts and retries, and without logins in messages and records.

Proxies and certificates come from the environment (HTTPS_PROXY, NO_PROXY, REQUESTS_CA_BUNDLE), logins from ~/.netrc or
$NETRC, mirrors from machine.yaml.
"""

from __future__ import annotations

import email.utils
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar
from urllib.parse import urlsplit

import requests
import urllib3

from pipeline.runtime import machines, redaction, waiting
from pipeline.runtime.printing import say

T = TypeVar("T")

TRIES = 8
"""Failures in a row, with few bytes between them, after which a request is given up."""

WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds before the second try, doubled before each further one; and the longest pause, even if the server asks for more."""

TIMEOUT = (20.0, 60.0)
"""Seconds to connect, and between two bytes, after which a request has failed."""

SLOWEST, WINDOW = 2**14, 60.0
"""Bytes that have to arrive in `WINDOW` seconds; a slower transfer is broken off and retried. 20 kB/s are seventy times as
fast."""

ANSWER = 90.0
"""Seconds in which a response has to begin, and a JSON response has to be complete."""

CHUNK = 2**20
"""Bytes of one read."""

LISTING = 2**24
"""The most bytes of a JSON response. A page of the Hub has some 300 kB; parsed, it takes up to thirty times as much memory."""

AGAIN = frozenset((408, 425, 429, 500, 502, 503, 504))
"""Status codes after which another try may succeed."""


class Failure(Exception):  # noqa: N818 - always caught, and retried
    """A transfer that broke off; `wait`: the seconds that the server asked for, or None."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


def page(url: str, headers: Mapping[str, str] | None = None) -> tuple[int, Mapping[str, str], bytes]:
    """Requests a short document, such as a list in JSON; returns status, headers and body, also of a refusal.

    Raises `ValueError` if the body has more than `LISTING` bytes; `OSError` after `TRIES` failures.
    """
    url = mirrored(url)

    def once() -> tuple[int, Mapping[str, str], bytes]:
        end = time.monotonic() + ANSWER
        with answered(session, url, refusing=False) as answer:
            body = bytearray()
            try:
                while piece := answer.raw.read1(CHUNK, decode_content=False):
                    body += piece
                    if len(body) > LISTING:
                        raise ValueError(f"{shown(url)}: answers with more than {LISTING:,} bytes, which is no list")
                    if time.monotonic() > end:
                        raise Failure(f"broke off after {len(body):,} bytes in {ANSWER:,.0f} s, which is too slow")
            except (urllib3.exceptions.HTTPError, ConnectionError, TimeoutError) as error:
                raise Failure(f"broke off ({type(error).__name__})") from None
            return answer.status_code, answer.headers, bytes(body)

    with requests.Session() as session:
        session.headers.update(headers or {})
        return patiently(url, once)


def mirrored(url: str) -> str:
    """The address on the mirror whose key in machine.yaml is the longest beginning of `url`; `url` itself if none is."""
    mirrors = machines.read().mirrors
    start = max((start for start in mirrors if url.startswith(start)), key=len, default=None)
    return url if start is None else redaction.hide_password(mirrors[start]) + url.removeprefix(start)


def patiently(url: str, once: Callable[[], T], done: Callable[[], int] = lambda: 0) -> T:
    """Calls `once` until it succeeds, with growing pauses; `OSError` after `TRIES` failures in a row.

    The count restarts when at least `SLOWEST` bytes in each `WINDOW` arrived since the last failure. `done` returns the number
    of bytes so far.
    """
    failures, before, since = 0, done(), time.monotonic()
    while True:
        try:
            return once()
        except Failure as error:
            now, arrived = time.monotonic(), done()
            failures += 1
            if arrived - before >= SLOWEST * max(1.0, (now - since) / WINDOW):
                failures, before, since = 1, arrived, now
            before = min(before, arrived)
            if failures >= TRIES:
                raise OSError(
                    f"{shown(url)}: {error}. Gave up after {TRIES} tries in a row; what has come is kept. Run it again, or "
                    "name another server in machine.yaml (mirrors)"
                ) from None
            wait = min(WAIT * 2 ** (failures - 1) if error.wait is None else error.wait, LONGEST_WAIT)
            say(f"download: {shown(url)}: {error}; again in {wait:.0f} s", to=sys.stderr)
            time.sleep(wait)


def _in_time(url: str, ask: Callable[[], T]) -> T:
    """The result or error of `ask`; `Failure` after `ANSWER` seconds in all, which the timeouts of requests do not limit."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(ask())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    with waiting.saying("download", f"an answer to {shown(url)}", ANSWER):
        try:
            return future.result(ANSWER)
        except TimeoutError:
            raise Failure(f"no answer in {ANSWER:,.0f} s") from None


@contextmanager
def answered(
    session: requests.Session, url: str, ask: Mapping[str, str] | None = None, *, refusing: bool = True
) -> Iterator[requests.Response]:
    """Requests `url` with the headers `ask`; yields the response.

    Raises `Failure` if another try may succeed; with `refusing`, `ValueError` if the server refuses.
    """
    try:
        headers = {"Accept-Encoding": "identity", **(ask or {})}
        answer = _in_time(url, lambda: session.get(url, headers=headers, stream=True, timeout=TIMEOUT))
    except (requests.exceptions.SSLError, requests.TooManyRedirects) as error:
        raise ValueError(f"{shown(url)}: {_words(error)}") from None
    except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
        raise Failure(f"no answer ({type(error).__name__})") from None
    except requests.RequestException as error:
        raise ValueError(f"{shown(url)}: {_words(error)}") from None
    with answer:
        status = f"answered {answer.status_code} {answer.reason}"
        if answer.status_code in AGAIN:
            raise Failure(status, _seconds(answer.headers.get("Retry-After", "")))
        if refusing and answer.status_code in (401, 403):
            raise ValueError(
                f"{shown(url)}: {status}: it wants a login, or refuses yours. Put one into ~/.netrc, or for the Hub into "
                "HF_TOKEN, and see that the set's terms are accepted; or fetch the file with a browser"
            )
        if refusing and answer.status_code >= 400 and answer.status_code != 416:
            raise ValueError(f"{shown(url)}: {status}. If it has moved, machine.yaml: mirrors can say where to")
        yield answer


def _seconds(after: str) -> float | None:
    """The seconds from now that a Retry-After header asks for; None if it cannot be read."""
    if after.isdigit():
        return float(after)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(after).timestamp() - time.time())
    except ValueError:
        return None


def shown(url: str) -> str:
    """The address without login and query, for messages."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _words(error: requests.RequestException) -> str:
    """A library's message without the login and query of addresses in it."""
    return redaction.redact(re.sub(r"\?[^\s'\"]+", "", str(error)))
