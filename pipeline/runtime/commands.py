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
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the table goes as JSON")
    return parser


def recipe() -> argparse.ArgumentParser:
    """`python -m pipeline.recipe`."""
    parser, folder = parser_of("recipe"), RECIPES / "sources"
    parser.add_argument("recipe", nargs="?", type=_in(RECIPES), metavar="RECIPE", help="without one, params.yaml")
    parser.add_argument("--source", type=_in(folder), metavar="SOURCE", help="other pictures")
    parser.epilog = f"RECIPE: {', '.join(names(RECIPES))}. SOURCE: {', '.join(names(folder))}"
    return parser


def _in(folder: Path) -> Callable[[str], str]:
    """Takes the name of a file in the folder."""

    def known(name: str) -> str:
        if name not in names(folder):
            raise argparse.ArgumentTypeError(f"{folder / name}.yaml: not there; there are {', '.join(names(folder))}")
        return name

    return known


def names(folder: Path) -> list[str]:
    """The recipes, or the sources, in a folder."""
    return sorted(file.stem for file in folder.glob("*.yaml"))


def tracking() -> argparse.ArgumentParser:
    """`python -m pipeline.tracking`."""
    parser = parser_of("tracking")
    given = parser.add_subparsers(dest="command", metavar="COMMAND", help="without one: says where the runs are")
    sending = given.add_parser("send", help="sends to MLflow what stages could not", allow_abbrev=False)
    sending.add_argument("--limit", type=float, default=3600, metavar="SECONDS", help="how long it may take (3600)")
    pages = given.add_parser("ui", help="MLflow's pages on the runs, at 127.0.0.1", allow_abbrev=False)
    pages.add_argument("--port", type=int, default=5000, help="where they are (5000)")
    return parser


def there(word: str) -> Path:
    """An existing file or folder."""
    if not Path(word).exists():
        raise argparse.ArgumentTypeError(f"{word}: no such file here ({Path.cwd()})")
    return Path(word)


def _network(word: str) -> str:
    """A name of a network, with a weight or without: a path, or a git revision or DVC experiment."""
    for name in (word, word.rpartition("=")[0]):
        if name and Path(name).exists():
            return word
        for asked in (
            ["rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"],
            ["for-each-ref", f"refs/exps/**/{name}"],
        ):
            if name and git.says(*asked):
                return word
    raise argparse.ArgumentTypeError(f"{word}: no path, no experiment and no revision. See: dvc exp list")


def parser_of(name: str) -> argparse.ArgumentParser:
    """The parser of a module, or of a room that is a program, in this folder."""
    return parser_at(file_of(name), f"python -m pipeline.{name}")


def file_of(name: str) -> Path:
    """The file of a stage or a program."""
    here = Path(__file__).parents[1]
    return here / name / "__main__.py" if (here / name).is_dir() else here / f"{name}.py"


def parser_at(file: str | Path, program: str) -> argparse.ArgumentParser:
    """A parser whose help is the head of a module's docstring, which is read without an import; options cannot be abbreviated."""
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
