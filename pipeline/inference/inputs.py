"""The pictures that a user names: files, folders, addresses and standard input → one item for each, and its bytes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import urllib3

from alexnet.limits import MAX_BYTES
from pipeline.archives.leftovers import is_leftover
from pipeline.runtime import files, paths, redaction
from pipeline.runtime.paths import AnyPath, S3Path

STDIN = "-"

FETCHED = 2**26
"""The most bytes of a picture that is fetched by its address; a photograph has some 10 MB."""

SECONDS = 60.0
"""Seconds in which the bytes behind an address have to arrive, once their server answers."""

TRIES, PAUSE = 2, 1.0
"""How often an address is asked, and the seconds between."""

ADDRESSES = ("http://", "https://")


class Unreadable(Exception):  # noqa: N818 - the name is the verdict, as in `pictures.Undecodable`
    """The bytes of a picture cannot be read; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Item:
    """One picture that was named, or that lies in a folder that was named."""

    name: str
    """How the user knows it: its path or address, or `-`; text that any file can hold."""
    where: AnyPath | str
    """Its path, or its address, or `STDIN`."""
    size: int | None
    """Bytes; None if that is not known before they are read."""
    changed: int = 0
    """When a file on a disk was changed last, in nanoseconds; 0 if that is not known."""


@dataclass(frozen=True, slots=True)
class Found:
    """What the words on a command line name."""

    items: list[Item]
    leftovers: int
    """Files in folders that are passed over: what desktops and tools leave among pictures, and what is hidden."""
    folders: int
    """How many of the words are folders."""


def find(words: Sequence[str]) -> Found:
    """The items that the words name, folders by path and with all that is below them. `ValueError` if there are none.

    What is named and is not there is an item too, which cannot be read: it stops no other. The bytes of a file decide whether
    it is a picture, so that files of other kinds are items as well.
    """
    if words.count(STDIN) > 1:
        raise ValueError("- is there twice: standard input has the bytes of one picture")
    items: list[Item] = []
    leftovers = folders = 0
    for word in words:
        if word == STDIN or word.startswith(ADDRESSES):
            items.append(Item(readable(redaction.redact(word)), word, None))
            continue
        path = paths.parse(word)
        if path.is_dir():
            folders += 1
            found = files.listed(path)
            kept = [(name, size) for name, size in found if not is_leftover(name)]
            leftovers += len(found) - len(kept)
            items += [_item(path / name, size) for name, size in kept]
        else:
            items.append(_item(path, files.size(path)))
    if not items:
        raise ValueError(f"no picture in {', '.join(words) or 'nothing'}, only {leftovers} hidden or left-over files")
    return Found(items, leftovers, folders)


def _item(path: AnyPath, size: int | None) -> Item:
    changed = path.stat().st_mtime_ns if isinstance(path, Path) and size is not None else 0
    return Item(readable(str(path)), path, size, changed)


def readable(name: str) -> str:
    """A file's name as text that can be stored: bytes in it that are no UTF-8 are escaped."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def read(item: Item) -> bytes:
    """The bytes of an item; those of a file above `limits.MAX_BYTES` are cut one behind it, for the decoder to refuse.

    `Unreadable` with the reason if they cannot be read.
    """
    try:
        if isinstance(item.where, Path | S3Path):
            with item.where.open("rb") as file:
                return file.read(MAX_BYTES + 1)
        if item.where == STDIN:
            return sys.stdin.buffer.read(MAX_BYTES + 1)
        return fetch(item.where)
    except FileNotFoundError:
        raise Unreadable("no such file or folder") from None
    except (OSError, ValueError) as error:
        raise Unreadable(getattr(error, "strerror", None) or str(error)) from None


def fetch(url: str) -> bytes:
    """The bytes behind an address; `ValueError` or `OSError` if the server refuses, or they are too many or too slow.

    It is asked `TRIES` times, not for minutes as for an archive: somebody waits for the answer.
    """
    import requests  # with what follows from it, half a second

    from pipeline.runtime import web

    url = web.mirrored(url)
    with requests.Session() as session:
        for left in reversed(range(TRIES)):
            try:
                with web.answered(session, url) as answer:
                    return b"".join(_pieces(answer.raw))
            except (web.Failure, urllib3.exceptions.HTTPError, ConnectionError, TimeoutError) as error:
                why = str(error) if isinstance(error, web.Failure) else f"broke off ({type(error).__name__})"
                if not left:
                    raise OSError(f"{why}, {TRIES} times") from None
                time.sleep(PAUSE)
            except ValueError as error:
                raise ValueError(str(error).removeprefix(f"{web.shown(url)}: ")) from None
    raise AssertionError("unreachable")


def _pieces(raw: BinaryIO) -> Iterator[bytes]:
    """The body of an answer, within the limits on its bytes and seconds."""
    end, count = time.monotonic() + SECONDS, 0
    while piece := raw.read(2**16):
        count += len(piece)
        if count > FETCHED:
            raise ValueError(f"answers with more than {FETCHED:,} bytes. Fetch the file, and give its path")
        if time.monotonic() > end:
            raise ValueError(f"{count:,} bytes came in {SECONDS:g} s, which is too slow. Fetch the file first")
        yield piece
