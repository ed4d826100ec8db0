"""The command lines of the programs that are not stages, parsed before any slow import."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Callable
from pathlib import Path

from pipeline.runtime import git

RECIPES = Path("recipes")


def ensemble() -> argparse.ArgumentParser:
    """`python -m pipeline.ensemble`."""
    parser = parser_of("ensemble")
    parser.add_argument(
        "members", nargs="+", type=_network, metavar="NAME[=WEIGHT]", help="an experiment, a revision, or a path"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table to FILE as JSON")
    return parser


def recipe() -> argparse.ArgumentParser:
    """`python -m pipeline.recipe`."""
    parser, folder = parser_of("recipe"), RECIPES / "sources"
    parser.add_argument("recipe", nargs="?", type=_in(RECIPES), metavar="RECIPE", help="default: params.yaml")
    parser.add_argument("--source", type=_in(folder), metavar="SOURCE", help="the data set to use instead")
    parser.epilog = f"RECIPE: {', '.join(names(RECIPES))}. SOURCE: {', '.join(names(folder))}"
    return parser


def _in(folder: Path) -> Callable[[str], str]:
    """Returns an argument type that accepts the names of the folder's files."""

    def existing(name: str) -> str:
        if name not in names(folder):
            raise argparse.ArgumentTypeError(f"{folder / name}.yaml: not there; there are {', '.join(names(folder))}")
        return name

    return existing


def names(folder: Path) -> list[str]:
    """The names of the recipes, or the sources, in a folder, sorted."""
    return sorted(file.stem for file in folder.glob("*.yaml"))


def tracking() -> argparse.ArgumentParser:
    """`python -m pipeline.tracking`."""
    parser = parser_of("tracking")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", help="default: print the runs' address")
    sending = commands.add_parser("send", help="send to MLflow what the stages could not send", allow_abbrev=False)
    sending.add_argument("--limit", type=float, default=3600, metavar="SECONDS", help="the most it may take (3600)")
    pages = commands.add_parser("ui", help="serve MLflow's pages on 127.0.0.1", allow_abbrev=False)
    pages.add_argument("--port", type=int, default=5000, help="the port of the pages (5000)")
    return parser


def existing_path(word: str) -> Path:
    """An argument type: the path of an existing file or folder."""
    if not Path(word).exists():
        raise argparse.ArgumentTypeError(f"{word}: no such file here ({Path.cwd()})")
    return Path(word)


def _network(word: str) -> str:
    """An argument type: a path, a git revision or a DVC experiment, with or without =WEIGHT behind it."""
    for name in (word, word.rpartition("=")[0]):
        if name and Path(name).exists():
            return word
        for command in (
            ["rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"],
            ["for-each-ref", f"refs/exps/**/{name}"],
        ):
            if name and git.output(*command):
                return word
    raise argparse.ArgumentTypeError(f"{word}: neither a path nor an experiment nor a revision. See: dvc exp list")


def parser_of(name: str) -> argparse.ArgumentParser:
    """The parser of a program: a module of `pipeline/`, or a folder there with a `__main__.py`."""
    return parser_at(file_of(name), f"python -m pipeline.{name}")


def file_of(name: str) -> Path:
    """The file of a stage's or a program's code."""
    here = Path(__file__).parents[1]
    return here / name / "__main__.py" if (here / name).is_dir() else here / f"{name}.py"


def parser_at(file: str | Path, program: str) -> argparse.ArgumentParser:
    """A parser whose help is the head of a module's docstring, read without importing it; options cannot be abbreviated."""
    return argparse.ArgumentParser(
        prog=program,
        description=head(Path(file)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def head(file: Path) -> str:
    """A module's docstring up to its second empty line: its purpose, and Run, Reads, Writes, Takes, Expect."""
    return "\n\n".join((ast.get_docstring(ast.parse(file.read_bytes())) or "").split("\n\n")[:2])


PROGRAMS = {each.__name__: each for each in (ensemble, recipe, tracking)}
