"""Answers one of the questions in studies/: makes the runs that are missing, prints the table, draws the figures.

Run:    make study NAME=ablations [ONLY="one-column no-dropout"] [ON=memory]
        (python -m studies NAME [VARIANT …] [--on memory])
Reads:  studies/NAME/: study.yaml, base.yaml, and the rows of finished runs in runs.csv
Writes: studies/NAME/: runs.csv, curves.csv, losses.png, table.md, and differences.png where the runs were evaluated
Expect: as long as the runs take; a run that has its row is not made again, so a study can be stopped anywhere

A study is run as DVC experiments, or with --on memory on one device that holds all its pictures. figure_1 has its own program.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.runtime import commands, guard

if TYPE_CHECKING:
    from studies.study import Run, Study

HERE = Path(__file__).parent


def parser() -> argparse.ArgumentParser:
    """The words that `python -m studies` takes."""
    made = commands.parser_at(__file__, "python -m studies")
    names = sorted(file.parent.name for kind in ("study.yaml", "program.py") for file in HERE.glob(f"*/{kind}"))
    made.add_argument("name", choices=names, metavar="NAME", help=", ".join(names))
    made.add_argument("variants", nargs="*", metavar="VARIANT", help="all of them if none is named")
    made.add_argument("--on", choices=("dvc", "memory"), default="dvc", help="where the runs are made (dvc)")
    made.add_argument(
        "--at-once", type=_from_one, default=1, metavar="N", help="with --on memory: runs at the same time (1)"
    )
    return made


def _from_one(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"has to be at least 1, is {word}")
    return int(word)


def main() -> None:
    """Runs what is missing of a study, then shows what was found."""
    guard.hold_signals()
    from pipeline.runtime import redaction

    with redaction.guarded():
        asked = parser().parse_args()
        guard.release_signals()
        try:
            answer(asked)
        except guard.Stopped:
            print("studies: stopped; finished runs are kept", file=sys.stderr)
            raise
        except (ValueError, OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(f"studies: {error}") from None
        except Exception as error:
            from pipeline.runtime import stage

            stage.fail("studies", error)


def answer(asked: argparse.Namespace) -> None:
    """Runs what is missing, and shows the table. Imports what takes long only now."""
    if (HERE / asked.name / "program.py").exists():
        if asked.variants or asked.on != "dvc":
            raise ValueError(f"{asked.name} has a program of its own, which takes no variants and no --on")
        import_module(f"studies.{asked.name}.program").main()
        return
    from pipeline.runtime import stage
    from studies import rows, showing
    from studies.study import read, select

    study = read(asked.name)
    chosen = select(study, asked.variants)
    try:
        if rows.missing(study, chosen):
            with stage.alone(f"study-{study.name}"):
                make(study, rows.missing(study, chosen), asked)  # another process may have made some meanwhile
    finally:
        showing.show(study)


def make(study: Study, missing: Sequence[Run], asked: argparse.Namespace) -> None:
    """Makes these runs where the command says."""
    if asked.on == "memory":
        from studies import in_memory

        in_memory.run(study, missing, asked.at_once)
    else:
        from studies import experiments

        experiments.run(study, missing)


if __name__ == "__main__":
    main()
