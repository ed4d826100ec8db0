"""The run before a run: the newest one that was begun earlier, has other parameters or pictures, and was tested."""

from __future__ import annotations

from pipeline.comparing import beside, logged
from pipeline.comparing.measured import MeasuredRun
from pipeline.evaluation.reporting.page import Before
from pipeline.runtime import machines, run_record
from pipeline.runtime.machines import Machine

LAST = 20
"""Number of runs that are looked through."""

NONE = f"none of the last {LAST} runs in MLflow is an earlier one that was tested"


def find(fingerprint: str, machine: Machine) -> tuple[Before | None, str]:
    """The run before that of a fingerprint, or why there is none. A server that does not answer is such a reason."""
    try:
        runs = [run for run, record in logged.last(LAST) if record["listed"]]
    except OSError as error:
        return None, str(error)
    this = next((run for run in runs if run.fingerprint == fingerprint), None)
    older = runs[runs.index(this) + 1 :] if this else runs  # the newest run is first
    for run in older:
        if run.fingerprint not in ("", fingerprint) and run.rate() is not None and run.state == "finished":
            return _described(run, this, machine), ""
    return None, NONE


def _described(run: MeasuredRun, this: MeasuredRun | None, machine: Machine) -> Before:
    errors = {}
    for top in (1, 5):
        if rate := run.rate(top):
            errors[f"top{top}_error"] = rate.error
            if rate.interval:
                errors[f"top{top}_low"], errors[f"top{top}_high"] = rate.interval
    record = run_record.read(machines.runs(machine) / run.fingerprint)
    return Before(
        name=run.name,
        begun=run.date,
        errors=errors,
        seconds=record.seconds if record else None,
        images_per_second=record.images_per_second if record else None,
        beside=beside.beside(this, run) if this is not None and this.rate() is not None else "",
    )
