"""Files that may unpack to any size are read in a separate process with limited memory.

A Parquet file of 3 kB can become any number of gigabytes before Arrow can be asked how many: a page is unpacked whole, and
each row may name the same large value. The system's limit on a process holds whatever the file claims.
"""

from __future__ import annotations

import contextlib
import pickle
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self, TypeVar

import psutil

from pipeline.runtime import child
from pipeline.runtime.child import Child
from pipeline.runtime.paths import AnyPath

Item = TypeVar("Item")

LIMIT = 4 * 2**30
"""Bytes that the process may allocate after its start; the largest accepted picture needs 3 GiB. Linux alone enforces it."""

# threads, each with memory of its own, are as many as there are cores; Arrow's allocators take more than is asked for
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2", "ARROW_DEFAULT_MEMORY_POOL": "system"}


class Apart:
    """The process, which lives as long as the block: `with Apart() as apart: for item in apart.items(function, file): …`."""

    def __enter__(self) -> Self:
        self._child = Child("pipeline.archives.apart", environment=ENVIRONMENT, silent=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._child.end()

    def items(
        self, function: Callable[..., Iterable[Item]], file: AnyPath, more: tuple[object, ...] = ()
    ) -> Iterator[Item]:
        """The items that `function(file, *more)` yields there. They have to be read to the end before the next call.

        `ValueError` if it takes more than `LIMIT` of memory, or ends the process; its other errors are raised here.
        """
        with contextlib.suppress(BrokenPipeError):  # its end says why
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
            answer: tuple[str, Any] = pickle.load(self._child.answers)  # noqa: S301 - of a process of ours
        except (EOFError, pickle.UnpicklingError):
            code = self._child.process.wait()
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise ValueError(
                f"{file}: damaged: it ended the process that unpacked it ({how}). Fetch it again"
            ) from None
        return answer


def main() -> None:
    """The process itself: reads calls from stdin and writes their items to stdout, until stdin is closed."""
    answers = child.answers()
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            limit, function, file, more = pickle.load(sys.stdin.buffer)  # noqa: S301 - of the process that began this one
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
        if "std::bad_alloc" in str(error):  # so says the reader of a Parquet file's footer
            yield "memory", None
            return
        if not isinstance(error, ValueError):  # it may be a fault of ours
            error.add_note(traceback.format_exc())
        yield "error", error


def _limit(bytes_more: int) -> None:
    """Sets the limit; to be called after all imports, whose memory is not counted."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = psutil.Process().memory_info().vms + bytes_more
    if soft == resource.RLIM_INFINITY or soft > most:
        with contextlib.suppress(ValueError, OSError):  # macOS knows it, and does not hold to it
            resource.setrlimit(resource.RLIMIT_AS, (most, hard))
