"""`alexnet compare`: runs beside each other, as text, Markdown, JSON and one HTML page that needs no network."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

from alexnet.names import cut
from pipeline.comparing import answers, find, layout
from pipeline.comparing.answers import McNemar
from pipeline.comparing.beside import better, guessing
from pipeline.comparing.groups import UNKNOWN, Group, differing, grouped, word
from pipeline.comparing.layout import Figure, Part, Table, Words
from pipeline.comparing.measured import VIEWS, MeasuredRun
from pipeline.comparing.seeds import interval
from pipeline.evaluation import mistakes
from pipeline.runtime import files
from pipeline.runtime.printing import say

TITLE = "AlexNet: runs compared"

ACROSS = 3
"""Up to this many groups have a column each in the table of parameters."""

MANY = 4
"""With more groups than this, a sentence says that some differences are there by chance."""

NOTE = (
    "One run: in brackets Wilson's 95 % interval, which covers the choice of the test pictures. Several seeds: mean ± standard "
    "deviation over the seeds. A difference is from the first row. Paired: between runs of equal seeds, whose two means stand "
    "before it; in brackets Student's 95 % interval of its mean, which covers the seeds. Each number is rounded by "
    "itself, so that a last digit may be off by one."
)


def compare(
    names: Sequence[str], markdown: Path | None = None, html: Path | None = None, as_json: bool = False
) -> None:
    """Prints the comparison of what the names mean, and writes it to the files that are given.

    `ValueError` if a name means nothing, or if there is nothing to compare.
    """
    runs = find.runs(names)
    if len(runs) < 2:
        again = " is named more than once, and" if len(names) > 1 else ""
        raise ValueError(f"{cut(names[0], 100)}{again} is one run: name another one to compare it with, or a study")
    groups = grouped(runs)
    tests = tested(groups)
    if as_json:
        print(json.dumps(plain(groups, tests), indent=1))
    made = [] if as_json and not (markdown or html) else parts(groups, tests)
    if not as_json:
        say(*layout.text(made).split("\n"))
    for file, write in ((markdown, layout.to_markdown), (html, layout.to_html)):
        if file:
            with files.atomic(file) as partial:
                partial.write_text(write(TITLE, made), encoding="utf-8")


def parts(groups: Sequence[Group], tests: Sequence[tuple[str, McNemar]]) -> list[Part]:
    """The comparison: verdict, errors, answers, parameters, curves, cost, and what is missing."""
    made: list[Part] = [Words("In short", verdicts(groups, tests)), errors(groups)]
    if tests:
        made.append(_answers(tests))
    made.append(parameters(groups))
    made += list(_curves(groups))
    made.append(cost(groups))
    if notes := [f"{run.name}: {note}" for group in groups for run in group.runs for note in run.notes]:
        made.append(Words("What is missing", list(dict.fromkeys(notes))))
    return made


def comparable(first: Group, other: Group) -> str:
    """Empty if the errors of two groups can be compared; else why not."""
    for group in (first, other):
        if group.mean() is None:
            return f"{group.name} is {group.first.state}"
    if first.first.view != other.first.view:
        return f"not compared: tested on {' and '.join(VIEWS[each.first.view] for each in (first, other))}"
    match first.first.tested.same(other.first.tested):
        case False:
            return "not compared: tested on other pictures"
        case None:
            return "not compared: whether the test pictures are the same is not recorded"
    return ""


def errors(groups: Sequence[Group]) -> Table:
    """The errors of each group, and the differences from the first."""
    first, rows = groups[0], []
    views = {VIEWS.get(group.first.view, "") or group.first.state for group in groups}
    for group in groups:
        pairs, apart = ("", "") if group is first else difference(first, group)
        view = VIEWS.get(group.first.view, "") or group.first.state
        row = (group.name, view, str(len(group.runs)), group.error(1), group.error(5), pairs, apart)
        rows.append(row if len(views) > 1 else (row[0], *row[2:]))
    head = ["run", "tested on", "n", "top-1 error, %", "top-5 error, %", "pairs", f"top-1 minus {first.name}'s, points"]
    if len(views) > 1:
        return Table("Errors", head, rows, NOTE)
    return Table(f"Errors, {views.pop()}", [head[0], *head[2:]], rows, NOTE)


def difference(first: Group, group: Group) -> tuple[str, str]:
    """The number of pairs, and the difference with what it is a difference of; or why there is none."""
    if why := comparable(first, group):
        return "", why
    paired = group.paired(first)
    if paired.own:
        return str(len(paired.own)), f"paired: {paired}"
    own, others = group.mean(), first.mean()
    assert own is not None
    assert others is not None
    return "0", f"not paired, other seeds: {own:.2f} - {others:.2f} = {own - others:+.2f}"


def verdicts(groups: Sequence[Group], tests: Sequence[tuple[str, McNemar]]) -> list[str]:
    """A sentence for each group after the first: better or worse, and whether that is more than chance."""
    first, by_name = groups[0], dict(tests)
    lines = [f"{group.name} {words}." for group in groups if (words := guessing(group.first))]
    for group in groups[1:]:
        if why := comparable(first, group):
            lines.append(f"{group.name}: {why}.")
        else:
            lines.append(f"{group.name} {_verdict(first, group, by_name.get(group.name))}.")
    if len(groups) > MANY:
        lines.append(
            f"{len(groups) - 1} comparisons share one base: without any effect, one interval in twenty would still not contain 0."
        )
    return lines or ["All runs have the same parameters but for their seeds."]


def _verdict(first: Group, group: Group, test: McNemar | None) -> str:
    paired = group.paired(first)
    own, others = group.mean(), first.mean()
    assert own is not None
    assert others is not None
    apart = statistics.mean(paired.differences) if paired.own else own - others
    words = f"is {better(apart)} {first.name}{f' by {abs(apart):.2f} points' if round(apart, 2) else ''}"
    if ends := interval(paired.differences):
        sure = (
            "the interval of the paired differences does not contain 0"
            if _apart(ends)
            else "the seeds alone can explain it"
        )
        return f"{words}, n = {len(paired.own)} pairs of seeds: {sure}"
    if paired.own and max(len(first.runs), len(group.runs)) > 1:
        words += ", n = 1 pair of seeds"
    if test is not None:
        return (
            f"{words}; on the same pictures, {test.verdict} (p = {test.p:.2g}); other seeds may give another difference"
        )
    mine, theirs = group.rate(), first.rate()
    if mine and theirs and mine.interval and theirs.interval:
        overlap = mine.interval[0] <= theirs.interval[1] and theirs.interval[0] <= mine.interval[1]
        return f"{words}; their intervals {'overlap' if overlap else 'do not overlap'}; other seeds may give another difference"
    return f"{words}; one pair has no interval over seeds"


def _apart(ends: tuple[float, float]) -> bool:
    return ends[0] > 0 or ends[1] < 0


def tested(groups: Sequence[Group]) -> list[tuple[str, McNemar]]:
    """McNemar's test of each group's run against the first group's of the same seed, where both have their answers at hand."""
    first, made = groups[0], []
    for group in groups[1:]:
        if comparable(first, group) or group.first.view != "ten_views":
            continue
        one, other = (_read(run) for run in _same_seed(first, group))
        if one is not None and other is not None:
            with contextlib.suppress(ValueError):  # other pictures than was recorded: there is no test
                made.append((group.name, answers.mcnemar(one, other)))
    return made


