"""Files fetched over HTTP: resumed by range, tried again, verified, and moved into place when they are whole.

The part that has arrived lies beside the file as `.part`.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import requests
import urllib3

from pipeline.runtime import files, waiting, web
from pipeline.runtime.paths import AnyPath
from pipeline.runtime.progress import Progress
from pipeline.runtime.said import say

_CONTENT_RANGE = re.compile(r"bytes (?:(?P<first>[0-9]+)-[0-9]+|\*)/(?P<total>[0-9]+|\*)")

LEAST_FREE = 2**30
"""Bytes that stay free on the disk while a file of unknown length is fetched."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Remote:
    """A file on a server, with what is known of it."""

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


class _Other(Exception):  # noqa: N818 - it is caught
    """The file that arrived is not the published one."""


def fetch(remote: Remote, file: AnyPath, headers: Mapping[str, str] | None = None) -> None:
    """Fetches `file` unless it is there. An Authorization header is sent to the first host only.

    `ValueError` for what another try will not change: a refusal, an HTML page, another checksum, or a path that is on no
    disk. `OSError` after too many failures, or if the disk has no room. The part that arrived is kept for the next run.
    """
    with files.locked(file):
        if file.exists():
            return
        file = files.on_disk(file)
        url = web.mirrored(remote.url)
        size = f", {remote.bytes / 2**30:,.1f} GiB" if remote.bytes else ""
        say(f"download: fetching {web.shown(url)}{size}, to {file}", to=sys.stderr)
        part = _Part(file)
        with files.room_for(file, part.path, kept=True), requests.Session() as session:
            session.headers.update(headers or {})
            while True:
                web.patiently(url, lambda: _transfer(session, url, remote, part), lambda: part.bytes)
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


def _transfer(session: requests.Session, url: str, remote: Remote, part: _Part) -> None:
    """Fetches the missing bytes of the part; `Failure` if the transfer broke off."""
    start = part.bytes if part.same(url) or remote.known else 0
    ask = {"Range": f"bytes={start}-"} if start else {}
    if start and part.validator:
        ask["If-Range"] = part.validator
    with web.answered(session, url, ask) as answer:
        first, total = _range(answer, part)
        if first == total:
            return
        _refuse_page(answer.headers.get("Content-Type", ""), url)
        if remote.bytes is not None and total is not None and total != remote.bytes:
            raise ValueError(
                f"{web.shown(url)}: has {total:,} bytes, the published file {remote.bytes:,}. Is it a page or another version?"
            )
        if total is None and not remote.known and remote.bytes is None:
            raise ValueError(
                f"{web.shown(url)}: the server does not say how long the file is, so a part would pass for all"
            )
        files.check_room(part.file, (total or remote.bytes or 0) - first)
        part.begin(first, url, answer.headers)
        _receive(answer, part, first, total or remote.bytes, url)


def _range(answer: requests.Response, part: _Part) -> tuple[int, int | None]:
    """The offset of the answer's first byte, and the file's length or None; they are equal if nothing is missing."""
    length = answer.headers.get("Content-Length", "")
    if answer.status_code == 200:  # from the start: it knows no ranges, or the file has changed
        return 0, int(length) if length.isdigit() else None
    said = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if answer.status_code == 206 and said and said["first"] and int(said["first"]) == part.bytes:
        return part.bytes, int(said["total"]) if said["total"] != "*" else None
    if answer.status_code == 416 and said and said["total"] == str(part.bytes):
        return part.bytes, part.bytes
    part.discard()
    raise web.Failure(f"web.answered {answer.status_code} with {answer.headers.get('Content-Range')!r}")


def _receive(answer: requests.Response, part: _Part, first: int, total: int | None, url: str) -> None:
    """Appends the answer to the `first` bytes that are there; `Failure` if it ends too early."""
    offset, why = first, ""
    mark, since = offset, time.monotonic()
    to_come = max(0, (total or 0) - first) >> 20
    with (
        part.path.open("ab") as out,
        Progress(f"download: {part.file.name}", to_come, "MiB") as progress,
        waiting.watched("download", f"more of {web.shown(url)}", lambda: offset, web.SLOWEST, web.WINDOW),
    ):
        try:
            while piece := answer.raw.read1(web.CHUNK, decode_content=False):
                if offset == 0 and piece[:200].lstrip().lower().startswith((b"<!doctype html", b"<html")):
                    _refuse_page("text/html", url)
                out.write(piece)
                progress.add(((offset + len(piece)) >> 20) - (offset >> 20))
                offset += len(piece)
                if total is not None and offset > total:
                    raise ValueError(
                        f"{web.shown(url)}: more than {total:,} bytes come, which is all the file should have"
                    )
                if total is None:
                    files.check_room(part.file, LEAST_FREE)
                if (now := time.monotonic()) - since >= web.WINDOW:
                    if offset - mark < web.SLOWEST:
                        why = f" (only {offset - mark:,} in {now - since:,.0f} s)"
                        break
                    mark, since = offset, now
        except (urllib3.exceptions.HTTPError, ConnectionError, TimeoutError) as error:
            why = f" ({type(error).__name__})"
    if why or (total is not None and offset < total):
        raise web.Failure(f"broke off after {offset:,}{f' of {total:,}' if total else ''} bytes{why}")


def _verify(part: _Part, remote: Remote, url: str) -> None:
    """`_Other` unless the part has the size and the checksums of the published file."""
    if remote.bytes is not None and part.bytes != remote.bytes:
        raise _Other(f"{web.shown(url)}: {part.bytes:,} bytes came, the published file has {remote.bytes:,}")
    for name, expected in remote.known.items():
        with part.path.open("rb") as file:
            found = hashlib.file_digest(file, name).hexdigest()
        if found != expected:
            raise _Other(
                f"{web.shown(url)}: all came, but its {name.upper()} is {found}, that of the published one {expected}"
            )


def _refuse_page(kind: str, url: str) -> None:
    if kind.partition(";")[0].strip().lower() in ("text/html", "application/xhtml+xml"):
        raise ValueError(f"{web.shown(url)}: a page of HTML came, not the file. Is it one to log in?")


class _Part:
    """The part of a file that has arrived, and the version that it is of."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.path = file.with_name(file.name + ".part")
        self._note = file.with_name(file.name + ".part.json")
        try:
            self._known: dict[str, str] = json.loads(self._note.read_text())
        except (FileNotFoundError, ValueError):
            self._known = {}
        self.pieces = int(self.bytes > 0)
        """Number of answers that it was assembled from."""

    @property
    def bytes(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def validator(self) -> str:
        """The server's name for this version, for If-Range; empty if it gave none that a range can rely on."""
        return self._known.get("validator", "")

    def same(self, url: str) -> bool:
        """Whether the rest can be requested from this address, with a change of version being noticed."""
        return bool(self.validator) and self._known.get("url") == web.shown(url)

    def begin(self, first: int, url: str, headers: Mapping[str, str]) -> None:
        """Prepares for the bytes from `first` on."""
        etag = headers.get("ETag", "")
        validator = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")
        self._known = {"url": web.shown(url), "validator": validator}
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
        """Moves the part to its place."""
        files.put(self.path, self.file)
        files.discard(self._note)
