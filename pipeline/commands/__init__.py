"""The command line `alexnet`, or `python -m pipeline`: one module for each command, imported when that command is asked for

A command's module imports only click and this package, so that help takes no time. It has a click command named `command`
whose callback is made by `lazily`, and a docstring whose head is the command's help.
"""

from __future__ import annotations

import difflib
import os
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from gettext import gettext
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from pipeline.runtime import git, guard, usage

STAGES = ("download", "resize", "mean", "train", "evaluate", "report")

HERE = Path(__file__).parent

CODES = """Exit codes: 0 done; 1 something that you can mend, and the message says how (or, of a command that judges, a fault that
it found); 2 words that the command does not know, and nothing was done; 128 + N ended by signal N."""

SETTINGS: Mapping[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 120}

_typed_in: list[Path] = []


def typed_in() -> Path:
    """The folder where the command was typed: relative paths that a user gives mean files there."""
    return _typed_in[-1] if _typed_in else Path.cwd()


def set_typed_in(folder: Path) -> None:
    """Says where the command was typed, if that is not the current folder."""
    _typed_in.append(folder)


class TypedPath(click.Path):
    """The type of a path that a user gives: relative to the folder where the command was typed; click.Path's options."""

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """The path as typed if that is the current folder, else joined to the folder where it was typed; `-` stays."""
        if str(value) != "-" and typed_in() != Path.cwd():
            value = typed_in() / value
        return super().convert(value, parameter, context)


class Named(click.ParamType[str]):
    """The type of a name among the YAML files of a folder, such as a recipe."""

    name = "name"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> str:
        """The name, if there is such a file."""
        if value not in (there := usage.names(self.folder)):
            near = difflib.get_close_matches(value, there, n=1, cutoff=0.5)
            advice = f"did you mean '{near[0]}'? " if near else ""
            self.fail(
                f"{self.folder / value}.yaml: not there; {advice}there are {', '.join(there)}", parameter, context
            )
        return str(value)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002
        """The names, as help shows them."""
        return f"[{'|'.join(usage.names(self.folder))}]"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        """The names that begin so, for the shell."""
        return [CompletionItem(name) for name in usage.names(self.folder) if name.startswith(incomplete)]


def lazily(module: str, function: str) -> Callable[..., None]:
    """A command's callback: imports `module` and calls `function` with the options as keyword arguments.

    Errors that the user can mend are printed as plain messages, with exit code 1; a signal ends the command with 128 + N.
    """

    def callback(**options: Any) -> None:
        name = click.get_current_context().info_name or function
        guard.release_signals()
        try:
            getattr(import_module(module), function)(**options)
        except guard.Stopped:
            print(f"{name}: stopped", file=sys.stderr)
            raise
        except (click.ClickException, click.exceptions.Exit):
            raise
        except Exception as error:
            import_module("pipeline.runtime.stage").fail(name, error)

    return callback


def _stage(name: str) -> click.Command:
    """The command that runs a stage under its guard, after everything was checked."""

    def callback() -> None:
        guard.start(name)
        if os.environ.get("ALEXNET_QUIET"):  # a stage's results are files
            sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  # for the rest of the process
        import_module("pipeline.runtime.stage").main(
            name,
            lambda: import_module(f"pipeline.{name}").run(),
            lambda: import_module("pipeline.doctor.preflight").check(name),
        )

    return click.Command(name, callback=callback)


def _environment(variable: str) -> Callable[[click.Context, click.Parameter, bool], None]:
    def say(_: click.Context, __: click.Parameter, asked: bool) -> None:
        if asked:
            os.environ[variable] = "1"

    return say


def loudness() -> list[click.Parameter]:
    """The options of every command that say how much it prints; they are not passed to its function."""
    return [
        click.Option(
            ["-q", "--quiet"],
            is_flag=True,
            expose_value=False,
            callback=_environment("ALEXNET_QUIET"),
            help="Print results, warnings and errors, but no progress.",
        ),
        click.Option(
            ["-v", "--verbose"],
            is_flag=True,
            expose_value=False,
            callback=_environment("ALEXNET_TRACEBACK"),
            help="Show the traceback of an error.",
        ),
    ]


def _version(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked:
        project = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        commit = git.output("rev-parse", "--short", "HEAD")
        changed = ", changed since" if git.output("status", "--porcelain", "--untracked-files=no") else ""
        click.echo(
            f"alexnet {project['version']}{f', commit {commit}{changed}' if commit else ''}, in {HERE.parents[1]}"
        )
        context.exit()


VERSION = click.Option(
    ["--version"],
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Print the version, and the folder of this code.",
)


def _dressed(command: click.Command, text: str) -> click.Command:
    """The command with what all have: help, and the options of `loudness`, also in its subcommands."""
    command.context_settings = {**SETTINGS, **command.context_settings}
    if text:
        # click would fill the lines of a paragraph without the mark \b
        command.help = "\n\n".join(f"\b\n{part}" for part in text.split("\n\n"))
        command.short_help = text.split("\n")[0].rstrip(".:")
    command.params += loudness()
    for each in getattr(command, "commands", {}).values():
        _dressed(each, "")
    return command


class Commands(click.Group):
    """The stages, and the modules of this folder; a module is imported when its command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """The stages in their order, and the other commands by name."""
        return [*STAGES, *sorted(file.stem.replace("_", "-") for file in HERE.glob("[a-z]*.py"))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name; None if there is none."""
        if cmd_name not in self.list_commands(ctx):
            return None
        if cmd_name not in self.commands:
            self.commands[cmd_name] = _dressed(_read(cmd_name), usage.head(_file(cmd_name)))
        return self.commands[cmd_name]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the first word names; for another word the error names what there is."""
        there = self.list_commands(ctx)
        if args[0] not in there and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], there, n=1, cutoff=0.5)
            advice = f", did you mean '{near[0]}'?" if near else f"; there are {', '.join(there)}"
            ctx.fail(f"no command '{args[0]}'{advice}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the stages and the other commands, each with the first line of its docstring."""
        there = self.list_commands(ctx)
        parts = {"Stages, which dvc repro runs": STAGES, "Commands": there[len(STAGES) :]}
        for title, names in parts.items():
            with formatter.section(gettext(title)):
                formatter.write_dl(list(self._lines(names)))

    def _lines(self, names: Sequence[str]) -> Iterator[tuple[str, str]]:
        for name in names:
            yield name, usage.head(_file(name)).split("\n")[0].rstrip(".")


def _file(name: str) -> Path:
    """The file whose docstring says what the command does."""
    return (HERE.parent if name in STAGES else HERE) / f"{name.replace('-', '_')}.py"


def _read(name: str) -> click.Command:
    if name in STAGES:
        return _stage(name)
    command = import_module(f"pipeline.commands.{_file(name).stem}").command
    assert isinstance(command, click.Command), name
    return command


alexnet = Commands(
    "alexnet",
    help="\b\nAlexNet, reproducibly: the stages of the workflow, and what is done with their results.",
    epilog=CODES,
    context_settings={**SETTINGS},
    no_args_is_help=True,
    params=[*loudness(), VERSION],
)
