"""Prints the script by which a shell completes this command's words.

Run:    eval "$(alexnet completion bash)"   in ~/.bashrc; zsh: the same in ~/.zshrc
        alexnet completion fish | source    in ~/.config/fish/config.fish
"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


def _print(shell: str) -> None:
    """Prints click's script for the shell."""
    kind = get_completion_class(shell)
    assert kind is not None, shell
    click.echo(kind(click.get_current_context().find_root().command, {}, "alexnet", "_ALEXNET_COMPLETE").source())


command = click.Command("completion", params=[click.Argument(["shell"], type=click.Choice(SHELLS))], callback=_print)
