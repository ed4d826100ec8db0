"""Runs what is not up to date of the workflow: here, or with changes as an experiment in a copy.

Run:    alexnet run                                      as make repro, which is dvc repro
        alexnet run -S learning.rate=0.02 -S learning.epochs=5
        alexnet run --recipe paper --source ilsvrc2012   as make repro RECIPE=paper SOURCE=ilsvrc2012
Reads:  params.yaml, recipes/, and dvc.lock for what is up to date
Writes: without changes the outs of every stage; with changes a DVC experiment, while params.yaml and all results here stay
        as they are
"""

from __future__ import annotations

import click

from pipeline.commands import Named, lazily
from pipeline.runtime.usage import RECIPES

command = click.Command(
    "run",
    params=[
        click.Option(["--recipe", "recipe_name"], type=Named(RECIPES), help="The params.yaml to use instead."),
        click.Option(["--source"], type=Named(RECIPES / "sources"), help="The data set to use instead."),
        click.Option(
            ["-S", "--set", "changes"], multiple=True, metavar="KEY=VALUE", help="A key of params.yaml to change."
        ),
        click.Option(["--dry"], is_flag=True, help="Say what would run, and run nothing."),
    ],
    callback=lazily("pipeline.workflow.run", "run"),
)
