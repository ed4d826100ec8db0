"""`alexnet serve --replicas`: the app of `alexnet serve` on Ray, as many copies of it as are asked for behind one address."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray import serve
from ray.serve.config import ProxyLocation
from ray.serve.schema import ApplicationStatus, LoggingConfig
from starlette.requests import Request
from starlette.responses import Response

from pipeline.inference.app import ANSWER, ARRIVAL, WAITING, App
from pipeline.inference.networks import Found
from pipeline.inference.predictor import Predictor
from pipeline.runtime import edges, waiting

NAME = "alexnet"
"""The application's name in Ray Serve."""

READY = 300.0
"""Seconds in which all replicas have to be ready."""

LOOK = 5.0
"""Seconds between two looks at the replicas."""

QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)


class Replica:
    """One copy of the network, with its own batches."""

    def __init__(self, data: list[ray.ObjectRef[bytes]], where: str, device: str) -> None:
        self.app = App(Predictor.load(ray.get(data[0]), where, device), where)
        self.app.try_out()

    async def __call__(self, request: Request) -> Response:
        """The answer to any request."""
        return await self.app.respond(request)


@contextmanager
def running(network: Found, host: str, port: int, replicas: int, cpus: float, gpus: float) -> Iterator[None]:
    """Starts the replicas on the cluster that this process is connected to; they are ready in the block, and end with it.

    `cpus`, `gpus`: of each replica. `ValueError` if the cluster has fewer, `OSError` if the port is in use, `RuntimeError` if a
    replica ends, `TimeoutError` after `READY` seconds.
    """
    _check_room(replicas, cpus, gpus)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    http = {"host": host, "port": port, "request_timeout_s": 2 * (ARRIVAL + ANSWER)}
    data = ray.put(network.data)
    try:
        try:
            serve.start(ProxyLocation.HeadOnly, http, logging_config=QUIET)
        except RuntimeError as error:
            why = edges.essential(str(error))
            raise OSError(f"port {port} of {host} at the cluster's head cannot be used: {why}") from None
        deployment = serve.deployment(
            name=NAME,
            num_replicas=replicas,
            max_ongoing_requests=WAITING,
            max_queued_requests=WAITING * replicas,
            ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        )(Replica)
        bound = deployment.bind([data], network.where, "cuda" if gpus else "cpu")
        target = serve.RunTarget(bound, name=NAME, logging_config=QUIET)
        serve.run_many([target], wait_for_applications_running=False)
        with waiting.saying("serve", f"{replicas} replicas of {network.where}", READY):
            _wait()
        yield
    finally:
        # Ray prints as a fault that the app's controller ends when it is told to
        ray._private.worker.print_to_stdstream = lambda *_, **__: None
        serve.shutdown()  # type: ignore[no-untyped-call]


def watch() -> None:
    """Waits for a signal; `RuntimeError` if Ray Serve gives the replicas up. An unhealthy one is restarted, which is said."""
    before = ApplicationStatus.RUNNING
    while True:
        time.sleep(LOOK)
        status, words = _status()
        if status != before:
            print(f"serve: the replicas are {status.value.lower()} {words}".rstrip(), file=sys.stderr, flush=True)
        before = status


def _check_room(replicas: int, cpus: float, gpus: float) -> None:
    for option, each in (("cpus", cpus), ("gpus", gpus)):
        there = ray.cluster_resources().get(option[:-1].upper(), 0)  # type: ignore[no-untyped-call]
        if replicas * each > there:
            asked = f"--replicas {replicas} --{option} {each:g}: {replicas * each:g} {option} are asked for"
            raise ValueError(f"{asked}, the cluster has {there:g}")


def _wait() -> None:
    end = time.monotonic() + READY
    while (status := _status()[0]) != ApplicationStatus.RUNNING:
        if time.monotonic() > end:
            raise TimeoutError(f"serve: the replicas are {status.value.lower()} after {READY:g} s")
        time.sleep(0.2)


def _status() -> tuple[ApplicationStatus, str]:
    """How the application is, and Ray Serve's words; `RuntimeError` if it has given the replicas up."""
    application = serve.status().applications[NAME]
    words = next((each.message for each in application.deployments.values() if each.message), application.message)
    if application.status == ApplicationStatus.DEPLOY_FAILED:
        raise RuntimeError(f"serve: the replicas do not start: {edges.essential(words)}")
    return application.status, edges.essential(words)
