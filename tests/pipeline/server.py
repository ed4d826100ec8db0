"""An HTTP server on loopback with faults that a test chooses."""

from __future__ import annotations

import contextlib
import hashlib
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class File:
    """The answer for a path, and its faults."""

    data: bytes = b""
    status: int = 200
    """Status of the answer; if `failures` is given, only that many requests get a status other than 200."""
    failures: int = -1
    headers: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    etag: bool = True
    length: int | None = None
    """A false length to send instead of the true one."""
    chunked: bool = False
    without_length: bool = False
    cut: Callable[[int], int | None] = lambda _: None
    """Number of a request → bytes after which the connection is cut; None: never."""
    drip: tuple[int, float] | None = None
    """Bytes of the body at a time, and seconds between them."""
    never_begins: float = 0.0
    """Seconds between the letters of a header that never ends."""
    kind: str = "application/octet-stream"
    after: Callable[[File], None] = lambda _: None
    """Called after each answer."""
    wanted: str | None = None
    """The Authorization header to require; other requests get 401."""


@dataclass
class Server:
    """The server's files, and its log of requests."""

    url: str
    files: dict[str, File] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """Path and headers of each request."""
    sent: int = 0
    """Number of bytes of bodies sent."""


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """Runs the server while the block does."""
    state = Server(url="")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            with contextlib.suppress(ConnectionError):
                answer(self, state)

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *words: Any) -> None:
            if not isinstance(sys.exc_info()[1], ConnectionError):  # the client has ended
                super().handle_error(*words)

    with Quiet(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield state
        finally:
            server.shutdown()


def answer(handler: BaseHTTPRequestHandler, state: Server) -> None:
    path = re.sub(r"^http://[^/]+", "", handler.path)
    state.asked.append((handler.path, dict(handler.headers)))
    file = state.files.get(path.partition("?")[0], File(status=404, data=b"not here"))
    if file.wanted is not None and handler.headers.get("Authorization") != file.wanted:
        file = File(status=401, data=b"who are you?")
    failing = file.status != 200 and file.failures != 0
    if failing:
        file.failures -= 1
    data, first, status = file.data, 0, file.status if failing else 200
    tag = f'"{hashlib.md5(file.data, usedforsecurity=False).hexdigest()}"'
    asked = re.fullmatch(r"bytes=([0-9]+)-", handler.headers.get("Range", ""))
    unchanged = handler.headers.get("If-Range", tag) == tag
    headers = dict(file.headers)
    if asked and file.ranges and not failing and unchanged:
        first = int(asked.group(1))
        if first >= len(data):
            status, data, headers["Content-Range"] = 416, b"", f"bytes */{len(data)}"
        else:
            status, headers["Content-Range"] = 206, f"bytes {first}-{len(data) - 1}/{len(data)}"
            data = data[first:]
    if file.never_begins:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Header: ")
        while True:
            handler.wfile.write(b"x")
            time.sleep(file.never_begins)
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Type", file.kind)
    if file.etag:
        handler.send_header("ETag", tag)
    if file.chunked:
        handler.send_header("Transfer-Encoding", "chunked")
    elif file.without_length:
        handler.send_header("Connection", "close")
    else:
        handler.send_header("Content-Length", str(len(data) if file.length is None else file.length))
    handler.end_headers()
    cut = file.cut(len(state.asked))
    body = data if cut is None else data[:cut]
    state.sent += len(body)
    if file.drip:
        step, pause = file.drip
        for place in range(0, len(body), step):
            handler.wfile.write(body[place : place + step])
            time.sleep(pause)
    elif file.chunked:
        handler.wfile.write(f"{len(body):x}\r\n".encode() + body + b"\r\n" + (b"0\r\n\r\n" if cut is None else b""))
    else:
        handler.wfile.write(body)
    handler.wfile.flush()
    if cut is not None or file.without_length or file.length is not None:
        handler.close_connection = True
    file.after(file)
