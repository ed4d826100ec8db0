"""Variants of a recipe, seed by seed, run as DVC experiments and printed beside each other (§3, §4).

Run:    make ablations [ONLY="one-column no-dropout"]   (python -m pipeline.compare experiments/ablations.yaml [VARIANT …])
Reads:  a list of variants, and the params file that they vary
Writes: records/<record>/runs.csv, a row for each finished run, its curves as <variant>-<seed>-<steps or epochs>.csv,
        losses.png, table.md, and where they were tested differences.png
Expect: as long as the runs take, one after another; what runs.csv has is not run again, so it can be stopped anywhere
"""

from __future__ import annotations

if __name__ == "__main__":  # before all that takes long to import
    from pipeline.__main__ import main as enter

    enter("compare")

import csv
import dataclasses
import functools
import hashlib
import io
import json
import math
import re
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alexnet.names import shown
from pipeline import recipe
from pipeline.runtime import added, commands, files, params
from pipeline.runtime.said import say

RECORDS = Path("records")

ERRORS = ("top1_error", "top5_error", "centre_top1_error", "centre_top5_error")

COLUMNS = ("variant", "seed", "key", "experiment", "commit", "minutes", "classes", *ERRORS, "images")

ONE_VIEW, ONE_VIEW_ADDS = "one view", 1.5
"""What the base itself shows, by its centre patch alone, and what that adds to the top-1 error in the paper, in points."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One way to differ from the base."""

    name: str
    changes: dict[str, Any]
    """Keys with dots, and their values."""
    section: str
    """The paper's section."""
    paper: str
    """What the paper says of it, in a few words; empty if it says nothing."""
    adds: float | None = None
    """What it adds to the top-1 error according to the paper, in points; none: no number."""

    def __post_init__(self) -> None:
        check_name("name", self.name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A file in experiments/."""

    record: str
    """Folder below records/ for what comes of it."""
    base: str
    """A complete params file."""
    target: str
    """The stage up to which each run goes."""
    seeds: tuple[int, ...]
    """Values of learning.seed."""
    variants: tuple[Variant, ...] = ()
    """The first is what the others are compared with."""
    variants_of: str = ""
    """Another such file, whose variants are these: the same question on another base."""
    besides: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By the name of one of those, what has to change on this base besides."""

    def __post_init__(self) -> None:
        check_name("record", self.record)
        folded = [variant.name.casefold() for variant in self.variants]
        if twice := next((name for name in folded if folded.count(name) > 1), None):
            raise ValueError(
                f"there are two variants '{twice}', or so but for capital letters: their files would be one"
            )
        if bool(self.variants) == bool(self.variants_of):
            raise ValueError("either variants or variants_of has to be given")
        if self.besides and not self.variants_of:
            raise ValueError("besides is for the variants of another file, which variants_of has to name")


_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,98}[A-Za-z0-9])?")


def check_name(what: str, name: str) -> None:
    """`ValueError` if a name cannot be one of files, of an experiment of DVC and in a table alike."""
    if not _NAME.fullmatch(name) or ".." in name or name.endswith(".lock"):
        raise ValueError(
            f"{what}: has to be made of letters, digits, '-', '_' and '.', 100 at most, as files and experiments are called "
            f"by it; is {name[:200]!a}"
        )


def main() -> None:
    """Runs what is missing, then prints the table."""
    asked = commands.compare().parse_args()
    file, chosen = asked.file, asked.variants
    try:
        comparison = read(file)
        runs = missing(comparison, select(comparison, chosen, file))
        if runs:
            check_cache()
        faults = []
        try:
            for variant, seed, document in runs:
                try:
                    run(comparison, variant, seed, document)
                except ValueError as error:
                    faults.append(str(error))
        finally:
            show(comparison)
        if faults:
            raise ValueError("; ".join(faults))
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"compare: {error}") from None


