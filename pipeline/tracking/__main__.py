"""The runs in MLflow: their address, sending journals that are left, and MLflow's web pages.

Run: python -m pipeline tracking [send|ui]
"""

from __future__ import annotations

if __name__ == "__main__":  # before all that takes long to import
    from pipeline.__main__ import main as enter

    enter("tracking")

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.runtime import commands, machines
from pipeline.tracking import courier, database, journal, runs


def main(words: Sequence[str] | None = None) -> None:
    """The program."""
    given = commands.tracking().parse_args(words)
    if given.command == "send":
        send(given.limit)
    elif given.command == "ui":
        show(given.port)
    else:
        print(runs.public(runs.address(machines.read())))


def send(limit: float) -> None:
    """Sends the journals that are left for machine.yaml's server; names the servers of the others."""
    machine = machines.read()
    uri, root = runs.address(machine), runs.journals(machine)
    there = [reader for reader in journal.pending(root) if reader.over]
    if others := sorted({reader.about["to"] for reader in there} - {runs._to(uri, machine)}):
        print(f"for {' and '.join(others)}: set tracking in machine.yaml, and send again")
    if len(there) == len([reader for reader in there if reader.about["to"] in others]):
        print(f"nothing is left for {runs.public(uri)}")
        return
    with runs._prepared(uri, "send") as ready, courier.hired("send") as process, runs._refused(runs.public(uri)):
        runs._open(process, machine, uri)
        ready()
        handover = runs.Handover(process, runs.public(uri), lambda: runs._open(process, machine, uri), limit)
        if not handover.all_sent():
            raise OSError(
                f"MLflow at {runs.public(uri)}: not all was sent in {limit:g} s ({handover.why or 'no answer'})"
            )
    print(f"all is in MLflow at {runs.public(uri)}")


def show(port: int) -> None:
    """Becomes MLflow's server for a database, whose address it gets by the environment: all users can see arguments."""
    uri = runs.address(machines.read())
    if urlsplit(uri).scheme in ("http", "https"):
        print(f"the runs are at {runs.public(uri)}")
        return
    if urlsplit(uri).scheme.partition("+")[0] not in runs.DATABASES:
        # MLflow's server would say so too, with all of the address, and what it says is not redacted
        raise ValueError(
            f"tracking: {runs.public(uri)} is neither a server nor a database that MLflow knows: an address of one begins with "
            f"{', '.join(runs.DATABASES)}"
        )
    file = database.path(uri)
    if file is not None:
        os.chdir(file.parent)
        uri = database.address(Path(file.name))
    os.environ["MLFLOW_BACKEND_STORE_URI"] = uri
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)])  # noqa: S606