def _same_seed(first: Group, group: Group) -> tuple[MeasuredRun, MeasuredRun]:
    pairs = [(one, other) for one in first.runs for other in group.runs if one.seed == other.seed]
    return pairs[0] if pairs else (first.first, group.first)


@functools.lru_cache(maxsize=4)  # the first run's answers are those of each test
def _answers_of(open_: Callable[[], AbstractContextManager[BinaryIO]], name: str) -> answers.Answers:
    with open_() as handle:
        return answers.of(mistakes.read(name, handle))


def _read(run: MeasuredRun) -> answers.Answers | None:
    if run.predictions is None:
        return None
    try:
        return _answers_of(run.predictions, run.name)
    except (ValueError, OSError):
        return None  # neither in the cache nor in the remote storage


def _answers(tests: Sequence[tuple[str, McNemar]]) -> Table:
    rows = [
        (
            name,
            f"{test.images:,}",
            f"{test.only_second:,}",
            f"{test.only_first:,}",
            f"{test.difference:+.2f} ({test.interval[0]:+.2f} to {test.interval[1]:+.2f})",
            f"{test.p:.2g}",
            test.verdict,
        )
        for name, test in tests
    ]
    head = ("run", "pictures", "only it right", "only the first right", "difference, points (95 %)", "p", "verdict")
    note = (
        "Each run's first guesses beside those of the first run, picture by picture (McNemar's exact test; one run of each, of "
        "equal seeds if there are any). It covers the choice of the pictures, not of the seed."
    )
    return Table("Answers to the same pictures", head, rows, note)


