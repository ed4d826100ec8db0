"""HTTP servers in processes of their own, and what their answers are compared with."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.pipeline import noise

Row = dict[str, Any]


def check(rows: Sequence[Row], tested: Sequence[Row], column: str = "probabilities") -> None:
    """Compares answers, each with lists of wnids and probabilities, with the rows of `evaluate`."""
    for row, expected in zip(rows, tested, strict=True):
        best = np.argsort(-np.array(expected[column]), kind="stable")[:5]
        assert list(row["wnid"]) == [noise.CLASSES[label].wnid for label in best]
        np.testing.assert_allclose(row["probability"], [expected[column][label] for label in best], atol=1e-5)


@contextlib.contextmanager
def running(
    command: Sequence[str], folder: Path, url: str = "", where: Path | None = None, **environment: str
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A server in a process of its own, started in `where` or `folder`, which gets its log; waits until `url` answers."""
    clean = {name: word for name, word in os.environ.items() if not name.startswith(("MLFLOW_", "PYTHON", "ALEXNET_"))}
    clean |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **environment}
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=where or folder, env=clean, stdout=out, stderr=out, start_new_session=True
        )
    try:
        if url:
            _wait_until_ready(process, url, log)
        yield process, log
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    for _ in range(1200):
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def post(url: str, body: bytes, kind: str = "application/json") -> tuple[int, Any]:
    request = urllib.request.Request(url, body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())
