"""Downloads over HTTP: resumed by byte range, retried, verified, and moved into place when they are complete.

The bytes that have arrived are kept beside the file as `.part`.
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
from pipeline.runtime.printing import say
from pipeline.runtime.progress import Progress

_CONTENT_RANGE = re.compile(r"bytes (?:(?P<first>[0-9]+)-[0-9]+|\*)/(?P<total>[0-9]+|\*)")

LEAST_FREE = 2**30
"""Bytes to leave free on the disk while a file of unknown length is fetched."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Remote:
    """A file on a server, with its published size and checksums where they are known."""

    url: str
    bytes: int | None = None
    md5: str | None = None
    sha256: str | None = None

    @property
    def name(self) -> str:
        """The last part of the address."""
        return PurePosixPath(urlsplit(self.url).path).name

    @property
    def checksums(self) -> dict[str, str]:
        """Algorithm → checksum in hexadecimal, of those that are known."""
        return {name: value for name, value in (("md5", self.md5), ("sha256", self.sha256)) if value}


class _WrongFile(Exception):  # noqa: N818 - always caught
    """The file that arrived is not the published one."""


def fetch(remote: Remote, file: AnyPath, headers: Mapping[str, str] | None = None) -> None:
    """Fetches `file` unless it exists. An Authorization header is sent to the first host only.

    Raises `ValueError` if another try would not help: the server refuses, answers with an HTML page or has another file, or
    `file` is not on a disk; `OSError` after too many failures, or if the disk has no room. The bytes that arrived are kept
    for the next run.
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
                except _WrongFile as error:
                    pieces = part.pieces
                    part.discard()
                    # several pieces may come from two versions of the file: then it is fetched again
                    if pieces <= 1:
                        raise ValueError(f"{error}. The server has another file than the published one") from None
        part.finish()


def _transfer(session: requests.Session, url: str, remote: Remote, part: _Part) -> None:
    """Fetches the missing bytes of the part; raises `Failure` if the transfer breaks off."""
    start = part.bytes if part.same(url) or remote.checksums else 0
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
        if total is None and not remote.checksums and remote.bytes is None:
            raise ValueError(
                f"{web.shown(url)}: the server does not say how long the file is, so a truncated file would not be noticed"
            )
        files.check_room(part.file, (total or remote.bytes or 0) - first)
        part.begin(first, url, answer.headers)
        _receive(answer, part, first, total or remote.bytes, url)


def _range(answer: requests.Response, part: _Part) -> tuple[int, int | None]:
    """The offset of the response's first byte, and the file's length or None; they are equal if no byte is missing."""
    length = answer.headers.get("Content-Length", "")
    if answer.status_code == 200:  # the whole file: the server ignores ranges, or the file has changed
        return 0, int(length) if length.isdigit() else None
    header = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if answer.status_code == 206 and header and header["first"] and int(header["first"]) == part.bytes:
        return part.bytes, int(header["total"]) if header["total"] != "*" else None
    if answer.status_code == 416 and header and header["total"] == str(part.bytes):
        return part.bytes, part.bytes
    part.discard()
    raise web.Failure(f"web.answered {answer.status_code} with {answer.headers.get('Content-Range')!r}")


def _receive(answer: requests.Response, part: _Part, first: int, total: int | None, url: str) -> None:
    """Appends the response's body to the `first` bytes of the part; raises `Failure` if it ends early or is too slow."""
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
                    raise ValueError(f"{web.shown(url)}: sends more than the {total:,} bytes that the file should have")
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
    """Raises `_WrongFile` unless the part has the size and the checksums of the published file."""
    if remote.bytes is not None and part.bytes != remote.bytes:
        raise _WrongFile(f"{web.shown(url)}: {part.bytes:,} bytes came, the published file has {remote.bytes:,}")
    for name, expected in remote.checksums.items():
        with part.path.open("rb") as file:
            actual = hashlib.file_digest(file, name).hexdigest()
        if actual != expected:
            raise _WrongFile(
                f"{web.shown(url)}: complete, but its {name.upper()} is {actual}, that of the published file {expected}"
            )


def _refuse_page(kind: str, url: str) -> None:
    if kind.partition(";")[0].strip().lower() in ("text/html", "application/xhtml+xml"):
        raise ValueError(f"{web.shown(url)}: an HTML page came, not the file. Is it a login page?")


class _Part:
    """The part of a file that has arrived, and the file's version on the server."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.path = file.with_name(file.name + ".part")
        self._note = file.with_name(file.name + ".part.json")
        try:
            self._version: dict[str, str] = json.loads(self._note.read_text())
        except (FileNotFoundError, ValueError):
            self._version = {}
        self.pieces = int(self.bytes > 0)
        """The number of responses that the part was assembled from."""

    @property
    def bytes(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def validator(self) -> str:
        """The strong ETag or Last-Modified of this version, for If-Range; empty if the server gave none."""
        return self._version.get("validator", "")

    def same(self, url: str) -> bool:
        """Whether the rest can be requested from this address so that a change of the file would be noticed."""
        return bool(self.validator) and self._version.get("url") == web.shown(url)

    def begin(self, first: int, url: str, headers: Mapping[str, str]) -> None:
        """Prepares the part for bytes from the offset `first` on, and records their version."""
        etag = headers.get("ETag", "")
        validator = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")
        self._version = {"url": web.shown(url), "validator": validator}
        self.pieces = self.pieces + 1 if first else 1
        self._note.write_text(json.dumps(self._version))
        with self.path.open("ab") as file:
            file.truncate(first)

    def discard(self) -> None:
        files.discard(self.path)
        files.discard(self._note)
        self._version = {}
        self.pieces = 0

    def finish(self) -> None:
        """Moves the part to its place."""
        files.put(self.path, self.file)
        files.discard(self._note)