def parameters(groups: Sequence[Group]) -> Table | Words:
    """The parameters that differ: a column for each group, or for many groups what differs from the first."""
    documents = [group.first.params for group in groups]
    keys, title = differing(documents), "Parameters that differ"
    if not keys:
        return Words(title, ["None but the seed."])
    if len(groups) <= ACROSS:
        head = ("parameter", *(group.name for group in groups))
        return Table(title, head, [(key, *(word(document, key) for document in documents)) for key in keys])
    first, rows = documents[0], []
    for group in groups[1:]:
        changed = [key for key in keys if key in differing([first, group.first.params])]
        words = "; ".join(f"{key}: {word(group.first.params, key)} (not {word(first, key)})" for key in changed)
        rows.append((group.name, words or UNKNOWN))
    return Table(title, ("run", f"differs from {groups[0].name} in"), rows)


def _curves(groups: Sequence[Group]) -> Iterator[Figure]:
    from pipeline.comparing import curves

    for title, points, x, y in (
        ("Training loss", "steps", "step", "loss"),
        ("Top-1 error on validation pictures (centre patch)", "epochs", "step", "val_top1_error"),
    ):
        lines = {}
        for group in groups:
            found = [line for run in group.runs if (line := curves.line(getattr(run, points), x, y))]
            if found:
                lines[f"{group.name}{'' if group.name not in lines else f' ({group.first.origin})'}"] = found
        if lines:
            yield Figure(
                title, curves.panel(title, x, lines), "A line for each run; runs of one group have one colour."
            )


def cost(groups: Sequence[Group]) -> Table:
    """What each group took, and where its runs come from."""
    rows = []
    for group in groups:
        first = group.first
        minutes = [run.cost.minutes for run in group.runs if run.cost.minutes is not None]
        speeds = [run.cost.images_per_second for run in group.runs if run.cost.images_per_second is not None]
        taken = f"{statistics.mean(minutes):.1f}" if minutes else UNKNOWN
        speed = f"{statistics.mean(speeds):,.0f}" if speeds else UNKNOWN
        origins = ", ".join(dict.fromkeys(run.origin for run in group.runs))
        found = (
            first.cost.machine or UNKNOWN,
            first.date[:16].replace("T", " ") or UNKNOWN,
            first.commit[:8] or UNKNOWN,
        )
        rows.append((group.name, origins, group.seeds, first.state, taken, speed, *found))
    head = ("run", "from", "seeds", "state", "minutes", "images/s", "machine", "date", "commit")
    note = "Minutes and images per second are means over the runs; minutes are from a run's begin to its end, pauses included."
    return Table("Cost and origin", head, rows, note)


def plain(groups: Sequence[Group], tests: Sequence[tuple[str, McNemar]]) -> dict[str, Any]:
    """The comparison for programs."""
    first = groups[0]
    documents = [group.first.params for group in groups]
    return {
        "parameters_that_differ": differing(documents),
        "groups": [
            {
                "name": group.name,
                "runs": [of_run(run) for run in group.runs],
                "compared_with_first": None if group is first else not comparable(first, group),
                "why_not": "" if group is first else comparable(first, group),
                "paired_differences": [] if comparable(first, group) else group.paired(first).differences,
            }
            for group in groups
        ],
        "same_pictures": [
            {
                "name": name,
                "pictures": test.images,
                "only_it_right": test.only_second,
                "only_first_right": test.only_first,
                "difference": test.difference,
                "interval": test.interval,
                "p": test.p,
            }
            for name, test in tests
        ],
    }


def of_run(run: MeasuredRun) -> dict[str, Any]:
    """A run for programs, without its curves."""
    return {
        "name": run.name,
        "from": run.origin,
        "state": run.state,
        "seed": run.seed,
        "params": dict(run.params),
        "errors": {
            key: {"error": _finite(rate.error), "images": rate.images, "interval": rate.interval}
            for key, rate in run.rates.items()
        },
        "minutes": run.cost.minutes,
        "images_per_second": _finite(run.cost.images_per_second),
        "machine": run.cost.machine,
        "date": run.date,
        "commit": run.commit,
        "fingerprint": run.fingerprint,
        "notes": list(run.notes),
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
