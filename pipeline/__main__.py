"""The entry point of every stage and program, `python -m pipeline STAGE`, which checks its arguments before anything else.

`python -m pipeline.STAGE` is the same. The module is imported by its name, by which Ray's workers look up its functions.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from pipeline.runtime import guard, redaction
from pipeline.runtime.commands import PROGRAMS, file_of, head, parser_of

STAGES = ("download", "resize", "mean", "train", "evaluate", "report")


def main(name: str | None = None, words: Sequence[str] | None = None) -> None:
    """Runs a stage or program: `name`, or the first of `words`. Exits with code 2 for unknown arguments."""
    guard.hold_signals()
    words = sys.argv[1:] if words is None else words
    if name is None:
        name, words = _named(words)
    if name in STAGES:
        _stage(name, words)
    else:
        _program(name, words)


def _named(words: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The first word, if it names a stage or a program, and the other words; else exits."""
    if not words or words[0] not in (*STAGES, *PROGRAMS):
        _entry().parse_args(words[:1])  # prints help or an error, and exits
    return words[0], words[1:]


def _entry() -> argparse.ArgumentParser:
    """The parser for help and for unknown words; known words do not reach it."""
    each = [f"  {name:10} {head(file_of(name)).splitlines()[0]}" for name in (*STAGES, *PROGRAMS)]
    parser = argparse.ArgumentParser(
        prog="python -m pipeline",
        description="\n".join(["The stages, which dvc repro runs, and the programs:\n", *each]),
        epilog="python -m pipeline STAGE --help shows what a stage reads and writes.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("stage", choices=(*STAGES, *PROGRAMS), metavar="STAGE")
    return parser


def _stage(name: str, words: Sequence[str]) -> None:
    parser = parser_of(name)
    parser.prog = f"python -m pipeline {name}"
    parser.add_argument("--verbose", action="store_true", help="show the traceback of an error")
    if parser.parse_args(words).verbose:
        os.environ["ALEXNET_TRACEBACK"] = "1"
    guard.start(name)
    import_module("pipeline.runtime.stage").main(
        name,
        lambda: import_module(f"pipeline.{name}").run(),
        lambda: import_module("pipeline.preflight").check(name),
    )


def _program(name: str, words: Sequence[str]) -> None:
    with redaction.guarded():
        PROGRAMS[name]().parse_args(words)
        guard.release_signals()
        sys.argv[1:] = words
        room = ".__main__" if file_of(name).name == "__main__.py" else ""
        try:
            import_module(f"pipeline.{name}{room}").main()
        except guard.Stopped:
            print(f"{name}: stopped", file=sys.stderr)
            raise
        except Exception as error:
            import_module("pipeline.runtime.stage").fail(name, error)


if __name__ == "__main__":
    main()
