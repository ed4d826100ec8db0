"""`alexnet serve`: a trained network behind HTTP, on loopback unless another address is named; in one process, or on Ray."""

from __future__ import annotations

import os
import socket
import sys
from ipaddress import ip_address

from alexnet.names import shown
from pipeline.inference import networks
from pipeline.runtime import machines
from pipeline.runtime.printing import say

CONNECTIONS = 256
"""The most connections; a further one is answered 503."""

IDLE = 5
"""Seconds for which a connection is kept between two requests."""

LAST = 10
"""Seconds that requests get to end when the server is stopped."""


def main(model: str, host: str, port: int, replicas: int = 0, cpus: float = 1.0, gpus: float = 0.0) -> None:
    """Serves until a signal comes. `OSError` if the port is in use, or the errors of `networks.read`; both before it listens.

    `host`: an address of this machine, or of the cluster's head; `port`: 0 for any free one, which is printed. `replicas`: 0 for
    one process here, else that many on Ray, with `cpus` and `gpus` each.
    """
    if replicas:
        _replicated(model, host, port, replicas, cpus, gpus)
    else:
        _alone(model, host, port)


def _replicated(model: str, host: str, port: int, replicas: int, cpus: float, gpus: float) -> None:
    machine = machines.read()
    if machines.ray_address(machine) is None:
        with _bound(host, port) as free:
            port = free.getsockname()[1]
    network = networks.read(model, machine)
    from pipeline.inference.replicas import running, watch
    from pipeline.runtime import cluster

    with cluster.connected(machine), running(network, host, port, replicas, cpus, gpus):
        _announce(network.where, f"http://{f'[{host}]' if ':' in host else host}:{port}", host)
        watch()


def _alone(model: str, host: str, port: int) -> None:
    with _bound(host, port) as listening:  # before the network is read, which may take minutes
        network = networks.read(model, machines.read())
        import uvicorn

        from pipeline.inference.app import App, create  # it imports torch
        from pipeline.inference.predictor import Predictor

        app = App(Predictor.load(network.data, network.where), network.where)
        app.try_out()
        config = uvicorn.Config(
            create(app),
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=IDLE,
            timeout_graceful_shutdown=LAST,
        )
        _announce(network.where, _address(listening), host)
        uvicorn.Server(config).run(sockets=[listening])


def _announce(where: str, address: str, host: str) -> None:
    if not os.environ.get("ALEXNET_QUIET"):
        say(f"{shown(where)} answers at {address}")
        say(f"curl --data-binary @picture.jpg {address}/predict")
    if not _is_loopback(host):
        say(f"serve: {address}: whoever reaches this address may ask, and nothing is encrypted", to=sys.stderr)


def _bound(host: str, port: int) -> socket.socket:
    """A socket that is bound to the port, and listens."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except OSError as error:
        raise OSError(f"--host {host}: {error.strerror}: name an address of this machine, such as 127.0.0.1") from None
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(CONNECTIONS)
    except OSError as error:
        listening.close()
        another = f"--port {port + 1 if 0 < port < 2**16 - 1 else 8001}, or --port 0 for any free one"
        raise OSError(
            f"port {port} of {host} cannot be used ({error.strerror}). Choose another one: {another}"
        ) from None
    return listening


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
