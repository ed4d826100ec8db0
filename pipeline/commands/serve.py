"""A trained network behind HTTP: the bytes of a picture → five names, as JSON

Run:    alexnet serve [--model NETWORK] [--port 8000] [--replicas 4], and then: curl --data-binary @picture.jpg http://127.0.0.1:8000/predict
Reads:  a model.pt, by any of its names: see alexnet predict
Writes: nothing; it prints its address when it is ready, and ends at Ctrl-C
Takes:  no section of params.yaml: the network knows how its pictures are prepared
Expect: seconds until it is ready; one view takes a tenth of the computing of ten

It listens on this machine alone, unless --host says otherwise. docs/serving.md has the answers, the limits, and clusters.
"""

from __future__ import annotations

import click

from pipeline.commands import lazily
from pipeline.commands.predict import Network

command = click.Command(
    "serve",
    params=[
        click.Option(["--model"], type=Network(), default="data/model.pt", show_default=True, metavar="NETWORK",
                     help="The network: a model.pt, an MLflow model or run, an experiment, a revision."),
        click.Option(["--port"], type=click.IntRange(0, 2**16 - 1), default=8000, show_default=True,
                     help="The port; 0 takes any free one, which is printed."),
        click.Option(["--host"], default="127.0.0.1", show_default=True, metavar="ADDRESS",
                     help="The address to listen on. Another than this machine's loopback lets others ask, unencrypted."),
        click.Option(["--replicas"], type=click.IntRange(0), default=0, show_default=True, metavar="N",
                     help="Copies of the network on Ray: the cluster of machine.yaml, or one on this machine. 0: one process."),
        click.Option(["--cpus"], type=click.FloatRange(0), default=1, show_default=True, help="CPUs of each replica."),
        click.Option(["--gpus"], type=click.FloatRange(0), default=0, show_default=True, help="GPUs of each replica."),
    ],
    callback=lazily("pipeline.inference.serve", "main"),
)  # fmt: skip
