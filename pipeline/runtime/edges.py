"""User messages for errors of libraries: what happened, where, and what to do, in at most three lines.

Bugs of this code keep their traceback. An error is recognized by the names of its classes, its message or its errno, so that
no library has to be imported.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

LINES, LONG = 3, 240
"""The most lines of a message, and the most characters that are quoted from a library."""

AGAIN = "Then run again: dvc repro goes on where it was"

Words = Callable[[BaseException], str]


def message(error: BaseException) -> str | None:
    """The message for the user; None for a bug of this code, which keeps its traceback."""
    if inner := list(_wrapped(error)):
        return next(filter(None, map(message, inner)), None)
    words = _words(error)
    if words is None and isinstance(error, RuntimeError) and error.__cause__ is not None:
        return message(error.__cause__)
    return words


def _wrapped(error: BaseException) -> Iterator[BaseException]:
    """Yields the workers' errors inside an error of Ray's."""
    if _named(error, ("ray.",)):
        named = (getattr(error, name, None) for name in ("cause", "controller_failure", "failure", "_base_exc"))
        for each in (*getattr(error, "worker_failures", {}).values(), *named):
            if isinstance(each, BaseException) and each is not error:
                yield each


def _words(error: BaseException) -> str | None:
    for names, words in FAMILIES:
        if _named(error, names):
            return words(error)
    for pattern, words in PATTERNS:
        if isinstance(error, RuntimeError) and re.search(pattern, str(error)):
            return words(error)
    if isinstance(error, OSError):
        return _system(error)
    if _named(error, ("pipeline.runtime.params.ParamsError",)):
        return str(error)  # a line for each fault
    if type(error) in (ValueError, FloatingPointError):
        return _cut(str(error))
    return None


def _named(error: BaseException, names: tuple[str, ...]) -> bool:
    """Whether the error is an instance of one of these classes; a name that ends in a dot is a library with all its classes."""
    classes = [f"{each.__module__}.{each.__qualname__}" for each in type(error).__mro__]
    return any(name == each or (name.endswith(".") and each.startswith(name)) for name in names for each in classes)


# Words


def _say(what: str, error: BaseException, todo: str) -> str:
    where = _where(error)
    return _cut(f"{what}{f' ({where})' if where else ''}: {essential(str(error) or type(error).__name__)}\n{todo}")


def essential(text: str) -> str:
    """The first line of a library's message that says what happened, without tracebacks and advice; at most `LONG` characters."""
    lines = [line.strip() for line in text.split("\n")]
    lines = [
        line for line in lines if line and not re.match(r"Traceback|File \"|\[SQL|\(Background|[~^]+$|\*\*\*", line)
    ]
    line = next(iter(lines), text.strip())
    return line if len(line) <= LONG else f"{line[: LONG - 1]}…"


def _cut(text: str) -> str:
    lines = [line.rstrip() for line in text.split("\n") if line.strip()]
    return "\n".join(lines[:LINES])


def _where(error: BaseException) -> str:
    """A path among the local variables of this code's innermost frame that has one, for errors that name no file."""
    frames, trace = [], error.__traceback__
    while trace is not None:
        frames.append(trace)
        trace = trace.tb_next
    for frame in reversed(frames):
        if path := _path(frame):
            return path
    return ""


HERE = Path(__file__).parents[2]


