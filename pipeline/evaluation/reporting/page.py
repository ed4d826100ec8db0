"""The report's page: one file of HTML without scripts, that needs no network, for screens of any width and for paper."""

from __future__ import annotations

import base64
import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from alexnet.names import cut, shown
from pipeline.evaluation import paper
from pipeline.evaluation.reporting import reading, times
from pipeline.evaluation.reporting.gallery import Gallery
from pipeline.evaluation.reporting.reading import DAMAGED, DUPLICATES, PICTURES, REJECTED
from pipeline.evaluation.reporting.settings import Differences
from pipeline.evaluation.trained import OUT as EVALUATION
from pipeline.evaluation.trained import names
from pipeline.runtime.progress import clock
from pipeline.runtime.run_record import RunRecord
from pipeline.shards import duplicates
from pipeline.shards.census import Census, ranked
from pipeline.shards.manifest import Manifest

TEMPLATE = Path(__file__).with_name("report.html.j2")

STYLE = Path(__file__).parents[2] / "page.css"

LONGEST = 120
"""Most characters of a name on the page."""

LISTED = 20
"""Most rows of the tables of rejected pictures, damaged ones, duplicates, and hard classes."""


@dataclass(frozen=True, kw_only=True)
class Before:
    """The run before this one, as far as it is recorded."""

    name: str
    begun: str
    """ISO 8601; empty if it is not recorded."""
    errors: Mapping[str, float]
    """`top1_error`, `top1_low`, … as in metrics.json's `ten_views`; without intervals if the number of pictures is unknown."""
    seconds: float | None
    images_per_second: float | None
    beside: str
    """A sentence on the difference of the two top-1 errors."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Everything that the page shows, apart from the tables that `render` reads."""

    metrics: Mapping[str, Any]
    """The contents of metrics.json."""
    split: str
    manifest: Manifest
    source: str
    """`source.name`."""
    figures: Mapping[str, bytes]
    """PNG by name."""
    parameters: Mapping[str, Mapping[str, str]]
    """Section of params.yaml → key → value as text."""
    weights: int
    """Number of the network's parameters."""
    differences: Differences
    gallery: Gallery
    record: RunRecord | None = None
    """None if the run was not recorded here."""
    before: Before | None = None
    no_run_before: str = ""
    """Why there is no run before."""


def render(contents: Contents) -> str:
    """The HTML page. All text from files is escaped, for HTML and for characters that would not be visible."""
    manifest, metrics, split = contents.manifest, contents.metrics, contents.split
    rejected, damaged = reading.listed_pictures(REJECTED), reading.listed_pictures(DAMAGED)
    contest, record = paper.contest(contents.source), contents.record
    hard = [row for row in reading.hard_classes(EVALUATION / "per_class.csv") if row["top1_error"] > 0]
    return environment().get_template(TEMPLATE.name).render(
        contents=contents,
        metrics=metrics,
        manifest=manifest,
        tested={"val": "validation", "test": "test"}[split],
        splits={"train": manifest.rows("train"), "tested": manifest.rows(split)},
        contest=contest,
        paper=paper.PAPER[contest],
        comparable=paper.comparable(contents.source, split, metrics["images"], len(manifest.classes), manifest.drawn),
        figures={name: base64.b64encode(png).decode() for name, png in contents.figures.items()},
        classes=names(manifest.classes),
        hard=hard,
        hardest=hard[:LISTED],
        rejected=rejected[:LISTED],
        damaged=damaged[:LISTED],
        duplicates=reading.listed_pictures(DUPLICATES)[:LISTED],
        in_words=duplicates.words,
        census=Census.read(PICTURES),
        ranked=ranked,
        record=record,
        facts=facts(record) if record else [],
        shares=times.shares(record) if record else [],
        verdict=times.verdict(record) if record else ("", ""),
        without=times.without(record) if record else 0.0,
    )  # fmt: skip


def environment() -> jinja2.Environment:
    """The template's functions; undefined names are errors."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader([TEMPLATE.parent, STYLE.parent]), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    made.filters |= {
        "percent": lambda fraction: f"{100 * fraction:.1f}\u00a0%",
        "number": lambda value: f"{value:,}",
        "name": lambda name: cut(name, LONGEST),
        "shown": shown,
        "clock": clock,
        "when": when,
    }
    return made


def when(text: str) -> str:
    """A time in ISO 8601 as `2026-11-27 16:40 +01:00`; other text as it is."""
    try:
        at = datetime.datetime.fromisoformat(text)
    except ValueError:
        return text
    return at.isoformat(sep=" ", timespec="minutes").replace("+", " +")


def facts(record: RunRecord) -> list[tuple[str, str]]:
    """What is known of the training, as names and texts."""
    known = record.facts
    sessions = f", in {record.sessions} sessions" if record.sessions > 1 else ""
    lost = f"; {record.unended} more were killed, and their time is not known" if record.unended else ""
    rate = record.images_per_second
    commit = f"{known.get('commit') or 'none'}{', with changed files' if known.get('changed_files') else ''}"
    memory = known.get("memory")
    machine = [
        str(known.get("host", "")),
        f"{known['cores']} CPU cores" if "cores" in known else "",
        str(known.get("processor", "")),
        str(known.get("gpu", "")) or "no GPU",
        f"{memory / 2**30:,.0f} GiB of memory" if isinstance(memory, int | float) else "",
    ]
    libraries = known.get("libraries")
    versions = libraries.items() if isinstance(libraries, dict) else ()
    changed = known.get("changed")
    return [
        ("trained", when(record.began)),
        ("time", f"{clock(record.seconds)}{sessions}{lost}"),
        ("pictures a second", "not measured" if rate is None else f"{rate:,.0f}"),
        ("commit", commit),
        (
            "parameters changed from it",
            ", ".join(f"{key}: {value}" for key, value in changed.items()) if changed else "nothing",
        ),
        ("MLflow run", str(known.get("run_id", ""))),
        ("machine", ", ".join(filter(None, machine))),
        ("processes", str(known.get("placement", ""))),
        ("versions", ", ".join([f"python {known.get('python', '')}", *(f"{name} {text}" for name, text in versions)])),
    ]
