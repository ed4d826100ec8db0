"""A proxy on loopback in front of a real server, with faults: it answers 500, hangs, is slow, or loses answers."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

FAULTS = ("500", "401", "garbage", "hang", "slow", "trickle", "cut")


@dataclass
class Proxy:
    """The proxy's behaviour, and the requests that it saw."""

    url: str
    mode: str = "pass"
    """pass, lose (the server gets it, but its answer is lost), or one of `FAULTS`."""
    passed: int = 0
    wanted: str | None = None
    """The Authorization header to require; other requests get 401."""
    over: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def proxied(target: str) -> Iterator[Proxy]:
    """Runs a proxy for `target` while the block does; then closes all hanging connections."""
    state = Proxy(url="")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self) -> None:
            with contextlib.suppress(ConnectionError, http.client.HTTPException):
                behave(self, state, target)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield state
        finally:
            state.over.set()
            server.shutdown()


def behave(handler: BaseHTTPRequestHandler, state: Proxy, target: str) -> None:
    body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
    if state.wanted and handler.headers.get("Authorization") != state.wanted:
        say(handler, 401, b"who are you?")
    elif state.mode in ("pass", "lose"):
        status, data, kind = forward(handler, body, target)
        state.passed += 1
        if state.mode == "lose":
            handler.close_connection = True
        else:
            say(handler, status, data, kind)
    elif state.mode in ("500", "401"):
        say(handler, int(state.mode), b"<html>not now</html>")
    elif state.mode == "garbage":
        say(handler, 200, b'{"run": [[[', "application/json")
    elif state.mode == "cut":
        handler.close_connection = True
    elif state.mode == "slow":
        state.over.wait(60)
        say(handler, *forward(handler, body, target))
    elif state.mode == "trickle":
        trickle(handler, state)
    else:
        state.over.wait(600)
        handler.close_connection = True


def trickle(handler: BaseHTTPRequestHandler, state: Proxy) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    while not state.over.wait(0.5):
        handler.wfile.write(b" ")
        handler.wfile.flush()
    handler.close_connection = True


def forward(handler: BaseHTTPRequestHandler, body: bytes, target: str) -> tuple[int, bytes, str]:
    connection = http.client.HTTPConnection(urlsplit(target).netloc, timeout=60)
    headers = {name: value for name, value in handler.headers.items() if name.lower() not in ("host", "authorization")}
    with contextlib.closing(connection):
        connection.request(handler.command, handler.path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.getheader("Content-Type") or "application/json"


def say(handler: BaseHTTPRequestHandler, status: int, data: bytes, kind: str = "text/html") -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def until(condition: Any, seconds: float = 60) -> None:
    """Waits for a condition; fails after a limit."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.1)
