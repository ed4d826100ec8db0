"""Access to Ray: the token of a cluster that a stage starts, and whether a running cluster asks for one."""

from __future__ import annotations

import contextlib
import os
import secrets
import uuid
from pathlib import Path
from typing import Literal

import grpc
from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # they are compiled
from ray.exceptions import AuthenticationError

from pipeline.runtime import waiting

PATIENCE = 60.0
"""Seconds for which a cluster may be away: its head may be starting."""

ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
"""A request that a head answers at once and that changes nothing."""


def keep_private(folder: Path) -> None:
    """Makes a Ray that this process starts listen on loopback only, behind a token in `folder`."""
    # Where there is a default route Ray takes 127.0.0.1 for a slip, and puts the machine's address in its place, unless it
    # is told that no other machine will ever join: by this name, on Linux too
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False  # Ray was imported before, and has read it
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token(folder))
    os.environ.pop("RAY_AUTH_TOKEN", None)  # of some other cluster
    _mode("token")


def token(folder: Path) -> Path:
    """The absolute path of the token in `folder`, which is made if it is not there; only its owner can read it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / "ray-token").absolute()
    if not file.exists():
        made = file.with_name(f"{file.name}.{uuid.uuid4().hex}")
        made.touch(0o600)
        made.write_text(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):  # another stage was faster: its token is as good
            file.hardlink_to(made)
        made.unlink()
    file.chmod(0o600)
    return file


def admit(address: str) -> None:
    """Waits until the head of a cluster at host:port answers, and sees that it knows us and turns strangers away.

    Raises `TimeoutError` after `PATIENCE`; `ValueError` for a cluster that takes anyone, unless `RAY_AUTH_MODE=disabled`
    says that this is meant, and for a token that is missing or another one.
    """
    mode = os.environ.get("RAY_AUTH_MODE") or "token"
    _mode(mode)
    open_to_all = _ask(address, ()) == "welcome"
    if mode != "token":
        if not open_to_all:
            raise ValueError(
                f"the Ray cluster at {address} asks for a token, and RAY_AUTH_MODE is {mode!r}: export RAY_AUTH_MODE=token"
            )
        return
    if open_to_all:
        raise ValueError(
            f"the Ray cluster at {address} has no token: whoever reaches it runs what he likes on its nodes. Start it with "
            "RAY_AUTH_MODE=token (docs/clusters.md); or, if nobody else can reach it, export RAY_AUTH_MODE=disabled"
        )
    headers = _headers()
    if not headers:
        named = os.environ.get("RAY_AUTH_TOKEN_PATH")
        raise ValueError(
            f"the Ray cluster at {address} asks for a token, and there is none here{f' ({named})' if named else ''}. "
            "Copy ~/.ray/auth_token from its head, or name the file in RAY_AUTH_TOKEN_PATH"
        )
    if _ask(address, headers) != "welcome":
        raise ValueError(
            f"the Ray cluster at {address} has another token than this machine. Copy ~/.ray/auth_token from its head, or "
            "name the file in RAY_AUTH_TOKEN_PATH"
        )


def _headers() -> tuple[tuple[str, str], ...]:
    """The headers that show this machine's token; none if it has no token."""
    loader = AuthenticationTokenLoader.instance()
    loader.reset_cache()
    try:
        there = loader.has_token(ignore_auth_mode=True)
    except AuthenticationError:  # a path that leads to no token
        return ()
    found = loader.get_token_for_http_header() if there else {}
    return tuple((str(name).lower(), str(value)) for name, value in found.items())


def _mode(mode: str) -> None:
    os.environ["RAY_AUTH_MODE"] = mode
    Config.initialize("")  # Ray has read the environment when it was imported


def _ask(address: str, metadata: tuple[tuple[str, str], ...]) -> Literal["welcome", "stranger"]:
    """Whether the head accepts a request with these headers; waits until it answers."""
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        return waiting.until(
            lambda: _answer(channel, metadata), "ray", f"the cluster at {address}", PATIENCE, pause=1.0
        )


def _answer(channel: grpc.Channel, metadata: tuple[tuple[str, str], ...]) -> Literal["welcome", "stranger"] | None:
    try:
        channel.unary_unary(ALIVE)(b"", timeout=5, metadata=metadata)
    except grpc.RpcError as error:
        code = error.code()
        if code == grpc.StatusCode.UNAUTHENTICATED:
            return "stranger"
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            return None
        raise ConnectionError(f"what answers there is no head of a Ray cluster ({code.name})") from None
    return "welcome"
