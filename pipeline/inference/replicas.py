"""The app of `alexnet serve` on a cluster: Ray Serve runs as many replicas of it as are asked for, behind one address.

Run: serve run pipeline.inference.replicas:app model=models:/alexnet@champion replicas=2
"""

from __future__ import annotations

from collections.abc import Mapping

from ray import serve
from ray.serve import Application
from starlette.requests import Request
from starlette.responses import Response

from pipeline.inference import networks
from pipeline.inference.app import WAITING, App
from pipeline.inference.predictor import Predictor
from pipeline.runtime import machines

OPTIONS = ("model", "replicas", "cpus", "gpus")


class Replica:
    """One copy of the network, with its own batches."""

    def __init__(self, model: str, device: str) -> None:
        found = networks.read(model, machines.read())
        self.app = App(Predictor.load(found.data, found.where, device), found.where)
        self.app.try_out()

    async def __call__(self, request: Request) -> Response:
        """The answer to any request."""
        return await self.app.respond(request)


def app(options: Mapping[str, str]) -> Application:
    """The application, from the words behind `serve run`: model, replicas, and cpus and gpus of each.

    `model` is read by each replica: a name in MLflow, or a path that all nodes see. `ValueError` for another option.
    """
    if others := sorted(set(options) - set(OPTIONS)):
        raise ValueError(f"{', '.join(others)}: no such option. There are {', '.join(OPTIONS)}")
    takes = {"num_cpus": float(options.get("cpus", 1)), "num_gpus": float(options.get("gpus", 0))}
    deployment = serve.deployment(
        name="alexnet",
        num_replicas=int(options.get("replicas", 1)),
        max_ongoing_requests=WAITING,
        ray_actor_options=takes,
    )(Replica)
    return deployment.bind(options.get("model", "models:/alexnet@champion"), "cuda" if takes["num_gpus"] else "cpu")
