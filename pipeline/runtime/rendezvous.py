"""The rendezvous of a training's processes, which listen only on the address by which Ray knows their node."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psutil
import ray
import torch.distributed as dist
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend
from torch._C._distributed_c10d import TCPStore

INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Variables of gloo and NCCL. Unset, they use the host name's address, which may be in another network on each node."""


@dataclass
class Rendezvous(TorchConfig):
    """Ray Train's configuration of torch.distributed, with store and connections on the node's own address."""

    @property
    def backend_cls(self) -> type[_Backend]:
        """The class that sets up the process group."""
        return _Backend


class _Backend(_TorchBackend):
    """Sets up the process group; in Ray's own class torch's store listens on all interfaces, and gloo chooses by host name."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        backend = "nccl" if worker_group.get_resources_per_worker().get("GPU", 0) else "gloo"
        worker_group.execute(_keep_to_the_node)
        worker_group.execute(_set_torch_distributed_env_vars)
        host, port = worker_group.execute_single(0, _listen)
        size = len(worker_group)
        joining = [
            worker_group.execute_single_async(rank, _join, backend, rank, size, host, port, backend_config.timeout_s)
            for rank in range(size)
        ]
        ray.get(joining)


def interface(address: str) -> str:
    """The name of the network interface with this address; `ValueError` if this machine has none."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address.partition("%")[0] == address for each in addresses):
            return name
    raise ValueError(f"no network interface here has {address}, by which Ray knows this node")


def _address() -> str:
    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


def _keep_to_the_node() -> None:
    name = interface(_address())
    for variable in INTERFACES:
        os.environ.setdefault(variable, name)


_listening: list[socket.socket] = []
"""Rank 0's socket, between `_listen` and `_join`."""


def _listen() -> tuple[str, int]:
    """Opens the socket on which rank 0's store will listen; returns its address and port."""
    host = _address()
    listening = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1024)
    _listening[:] = [listening]
    return host, listening.getsockname()[1]


def _join(backend: str, rank: int, size: int, host: str, port: int, seconds: int) -> None:
    timeout = timedelta(seconds=seconds)
    listening = _listening.pop().detach() if rank == 0 else None
    store = TCPStore(host, port, size, rank == 0, timeout, master_listen_fd=listening)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
