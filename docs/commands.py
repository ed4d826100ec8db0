"""The page of commands: the help of each command of `alexnet`, as the command prints it."""

from __future__ import annotations

from collections.abc import Iterator

import click

from pipeline.commands import STAGES, alexnet

WIDTH = 100


def text() -> str:
    """All commands in Markdown, a heading and a block for each; a stage's help is the head of its module."""
    whole = click.Context(alexnet, info_name="alexnet", **{**alexnet.context_settings, "max_content_width": WIDTH})
    parts = [f"## {each.command_path}\n\n```text\n{each.get_help()}\n```" for each in contexts(alexnet, whole)]
    return "\n\n".join(parts)


def contexts(group: click.Group, context: click.Context) -> Iterator[click.Context]:
    """The context of each command of a group, and of each command of a command; not of stages."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if name in STAGES or command is None:
            continue
        inner = click.Context(command, info_name=name, parent=context, terminal_width=WIDTH)
        yield inner
        if isinstance(command, click.Group):
            yield from contexts(command, inner)
