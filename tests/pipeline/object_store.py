"""An S3 server on loopback (moto), which can refuse, fail, and count requests."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pyarrow import fs

KEY = "tester"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": "a secret of the tests", "AWS_REGION": "us-east-1"}
REFUSED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


class ObjectStore:
    """The server, its log of requests, and its faults."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.asked: list[tuple[str, str]] = []
        """Method and path, with the query, of every request."""
        self.fails: Callable[[str, str], bool] = lambda _method, _path: False
        self.latency = 0.0
        """Seconds before each answer."""
        self._inner: Any = None
        self._buckets = 0

    def __call__(self, environ: dict[str, Any], start: Any) -> Any:
        method, path = environ["REQUEST_METHOD"], f"{environ['PATH_INFO']}?{environ['QUERY_STRING']}"
        self.asked.append((method, path))
        time.sleep(self.latency)
        if f"Credential={KEY}/" not in environ.get("HTTP_AUTHORIZATION", ""):
            start("403 Forbidden", [("Content-Type", "application/xml"), ("Content-Length", str(len(REFUSED)))])
            return [REFUSED]
        if self.fails(method, path):
            # to the end of the body; where there is none, it would wait for one
            length = environ.get("CONTENT_LENGTH") or ("-1" if environ.get("HTTP_TRANSFER_ENCODING") else "0")
            environ["wsgi.input"].read(int(length))
            start("500 Internal Server Error", [("Content-Length", "0")])
            return [b""]
        return self._inner(environ, start)

    def bucket(self) -> str:
        """Creates a bucket."""
        self._buckets += 1
        name = f"bucket-{self._buckets}"
        self.system.create_dir(name)
        return name

    @property
    def system(self) -> fs.S3FileSystem:
        """A client that is independent of `pipeline.runtime.paths`."""
        return fs.S3FileSystem(
            access_key=KEY,
            secret_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
            region="us-east-1",
            endpoint_override=self.endpoint,
            allow_bucket_creation=True,
        )

    def fill(self, folder: Path, place: str) -> None:
        """Copies a folder to the store; links are followed."""
        for file in folder.rglob("*"):
            if file.is_file():
                # Arrow would compress what ends in .gz
                key = f"{place}/{file.relative_to(folder).as_posix()}"
                with self.system.open_output_stream(key, compression=None) as out:
                    out.write(file.read_bytes())

    def contents(self, place: str) -> dict[str, bytes]:
        """The files below a folder, by relative path."""
        found = self.system.get_file_info(fs.FileSelector(place, recursive=True, allow_not_found=True))
        files = [info.path for info in found if info.type == fs.FileType.File]
        return {path.removeprefix(f"{place}/"): self.system.open_input_file(path).readall() for path in sorted(files)}


@contextlib.contextmanager
def serving() -> Iterator[ObjectStore]:
    """Runs the server while the block does."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    store = ObjectStore()
    store._inner = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, store, threaded=True, request_handler=MotoRequestHandler)
    store.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
