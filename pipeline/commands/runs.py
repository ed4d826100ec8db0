"""The last runs, good or not: errors with intervals, beside the champion and the paper; what differs; cost.

Run:    alexnet runs [--last N] [--json]
Reads:  the runs in MLflow
Writes: a table to the terminal, and in words whether the newest run is better than the one before
Expect: seconds; the table is at most 110 columns wide
"""

from __future__ import annotations

import click

from pipeline.commands import lazily

command = click.Command(
    "runs",
    params=[
        click.Option(
            ["--last"], type=click.IntRange(min=1, max=1000), default=10, show_default=True, help="Number of runs."
        ),
        click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."),
    ],
    callback=lazily("pipeline.comparing.listing", "runs"),
)
