"""The trained network for other programs: ONNX, torch.export, safetensors or torchvision's, with a model card

Run:    alexnet export --to onnx|torch-export|safetensors|torchvision DIR [--model NETWORK] [--views 10|1] [--check FOLDER]
Reads:  a model.pt, and 100 pictures: of data/shards/, or of the folder that --check names
Writes: DIR, whole or not at all: the network, preparation.json, mean.npy, classes.json, README.md, SHA256SUMS
Expect: some ten seconds; the largest difference of probabilities between the network and what was written is printed
Exits:  0 if that is at most 1e-4; else 1, and nothing is written

onnx and torch-export take prepared pictures, uint8 N x 256 x 256 x 3, RGB, and answer with probabilities.
"""

from __future__ import annotations

import click

from pipeline.commands import TypedPath, lazily
from pipeline.commands.predict import Network

command = click.Command(
    "export",
    params=[
        click.Argument(["folder"], type=TypedPath(), required=True, metavar="DIR"),
        click.Option(["--to"], type=click.Choice(["onnx", "torch-export", "safetensors", "torchvision"]), required=True,
                     help="The format."),
        click.Option(["--model"], type=Network(), default="data/model.pt", show_default=True, metavar="NETWORK",
                     help="The network: a model.pt, an MLflow model or run, an experiment, a revision."),
        click.Option(["--views"], type=click.Choice(["10", "1"]), default="10", show_default=True,
                     help="The ten views of the paper, or the centre alone, ten times as fast."),
        click.Option(["--check"], type=TypedPath(), metavar="FOLDER",
                     help="Check on 100 pictures of this folder, not on the validation pictures."),
        click.Option(["--force"], is_flag=True, help="Replace a DIR that an earlier export wrote."),
    ],
    callback=lazily("pipeline.inference.export.program", "main"),
)  # fmt: skip