def read(file: Path) -> Comparison:
    """A file in experiments/, with the variants of another one if it names that."""
    comparison = params.check(params.load(file), Comparison, file)
    if not comparison.variants_of:
        return comparison
    variants = {variant.name: variant for variant in read(Path(comparison.variants_of)).variants}
    for name, changes in comparison.besides.items():
        if name not in variants:
            raise ValueError(f"{file}: besides: there is no variant {name!r}; there are {', '.join(variants)}")
        variants[name] = dataclasses.replace(variants[name], changes={**variants[name].changes, **changes})
    return dataclasses.replace(comparison, variants=(*variants.values(),), variants_of="", besides={})


def select(comparison: Comparison, chosen: Sequence[str], file: Path) -> list[Variant]:
    """The variants of these names; all if none is named."""
    known = {variant.name: variant for variant in comparison.variants}
    for name in chosen:
        if name not in known:
            raise ValueError(f"{file}: there is no variant {name!r}; there are {', '.join(known)}")
    return [known[name] for name in chosen] if chosen else [*known.values()]


def check_cache() -> None:
    """`ValueError` if DVC's cache lacks what dvc.lock names.

    `dvc exp run` with a stage to stop at fails for want of it, and only at its end, when the training is done.
    """
    recipe.keep_here()
    asked = subprocess.run(["dvc", "cache", "dir"], check=True, capture_output=True, text=True)
    cache = Path(asked.stdout.strip()) / "files/md5"
    for name, made in params.load(Path("dvc.lock"))["stages"].items():
        for out in made["outs"]:
            kept = (cache / out["md5"][:2] / out["md5"][2:]).exists()
            if not kept and not Path(out["path"]).is_file():  # metrics.json is in git, not in the cache
                raise ValueError(
                    f"dvc.lock names {out['path']} of {name}, which is not in DVC's cache. Run first: make repro, or dvc pull"
                )


def wanted(comparison: Comparison, variant: Variant, seed: int) -> dict[str, Any]:
    """The parameters of a run; `ValueError` for a key that the base does not have."""
    document = added.completed(params.load(Path(comparison.base)))
    for key, value in {**variant.changes, "learning.seed": seed}.items():
        section, _, last = key.partition(".")
        if last not in document.get(section, {}):
            raise ValueError(f"variant {variant.name}: {key}: {comparison.base} has no such key")
        document[section][last] = value
    return document


def key(document: Mapping[str, Any]) -> str:
    """A hash of a run's parameters, without those that came later and say "as before". Another hash is another run."""
    return hashlib.sha256(json.dumps(added.older(document), sort_keys=True).encode()).hexdigest()[:16]


def missing(comparison: Comparison, variants: Sequence[Variant]) -> list[tuple[Variant, int, dict[str, Any]]]:
    """What has no row yet: variant, seed and parameters."""
    known = {row["key"] for row in rows(comparison)}
    runs = [(variant, seed, wanted(comparison, variant, seed)) for variant in variants for seed in comparison.seeds]
    return [(variant, seed, document) for variant, seed, document in runs if key(document) not in known]


def run(comparison: Comparison, variant: Variant, seed: int, document: Mapping[str, Any]) -> None:
    """Runs one variant with one seed and appends the row."""
    name = recipe.unused(f"{Path(comparison.record).name}-{variant.name}-{seed}")
    command = recipe.command(Path(comparison.base), document, name, comparison.target)
    say(f"compare: {variant.name}, seed {seed}: {' '.join(command)}")
    began = time.monotonic()
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise ValueError(f"{variant.name}, seed {seed}: dvc exp run ended with {done.returncode}; what is done is kept")
    minutes = f"{(time.monotonic() - began) / 60:.1f}"
    steps, epochs, facts = of_experiment(comparison, name)
    record(comparison, variant, seed, document, steps, epochs, {**facts, "commit": commit(), "minutes": minutes})


