"""The versions on each node of a cluster, asked by a task on each, and compared with those here."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from importlib import metadata

from pipeline.doctor.finding import Finding

PACKAGES = ("ray", "torch", "numpy", "pyarrow", "simplejpeg")
"""What has to be the same for a run: Ray's protocol, and what decides bytes."""

WAIT = 8.0
"""Seconds that the nodes may take to answer."""


def versions() -> dict[str, str]:
    """Python's and the packages' versions, on the node that this runs on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def tell(address: str) -> None:
    """Joins the cluster and prints each node's address and versions as JSON; None for a node that does not answer."""
    import logging
    import sys

    import ray
    from ray import cloudpickle
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]  # the nodes need not have this code
    ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    asked = {}
    for node in alive:
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked[ray.remote(num_cpus=0)(versions).options(scheduling_strategy=here).remote()] = node["NodeManagerAddress"]
    ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=WAIT)
    print(json.dumps([[asked[each], ray.get(each) if each in ready else None] for each in asked]))


def compared(text: str) -> Sequence[Finding]:
    """The findings from what `tell` printed."""
    ours, found, told = versions(), list[Finding](), json.loads(text)
    for address, theirs in told:
        if theirs is None:
            found.append(
                Finding("nodes", "warning", f"{address} did not answer in {WAIT:g} s", "Look at it: ray status")
            )
            continue
        other = [f"{name} {theirs.get(name)}, here {ours[name]}" for name in ours if theirs.get(name) != ours[name]]
        if other:
            todo = "Make its environment from this requirements.lock"
            found.append(Finding("nodes", "fault", f"{address} has {'; '.join(other)}", todo))
    return found or [Finding("nodes", "ok", f"{len(told)} with the versions that are here")]
