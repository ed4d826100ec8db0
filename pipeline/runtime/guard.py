"""A guard beside a stage's process: told to stop, it ends in time, with the signal's code, and leaves nobody behind.

The guard is the process that was started. It imports nothing that takes long and does nothing but watch, so that it hears
a signal at every moment, whatever the stage is in: an import, Ray's start, a library that sets handlers of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import mmap
import os
import select
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""The signals that stop a stage."""

TOLD = signal.SIGUSR1
"""How the guard tells the stage: Ray and its trainer take SIGTERM and SIGINT for themselves."""

GRACE = 3.5
"""Seconds in which the stage may end its run and its Ray by itself."""

TWICE = 0.3
"""Seconds within which a second signal is the first one again, as `timeout` sends it."""

SHELLS = ("sh", "bash", "dash", "zsh", "fish", "ksh")
"""What DVC may put between itself and a stage."""

_PDEATHSIG, _SUBREAPER = 1, 36
"""prctl's, on Linux: a signal when the parent ends; who inherits orphans."""

_reached: mmap.mmap | None = None
"""Shared by guard and stage: how far the work is that a stop does not lose; the last byte: whether Python ended the stage."""

_name = "stage"
"""The name of the stage that this process is."""


class Stopped(SystemExit):
    """The stage was told to stop; the code is 128 + the signal's number."""


def hold() -> None:
    """Keeps signals that stop waiting until `over` has a guard that heeds them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)


def release() -> None:
    """For a program without a guard: from here on a signal raises `Stopped`, and a second one ends it at once."""
    for number in STOPS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup's
            signal.signal(number, _stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


def guarded() -> bool:
    """Whether this process is a stage that has its guard."""
    return _reached is not None


def reached(words: str) -> None:
    """Notes how far the work is that a stop does not lose, such as `step 340`: the guard says it when it stops."""
    if _reached is not None:
        _reached.seek(0)
        _reached.write(words.encode()[: len(_reached) - 2].ljust(len(_reached) - 1, b"\0"))


def end(what: str, todo: str) -> None:
    """Says why the stage cannot go on and what to do, and ends it with 1, from any thread; without a guard it only says so."""
    reached = _how_far(_reached)
    _say(f"{_name}: {what}\n{todo}; then dvc repro goes on{f' from {reached}' if reached else ''}")
    if guarded():
        sys.stdout.flush()
        _end()
        os._exit(1)  # what else there is to end may wait for what is lost


def over(name: str) -> None:
    """Goes on in a child process, which is the stage; this one becomes its guard, and ends with its exit code."""
    global _reached, _name
    hold()
    above = _dvc()
    if above is None:
        _say(stop_line(name, ""))
        sys.exit(128 + signal.SIGHUP)
    _prctl(_SUBREAPER, 1)
    words, guard = mmap.mmap(-1, 256), os.getpid()
    sys.stdout.flush()
    stage = os.fork()
    if stage:
        _watch(name, stage, words, above)
    _reached, _name = words, name
    atexit.register(_end)
    for number in (TOLD, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    # SIGINT stays held: a terminal's reaches the guard as well, and Ray's trainer would take it for itself
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (TOLD, signal.SIGTERM, signal.SIGHUP))
    _prctl(_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != guard:
        os._exit(128 + signal.SIGHUP)


def _how_far(shared: mmap.mmap | None) -> str:
    """How far the work is, in words; nothing where it has not got that far."""
    return "" if shared is None else shared[:-1].rstrip(b"\0").decode(errors="replace")


def _end() -> None:
    """Notes that Python ends this process, which has said why; a library that ends it by itself does not come here."""
    if _reached is not None:
        _reached[-1] = 1


def _stop(number: int, _: FrameType | None) -> None:
    for each in (TOLD, *STOPS):
        # below a guard what ends the work is not interrupted: the guard sees to it that it ends
        signal.signal(each, _nothing if guarded() else signal.SIG_DFL)
    # where Python can raise nothing, as in a finalizer, it would print a traceback: then the guard ends the stage
    sys.unraisablehook = _unsaid
    raise Stopped(128 + number)


def _unsaid(_: object) -> None:
    """Says nothing of what cannot be raised."""


def _nothing(number: int, _: FrameType | None) -> None:
    """A handler: the guard reads of signals in its pipe."""


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # only Linux has it; elsewhere some orphans are not found
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _watch(name: str, stage: int, words: mmap.mmap, above: list[psutil.Process]) -> NoReturn:
    """The guard's life: hears signals, looks after DVC, and ends when the stage has."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (*STOPS, signal.SIGCHLD):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup's
            signal.signal(number, _nothing)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    stopped, since = 0, 0.0
    while (ended := _ended(stage)) is None:
        heard = [number for number in _read(reader, 0.2 if stopped else 0.5) if number in STOPS]
        if not stopped and not _run_on(above):
            heard.append(signal.SIGHUP)
        passed = time.monotonic() - since
        if stopped and (passed > GRACE or (heard and passed > TWICE)):
            _kill(stage)
        elif heard and not stopped:
            stopped, since = heard[0], time.monotonic()
            os.kill(stage, TOLD)
    _end_what_is_left()
    reached = _how_far(words)
    if stopped:
        _say(stop_line(name, reached))
    elif os.WIFSIGNALED(ended):
        _say(_death_line(name, signal.Signals(os.WTERMSIG(ended))))
    elif os.WEXITSTATUS(ended) and not words[-1]:
        _say(_lost_line(name, os.WEXITSTATUS(ended), reached))
    os._exit(128 + stopped if stopped else _code(ended))


