"""Files over HTTP: resumed by range, tried again, verified; in place when they are whole, and not before.

Proxies and certificates are those of the environment (HTTPS_PROXY, NO_PROXY, REQUESTS_CA_BUNDLE), logins those of
~/.netrc or $NETRC, mirrors those of machine.yaml. What has come of a file waits beside its place as `.part`.
"""

from __future__ import annotations

import email.utils
import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from pipeline.runtime import files, machine, redaction, waiting
from pipeline.runtime.paths import AnyPath
from pipeline.runtime.progress import Progress
from pipeline.runtime.said import say

T = TypeVar("T")

_CONTENT_RANGE = re.compile(r"bytes (?:(?P<first>[0-9]+)-[0-9]+|\*)/(?P<total>[0-9]+|\*)")

TRIES = 8
"""Failures in a row, with too little in between, after which it gives up."""

WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds before the second try, doubled with each further one; and the most, also where the server names a time."""

TIMEOUT = (20.0, 60.0)
"""Seconds without an answer, and without a byte, that count as a failure."""

SLOWEST, WINDOW = 2**14, 60.0
"""Bytes that have to come in so many seconds: with fewer a transfer is broken off, and tried again as one that was cut. A
line of 20 kB/s brings seventy times as much."""

ANSWER = 90.0
"""Seconds for an answer to begin, and for one in JSON to be whole, even if a byte of it comes now and then."""

CHUNK = 2**20

LISTING = 2**24
"""Bytes of a server's answer in JSON; a page of the Hub has some 300 kB. In Python it takes up to thirty times as much."""

LEAST_FREE = 2**30
"""Bytes that a file whose length nobody says leaves on the disk."""

AGAIN = frozenset((408, 425, 429, 500, 502, 503, 504))
"""Answers that may be another one in a moment."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Remote:
    """A file somewhere else, and what is known of it."""

    url: str
    bytes: int | None = None
    md5: str | None = None
    sha256: str | None = None

    @property
    def name(self) -> str:
        """The last part of the address."""
        return PurePosixPath(urlsplit(self.url).path).name

    @property
    def known(self) -> dict[str, str]:
        """Its checksums, by the name of the algorithm."""
        return {name: value for name, value in (("md5", self.md5), ("sha256", self.sha256)) if value}


class _Failure(Exception):  # noqa: N818 - it is caught, and tried again
    """The transfer broke off; `wait`: for how many seconds the server asked, if it did."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class _Other(Exception):  # noqa: N818 - likewise
    """What came is another file than it should be."""


def fetch(remote: Remote, file: AnyPath, headers: Mapping[str, str] | None = None) -> None:
    """Sees that `file` is there: fetches it unless it is. An Authorization among `headers` stays with the first host.

    `ValueError` for what trying again will not change, such as a refusal, a page instead of a file, another checksum, or
    a place that is on no disk; `OSError` after too many failures, or where the disk has no room. What has come is kept
    for the next run.
    """
    with files.locked(file):
        if file.exists():
            return
        file = files.on_disk(file)
        url = mirrored(remote.url)
        size = f", {remote.bytes / 2**30:,.1f} GiB" if remote.bytes else ""
        say(f"download: fetching {_shown(url)}{size}, to {file}", to=sys.stderr)
        part = _Part(file)
        with files.room_for(file, part.path, kept=True), requests.Session() as session:
            session.headers.update(headers or {})
            while True:
                _patiently(url, lambda: _transfer(session, url, remote, part), lambda: part.bytes)
                try:
                    _verify(part, remote, url)
                    break
                except _Other as error:
                    pieces = part.pieces
                    part.discard()
                    # pieces may be of two versions; what came in one is what the server has
                    if pieces <= 1:
                        raise ValueError(f"{error}. The server has another file than the published one") from None
        part.finish()


def listing(url: str, headers: Mapping[str, str] | None = None) -> tuple[Any, str | None]:
    """What a server answers in JSON, and the address of the next page, if there is one."""
    url = mirrored(url)

    def once() -> tuple[Any, str | None]:
        end = time.monotonic() + ANSWER
        with _answer(session, url, {}) as answer:
            body = bytearray()
            try:
                while piece := answer.raw.read1(CHUNK, decode_content=False):
                    body += piece
                    if len(body) > LISTING:
                        raise ValueError(f"{_shown(url)}: answers with more than {LISTING:,} bytes, which is no list")
                    if time.monotonic() > end:
                        raise _Failure(f"broke off after {len(body):,} bytes in {ANSWER:,.0f} s, which is too slow")
            except (urllib3.exceptions.HTTPError, ConnectionError, TimeoutError) as error:
                raise _Failure(f"broke off ({type(error).__name__})") from None
            try:
                entries = json.loads(body)
            except (ValueError, RecursionError):
                entries = None
            if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
                raise ValueError(f"{_shown(url)}: answers with something else than a list")
            return entries, _next(url, answer.links.get("next", {}).get("url"))

    with requests.Session() as session:
        session.headers.update(headers or {})
        return _patiently(url, once)


