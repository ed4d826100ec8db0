"""Why a training ended: a fault that would recur, or an external one, after which training is attempted again."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from ray.exceptions import RayActorError, RayError, RayTaskError, RuntimeEnvSetupError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    CollectiveTimeoutError,
    UserExceptionWithTraceback,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2.api.exceptions import PreemptionError

from pipeline.runtime.cluster import out_of_memory
from pipeline.training.checkpoints import ChangedError

PAUSES = (1.0, 4.0, 16.0)
"""Seconds before each further attempt after an external fault."""

_GONE = (
    RayError,
    CollectiveTimeoutError,
    PreemptionError,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
"""Ray's errors for a lost worker or node."""

_AWAY = (errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN)

_SERVER = re.compile(
    r"AWS Error (SLOW_DOWN|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|NETWORK_CONNECTION|REQUEST_TIMEOUT|UNKNOWN)"
)
"""Arrow's messages about an object store that does not answer."""

_LINK = re.compile(r"gloo|nccl|connect|socket|peer|timed? ?out|broken pipe", re.IGNORECASE)
"""torch's messages about a broken connection between two processes; gloo's errors have no class of their own."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a training ended."""

    what: str
    """What happened, in one line."""
    advice: str = ""
    """What to do, in one line; may be empty."""
    outside: bool = False
    """Whether the cause is external, so that another attempt may succeed."""
    bug: BaseException | None = None
    """An error in this code, to be shown with its traceback."""


def explained(error: BaseException) -> Fault:
    """The fault behind an exception that Ray Train raised."""
    causes = list(_causes(error))
    lost = any(isinstance(cause, RayActorError) for cause in causes)
    # when one process dies, the others fail too, each with whatever error it meets first
    recurring = [cause for cause in causes if not from_outside(cause) and not (lost and type(cause) is RuntimeError)]
    if recurring:
        return _internal(recurring[0])
    if killed := next(filter(None, (out_of_memory(str(cause)) for cause in causes)), None):
        return Fault(*killed, outside=True)
    gone = [cause for cause in causes if isinstance(cause, _GONE)]
    return _external(gone[0] if gone else causes[0])


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yields the exceptions that caused an error of Ray's, one for each worker that failed."""
    inner: list[BaseException | None] = []
    match error:
        case WorkerGroupError():
            inner = [*error.worker_failures.values()]
        case ControllerError():
            inner = [error.controller_failure]
        case WorkerHealthCheckFailedError():
            inner = [error.health_check_failure]
        case UserExceptionWithTraceback():
            inner = [error._base_exc]
        case RayTaskError():
            inner = [error.cause]
    behind = [cause for cause in inner if isinstance(cause, BaseException) and cause is not error]
    if not behind:
        yield error
    for cause in behind:
        yield from _causes(cause)


def from_outside(error: BaseException) -> bool:
    """Whether an error's cause is external (memory, a process, a node, a server), so that it may not recur."""
    match error:
        case RuntimeEnvSetupError():
            return False
        case ChangedError() | MemoryError() | torch.OutOfMemoryError() | ConnectionError() | TimeoutError():
            return True
        case OSError():
            return error.errno in _AWAY or bool(_SERVER.search(str(error)))
        case dist.DistError():
            return True
    if isinstance(error, _GONE):
        return True
    return type(error) is RuntimeError and bool(_LINK.search(str(error)))


def _internal(error: BaseException) -> Fault:
    if isinstance(error, (ValueError, OSError, ArithmeticError)):
        return Fault(str(error) or type(error).__name__)
    if isinstance(error, ImportError):
        return Fault(
            f"a worker cannot import what it needs: {error}", "Are all nodes installed from requirements.lock?"
        )
    if isinstance(error, RuntimeEnvSetupError):
        return Fault(f"a worker cannot be started: {_line(error)}")
    return Fault(f"{type(error).__name__}: {_line(error)}", bug=error)


def _external(error: BaseException) -> Fault:
    match error:
        case torch.OutOfMemoryError():
            what = f"the GPU is out of memory: {_line(error)}"
            return Fault(what, "End other programs on the GPU, or lower learning.batch_size", outside=True)
        case MemoryError():
            what = f"out of memory: {_line(error)}"
            return Fault(what, "End other programs, or lower learning.batch_size", outside=True)
        case WorkerGroupStartupTimeoutError():
            return Fault("there was no room for its workers", "See `ray status`: what else runs there?", outside=True)
        case OSError():
            return Fault(str(error), outside=True)
    if isinstance(error, _GONE):
        return Fault("a worker died, or its node", "Was it killed (dmesg), or the node switched off?", outside=True)
    return Fault(
        f"a connection between two workers broke: {_line(error)}", "Can all nodes reach each other?", outside=True
    )


def _line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
