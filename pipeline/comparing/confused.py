"""`alexnet confused`: the pairs of classes that a network confuses most, and the pictures themselves."""

from __future__ import annotations

import base64
import csv
import io
import json
import webbrowser
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexnet.names import cut, shown
from pipeline.comparing import find, layout, logged, outs
from pipeline.comparing.layout import Table, Words
from pipeline.comparing.measured import MeasuredRun
from pipeline.evaluation import mistakes
from pipeline.evaluation.mistakes import Answer, Direction, Pair
from pipeline.evaluation.trained import MODEL, OUT
from pipeline.runtime import files, machines, revisions, stage
from pipeline.runtime.printing import say
from pipeline.shards import artifacts, lookup

PAIRS, OF_PAIR, LISTED = 10, 8, 16
"""Pairs that are shown, pictures of each, and pictures in the other two lists."""

LONGEST = 40
"""Most characters of a class's name."""

CLASSES = (OUT / "errors.csv").as_posix()


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """A run's mistakes, and the names of its classes."""

    run: MeasuredRun
    answers: Sequence[Answer]
    classes: Sequence[str]

    @property
    def pairs(self) -> list[Pair]:
        """The pairs that are shown."""
        return mistakes.pairs(self.answers)[:PAIRS]

    @property
    def confident(self) -> list[Answer]:
        """The most confident mistakes that are shown."""
        return mistakes.most_confident(self.answers)[:LISTED]

    @property
    def unsure(self) -> list[Answer]:
        """The least sure pictures that are shown."""
        return mistakes.least_sure(self.answers)[:LISTED]

    def of_pair(self, pair: Pair) -> list[Answer]:
        """The mistakes of a pair that are shown, the most confident first."""
        return [answer for answer in mistakes.most_confident(self.answers) if pair.has(answer)][:OF_PAIR]

    def name(self, label: int) -> str:
        """A class's name."""
        return cut(self.classes[label], LONGEST)


def confused(
    model_run: str | None = None,
    last: bool = False,
    html: Path | None = None,
    open_page: bool = False,
    as_json: bool = False,
) -> None:
    """Prints a run's confusions, and writes them with their pictures to a page; `ValueError` if its answers are not at hand.

    `model_run`: a run by the names of `find.runs`; `last`: the newest evaluated one in MLflow; without both, that
    of this working copy.
    """
    if model_run and last:
        raise ValueError("--model-run and --last name a run each: give one of them")
    confusion = read(_last() if last else _named(model_run or "here"))
    if as_json:
        print(json.dumps(plain(confusion), indent=1))
    else:
        say(*layout.text(parts(confusion)).split("\n"))
    file = html or (stage.WORK / "confused.html" if open_page else None)
    if file is not None:
        with files.atomic(file) as partial:
            partial.write_text(page(confusion, *pictures(confusion)), encoding="utf-8")
        if open_page:
            webbrowser.open(file.absolute().as_uri())
        if not as_json:
            say(f"the pictures: {file}")


def _named(name: str) -> MeasuredRun:
    runs = find.runs([name])
    if len(runs) > 1:
        raise ValueError(f"{name} is a study of {len(runs)} runs, which keeps no answers: name an experiment of it")
    return _at_hand(runs[0])


def _last() -> MeasuredRun:
    runs = [run for run, record in logged.last(20) if record["listed"] and run.rates]
    if not runs:
        raise ValueError("no evaluated run is among the last 20 in MLflow. See: alexnet runs")
    return _at_hand(runs[0])


def _at_hand(run: MeasuredRun) -> MeasuredRun:
    """The run with its answers: an experiment's are in DVC's cache, the last run's of a working copy in its data/evaluation."""
    if run.predictions is None and run.fingerprint and MODEL.exists() and run.fingerprint == _fingerprint():
        return outs.here(Path(), run.name)
    if run.predictions is None:
        raise ValueError(
            f"{run.name}: its answers are not at hand: {OUT}/predictions.parquet is that of another run, or not there. Run: "
            "dvc repro evaluate, or name an experiment (dvc exp list)"
        )
    return run


def _fingerprint() -> str:
    from alexnet import build

    with MODEL.open("rb") as handle:
        return str(build.load(handle)[1]["fingerprint"])


def read(run: MeasuredRun) -> Confusion:
    """Reads the answers of a run, and its classes' names from errors.csv, or numbers where that is not at hand."""
    assert run.predictions is not None
    with run.predictions() as handle:
        answers = mistakes.read(run.name, handle)
    if not answers:
        raise ValueError(f"{run.name}: its predictions.parquet has no picture. Run: dvc repro evaluate")
    here = run.origin == "working copy"
    data = Path(CLASSES).read_bytes() if here and Path(CLASSES).exists() else None
    data = revisions.read(run.commit, CLASSES) if not here and run.commit else data
    rows = list(csv.DictReader(io.StringIO(data.decode(), newline=""))) if data else []
    names = {int(row["label"]): row["class"] for row in rows}
    count = 1 + max(max(answer.label, answer.guess) for answer in answers)
    classes = [names.get(label, f"class {label}") for label in range(max(count, len(names)))]
    return Confusion(run=run, answers=answers, classes=classes)


