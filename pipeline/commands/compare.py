"""Runs beside each other: parameters that differ, errors with intervals, paired differences, curves, cost.

Run:    alexnet compare NAME NAME … [--markdown FILE] [--html FILE] [--json]
Reads:  what each NAME means: `here` or another working copy's folder, a DVC experiment, a git revision, a run in MLflow (id,
        fingerprint or name), a study, or STUDY:VARIANT. A study alone compares its variants
Writes: tables to the terminal; with --html one page with the curves that needs no network; with --markdown the tables
Expect: seconds for each run; a difference is from the first NAME, and paired where seeds are equal
"""

from __future__ import annotations

from typing import Any

import click

from pipeline.commands import TypedPath, lazily, typed_in


class Run(click.ParamType[str]):
    """The name of a run; the path of a folder is taken where it was typed."""

    name = "run"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> str:  # noqa: ARG002
        """The word, or the absolute path of the folder that it names if it was typed elsewhere."""
        elsewhere = value != "here" and (typed_in() / value).is_dir() and not typed_in().samefile(".")
        return str(typed_in() / value) if elsewhere else str(value)


command = click.Command(
    "compare",
    params=[
        click.Argument(["names"], type=Run(), nargs=-1, required=True, metavar="NAME..."),
        click.Option(["--markdown"], type=TypedPath(dir_okay=False), metavar="FILE", help="Write Markdown to FILE."),
        click.Option(["--html"], type=TypedPath(dir_okay=False), metavar="FILE", help="Write an HTML page to FILE."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."),
    ],
    callback=lazily("pipeline.comparing.comparison", "compare"),
)
