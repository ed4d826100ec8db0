"""What a network confuses: the pairs of classes, the pictures, the most confident mistakes, the least sure pictures.

Run:    alexnet confused [--model-run NAME | --last] [--html FILE] [--open] [--json]
Reads:  data/evaluation/ and data/shards/ here, or the answers of a DVC experiment or a revision
Writes: tables to the terminal; with --html or --open one page with the pictures that needs no network
Expect: seconds; the page has up to 112 pictures and some 3 MB
"""

from __future__ import annotations

import click

from pipeline.commands import TypedPath, lazily

command = click.Command(
    "confused",
    params=[
        click.Option(["--model-run"], metavar="NAME", help="A run by the names of compare; default: here."),
        click.Option(["--last"], is_flag=True, help="The newest evaluated run in MLflow."),
        click.Option(["--html"], type=TypedPath(dir_okay=False), metavar="FILE", help="Write the page to FILE."),
        click.Option(["--open", "open_page"], is_flag=True, help="Show the page in a browser."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."),
    ],
    callback=lazily("pipeline.comparing.confused", "confused"),
)
