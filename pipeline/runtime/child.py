"""A process of ours beside a stage's: it runs one module, is asked on its stdin, and answers on its stdout."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, BinaryIO

ROOT = Path(__file__).parents[2]

PROGRAM = "import sys; sys.path.insert(0, sys.argv.pop()); from {} import main; main()"
"""By the path and not by PYTHONPATH: a folder may have a colon in its name."""


class Child:
    """The process that runs `main` of a module, until it is ended."""

    def __init__(self, module: str, *, environment: Mapping[str, str] | None = None, silent: bool = False) -> None:
        # a session of its own: Ctrl-C is for the stage, which then asks this process for the rest, or ends it
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(module), str(ROOT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if silent else None,
            env=os.environ | (environment or {}),
            start_new_session=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.ask: IO[bytes] = self.process.stdin
        self.answers: IO[bytes] = self.process.stdout

    def end(self) -> None:
        """Kills the process."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.ask, self.answers):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def answers() -> BinaryIO:
    """For the process itself: the stream of its answers, which nobody else's words come between."""
    stream = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return stream
