"""A separate process with limited memory, for files that may unpack to any size.

Arrow unpacks a page of a Parquet file whole, and each row may refer to the same large value, so a file of 3 kB can fill any
memory before Arrow reports a size. The operating system's limit on the process holds whatever the file claims.
"""

from __future__ import annotations

import contextlib
import pickle
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, Self, TypeVar

import psutil

from pipeline.runtime.child import Child
from pipeline.runtime.paths import AnyPath

Item = TypeVar("Item")

LIMIT = 4 * 2**30
"""Bytes that the process may allocate after its start; the largest accepted picture needs 3 GiB. Only Linux enforces it."""

# each thread has memory of its own, and Arrow's other allocators reserve more than is requested
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2", "ARROW_DEFAULT_MEMORY_POOL": "system"}


class Apart:
    """The process; it runs while the block does: `with Apart() as apart: for item in apart.items(function, file): …`."""

    def __enter__(self) -> Self:
        self._child = Child("pipeline.archives.apart", environment=ENVIRONMENT, silent=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._child.end()

    def items(
        self, function: Callable[..., Iterable[Item]], file: AnyPath, more: tuple[object, ...] = ()
    ) -> Iterator[Item]:
        """Yields the items that `function(file, *more)` yields in the process. Read them all before the next call.

        `ValueError` if the function needs more than `LIMIT` of memory or ends the process; its other errors are raised here.
        """
        with contextlib.suppress(BrokenPipeError):  # the process has ended: `_answer` reports why
            pickle.dump((LIMIT, function, file, more), self._child.ask)
            self._child.ask.flush()
        while True:
            kind, item = self._answer(file)
            if kind == "end":
                return
            if kind == "memory":
                raise ValueError(
                    f"{file}: takes more than {LIMIT / 2**30:,.2g} GiB of memory to unpack. Is it the file it should be? "
                    "Fetch it again, or remove it"
                )
            if kind == "error":
                raise item
            yield item

    def _answer(self, file: AnyPath) -> tuple[str, Any]:
        try:
            answer: tuple[str, Any] = pickle.load(self._child.answers)  # noqa: S301 - from our own child process
        except (EOFError, pickle.UnpicklingError):
            code = self._child.process.wait()
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise ValueError(
                f"{file}: damaged: it ended the process that unpacked it ({how}). Fetch it again"
            ) from None
        return answer


def main(answers: BinaryIO) -> None:
    """Runs in the process: reads calls from stdin and writes their items to `answers`, until stdin is closed."""
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            limit, function, file, more = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the parent process
            _limit(limit)
            for answer in _answers(function, file, more):
                pickle.dump(answer, answers, protocol=5)
                answers.flush()


def _answers(function: Callable[..., Iterable[object]], file: AnyPath, more: tuple[object, ...]) -> Iterator[Any]:
    try:
        for item in function(file, *more):
            yield "item", item
        yield "end", None
    except MemoryError:
        yield "memory", None
    except Exception as error:
        if "std::bad_alloc" in str(error):  # Arrow's message if a Parquet file's footer needs too much memory
            yield "memory", None
            return
        if not isinstance(error, ValueError):  # it may be a bug in our code
            error.add_note(traceback.format_exc())
        yield "error", error


def _limit(bytes_more: int) -> None:
    """Sets the limit. Call it after all imports, so that their memory is not counted."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = psutil.Process().memory_info().vms + bytes_more
    if soft == resource.RLIM_INFINITY or soft > most:
        with contextlib.suppress(ValueError, OSError):  # macOS has the limit, but does not enforce it
            resource.setrlimit(resource.RLIMIT_AS, (most, hard))
