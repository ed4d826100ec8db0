"""A helper subprocess: it runs one module, is asked on stdin, and answers on stdout."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]

PROGRAM = "import sys; sys.path.insert(0, sys.argv.pop()); from pipeline.runtime import child; child.run('{}')"
"""The subprocess's code. It sets `sys.path` itself because a path with a colon in it cannot be in PYTHONPATH."""


class Child:
    """A subprocess that runs `main` of a module until it is ended."""

    def __init__(self, module: str, *, environment: Mapping[str, str] | None = None, silent: bool = False) -> None:
        # in its own session, so that Ctrl-C reaches only the stage, which may still need answers before it ends this process
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


def run(module: str) -> None:
    """Called in the subprocess: runs the module's `main`, which takes the stream for answers.

    All other writes to stdout, also those during imports, go to stderr.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    import_module(module).main(answers)
