"""The runs in MLflow: prints their address, sends journals that are left, serves MLflow's web pages.

Run:    alexnet tracking [send|ui]
"""

from __future__ import annotations

import click

from pipeline.commands import lazily


@click.pass_context
def _address(context: click.Context) -> None:
    """Prints the runs' address, if no subcommand is named."""
    if context.invoked_subcommand is None:
        lazily("pipeline.tracking.__main__", "address")()


command = click.Group("tracking", invoke_without_command=True, callback=_address)
command.add_command(
    click.Command(
        "send",
        help="Send to MLflow what the stages could not send.",
        params=[
            click.Option(
                ["--limit"],
                type=click.FloatRange(min=0, min_open=True),
                default=3600.0,
                show_default=True,
                metavar="SECONDS",
                help="The most that it may take.",
            )
        ],
        callback=lazily("pipeline.tracking.__main__", "send"),
    )
)
command.add_command(
    click.Command(
        "ui",
        help="Serve MLflow's pages on 127.0.0.1.",
        params=[
            click.Option(
                ["--port"],
                type=click.IntRange(1, 2**16 - 1),
                default=5000,
                show_default=True,
                help="The port of the pages.",
            )
        ],
        callback=lazily("pipeline.tracking.__main__", "show"),
    )
)
