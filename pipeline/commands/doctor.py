"""Looks at everything that a run needs, and says for each thing that is not in order what to do.

Run:    alexnet doctor [--json]
Reads:  this machine, requirements.lock, machine.yaml, and the servers that it or the environment names
Writes: lines, and notes of settings that passed in work/checked; it ends within 15 seconds, with code 1 if there is a fault
"""

from __future__ import annotations

import click

from pipeline.commands import lazily

command = click.Command(
    "doctor",
    params=[click.Option(["--json", "as_json"], is_flag=True, help="Print a list of {about, state, seen, todo}.")],
    callback=lazily("pipeline.doctor.program", "examine"),
)
