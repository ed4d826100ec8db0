"""`alexnet predict`: pictures of one's own → the names that a trained network gives them, with probabilities."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from alexnet.names import shown
from pipeline.inference import answers, inputs, networks
from pipeline.inference.answers import Answer, Asked
from pipeline.inference.inputs import STDIN, Found
from pipeline.runtime import machines, paths
from pipeline.runtime.machines import Machine
from pipeline.runtime.printing import say

BATCH = 16
"""Pictures that are answered together, where they are answered in this process."""

REJECTED = 1
"""The exit code if a picture was rejected, though all others have their answers: as of `ls` with a name that is not there."""


def main(words: Sequence[str], views: str, json: Path | None, **options: Any) -> None:
    """Runs the command with its options; exits with the code of `predict`."""
    raise SystemExit(predict(words, views=int(views), json=None if json is None else str(json), **options))


def predict(
    words: Sequence[str],
    *,
    model: str = str(networks.MODEL),
    top: int = 5,
    views: Any = 10,
    csv: Path | None = None,
    json: str | None = None,
    parquet: str | None = None,
    explain: Path | None = None,
    similar: int = 0,
) -> int:
    """Answers the pictures that `words` name, on the terminal and in the files that are asked for; returns the exit code.

    The code is 0 if each picture has an answer, else `REJECTED`. `json`: a file, or - for standard output, which then has
    nothing else. `parquet`: a file, on a disk or an object store; the pictures then go through Ray. `ValueError` or `OSError`
    if the network or the files cannot be used, `UsageError` for options that do not go together.
    """
    if top < 1:
        raise ValueError(f"--top has to be at least 1, is {top}")
    if parquet and (csv or json or explain or similar):
        raise click.UsageError(
            "--parquet is for any number of pictures, without --csv, --json, --explain and --similar"
        )
    _check_places(csv, json, explain)
    machine = machines.read()
    found = inputs.find(words)
    network = networks.read(model, machine)
    if parquet:
        return _table(found, network, top, views, parquet, machine)
    from pipeline.inference.predictor import Predictor  # it imports torch

    predictor = Predictor.load(network.data, network.where)
    replies = []
    for reply in _explained(found, predictor, machine, top, views, explain, similar):
        replies.append(reply)
        if json != STDIN:
            _show(reply)
    if csv:
        answers.write_csv(csv, replies, top)
    rejected = sum(bool(reply.reason) for reply in replies)
    if json:
        about = {"model": network.where, "run": predictor.fingerprint, "views": views, "rejected": rejected}
        _write_json(json, answers.to_json(replies, about | {"passed_over": found.leftovers}))
    quiet = json == STDIN
    _sum_up(len(replies) - rejected, rejected, found.leftovers, quiet=quiet)
    written = [str(place) for place in (csv, json, explain) if place is not None and str(place) != STDIN]
    if written and not quiet and not os.environ.get("ALEXNET_QUIET"):
        say(f"predict: written: {', '.join(map(shown, written))}", to=sys.stderr)
    return REJECTED if rejected else 0


def _check_places(csv: Path | None, json: str | None, explain: Path | None) -> None:
    """`ValueError`, before any work, if a file that is asked for has no folder to be written to."""
    for option, place in (("csv", csv), ("json", json), ("explain", explain)):
        if place is not None and str(place) != STDIN and not (folder := Path(place).absolute().parent).is_dir():
            raise ValueError(f"--{option}: {folder}: no such folder. Make it, or name another")


def _explained(
    found: Found, predictor: Any, machine: Machine, top: int, views: Any, explain: Path | None, similar: int
) -> Iterator[Answer]:
    """Yields each answer, with its neighbours and after its figures are written, where these are asked for."""
    neighbours, figures = None, None
    if similar:
        from pipeline.inference.similar import Neighbours

        neighbours = Neighbours(predictor, machine)
    if explain:
        from pipeline.inference.explain import Figures  # it imports matplotlib

        figures = Figures(explain, predictor)
    size = 1 if len(found.items) < BATCH else BATCH  # of few pictures each is shown at once
    for reply in answers.each(found.items, inputs.read, predictor, views, top, size):
        if isinstance(reply, Answer):
            yield reply
            continue
        yield _with_more(reply, neighbours, figures, similar)


def _with_more(asked: Asked, neighbours: Any, figures: Any, similar: int) -> Answer:
    answer = asked.answer
    if neighbours:
        (near,) = neighbours.nearest(asked.features_F[None], similar)
        answer = replace(answer, near=near)
    if figures:
        near_pictures = neighbours.pictures([near.id for near in answer.near]) if neighbours else []
        figures.add(answer, asked.picture_CHW, near_pictures)
    return answer


def _show(answer: Answer) -> None:
    if answer.reason:
        say(answers.rejected(answer), to=sys.stderr)
    else:
        say(*answers.block(answer), "")


def _write_json(file: str, text: str) -> None:
    if file == STDIN:
        sys.stdout.write(text)
        return
    from pipeline.runtime import files

    with files.atomic(Path(file).absolute()) as partial:
        partial.write_text(text, encoding="utf-8")


def _table(found: Found, network: networks.Found, top: int, views: Any, parquet: str, machine: Machine) -> int:
    from pipeline.inference import batch

    table = paths.parse(parquet)
    if table.is_dir():
        raise ValueError(f"{table}: is a folder. Name a file in it: --parquet {table}/answers.parquet")
    counts = batch.write(found, network.data, views, top, table, machine)
    _sum_up(counts.kept, counts.rejected, found.leftovers)
    say(f"predict: {shown(str(table))} has a row for each; the column reason says why one was rejected", to=sys.stderr)
    return REJECTED if counts.rejected else 0


def _sum_up(kept: int, rejected: int, leftovers: int, *, quiet: bool = False) -> None:
    """The last line, to stderr; left out for a single picture that has its answer."""
    if quiet or os.environ.get("ALEXNET_QUIET") or (kept + rejected == 1 and not leftovers):
        return
    more = f", {leftovers:,} hidden or left-over files passed over" if leftovers else ""
    say(f"predict: {kept:,} pictures answered, {rejected:,} rejected{more}", to=sys.stderr)