def _next(url: str, page: str | None) -> str | None:
    """The address of the next page, which is of the same server: it is asked with the same login."""
    if page is None:
        return None
    page = urljoin(url, page)
    if urlsplit(page)[:2] != urlsplit(url)[:2]:
        raise ValueError(f"{_shown(url)}: the next page is said to be at {_shown(page)}, another server")
    return page


def mirrored(url: str) -> str:
    """The address, or that of a mirror in machine.yaml: of those whose beginning fits, the longest."""
    mirrors = machine.read().mirrors
    start = max((start for start in mirrors if url.startswith(start)), key=len, default=None)
    return url if start is None else redaction.also(mirrors[start]) + url.removeprefix(start)


def _patiently(url: str, once: Callable[[], T], done: Callable[[], int] = lambda: 0) -> T:
    """Calls `once` until it does not fail, with ever longer pauses; `OSError` when it failed too often in a row.

    The count begins anew when what has come since then is as much as `SLOWEST` asks for.
    """
    failures, before, since = 0, done(), time.monotonic()
    while True:
        try:
            return once()
        except _Failure as error:
            now, came = time.monotonic(), done()
            failures += 1
            if came - before >= SLOWEST * max(1.0, (now - since) / WINDOW):
                failures, before, since = 1, came, now
            before = min(before, came)
            if failures >= TRIES:
                raise OSError(
                    f"{_shown(url)}: {error}. Gave up after {TRIES} tries in a row; what has come is kept. Run it again, or "
                    "name another server in machine.yaml (mirrors)"
                ) from None
            wait = min(WAIT * 2 ** (failures - 1) if error.wait is None else error.wait, LONGEST_WAIT)
            say(f"download: {_shown(url)}: {error}; again in {wait:.0f} s", to=sys.stderr)
            time.sleep(wait)


def _in_time(url: str, ask: Callable[[], T]) -> T:
    """What `ask` gives or raises; `_Failure` after `ANSWER` seconds, which a server that drips words could stretch for ever."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(ask())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    with waiting.saying("download", f"an answer to {_shown(url)}", ANSWER):
        try:
            return future.result(ANSWER)
        except TimeoutError:
            raise _Failure(f"no answer in {ANSWER:,.0f} s") from None


def _transfer(session: requests.Session, url: str, remote: Remote, part: _Part) -> None:
    """Fetches what is missing of the part; `_Failure` if the transfer broke off."""
    start = part.bytes if part.same(url) or remote.known else 0
    ask = {"Range": f"bytes={start}-"} if start else {}
    if start and part.validator:
        ask["If-Range"] = part.validator
    with _answer(session, url, ask) as answer:
        first, total = _range(answer, part)
        if first == total:
            return
        _refuse_page(answer.headers.get("Content-Type", ""), url)
        if remote.bytes is not None and total is not None and total != remote.bytes:
            raise ValueError(
                f"{_shown(url)}: has {total:,} bytes, the published file {remote.bytes:,}. Is it a page or another version?"
            )
        if total is None and not remote.known and remote.bytes is None:
            raise ValueError(
                f"{_shown(url)}: the server does not say how long the file is, so a part would pass for all"
            )
        files.check_room(part.file, (total or remote.bytes or 0) - first)
        part.begin(first, url, answer.headers)
        _receive(answer, part, first, total or remote.bytes, url)


def _range(answer: requests.Response, part: _Part) -> tuple[int, int | None]:
    """The first byte of what comes, and the whole file's length if it is said; they are equal if nothing is missing."""
    length = answer.headers.get("Content-Length", "")
    if answer.status_code == 200:  # from the start: it knows no ranges, or the file has changed
        return 0, int(length) if length.isdigit() else None
    said = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if answer.status_code == 206 and said and said["first"] and int(said["first"]) == part.bytes:
        return part.bytes, int(said["total"]) if said["total"] != "*" else None
    if answer.status_code == 416 and said and said["total"] == str(part.bytes):
        return part.bytes, part.bytes
    part.discard()
    raise _Failure(f"answered {answer.status_code} with {answer.headers.get('Content-Range')!r}")


