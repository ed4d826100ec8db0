"""Two hosts on one machine: network namespaces with a link between them and a default route, as on real machines."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pytest


@dataclass(frozen=True)
class Host:
    """A network namespace as a host."""

    name: str
    address: str

    def command(self, words: Sequence[object]) -> list[str]:
        """The command line that runs a command on the host."""
        return ["ip", "netns", "exec", self.name, *map(str, words)]

    def run(self, *words: object, **options: Any) -> subprocess.CompletedProcess[str]:
        """Runs a command on the host; it may fail."""
        return subprocess.run(self.command(words), capture_output=True, text=True, check=False, **options)

    def listening(self) -> set[tuple[str, str]]:
        """Address and program of each listening socket on the host."""
        lines = [line.split() for line in self.run("ss", "-Hltnp").stdout.splitlines()]
        return {(line[3], line[5].split('"')[1] if len(line) > 5 else "") for line in lines}

    def link(self, state: Literal["up", "down"]) -> None:
        """Cuts the host's link without notice to either side, or restores it."""
        links = subprocess.run(["ip", "-n", self.name, "-o", "link"], check=True, capture_output=True, text=True)
        (link,) = (line.split()[1].partition("@")[0] for line in links.stdout.splitlines() if "@" in line)
        subprocess.run(["ip", "-n", self.name, "link", "set", link, state], check=True)


@contextlib.contextmanager
def hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts that reach each other; the test is skipped if namespaces cannot be created."""
    mark = f"alexnet-{os.getpid()}"
    pair = Host(f"{mark}-a", "10.199.1.1"), Host(f"{mark}-b", "10.199.1.2")
    ends = f"ax{os.getpid()}a", f"ax{os.getpid()}b"
    try:
        try:
            _make(pair, ends)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"network namespaces cannot be made here: {getattr(error, 'stderr', '') or error}")
        yield pair
    finally:
        for host in pair:
            if shutil.which("ip"):
                pids = subprocess.run(["ip", "netns", "pids", host.name], capture_output=True, text=True, check=False)
                for pid in pids.stdout.split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), 9)
                subprocess.run(["ip", "netns", "delete", host.name], capture_output=True, check=False)


def _make(pair: tuple[Host, Host], ends: tuple[str, str]) -> None:
    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)

    for host in pair:
        ip("netns", "add", host.name)
    ip("link", "add", ends[0], "netns", pair[0].name, "type", "veth", "peer", "name", ends[1], "netns", pair[1].name)
    for host, other, end in zip(pair, reversed(pair), ends, strict=True):
        ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", end)
        ip("-n", host.name, "link", "set", end, "up")
        ip("-n", host.name, "link", "set", "lo", "up")
        ip("-n", host.name, "route", "add", "default", "via", other.address)
