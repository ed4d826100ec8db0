"""Saved probabilities of several networks → the errors of their weighted mean (§6, Table 2).

Run:    alexnet ensemble NAME[=WEIGHT] NAME[=WEIGHT] ... [--out FILE]
Reads:  predictions.parquet of each NAME: a DVC experiment, a git revision, a folder such as data/evaluation, or the
        file itself
Writes: a table to the terminal, a run to MLflow, and with --out the table as JSON
Takes:  no section of params.yaml
Expect: no network is run; 7 networks of 1000 classes on 50,000 pictures: 10 seconds of one CPU, 0.8 GB of memory
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.commands import TypedPath, lazily, typed_in
from pipeline.runtime import git


class Network(click.ParamType[str]):
    """A path, a git revision or a DVC experiment, with or without =WEIGHT behind it."""

    name = "network"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> str:
        """The word, with its path made absolute if it was typed in another folder than the current one."""
        for name in (value, value.rpartition("=")[0]):
            if name and (typed_in() / name).exists():
                return value if typed_in() == Path.cwd() else f"{typed_in() / name}{value[len(name) :]}"
            if git.is_known(name):
                return str(value)
        return self.fail(
            f"{value}: neither a path nor an experiment nor a revision. See: dvc exp list", parameter, context
        )


command = click.Command(
    "ensemble",
    params=[
        click.Argument(["members"], type=Network(), nargs=-1, required=True, metavar="NAME[=WEIGHT]..."),
        click.Option(["--out"], type=TypedPath(), metavar="FILE", help="Write the table to FILE as JSON."),
    ],
    callback=lazily("pipeline.comparing.ensemble", "main"),
)
