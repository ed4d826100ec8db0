"""The command that runs a study: trains the missing runs, prints the table, draws the figures.

Run:    make study NAME=ablations [ONLY="one-column no-dropout"] [ON=memory]
        (python -m studies NAME [VARIANT …] [--on memory])
Reads:  studies/NAME/: study.yaml, base.yaml, and the rows of finished runs in runs.csv
Writes: studies/NAME/: runs.csv, curves.csv, losses.png, table.md, and differences.png where the runs were evaluated
Expect: as long as the runs take; a run that has its row is not repeated, so a study can be stopped at any time

The runs are DVC experiments or, with --on memory, run on one device that holds all pictures. figure_1 has its own program.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.runtime import guard, redaction, stage, usage

if TYPE_CHECKING:
    from studies.study import Run, Study

HERE = Path(__file__).parent


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    made = usage.parser_at(__file__, "python -m studies")
    names = sorted(file.parent.name for kind in ("study.yaml", "program.py") for file in HERE.glob(f"*/{kind}"))
    made.add_argument("name", choices=names, metavar="NAME", help=", ".join(names))
    made.add_argument("variants", nargs="*", metavar="VARIANT", help="all of them if none is named")
    made.add_argument(
        "--on",
        choices=("dvc", "memory"),
        default="dvc",
        help="dvc: as DVC experiments; memory: on one device (dvc)",
    )
    made.add_argument(
        "--at-once",
        type=_from_one,
        default=1,
        metavar="N",
        help="with --on memory: number of runs at the same time (1)",
    )
    return made


def _from_one(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"has to be at least 1, is {word}")
    return int(word)


def main() -> None:
    """Runs the command; errors of the user's files and of DVC end it in one line."""
    guard.hold_signals()
    with redaction.guarded():
        arguments = parser().parse_args()
        guard.release_signals()
        try:
            run(arguments)
        except guard.Stopped:
            print("studies: stopped; finished runs are kept", file=sys.stderr)
            raise
        except (ValueError, OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(f"studies: {error}") from None
        except Exception as error:
            stage.fail("studies", error)


def run(arguments: argparse.Namespace) -> None:
    """Trains the missing runs of a study and shows its results, also after an error. Slow modules are imported here."""
    if (HERE / arguments.name / "program.py").exists():
        if arguments.variants or arguments.on != "dvc":
            raise ValueError(f"{arguments.name} has a program of its own, which takes no variants and no --on")
        import_module(f"studies.{arguments.name}.program").main()
        return
    from studies import rows, showing
    from studies.study import read, select

    study = read(arguments.name)
    variants = select(study, arguments.variants)
    try:
        if rows.missing(study, variants):
            with stage.alone(f"study-{study.name}"):
                train(study, rows.missing(study, variants), arguments)  # another process may have made some meanwhile
    finally:
        showing.show(study)


def train(study: Study, missing: Sequence[Run], arguments: argparse.Namespace) -> None:
    """Trains these runs, as DVC experiments or in memory as `--on` says."""
    if arguments.on == "memory":
        from studies import in_memory

        in_memory.run(study, missing, arguments.at_once)
    else:
        from studies import experiments

        experiments.run(study, missing)


if __name__ == "__main__":
    main()