def _receive(answer: requests.Response, part: _Part, first: int, total: int | None, url: str) -> None:
    """Writes what comes behind the `first` bytes that are there; `_Failure` if it ends before it is whole."""
    place, why = first, ""
    mark, since = place, time.monotonic()
    to_come = max(0, (total or 0) - first) >> 20
    with (
        part.path.open("ab") as out,
        Progress(f"download: {part.file.name}", to_come, "MiB") as progress,
        waiting.watched("download", f"more of {_shown(url)}", lambda: place, SLOWEST, WINDOW),
    ):
        try:
            while piece := answer.raw.read1(CHUNK, decode_content=False):
                if place == 0 and piece[:200].lstrip().lower().startswith((b"<!doctype html", b"<html")):
                    _refuse_page("text/html", url)
                out.write(piece)
                progress.add(((place + len(piece)) >> 20) - (place >> 20))
                place += len(piece)
                if total is not None and place > total:
                    raise ValueError(
                        f"{_shown(url)}: more than {total:,} bytes come, which is all the file should have"
                    )
                if total is None:
                    files.check_room(part.file, LEAST_FREE)
                if (now := time.monotonic()) - since >= WINDOW:
                    if place - mark < SLOWEST:
                        why = f" (only {place - mark:,} in {now - since:,.0f} s)"
                        break
                    mark, since = place, now
        except (urllib3.exceptions.HTTPError, ConnectionError, TimeoutError) as error:
            why = f" ({type(error).__name__})"
    if why or (total is not None and place < total):
        raise _Failure(f"broke off after {place:,}{f' of {total:,}' if total else ''} bytes{why}")


def _verify(part: _Part, remote: Remote, url: str) -> None:
    """`_Other` if what came has not the size and the checksums of the published file."""
    if remote.bytes is not None and part.bytes != remote.bytes:
        raise _Other(f"{_shown(url)}: {part.bytes:,} bytes came, the published file has {remote.bytes:,}")
    for name, expected in remote.known.items():
        with part.path.open("rb") as file:
            found = hashlib.file_digest(file, name).hexdigest()
        if found != expected:
            raise _Other(
                f"{_shown(url)}: all came, but its {name.upper()} is {found}, that of the published one {expected}"
            )


@contextmanager
def _answer(session: requests.Session, url: str, ask: Mapping[str, str]) -> Iterator[requests.Response]:
    """The server's answer, if it is one that can be used."""
    try:
        headers = {"Accept-Encoding": "identity", **ask}
        answer = _in_time(url, lambda: session.get(url, headers=headers, stream=True, timeout=TIMEOUT))
    except (requests.exceptions.SSLError, requests.TooManyRedirects) as error:
        raise ValueError(f"{_shown(url)}: {_words(error)}") from None
    except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
        raise _Failure(f"no answer ({type(error).__name__})") from None
    except requests.RequestException as error:
        raise ValueError(f"{_shown(url)}: {_words(error)}") from None
    with answer:
        said = f"answered {answer.status_code} {answer.reason}"
        if answer.status_code in AGAIN:
            raise _Failure(said, _seconds(answer.headers.get("Retry-After", "")))
        if answer.status_code in (401, 403):
            raise ValueError(
                f"{_shown(url)}: {said}: it wants a login, or has none for you. Put one into ~/.netrc, or for the Hub into "
                "HF_TOKEN, and see that the set's terms are accepted; or fetch the file with a browser"
            )
        if answer.status_code >= 400 and answer.status_code != 416:
            raise ValueError(f"{_shown(url)}: {said}. If it has moved, machine.yaml: mirrors can say where to")
        yield answer


def _refuse_page(kind: str, url: str) -> None:
    if kind.partition(";")[0].strip().lower() in ("text/html", "application/xhtml+xml"):
        raise ValueError(f"{_shown(url)}: a page of HTML came, not the file. Is it one to log in?")


def _seconds(after: str) -> float | None:
    """What a Retry-After says, in seconds from now."""
    if after.isdigit():
        return float(after)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(after).timestamp() - time.time())
    except ValueError:
        return None


def _shown(url: str) -> str:
    """The address without a password, or what a query may hold."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _words(error: requests.RequestException) -> str:
    """A library's words without what it shows of an address: its login, and what its query holds."""
    return redaction.redact(re.sub(r"\?[^\s'\"]+", "", str(error)))


class _Part:
    """What has come of a file, and of which version."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.path = file.with_name(file.name + ".part")
        self._note = file.with_name(file.name + ".part.json")
        try:
            self._known: dict[str, str] = json.loads(self._note.read_text())
        except (FileNotFoundError, ValueError):
            self._known = {}
        self.pieces = int(self.bytes > 0)
        """Answers that it is made up of."""

    @property
    def bytes(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def validator(self) -> str:
        """What the server knows this version by; empty if it said nothing that is good enough for a range."""
        return self._known.get("validator", "")

    def same(self, url: str) -> bool:
        """Whether more of it can be asked for from this address, and the answer told from that of another version."""
        return bool(self.validator) and self._known.get("url") == _shown(url)

    def begin(self, first: int, url: str, headers: Mapping[str, str]) -> None:
        """Makes ready for what comes from byte `first` on."""
        etag = headers.get("ETag", "")
        validator = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")
        self._known = {"url": _shown(url), "validator": validator}
        self.pieces = self.pieces + 1 if first else 1
        self._note.write_text(json.dumps(self._known))
        with self.path.open("ab") as file:
            file.truncate(first)

    def discard(self) -> None:
        files.discard(self.path)
        files.discard(self._note)
        self._known = {}
        self.pieces = 0

    def finish(self) -> None:
        """The part is the file."""
        files.put(self.path, self.file)
        files.discard(self._note)