def _read(reader: int, seconds: float) -> bytes:
    ready, _, _ = select.select([reader], [], [], seconds)
    return os.read(reader, 64) if ready else b""


def _ended(stage: int) -> int | None:
    """The stage's status once it has ended; also takes leave of orphans that came to the guard."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == stage:
                return status
            if pid == 0:
                return None
    return 0


def _code(status: int) -> int:
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def stop_line(name: str, reached: str) -> str:
    """What a stage says that was told to stop."""
    return (
        f"{name}: stopped after {reached}; dvc repro goes on from there"
        if reached
        else f"{name}: stopped; dvc repro goes on"
    )


def _death_line(name: str, number: signal.Signals) -> str:
    why = "as the system does where memory runs out" if number == signal.SIGKILL else "a fault inside a library"
    return f"{name}: its process was ended by {number.name}, {why}; dvc repro goes on"


def _lost_line(name: str, code: int, reached: str) -> str:
    return (
        f"{name}: a library ended its process with {code}, as Ray does when the head of its cluster has been away for a "
        f"minute. Is the head up? dvc repro goes on{f' from {reached}' if reached else ''}"
    )


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it
        os.write(2, f"{line}\n".encode())


def _kill(stage: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(stage, signal.SIGKILL)


def _end_what_is_left() -> None:
    """Ends the processes that the stage has started and left, Ray's among them."""
    end = time.monotonic() + 1.0
    while left := psutil.Process().children(recursive=True):
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if time.monotonic() > end:
            return
        time.sleep(0.01)


# DVC's own lock goes with DVC: after `kill -9` of it the stage would run on, and a second `dvc repro` would start beside
# it. So the stage ends when DVC has.


def _dvc() -> list[psutil.Process] | None:
    """The processes from this one up to the DVC that started it; none where no DVC did, None where it is gone already."""
    if "DVC_STAGE" not in os.environ:
        return []
    chain = []
    for process in psutil.Process().parents():
        chain.append(process)
        if any(Path(word).name == "dvc" or word == "dvc" for word in _words(process)):
            return chain
    # DVC_STAGE is set, yet no dvc is above us: it was killed before we could look, or another program set it
    above = [process.pid for process in chain if Path(next(iter(_words(process)), "")).name not in SHELLS]
    return None if not above or above[0] == 1 else []


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _run_on(chain: list[psutil.Process]) -> bool:
    try:
        return all(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in chain)
    except psutil.NoSuchProcess:
        return False
