"""The page of commands: the help of each command of `alexnet`, as the command prints it."""

from __future__ import annotations

from collections.abc import Iterator

import click

from pipeline.commands import STAGES, alexnet

WIDTH = 100


def names() -> Iterator[tuple[str, click.Command]]:
    """The words behind `alexnet`, and the command, of each command and each command of a command; not of stages."""
    context = click.Context(alexnet)
    for name in alexnet.list_commands(context):
        command = alexnet.get_command(context, name)
        if name in STAGES or command is None:
            continue
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {each}", inner) for each, inner in command.commands.items())


def text() -> str:
    """All commands in Markdown, a heading and a block for each."""
    parts = []
    for name, command in names():
        context = click.Context(command, info_name=f"alexnet {name}", terminal_width=WIDTH)
        parts.append(f"## alexnet {name}\n\n```text\n{command.get_help(context)}\n```")
    return "\n\n".join(parts)
