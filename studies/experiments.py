"""Running a study as DVC experiments, one after another; each can be listed, compared and applied like any other."""

from __future__ import annotations

import csv
import functools
import io
import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dvc.api

from pipeline.runtime import params, revisions
from pipeline.runtime.printing import say
from pipeline.workflow import recipe
from studies import rows
from studies.rows import Result
from studies.study import Run, Study


def run(study: Study, missing: Sequence[Run]) -> None:
    """Trains the runs and records each; `ValueError` at the end if any of them failed."""
    check_cache()
    faults = []
    for each in missing:
        try:
            rows.record(study, each, experiment(study, each))
        except ValueError as error:
            faults.append(str(error))
    if faults:
        raise ValueError("; ".join(faults))


def check_cache() -> None:
    """`ValueError` if an out in dvc.lock is missing from DVC's cache.

    `dvc exp run STAGE` needs them all, but fails only at its end, when the training is done.
    """
    revisions.keep_here()
    asked = subprocess.run(["dvc", "cache", "dir"], check=True, capture_output=True, text=True)
    cache = Path(asked.stdout.strip()) / "files/md5"
    for name, made in params.load(Path("dvc.lock"))["stages"].items():
        for out in made["outs"]:
            kept = (cache / out["md5"][:2] / out["md5"][2:]).exists()
            if not kept and not Path(out["path"]).is_file():  # metrics.json is in git, not in the cache
                raise ValueError(
                    f"dvc.lock names {out['path']} of {name}, which is not in DVC's cache. Run first: make repro, or dvc pull"
                )


def experiment(study: Study, run: Run) -> Result:
    """Trains one run as a DVC experiment; `ValueError` if `dvc exp run` fails."""
    name = recipe.unused(f"{study.name}-{run.variant.name}-{run.seed}")
    command = recipe.command(study.base, run.parameters, name, study.target)
    say(f"studies: {run}: {' '.join(command)}")
    began = time.monotonic()
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise ValueError(f"{run}: dvc exp run ended with {done.returncode}; finished stages are kept")
    return result(study, name, (time.monotonic() - began) / 60)


def result(study: Study, name: str, minutes: float) -> Result:
    """Reads the measurements of a finished experiment. `minutes`: how long it took."""
    revisions.keep_here()
    read = functools.partial(dvc.api.read, rev=name)
    steps, epochs = (
        list(csv.DictReader(io.StringIO(read(f"data/history/{curve}.csv")))) for curve in ("steps", "epochs")
    )
    classes = len(json.loads(read("data/shards/manifest.json"))["classes"])
    cells: dict[str, Any] = {"experiment": name, "minutes": f"{minutes:.1f}", "classes": classes}
    if study.target == "evaluate":
        metrics = json.loads(read("metrics.json"))
        cells["images"] = metrics["images"]
        cells |= {f"top{top}_error": metrics["ten_views"][f"top{top}_error"] for top in (1, 5)}
        cells |= {f"centre_top{top}_error": metrics["centre"][f"top{top}_error"] for top in (1, 5)}
    return Result(steps=steps, epochs=epochs, cells=cells)
