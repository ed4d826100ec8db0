"""The program for the runs in MLflow: prints their address, sends journals that are left, serves MLflow's web pages.

Run: alexnet tracking [send|ui]
"""

from __future__ import annotations

if __name__ == "__main__":  # before the slow imports
    from pipeline.__main__ import main as enter

    enter("tracking")

import os
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.runtime import machines
from pipeline.tracking import courier, database, description, journal, pages, runs


def address() -> None:
    """Prints the address of the runs, without its login."""
    print(runs.public(runs.address(machines.read())))


def send(limit: float) -> None:
    """Sends the journals that are left for machine.yaml's server within `limit` seconds; prints which servers the others are for.

    Raises `OSError` if not all was sent.
    """
    machine = machines.read()
    uri, root = runs.address(machine), runs.journals(machine)
    left = [reader for reader in journal.pending(root) if reader.over]
    if others := sorted({reader.about["to"] for reader in left} - {runs._to(uri, machine)}):
        print(f"for {' and '.join(others)}: set tracking in machine.yaml, and send again")
    if all(reader.about["to"] in others for reader in left):
        print(f"nothing is left for {runs.public(uri)}")
        return
    with runs._prepared(uri, "send") as ready, courier.running("send") as process, runs._refused(runs.public(uri)):
        runs._open(process, machine, uri)
        ready()
        handover = runs.Handover(process, runs.public(uri), lambda: runs._open(process, machine, uri), limit)
        if not handover.all_sent():
            raise OSError(
                f"MLflow at {runs.public(uri)}: not all was sent in {limit:g} s ({handover.why or 'no answer'})"
            )
    print(f"all is in MLflow at {runs.public(uri)}")


def show(port: int) -> None:
    """Replaces this process by MLflow's server for a database, at `port` of 127.0.0.1; for a server prints its address.

    Prints the address of the page that opens on the runs. The database's address is passed in the environment, because all
    users can see a process's arguments. `OSError` if the port is in use.
    """
    uri = runs.address(machines.read())
    if urlsplit(uri).scheme in ("http", "https"):
        print(f"the runs are at {runs.public(uri)}")
        return
    if urlsplit(uri).scheme.partition("+")[0] not in runs.DATABASES:
        # MLflow's server would print the whole address, without redaction
        raise ValueError(
            f"tracking: {runs.public(uri)} is neither a server nor a database that MLflow knows: an address of one begins with "
            f"{', '.join(runs.DATABASES)}"
        )
    file = database.path(uri)
    if file is not None:
        os.chdir(file.parent)
        uri = database.address(Path(file.name))
    _check_free(port)
    os.environ["MLFLOW_BACKEND_STORE_URI"] = uri
    print(f"the runs: {_page(port, file)}", flush=True)
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)])  # noqa: S606


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server: a connection's end does not count
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise OSError(
                f"port {port} of 127.0.0.1 cannot be used ({error.strerror}). Choose another one: "
                f"make ui PORT={port + 1 if port < 2**16 - 1 else port - 1}"
            ) from None


def _page(port: int, file: Path | None) -> str:
    """The address of the page of the runs; of the server if `file`, the database, is another one than SQLite's or has no run."""
    server = f"http://127.0.0.1:{port}"
    number = file and database.experiment(file, description.experiment())
    return pages.link(server, number) if number else server
