"""A session of a training: its beginning and end in the run's record, with the code and the machine that it ran on."""

from __future__ import annotations

import datetime
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from pipeline.runtime import cluster, digests, git, run_record
from pipeline.runtime.cluster import Placement
from pipeline.tracking import description

LIBRARIES = ("torch", "ray", "dvc", "mlflow", "pyarrow", "numpy", "simplejpeg")
"""The libraries whose versions are recorded."""


@contextmanager
def recorded(folder: Path, run_id: str, placement: Placement) -> Iterator[None]:
    """Records the session while the block runs; at its end, the sha256 of the model.pt that is in the run's folder."""
    begun = time.monotonic()
    facts = {
        "at": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "run_id": run_id,
        "commit": git.commit(),
        "changed_files": bool(git.output("status", "--porcelain", "--untracked-files=no")),
        "changed": description.changed(),
        "placement": str(placement),
        "cores": cluster.cpus(),
        "python": platform.python_version(),
        "libraries": {name: metadata.version(name) for name in LIBRARIES},
    }
    run_record.append(folder, "began", facts)
    try:
        yield
    finally:
        model = folder / "model.pt"
        made = {"model": digests.of(model)} if model.exists() else {}
        run_record.append(folder, "ended", {"seconds": time.monotonic() - begun, **made})
