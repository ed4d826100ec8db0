"""Runs a recipe as a DVC experiment in a copy of the working copy; params.yaml here does not change.

Run:    make repro RECIPE=paper SOURCE=ilsvrc2012   (alexnet recipe paper --source ilsvrc2012)
Reads:  recipes/paper.yaml, and recipes/sources/ilsvrc2012.yaml, which overrides parts of it
Writes: a DVC experiment, listed by `dvc exp show`, and the outs of every stage
"""

from __future__ import annotations

import click

from pipeline.commands import Named, lazily
from pipeline.runtime.usage import RECIPES

command = click.Command(
    "recipe",
    params=[
        click.Argument(["name"], type=Named(RECIPES), required=False, metavar="RECIPE"),
        click.Option(["--source"], type=Named(RECIPES / "sources"), help="The data set to use instead."),
    ],
    callback=lazily("pipeline.recipe", "main"),
)
