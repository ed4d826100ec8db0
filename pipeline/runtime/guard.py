"""A parent process for each stage, so that a stop signal ends the stage in time, with the signal's exit code, and no orphans.

The guard is the process that was started; the stage is its child. The guard imports nothing slow and only watches, so that
it can handle a signal at any moment, even while the stage imports, starts Ray, or runs a library that sets its own handlers.
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

from pipeline.runtime import durations

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""The signals that stop a stage."""

STOP_SIGNAL = signal.SIGUSR1
"""The signal by which the guard stops the stage: Ray and its trainer handle SIGTERM and SIGINT themselves."""

GRACE = 3.5
"""Seconds in which the stage may end its MLflow run and its Ray before it is killed."""

TWICE = 0.3
"""Seconds in which a second signal is ignored: `timeout` sends the same one twice."""

SHELLS = ("sh", "bash", "dash", "zsh", "fish", "ksh")
"""Shells that may be between DVC and a stage."""

_PDEATHSIG, _SUBREAPER = 1, 36
"""Options of Linux's prctl: PR_SET_PDEATHSIG, a signal when the parent ends; PR_SET_CHILD_SUBREAPER, which adopts orphans."""

_reached: mmap.mmap | None = None
"""Shared by guard and stage: the work that a stop does not lose, in words; the last byte is 1 if Python ended the stage."""

_name = "stage"
"""The name of the stage that runs in this process."""


class Stopped(SystemExit):
    """The stage was stopped by a signal; the exit code is 128 + the signal's number."""


def hold_signals() -> None:
    """Blocks the stop signals until `start` has set up a guard that handles them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)


def release_signals() -> None:
    """For a program without a guard: unblocks the signals; the first one raises `Stopped`, a second one ends the program."""
    for number in STOPS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup's
            signal.signal(number, _stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


def guarded() -> bool:
    """Whether this process is a stage with a guard."""
    return _reached is not None


def reached(words: str) -> None:
    """Records how far the work is that a stop does not lose, such as `step 340`; the guard prints it when the stage stops."""
    if _reached is not None:
        _reached.seek(0)
        _reached.write(words.encode()[: len(_reached) - 2].ljust(len(_reached) - 1, b"\0"))


def end(what: str, todo: str) -> None:
    """Prints why the stage cannot go on and what to do, and exits with code 1, from any thread. Without a guard only prints."""
    reached = _how_far(_reached)
    _say(f"{_name}: {what}\n{todo}; then dvc repro goes on{f' from {reached}' if reached else ''}")
    if guarded():
        sys.stdout.flush()
        _end()
        os._exit(1)  # an orderly exit may wait for the very thing that is lost


def start(name: str) -> None:
    """Forks: returns in the child, which is the stage; the parent becomes its guard, and exits with its exit code."""
    global _reached, _name
    hold_signals()
    ancestors = _dvc()
    if ancestors is None:
        _say(stop_line(name, ""))
        sys.exit(128 + signal.SIGHUP)
    _prctl(_SUBREAPER, 1)
    words, guard = mmap.mmap(-1, 256), os.getpid()
    sys.stdout.flush()
    stage = os.fork()
    if stage:
        _watch(name, stage, words, ancestors)
    _reached, _name = words, name
    atexit.register(_end)
    for number in (STOP_SIGNAL, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    # SIGINT stays blocked: a terminal sends it to the guard too, and Ray's trainer would handle it itself
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (STOP_SIGNAL, signal.SIGTERM, signal.SIGHUP))
    _prctl(_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != guard:
        os._exit(128 + signal.SIGHUP)


def _how_far(shared: mmap.mmap | None) -> str:
    """The work that a stop does not lose, in words; empty if there is none."""
    return "" if shared is None else shared[:-1].rstrip(b"\0").decode(errors="replace")


def _end() -> None:
    """Records that Python ends this process, and has printed why; when a library ends it, this is not called."""
    if _reached is not None:
        _reached[-1] = 1


def _stop(number: int, _: FrameType | None) -> None:
    for each in (STOP_SIGNAL, *STOPS):
        # with a guard, further signals are ignored: the guard makes sure that the stage ends
        signal.signal(each, _nothing if guarded() else signal.SIG_DFL)
    # in a finalizer Python cannot raise, and would print a traceback; the guard then ends the stage
    sys.unraisablehook = _ignore
    raise Stopped(128 + number)


def _ignore(_: object) -> None:
    """An unraisablehook that prints nothing."""


def _nothing(number: int, _: FrameType | None) -> None:
    """A handler that does nothing: the guard reads the signals from its wakeup pipe."""


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # only Linux has it; on other systems some orphans stay
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _watch(name: str, stage: int, words: mmap.mmap, ancestors: list[psutil.Process]) -> NoReturn:
    """The guard's loop: passes on signals, stops the stage if DVC is gone, and exits when the stage has ended."""
    began = time.monotonic()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (*STOPS, signal.SIGCHLD):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup's
            signal.signal(number, _nothing)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    stopped, since = 0, 0.0
    while (ended := _ended(stage)) is None:
        signals = [number for number in _read(reader, 0.2 if stopped else 0.5) if number in STOPS]
        if not stopped and not _all_running(ancestors):
            signals.append(signal.SIGHUP)
        passed = time.monotonic() - since
        if stopped and (passed > GRACE or (signals and passed > TWICE)):
            _kill(stage)
        elif signals and not stopped:
            stopped, since = signals[0], time.monotonic()
            os.kill(stage, STOP_SIGNAL)
    _end_what_is_left()
    reached = _how_far(words)
    if stopped:
        _say(stop_line(name, reached))
    elif os.WIFSIGNALED(ended):
        _say(_death_line(name, signal.Signals(os.WTERMSIG(ended))))
    elif os.WEXITSTATUS(ended) and not words[-1]:
        _say(_lost_line(name, os.WEXITSTATUS(ended), reached))
    elif not ended:
        durations.record(name, time.monotonic() - began)
    os._exit(128 + stopped if stopped else _code(ended))


def _read(reader: int, seconds: float) -> bytes:
    ready, _, _ = select.select([reader], [], [], seconds)
    return os.read(reader, 64) if ready else b""


def _ended(stage: int) -> int | None:
    """The stage's wait status, or None while it runs; also reaps orphans that the guard has adopted."""
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
    """The line that the guard prints when the stage was stopped."""
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
    with contextlib.suppress(OSError):  # stderr may be closed
        os.write(2, f"{line}\n".encode())


def _kill(stage: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(stage, signal.SIGKILL)


def _end_what_is_left() -> None:
    """Kills the processes that the stage has left running, Ray's among them."""
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


# DVC's lock is released when DVC ends. After `kill -9` of DVC the stage would still run, and a second `dvc repro` would start
# another one. So the guard stops the stage when DVC has ended.


def _dvc() -> list[psutil.Process] | None:
    """The ancestors of this process up to the DVC that started it; empty if no DVC did, None if it has ended already."""
    if "DVC_STAGE" not in os.environ:
        return []
    chain = []
    for process in psutil.Process().parents():
        chain.append(process)
        if any(Path(word).name == "dvc" or word == "dvc" for word in _words(process)):
            return chain
    # DVC_STAGE is set, but no ancestor is dvc: either dvc was killed already, or another program set the variable
    others = [process.pid for process in chain if Path(next(iter(_words(process)), "")).name not in SHELLS]
    return None if not others or others[0] == 1 else []


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _all_running(chain: list[psutil.Process]) -> bool:
    try:
        return all(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in chain)
    except psutil.NoSuchProcess:
        return False