def parts(confusion: Confusion) -> list[Table | Words]:
    """The confusions as tables for a terminal."""
    wrong = sum(answer.wrong for answer in confusion.answers)
    counted = f"{wrong:,} of {len(confusion.answers):,} pictures were taken for another class."
    if not wrong:
        made: list[Table | Words] = [Words(confusion.run.name, [f"{counted} Nothing is confused."])]
    else:
        rows = [
            (
                f"{confusion.name(pair.more.label)} / {confusion.name(pair.more.guess)}",
                str(pair.count),
                rate(pair.more),
                rate(pair.less),
                " ".join(shown(answer.id) for answer in confusion.of_pair(pair)[:3]),
            )
            for pair in confusion.pairs
        ]
        head = ("classes A / B", "mistakes", "A taken for B", "B taken for A", "pictures")
        note = "Counted are each class's tested pictures; in brackets Wilson's 95 % interval, in per cent."
        made = [
            Words(confusion.run.name, [counted]),
            Table("Most confused", head, rows, note),
            _list("Most confident mistakes", confusion, confusion.confident),
        ]
    return [*made, _list("Least sure", confusion, confusion.unsure)]


def _list(title: str, confusion: Confusion, answers: Iterable[Answer]) -> Table:
    rows = [
        (shown(each.id), confusion.name(each.label), confusion.name(each.guess), f"{100 * each.probability:.1f} %")
        for each in answers
    ]
    return Table(title, ("picture", "class", "guess", "probability"), rows)


def rate(direction: Direction) -> str:
    """Count and rate with its interval: `3 of 30: 10.0 % (3.5 to 25.6)`."""
    if not direction.images:
        return "no picture"
    low, high = direction.interval
    return (
        f"{direction.count} of {direction.images}: {100 * direction.rate:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
    )


def pictures(confusion: Confusion) -> tuple[dict[str, str], str]:
    """The pictures as base64 of JPEG by id, and why there are none, or "": only those of this working copy's shards are read."""
    wanted = {answer.id for answer in [*confusion.confident, *confusion.unsure]}
    wanted |= {answer.id for pair in confusion.pairs for answer in confusion.of_pair(pair)}
    machine = machines.read()
    try:
        manifest = artifacts.manifest(machine)
        here = outs.here(Path()).tested
        if confusion.run.tested.same(here) is not True:
            return {}, "The pictures of this run are not those of data/shards here: apply its experiment to see them."
        folder = artifacts.locate(manifest, machine)
        split = confusion.run.tested.split or here.split
        found = lookup.encoded(wanted, split, manifest, folder)
    except FileNotFoundError as error:
        return {}, f"The pictures are not at hand: {error}"
    return {name: base64.b64encode(lookup.as_jpeg(data)).decode() for name, (data, _) in found.items()}, ""


def page(confusion: Confusion, images: Mapping[str, str], why: str) -> str:
    """The HTML page; it has all pictures in it and makes no request."""
    return (
        layout.environment()
        .get_template("confused.html.j2")
        .render(
            title="AlexNet: what is confused",
            confusion=confusion,
            wrong=sum(answer.wrong for answer in confusion.answers),
            images=images,
            why=why,
            rate=rate,
        )
    )


def plain(confusion: Confusion) -> dict[str, Any]:
    """The confusions for programs."""

    def of(answer: Answer) -> dict[str, Any]:
        names = {"class": confusion.classes[answer.label], "guess": confusion.classes[answer.guess]}
        return {"id": answer.id, **names, "probability": answer.probability}

    def way(each: Direction) -> dict[str, Any]:
        names = {"class": confusion.classes[each.label], "taken_for": confusion.classes[each.guess]}
        ends = each.interval if each.images else None
        return {**names, "count": each.count, "images": each.images, "rate": each.rate, "interval": ends}

    return {
        "run": confusion.run.name,
        "images": len(confusion.answers),
        "wrong": sum(answer.wrong for answer in confusion.answers),
        "pairs": [
            {
                "count": pair.count,
                "directions": [way(pair.more), way(pair.less)],
                "pictures": [*map(of, confusion.of_pair(pair))],
            }
            for pair in confusion.pairs
        ],
        "most_confident_mistakes": [*map(of, confusion.confident)],
        "least_sure": [*map(of, confusion.unsure)],
    }