def record(
    comparison: Comparison,
    variant: Variant,
    seed: int,
    document: Mapping[str, Any],
    steps: Sequence[Mapping[str, Any]],
    epochs: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
) -> None:
    """Writes down what a finished run came to: its curves, and its row, of which `facts` are the cells beside its name."""
    folder = RECORDS / comparison.record
    folder.mkdir(parents=True, exist_ok=True)
    for curve, points in (("steps", steps), ("epochs", epochs)):
        with files.atomic(folder / f"{variant.name}-{seed}-{curve}.csv") as made:
            _write(made, list(points[0]) if points else ["step"], points)
    row = {"variant": variant.name, "seed": seed, "key": key(document), **facts}
    if comparison.target == "train":
        row |= {f"centre_top{top}_error": epochs[-1][f"val_top{top}_error"] for top in (1, 5)}
    known = rows(comparison)
    with files.atomic(folder / "runs.csv") as made:
        _write(made, COLUMNS, [*known, row])


def of_experiment(
    comparison: Comparison, name: str
) -> tuple[list[dict[str, str]], list[dict[str, str]], dict[str, Any]]:
    """A finished experiment's history by step and by epoch, and the cells of its row."""
    import dvc.api

    recipe.keep_here()
    read = functools.partial(dvc.api.read, rev=name)
    steps, epochs = (
        list(csv.DictReader(io.StringIO(read(f"data/history/{curve}.csv")))) for curve in ("steps", "epochs")
    )
    facts: dict[str, Any] = {"experiment": name}
    facts["classes"] = len(json.loads(read("data/shards/manifest.json"))["classes"])
    if comparison.target == "evaluate":
        metrics = json.loads(read("metrics.json"))
        facts["images"] = metrics["images"]
        facts |= {f"top{top}_error": metrics["ten_views"][f"top{top}_error"] for top in (1, 5)}
        facts |= {f"centre_top{top}_error": metrics["centre"][f"top{top}_error"] for top in (1, 5)}
    return steps, epochs, facts


def commit() -> str:
    """The commit that is checked out; empty outside of git."""
    asked = subprocess.run(["git", "rev-parse", "HEAD"], check=False, capture_output=True, text=True)
    return asked.stdout.strip() if asked.returncode == 0 else ""


def _write(file: Path, head: Sequence[str], lines: Sequence[Mapping[str, Any]]) -> None:
    with file.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, head, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(lines)


