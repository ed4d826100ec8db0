"""`alexnet runs`: the last runs, good or not, beside the champion and the paper; what differs between them, and their cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from alexnet.names import cut
from pipeline.comparing import comparison, layout, logged
from pipeline.comparing.beside import beside, better, guessing
from pipeline.comparing.groups import UNKNOWN, differing, word
from pipeline.comparing.layout import Table, Words
from pipeline.comparing.measured import SEED, MeasuredRun, Rate
from pipeline.evaluation import paper
from pipeline.runtime.printing import say

NAME, VALUE, STATE = 26, 16, 18
"""The most characters of a run's name, of a parameter's value, and of a state in the table."""

NONE = "no run is in MLflow yet, or its database is elsewhere (machine.yaml, tracking). The first: make repro"


def runs(last: int = 10, as_json: bool = False) -> None:
    """Prints the last runs; `ValueError` if `last` is not at least 1."""
    if last < 1:
        raise ValueError(f"--last has to be at least 1, is {last}")
    found = logged.last(last)
    listed = [run for run, record in found if record["listed"]]
    champions = [(run, str(record["champion"])) for run, record in found if record["champion"]]
    if as_json:
        marks = {id(run): model for run, model in champions}
        rows = [{**comparison.of_run(run), "champion_of": marks.get(id(run), "")} for run in listed]
        print(json.dumps({"runs": rows, "verdict": verdict(listed, champions)}, indent=1))
        return
    if not listed:
        say(NONE)
        return
    say(*layout.text([table(listed, champions), Words("The last run", verdict(listed, champions))]).split("\n"))


def table(listed: Sequence[MeasuredRun], champions: Sequence[tuple[MeasuredRun, str]]) -> Table:
    """The runs with errors, cost, and as many differing parameters as fit, those that most runs differ in first."""
    documents = [run.params for run in listed]
    keys = sorted(differing(documents), key=lambda key: -len({word(document, key) for document in documents}))
    keys = [SEED] * (len({run.seed for run in listed}) > 1) + keys
    champion = {id(run) for run, _ in champions}
    unfinished = any(run.state != "finished" for run in listed)
    rows = [_row(run, id(run) in champion, unfinished) for run in listed]
    head, left = ["run", "begun", *["state"] * unfinished, "top-1 error, %", "top-5 error, %", "minutes"], []
    for key in keys:
        column = [cut(word(document, key), VALUE) for document in documents]
        wider = [[*row, value] for row, value in zip(rows, column, strict=True)]
        if _width([[*head, key], *wider]) <= layout.WIDTH:
            head, rows = [*head, key], wider
        else:
            left.append(key)
    note = "* champion. " * any(id(run) in champion for run in listed)
    note += "In brackets Wilson's 95 % interval, which covers the choice of the test pictures, not the seed."
    if left:
        note += f" They differ in {', '.join(left)}, too: alexnet compare shows the values."
    return Table("Runs, the newest first", head, rows, note)


def _row(run: MeasuredRun, champion: bool, unfinished: bool) -> list[str]:
    minutes, state = run.cost.minutes, cut(run.state, STATE) if run.state != "finished" else ""
    return [
        cut(run.name, NAME) + " *" * champion,
        run.date[5:16].replace("T", " "),
        *[state] * unfinished,
        *(_short(rate) for rate in (run.rate(1), run.rate(5))),
        UNKNOWN if minutes is None else f"{minutes:.1f}",
    ]


def _short(rate: Rate | None) -> str:
    if rate is None:
        return ""
    ends = rate.interval
    return f"{100 * rate.error:.1f}" + (f" ({100 * ends[0]:.1f}–{100 * ends[1]:.1f})" if ends else "")


def _width(rows: Sequence[Sequence[str]]) -> int:
    return sum(max(len(row[index]) for row in rows) for index in range(len(rows[0]))) + 2 * (len(rows[0]) - 1)


def verdict(listed: Sequence[MeasuredRun], champions: Sequence[tuple[MeasuredRun, str]]) -> list[str]:
    """Sentences on the newest run: beside the run before it, the champion, and the paper."""
    if not listed:
        return [NONE]
    newest, *older = listed
    if newest.state != "finished" or newest.rate() is None:
        lines = [f"{newest.name}: {newest.state}."]
        older = [run for run in older if run.rate() is not None]
        if not older:
            return lines
        newest, *older = older
        lines.append(f"The last one with errors is {newest.name}:")
    else:
        lines = []
    lines.append(f"{newest.name}: top-1 error {newest.rate()} %, top-5 error {newest.rate(5)} %.")
    if words := guessing(newest):
        lines.append(f"It {words}.")
    before = next((run for run in older if run.rate() is not None), None)
    lines.append(f"The run before: {beside(newest, before)}" if before else "No earlier run in this list has errors.")
    for champion, model in champions:
        if champion.fingerprint == newest.fingerprint:
            lines.append(f"It is the champion of {model}.")
        elif newest.tested.same(champion.tested):
            lines.append(f"The champion of {model}: {beside(newest, champion)}")
    return [*lines, of_paper(newest)]


def of_paper(run: MeasuredRun) -> str:
    """The run beside the paper's network of the same test; or that they cannot be compared, and why."""
    tested, rate = run.tested, run.rate()
    assert rate is not None
    facts: Mapping[str, Any] = {name: getattr(tested, name) for name in ("split", "images", "classes", "drawn")}
    if tested.drawn:
        return "The paper: not comparable, since a program drew the pictures."
    if missing := [name for name, value in facts.items() if value in ("", None)]:
        return f"The paper: not compared, since the run does not record its {' and '.join(missing)}."
    if not paper.comparable(tested.source, tested.split, tested.images or 0, tested.classes or 0, drawn=False):
        return "The paper: not comparable, since the pictures or classes are not the paper's."
    contest = paper.contest(tested.source)
    number = ("ten_views", "centre").index(run.view)
    if number >= len(paper.PAPER[contest]):
        return "The paper: has no number for the centre patch alone."
    views, printed, _ = paper.PAPER[contest][number]
    apart = 100 * (rate.error - printed)
    ends = rate.interval
    inside = "" if ends is None else f"; {'inside' if ends[0] <= printed <= ends[1] else 'outside'} this run's interval"
    words = better(apart)
    return (
        f"The paper, {contest}, {views}: {100 * printed:.1f} %; this run is {words} that ({apart:+.2f} points){inside}."
    )
