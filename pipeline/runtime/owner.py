"""The identity of a process, by which another process later finds out whether it is alive, without relying on the clock."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

import psutil

PROC = Path("/proc")

TOLERANCE = 300.0
"""Seconds by which two readings of one process's start time may differ on systems without /proc: the clock may have been set."""


def identity() -> str:
    """This process's identity: host, pid and start. On Linux the start is machine id, boot id, pid namespace and clock ticks."""
    number = os.getpid()
    return f"{socket.gethostname()} {number} {_start(number) or f'{psutil.Process().create_time():.2f}'}"


def lives(words: str) -> bool | None:
    """Whether the process with this identity is alive; None if it is on another machine or in another container."""
    host, _, rest = words.partition(" ")
    number, _, start = rest.partition(" ")
    if host != socket.gethostname() or not number.isdigit():
        return None
    if "/" not in start:
        return _lives_by_the_clock(int(number), start)
    machine, boot, namespace, ticks = start.split("/")
    if boot != _boot():
        return False if machine and machine == _machine() else None
    if namespace != _namespace():
        return None
    return _ticks(int(number)) == ticks


def _lives_by_the_clock(number: int, start: str) -> bool:
    try:
        return abs(psutil.Process(number).create_time() - float(start)) < TOLERANCE and not _ended(number)
    except (psutil.Error, ValueError):
        return False


def _ended(number: int) -> bool:
    return psutil.Process(number).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


def _start(number: int) -> str:
    boot, namespace, ticks = _boot(), _namespace(), _ticks(number)
    return f"{_machine()}/{boot}/{namespace}/{ticks}" if boot and namespace and ticks else ""


def _machine() -> str:
    return _read(Path("/etc/machine-id"))


def _boot() -> str:
    return _read(PROC / "sys/kernel/random/boot_id")


def _namespace() -> str:
    """The inode of the pid namespace, since two containers may have the same host name."""
    with suppress(OSError):
        return str((PROC / "self/ns/pid").stat().st_ino)
    return ""


def _ticks(number: int) -> str:
    """The start of the process in clock ticks since boot; empty if it has ended or is a zombie."""
    # The name, in parentheses, may contain any character, so the fields are counted from behind it: state is the 3rd of
    # the line, the start the 22nd
    fields = _read(PROC / str(number) / "stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] not in "ZX" else ""


def _read(file: Path) -> str:
    with suppress(OSError):
        return file.read_text().strip()
    return ""
