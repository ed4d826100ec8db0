"""What MLflow's pages show first: an experiment's columns and charts, its description, and the address that opens them.

MLflow's pages keep columns and charts in the browser, and read them from a tag of the experiment if the address names it.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.tracking.description import NOTE

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

VIEW = "runs"
"""The name of the view in the address."""

TAG = f"mlflow.sharedViewState.{VIEW}"

COLUMNS = ("ten_views/top1_error", "ten_views/top5_error", "val/top1_error", "train/images_per_second")
"""The metrics that are columns."""

CHARTS = {
    "Errors": (("BAR", "ten_views/top1_error"), ("LINE", "val/top1_error"), ("LINE", "train/loss")),
    "Course": (("LINE", "val/loss"), ("LINE", "rate"), ("LINE", "train/images_per_second")),
}
"""Section → its charts, as kind and metric; these sections stand before those that MLflow makes of all metrics."""

LOOKED_AT = 100
"""The newest runs that are looked at for parameters that differ."""

MOST = 12
"""The most parameters that are columns."""

ALWAYS = ("learning.seed",)
"""Parameters that are columns even if all runs have the same value."""

DESCRIPTION = """\
Runs of the workflow (`dvc repro`). Errors are fractions, from 0 to 1, over ten views (§4.1 of the paper) and of the centre
patch. With their intervals, beside the paper's: `alexnet runs`. Two runs beside each other: `alexnet compare A B`. A run's page
holds its report under *Artifacts*."""


def link(server: str, experiment: str) -> str:
    """The address of the page that opens on the runs, with columns and charts. `server`: such as http://127.0.0.1:5000."""
    return f"{server}/#/experiments/{experiment}/runs?viewStateShareKey={VIEW}&workflowType=machine_learning"


def update(client: MlflowClient, experiment: Experiment) -> None:
    """Writes the view and the description into the experiment's tags. A description that a person wrote stays."""
    runs = client.search_runs(
        [experiment.experiment_id], max_results=LOOKED_AT, order_by=["attributes.start_time DESC"]
    )
    wanted = {
        "mlflow.experimentKind": "custom_model_development",
        NOTE: experiment.tags.get(NOTE) or DESCRIPTION,
        TAG: json.dumps(state(differing(run.data.params for run in runs))),
    }
    for name, value in wanted.items():
        if experiment.tags.get(name) != value:
            client.set_experiment_tag(experiment.experiment_id, name, value)


def differing(runs: Iterable[Mapping[str, str]]) -> list[str]:
    """The parameters in which runs differ, sorted; a run that lacks one, such as an unfinished run, does not differ in it."""
    values: dict[str, set[str]] = {}
    for params in runs:
        for name, value in params.items():
            values.setdefault(name, set()).add(value)
    return sorted(name for name, each in values.items() if len(each) > 1)


def state(params: Iterable[str]) -> dict[str, Any]:
    """The state of MLflow's page of runs, with these parameters, at most `MOST`, as columns."""
    names = list(dict.fromkeys([*ALWAYS, *params]))[:MOST]
    metrics = [_canonical("metrics", name) for name in COLUMNS]
    return {
        "selectedColumns": [*metrics, *(_canonical("params", name) for name in names)],
        "columnOrder": [],
        "columnWidths": {},
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsVisibilityMap": {},
        "runsHiddenMode": "FIRST_10_RUNS",
        "compareRunCharts": [_chart(kind, name, each) for each, charts in CHARTS.items() for kind, name in charts],
        "compareRunSections": [_section(name) for name in CHARTS],
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": True,  # else sections are sorted by name
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "autoRefreshEnabled": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def _canonical(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"


def _chart(kind: str, metric: str, section: str) -> dict[str, Any]:
    chart = {
        "uuid": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{kind}/{metric}")),
        "type": kind,
        "runsCountToCompare": 10,
        "metricSectionId": section,
        "deleted": False,
        "isGenerated": False,
        "metricKey": metric,
    }
    if kind == "LINE":
        chart |= {"selectedMetricKeys": [metric], "lineSmoothness": 0, "xAxisKey": "step", "range": {}}
        chart |= {"xAxisScaleType": "linear", "scaleType": "linear"}
    return chart


def _section(name: str) -> dict[str, Any]:
    flags = {"isReordered": True, "deleted": False, "isGenerated": False}
    return {"uuid": name, "name": name, "display": True, **flags}
