"""Access to Ray: the token of a cluster that a stage starts, and the check that a running cluster asks for one."""

from __future__ import annotations

import contextlib
import os
import secrets
import uuid
from pathlib import Path
from typing import Literal

import grpc
from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # compiled, without types
from ray.exceptions import AuthenticationError

from pipeline.runtime import waiting

PATIENCE = 60.0
"""Seconds to wait for a cluster that does not answer: its head may be starting."""

ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
"""A gRPC method of a cluster's head that answers at once and changes nothing."""


def keep_private(folder: Path) -> None:
    """Makes a Ray that this process starts listen on loopback only, and ask for the token in `folder`."""
    # On a machine with a default route Ray replaces 127.0.0.1 by the machine's address, unless this variable says that
    # no other machine will join; despite its name it applies to Linux too
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False  # Ray read the variable when it was imported
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token(folder))
    os.environ.pop("RAY_AUTH_TOKEN", None)  # another cluster's token
    _mode("token")


def token(folder: Path) -> Path:
    """Returns the absolute path of the token in `folder`, and creates the token if it is missing; only its owner can read it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / "ray-token").absolute()
    if not file.exists():
        new = file.with_name(f"{file.name}.{uuid.uuid4().hex}")
        new.touch(0o600)
        new.write_text(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):  # another stage was faster: its token is used
            file.hardlink_to(new)
        new.unlink()
    file.chmod(0o600)
    return file


def admit(address: str, patience: float | None = None) -> None:
    """Waits until the head of a cluster at host:port answers; checks that it asks for a token and accepts this machine's.

    Raises `TimeoutError` after `patience` seconds (`PATIENCE`); `ValueError` for a cluster that asks for no token, unless
    `RAY_AUTH_MODE=disabled` allows it, and for a token that is missing here or that the head does not accept.
    """
    mode, patience = os.environ.get("RAY_AUTH_MODE") or "token", patience or PATIENCE
    _mode(mode)
    open_to_all = _ask(address, (), patience) == "welcome"
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
    if _ask(address, headers, patience) != "welcome":
        raise ValueError(
            f"the Ray cluster at {address} has another token than this machine. Copy ~/.ray/auth_token from its head, or "
            "name the file in RAY_AUTH_TOKEN_PATH"
        )


def _headers() -> tuple[tuple[str, str], ...]:
    """The headers that show this machine's token; none if it has no token."""
    loader = AuthenticationTokenLoader.instance()
    loader.reset_cache()
    try:
        has_token = loader.has_token(ignore_auth_mode=True)
    except AuthenticationError:  # RAY_AUTH_TOKEN_PATH names no token
        return ()
    headers = loader.get_token_for_http_header() if has_token else {}
    return tuple((str(name).lower(), str(value)) for name, value in headers.items())


def _mode(mode: str) -> None:
    os.environ["RAY_AUTH_MODE"] = mode
    Config.initialize("")  # Ray read the environment when it was imported


def _ask(address: str, metadata: tuple[tuple[str, str], ...], patience: float) -> Literal["welcome", "stranger"]:
    """Waits until the head answers a request with these headers, and returns whether it accepted them."""
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        return waiting.until(
            lambda: _answer(channel, metadata, patience), "ray", f"the cluster at {address}", patience, pause=1.0
        )


def _answer(
    channel: grpc.Channel, metadata: tuple[tuple[str, str], ...], patience: float
) -> Literal["welcome", "stranger"] | None:
    try:
        channel.unary_unary(ALIVE)(b"", timeout=min(5.0, patience), metadata=metadata)
    except grpc.RpcError as error:
        code = error.code()
        if code == grpc.StatusCode.UNAUTHENTICATED:
            return "stranger"
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            return None
        raise ConnectionError(f"what answers there is not the head of a Ray cluster ({code.name})") from None
    return "welcome"
