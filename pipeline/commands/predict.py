"""Pictures of one's own → the names that a trained network gives them, with probabilities

Run:    alexnet predict FILE|FOLDER|-|ADDRESS ... [--model NETWORK] [--top 5] [--csv FILE] [--explain FOLDER]
Reads:  the pictures, folders with all below them, and a model.pt; with --similar also data/evaluation/ and data/shards/
Writes: a block for each picture to the terminal, and the files that the options name
Takes:  no section of params.yaml: the network knows how its pictures are prepared
Expect: a picture in 3 s; a folder with --parquet through Ray, as fast as `evaluate`, and resumed if it was stopped
Exits:  0 if each picture has its answer; 1 if one was rejected, which is named with its reason and stops no other

NETWORK is a model.pt, an MLflow model (models:/alexnet@champion) or run, an experiment, or a revision.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.commands import TypedPath, lazily, typed_in


class Place(click.ParamType[str]):
    """A path, an address or `-`; a relative path is one in the folder where the command was typed."""

    name = "place"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> str:  # noqa: ARG002
        """The word, with its path made absolute if it was typed in another folder than the current one."""
        elsewhere = typed_in() != Path.cwd() and value != "-" and "://" not in value
        return str(typed_in() / value) if elsewhere else str(value)


class Network(Place):
    """A network by any of its names; only that of a file that exists is a path."""

    name = "network"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> str:
        """The word, with its path made absolute if it is an existing file's."""
        return super().convert(value, parameter, context) if (typed_in() / value).exists() else str(value)


command = click.Command(
    "predict",
    params=[
        click.Argument(["words"], type=Place(), nargs=-1, required=True, metavar="PICTURE..."),
        click.Option(["--model"], type=Network(), default="data/model.pt", show_default=True, metavar="NETWORK",
                     help="The network: a model.pt, an MLflow model or run, an experiment, a revision."),
        click.Option(["--top"], type=click.IntRange(1), default=5, show_default=True, help="How many names for each."),
        click.Option(["--views"], type=click.Choice(["10", "1"]), default="10", show_default=True,
                     help="The ten views of the paper, or the centre alone, ten times as fast."),
        click.Option(["--csv"], type=TypedPath(dir_okay=False), metavar="FILE", help="Write a row for each picture."),
        click.Option(["--json"], type=TypedPath(dir_okay=False, allow_dash=True), metavar="FILE",
                     help="Write an object for each picture; - prints it instead of text."),
        click.Option(["--parquet"], type=Place(), metavar="FILE",
                     help="Any number of pictures, through Ray: a row for each, also on s3://bucket/folder."),
        click.Option(["--explain"], type=TypedPath(file_okay=False), metavar="FOLDER",
                     help="Write figures: which parts of the picture spoke for the first name (Grad-CAM)."),
        click.Option(["--similar"], type=click.IntRange(0), default=0, metavar="N",
                     help="The N nearest training pictures, with their distances; with --explain also their pictures."),
    ],
    callback=lazily("pipeline.inference.program", "main"),
)  # fmt: skip