def _raised_here(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is None or _is_ours(trace)


def _is_ours(trace: TracebackType) -> bool:
    file = Path(trace.tb_frame.f_code.co_filename)
    return any(file.is_relative_to(HERE / room) for room in ("alexnet", "pipeline", "tests"))


def _path(trace: TracebackType) -> str:
    if not _is_ours(trace):
        return ""
    paths = (value for value in trace.tb_frame.f_locals.values() if isinstance(value, Path) or _is_s3(value))
    return next((str(value) for value in paths), "")


def _is_s3(value: Any) -> bool:
    return type(value).__name__ == "S3Path"


def _means(what: str, todo: str) -> Words:
    """One message for a family of errors."""
    return lambda error: _say(what, error, todo)


# Families


ALLOW = "Allow it (chown, chmod), or name another place in machine.yaml (storage, shards, store, tracking)"

SYSTEM: dict[int, str] = {
    errno.ENOSPC: f"Make room on the disk, or name another in machine.yaml (storage). {AGAIN}",
    errno.EDQUOT: f"Your quota on this disk is used up: make room, or name another disk in machine.yaml (storage). {AGAIN}",
    errno.EROFS: "The disk can only be read. Name another folder in machine.yaml (storage, shards, store)",
    errno.EACCES: ALLOW,
    errno.EPERM: ALLOW,
    errno.EMFILE: "This process may open no more files: ulimit -n 65536 before the stage",
    errno.ENFILE: "This machine may open no more files: raise sysctl fs.file-max, or end programs with many open files",
    errno.EIO: "The disk failed to read or write: dmesg says more. Put the data on another one",
    errno.ENOMEM: f"Memory ran out: end other programs, or set fewer workers (machine.yaml). {AGAIN}",
    errno.ENAMETOOLONG: "Choose a shorter name, or a working copy nearer to the root of the disk",
    errno.EPIPE: "The program that read the output has ended",
}
for _number in (errno.ECONNREFUSED, errno.ECONNRESET, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH):
    SYSTEM[_number] = f"Is the server running, and the address right (machine.yaml)? {AGAIN}"


def _system(error: OSError) -> str:
    number = error.errno
    if number is None and not _raised_here(error):
        number = next((number for number in SYSTEM if f"[errno {number}]" in str(error).lower()), None)
    if number is None:
        return _cut(str(error))  # raised by this code with its own message
    name = error.filename if isinstance(error.filename, str) else _where(error)
    what = f"{name}: {os.strerror(number)}" if name else os.strerror(number)
    return f"{what}\n{SYSTEM[number]}" if number in SYSTEM else what


def _ray(error: BaseException) -> str:
    name = type(error).__name__
    # RayTaskError creates classes, with names that are not in RAY
    return RAY.get(name, _means(f"Ray ({name})", f"Ray's logs are in /tmp/ray/session_latest/logs. {AGAIN}"))(error)


_LOST = _means("a worker or its node was lost", f"Is there memory enough (dmesg), and is the node up? {AGAIN}")
_HEAD = _means("the Ray cluster no longer answers", f"Is its head running (ray status)? Start it again. {AGAIN}")
_ROOM = f"Make room, or let Ray use another disk (RAY_TMPDIR). {AGAIN}"

RAY: dict[str, Words] = {
    "OutOfMemoryError": lambda error: _cut(
        f"memory ran out, and Ray's memory monitor ended a worker: {essential(str(error))}\n"
        "Set learning.batch_size (params.yaml) or workers (machine.yaml) lower, or end what else takes memory;\n"
        f"RAY_memory_usage_threshold is the share at which it acts. {AGAIN}"
    ),
    **dict.fromkeys(("WorkerCrashedError", "RayActorError", "ActorDiedError", "ActorUnavailableError"), _LOST),
    **dict.fromkeys(("NodeDiedError", "OwnerDiedError", "ObjectLostError", "ObjectReconstructionFailedError"), _LOST),
    **dict.fromkeys(("LocalRayletDiedError", "RpcError", "RaySystemError"), _HEAD),
    "AuthenticationError": _means(
        "the Ray cluster refused this driver",
        "RAY_AUTH_MODE and the token (RAY_AUTH_TOKEN_PATH) have to be those of its nodes",
    ),
    "ObjectStoreFullError": _means("Ray's object store is full", _ROOM),
    "OutOfDiskError": _means("Ray has no room on its disk", _ROOM),
    "RuntimeEnvSetupError": _means(
        "a node could not get this code", "Is the working copy small enough for Ray (.rayignore)?"
    ),
    **dict.fromkeys(
        ("TaskUnschedulableError", "ActorUnschedulableError", "InsufficientClusterResourcesError"),
        _means(
            "the cluster has no node for this", "machine.yaml: workers, devices and placement say what is asked for"
        ),
    ),
    **dict.fromkeys(
        ("WorkerGroupStartupTimeoutError", "WorkerGroupStartupFailedError"),
        _means(
            "the workers of the training did not start",
            f"Are there CPUs, GPUs and memory for them (ray status)? {AGAIN}",
        ),
    ),
}

_NETWORK = _means("the network", f"Is the server up, and the address right? {AGAIN}")
_MEMORY = _means(
    "memory ran out", f"Ask less at once: learning.batch_size (params.yaml), workers (machine.yaml). {AGAIN}"
)
_DAMAGED = _means(
    "a file is damaged or not whole", "Remove it, or bring it back; the stage that made it makes it again"
)
_TORCH = _means(
    "not a readable file of torch",
    "It is damaged, or from another program. Bring it back, or make it again: dvc repro --force --single-item train",
)
_GLOO = _means(
    "the processes of the training lost each other",
    "Can the nodes reach each other on all ports? GLOO_SOCKET_IFNAME names the network that they share.\n" + AGAIN,
)

FAMILIES: tuple[tuple[tuple[str, ...], Words], ...] = (
    (("ray.exceptions.GetTimeoutError",), _HEAD),
    (("ray.",), _ray),
    (
        ("sqlalchemy.exc.SQLAlchemyError", "sqlite3.Error"),
        _means(
            "MLflow's database",
            f"Does another program hold it, is there room, and is it writable (machine.yaml: tracking)? {AGAIN}",
        ),
    ),
    (
        ("mlflow.exceptions.MlflowException",),
        _means("MLflow", f"Is the tracking server or database in order (machine.yaml: tracking)? {AGAIN}"),
    ),
    (
        ("botocore.exceptions.BotoCoreError", "botocore.exceptions.ClientError", "boto3.exceptions.Boto3Error"),
        _means(
            "the object store",
            "Are AWS_ENDPOINT_URL and the region right, and are AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE)\n"
            f"allowed to read and write there? {AGAIN}",
        ),
    ),
    (("requests.exceptions.RequestException", "urllib3.exceptions.HTTPError", "http.client.HTTPException"), _NETWORK),
    (("urllib.error.URLError", "aiohttp.client_exceptions.ClientError", "ssl.SSLError", "socket.gaierror"), _NETWORK),
    (
        (
            "zipfile.BadZipFile",
            "zipfile.LargeZipFile",
            "tarfile.TarError",
            "zlib.error",
            "lzma.LZMAError",
            "_lzma.LZMAError",
        ),
        _DAMAGED,
    ),
    (("gzip.BadGzipFile", "EOFError", "builtins.EOFError", "struct.error"), _DAMAGED),
    (("_pickle.UnpicklingError", "pickle.UnpicklingError"), _TORCH),
    (("pyarrow.lib.ArrowMemoryError", "builtins.MemoryError", "torch.OutOfMemoryError"), _MEMORY),
    (
        ("pyarrow.lib.ArrowException",),
        _means(
            "a table that cannot be read or written", "Remove it; the stage that made it makes it again (dvc repro)"
        ),
    ),
    (
        ("json.decoder.JSONDecodeError",),
        _means("not readable as JSON", "Remove the file; the stage that made it makes it again (dvc repro)"),
    ),
    (("builtins.UnicodeError",), _means("a name or a text that is not UTF-8", "Rename the file, or save it as UTF-8")),
    (("torch.distributed.DistError", "torch.distributed.DistBackendError"), _GLOO),
    (
        ("jinja2.exceptions.TemplateError",),
        _means("the report's template", "git diff pipeline/evaluation/reporting says what changed"),
    ),
    (
        ("dvc.exceptions.DvcException", "scmrepo.exceptions.SCMError"),
        _means("DVC", "dvc doctor and dvc status say more"),
    ),
    (("filelock._error.Timeout",), _means("another process holds a lock", "Wait for it, or end it")),
    (
        ("subprocess.CalledProcessError", "subprocess.TimeoutExpired"),
        _means("a program failed", "Run it by itself to see what it says"),
    ),
    (
        ("builtins.ModuleNotFoundError",),
        _means("the environment is incomplete", "Make it again: make clean, then make repro"),
    ),
    (("concurrent.futures.process.BrokenProcessPool",), _LOST),
    (("PIL.UnidentifiedImageError",), _DAMAGED),
    (
        ("ruamel.yaml.error.YAMLError", "yaml.error.YAMLError"),
        _means("not readable as YAML", "git diff says what changed"),
    ),
)
"""Names of classes, or of libraries, and the message for their errors; the first match counts."""

PATTERNS: tuple[tuple[str, Words], ...] = (
    (
        r"Version mismatch: ",
        lambda error: _cut(
            "another version of Ray or Python runs on the cluster: "
            f"{' '.join(str(error).removeprefix('Version mismatch: ').split())[:LONG]}\n"
            "Every node needs the environment of requirements.lock"
        ),
    ),
    (r"PytorchStreamReader|Invalid magic number|unexpected EOF|corrupt", _TORCH),
    (r"alloc_cpu|DefaultCPUAllocator|out of memory|can't allocate memory|std::bad_alloc", _MEMORY),
    (r"(?i)gloo|connectFullMesh|Connection closed by peer|NCCL|DistStore|Timed out waiting \d+ms", _GLOO),
    (
        r"can't start new thread",
        _means("this machine starts no more threads", f"ulimit -u says how many it may. {AGAIN}"),
    ),
    (
        r"(?i)maximum recursion depth.*(decod|pars)|recursion",
        _means("a file that is nested too deeply", "Remove it, or bring it back"),
    ),
    (
        r"inline_container|PytorchStreamWriter|basic_ios",
        _means("a file of torch could not be written", f"Is there room on the disk? {AGAIN}"),
    ),
    (r"(?i)Failed to connect to GCS|gcs_server|Can't find a .*Ray", _HEAD),
)
"""Patterns in the text of a RuntimeError, and the message for it; the first match counts."""