def rows(comparison: Comparison) -> list[dict[str, str]]:
    """The finished runs."""
    file = RECORDS / comparison.record / "runs.csv"
    if not file.exists():
        return []
    with file.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def table(comparison: Comparison) -> str:
    """The variants' errors beside the paper's words: mean ± deviation over seeds, and how far from the base.

    The differences are taken seed by seed; their interval is Student's, so that a variant of one seed has none.
    """
    views = "centre_" if comparison.target == "train" else ""
    found = by_variant(comparison)
    base = found.get(comparison.variants[0].name, {})
    lines = [
        "| variant | § | n | top-1 error, % | top-5 error, % | top-1 less the base's, 95 % | the paper |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for variant in comparison.variants:
        if runs := found.get(variant.name):
            one, five = f"{views}top1_error", f"{views}top5_error"
            differences = less(runs, base, one) if runs is not base else []
            cells = [
                _cell(variant.name),
                _cell(variant.section),
                str(len(runs)),
                _spread([100 * float(run[one]) for run in runs.values()]),
                _spread([100 * float(run[five]) for run in runs.values()]),
                _interval(differences),
                _cell(variant.paper),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    if base and not views:
        alone = [[100 * float(run[f"centre_top{top}_error"]) for run in base.values()] for top in (1, 5)]
        cells = [
            ONE_VIEW,
            "§4.1",
            str(len(base)),
            *map(_spread, alone),
            _interval(less_views(base)),
            f"+{ONE_VIEW_ADDS} (top-5 +1.3)",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    """A text in a table of Markdown, where it ends no cell and is no HTML."""
    return shown(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def by_variant(comparison: Comparison) -> dict[str, dict[str, dict[str, str]]]:
    """The finished runs, by variant and seed. A row of other parameters than the comparison's has no part in it."""
    known = {row["key"]: row for row in rows(comparison)}
    found: dict[str, dict[str, dict[str, str]]] = {}
    for variant in comparison.variants:
        for seed in comparison.seeds:
            if row := known.get(key(wanted(comparison, variant, seed))):
                found.setdefault(variant.name, {})[str(seed)] = row
    return found


def less(runs: Mapping[str, Mapping[str, str]], base: Mapping[str, Mapping[str, str]], error: str) -> list[float]:
    """An error of some runs less that of the base with the same seed, in points; of the seeds that both have."""
    return [100 * (float(run[error]) - float(base[seed][error])) for seed, run in runs.items() if seed in base]


def less_views(base: Mapping[str, Mapping[str, str]]) -> list[float]:
    """The top-1 error of the base's runs by the centre patch less that by ten views, in points."""
    return [100 * (float(run["centre_top1_error"]) - float(run["top1_error"])) for run in base.values()]


def show(comparison: Comparison) -> None:
    """Prints the table, and draws if there is a run that the table beside runs.csv does not have."""
    said, file = table(comparison), RECORDS / comparison.record / "table.md"
    say(*said.split("\n"))
    if not file.exists() or file.read_text(encoding="utf-8") != f"{said}\n":
        draw(comparison)


def draw(comparison: Comparison) -> None:
    """The figures of what is there, and last the table, beside runs.csv."""
    from alexnet import figures

    runs: dict[str, list[tuple[list[float], list[float]]]] = {}
    folder, classes = RECORDS / comparison.record, 0
    found = by_variant(comparison)
    for row in (row for of_variant in found.values() for row in of_variant.values()):
        with (folder / f"{row['variant']}-{row['seed']}-steps.csv").open(encoding="utf-8", newline="") as handle:
            points = list(csv.DictReader(handle))
        curve = [float(point["step"]) for point in points], [float(point["loss"]) for point in points]
        runs.setdefault(row["variant"], []).append(curve)
        classes = int(row["classes"])
    if not runs:
        return
    with files.atomic(folder / "losses.png") as made:
        made.write_bytes(figures.losses(runs, math.log(classes)))
    if comparison.target != "train":
        with files.atomic(folder / "differences.png") as made:
            made.write_bytes(_differences(comparison, found))
    with files.atomic(folder / "table.md") as made:
        made.write_text(table(comparison) + "\n", encoding="utf-8")


def _differences(comparison: Comparison, found: Mapping[str, Mapping[str, Mapping[str, str]]]) -> bytes:
    from alexnet import figures

    adds = {variant.name: variant.adds for variant in comparison.variants}
    base, *others = (variant.name for variant in comparison.variants)
    tested = {name: less(found[name], found.get(base, {}), "top1_error") for name in others if name in found}
    if base in found:
        tested[ONE_VIEW] = less_views(found[base])
    intervals = {name: ends for name, values in tested.items() if (ends := interval(values)) is not None}
    printed = {name: points for name, points in adds.items() if points is not None} | {ONE_VIEW: ONE_VIEW_ADDS}
    return figures.differences(tested, intervals, printed)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def interval(differences: Sequence[float]) -> tuple[float, float] | None:
    """Student's 95 % interval of their mean; none of fewer than two."""
    count = len(differences)
    if count < 2:
        return None
    from scipy.special import stdtrit

    mean, deviation = statistics.mean(differences), statistics.stdev(differences)
    half = float(stdtrit(count - 1, 0.975)) * deviation / math.sqrt(count)
    return mean - half, mean + half


def _interval(differences: Sequence[float]) -> str:
    if not differences:
        return ""
    ends = interval(differences)
    return f"{statistics.mean(differences):+.2f}" + (f" ({ends[0]:+.2f} to {ends[1]:+.2f})" if ends else "")
