"""Speed of serving a network over HTTP on this machine: `alexnet serve` and Ray Serve's replicas, beside `mlflow models serve`.

Run:    python benchmarks/serve.py FOLDER [--model data/model.pt]
Reads:  the JPEGs below FOLDER, and a model.pt
Prints: requests per second, and the median and 99th percentile of their seconds, for each; and the ratios of the rates

The servers run at once with the same network, and are asked in turn, so that only one computes. Each request is one picture,
as bytes or as base64 in MLflow's JSON; `--clients` of them wait at a time. The first round warms up.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

if __name__ == "__main__":  # before the slow imports
    from pipeline.runtime import usage

    parser = usage.parser_at(__file__, "python benchmarks/serve.py")
    parser.add_argument("folder", type=usage.existing_path)
    parser.add_argument("--model", type=usage.existing_path, default="data/model.pt")
    parser.add_argument("--pictures", type=int, default=64, help="requests of a round, pictures first by name")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--views", type=int, choices=(1, 10), default=10)
    parser.add_argument("--replicas", type=int, default=1, help="of Ray Serve, each with a core")
    parser.add_argument("--rounds", type=int, default=3)
    parser.parse_args()

import base64
import contextlib
import http.client
import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import mlflow.pyfunc

from pipeline.tracking import registry

ROOT = Path(__file__).parents[1]

READY = 120.0
"""Seconds in which a server has to be ready."""

Ask = Callable[[bytes], None]


def main(arguments: argparse.Namespace) -> None:
    """Runs the benchmark and prints its results."""
    files = sorted(file for file in arguments.folder.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg"))
    if not files:
        raise SystemExit(f"{arguments.folder}: no file below it ends in .jpg or .jpeg")
    pictures = [file.read_bytes() for file in itertools.islice(itertools.cycle(files), arguments.pictures)]
    with tempfile.TemporaryDirectory() as folder, all_of(arguments, Path(folder)) as servers:
        print(f"{len(pictures)} requests a round, {arguments.views} views, {os.cpu_count()} cores", flush=True)
        for clients in arguments.clients:
            rounds = [timed(servers, pictures, clients, turn) for turn in range(arguments.rounds + 1)][1:]
            for number, name in enumerate(servers):
                seconds = sorted(itertools.chain.from_iterable(each[number][1] for each in rounds))
                rate = statistics.median(each[number][0] for each in rounds)
                print(
                    f"{name}, {clients} at a time: {rate:.1f} requests a second, median {statistics.median(seconds):.3f} s, "
                    f"p99 {seconds[int(0.99 * (len(seconds) - 1))]:.3f} s",
                    flush=True,
                )
            for number, name in enumerate(list(servers)[:-1]):
                ratios = [each[number][0] / each[-1][0] for each in rounds]
                print(
                    f"{name}, {clients} at a time: {statistics.median(ratios):.2f} times as many requests as {list(servers)[-1]} "
                    f"(median of {len(ratios)} rounds; {min(ratios):.2f} to {max(ratios):.2f})",
                    flush=True,
                )


@contextlib.contextmanager
def all_of(arguments: argparse.Namespace, folder: Path) -> Iterator[dict[str, Ask]]:
    """Starts the servers, MLflow's last; yields a function for each that asks about one picture."""
    model, views = Path(arguments.model).resolve(), arguments.views
    (folder / "parts").mkdir()
    mlflow.pyfunc.save_model(folder / "model", **registry.packed(model.read_bytes(), folder / "parts"))
    ours, replicas, theirs = (free_port() for _ in range(3))
    alexnet = [sys.executable, "-m", "pipeline", "serve", "--model", str(model), "--port", str(ours)]
    ray_serve = [*alexnet[:-1], str(replicas), "--replicas", str(arguments.replicas)]
    mlflows = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(folder / "model")]
    mlflows += ["--env-manager", "local", "-p", str(theirs)]
    with (
        running(alexnet, ROOT, ours, "/ready"),
        running(ray_serve, ROOT, replicas, "/ready"),
        running(mlflows, folder, theirs, "/ping"),
    ):

        def ask_alexnet(data: bytes) -> None:
            post(ours, f"/predict?views={views}", data, "image/jpeg")

        def ask_replicas(data: bytes) -> None:
            post(replicas, f"/predict?views={views}", data, "image/jpeg")

        def ask_mlflow(data: bytes) -> None:
            frame = {"columns": ["image"], "data": [[base64.b64encode(data).decode()]]}
            body = json.dumps({"dataframe_split": frame, "params": {"views": views}}).encode()
            post(theirs, "/invocations", body, "application/json")

        yield {
            "alexnet serve": ask_alexnet,
            "alexnet serve --replicas": ask_replicas,
            "mlflow models serve": ask_mlflow,
        }


@contextlib.contextmanager
def running(command: list[str], folder: Path, port: int, path: str) -> Iterator[None]:
    """A server in a process group of its own, ready; ends it afterwards."""
    path_of_programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # MLflow calls uvicorn
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | {"PATH": path_of_programs},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + READY
        while not is_ready(port, path):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{' '.join(command)}: is not ready")
            time.sleep(0.2)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGINT)  # Ray ends the processes that it started
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def is_ready(port: int, path: str) -> bool:
    """Whether a server answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.closing(connection), contextlib.suppress(OSError):
        connection.request("GET", path)
        return connection.getresponse().status == 200
    return False


def post(port: int, path: str, body: bytes, kind: str) -> None:
    """Sends a request, and reads its answer, which has to be 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    with contextlib.closing(connection):
        connection.request("POST", path, body, {"Content-Type": kind})
        answer = connection.getresponse()
        words = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{path}: {answer.status} {words[:200]!r}")


def timed(servers: dict[str, Ask], pictures: list[bytes], clients: int, turn: int) -> list[tuple[float, list[float]]]:
    """Requests per second, and the seconds of each request, for each server; the one that is asked first alternates."""
    results: dict[str, tuple[float, list[float]]] = {}
    for name in sorted(servers, reverse=bool(turn % 2)):
        with ThreadPoolExecutor(clients) as pool:
            begun = time.perf_counter()
            seconds = list(pool.map(lambda data, ask=servers[name]: seconds_of(ask, data), pictures))
            results[name] = (len(pictures) / (time.perf_counter() - begun), seconds)
    return [results[name] for name in servers]


def seconds_of(ask: Ask, data: bytes) -> float:
    """The seconds that a request takes."""
    begun = time.perf_counter()
    ask(data)
    return time.perf_counter() - begun


def free_port() -> int:
    """A port of loopback that is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main(parser.parse_args())
