"""What a run came to -> figures, and one page that can be read without a network (§6).

Run:    dvc repro report
Reads:  metrics.json, data/evaluation/, data/history/, data/model.pt, data/shards/, params.yaml
Writes: report/index.html, which holds everything, and its figures as report/*.png
Takes:  report, and prints source, resize, model, augmentation, learning and results
Expect: 2 MB, seconds; the same bytes for the same inputs
"""

from __future__ import annotations

import base64
import csv
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import pyarrow as pa

from pipeline import machine, params, shards, stage, tables, tracking
from pipeline.evaluate import METRICS, MODEL, load, names, read_model
from pipeline.evaluate import OUT as EVALUATION
from pipeline.tables import Manifest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

OUT = Path("report")
HISTORY = Path("data/history/epochs.csv")
REJECTED = shards.SHARDS / "rejected.parquet"
TEMPLATE = Path(__file__).with_name("report.html.j2")

SECTIONS = ("source", "resize", "model", "augmentation", "learning", "results", "report")
"""Of params.yaml, printed at the end of the page."""

PAPER = {"top1_error": 0.407, "top5_error": 0.182}
"""Table 2, one network, validation set of ILSVRC-2012, ten views."""

LISTED = 20
"""Rows of a table that could be long: rejected pictures, hard classes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """params.yaml, `report:` — what is shown."""

    pictures: int
    """Validation pictures with their five guesses. Figure 4: 8."""
    queries: int
    """Validation pictures with their nearest training pictures; how many those are, `results` says. Figure 4: 5."""
    seed: int
    """Of the choice of both."""

    def __post_init__(self) -> None:
        for name in ("pictures", "queries", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} has to be 0 or more, is {getattr(self, name)}")


def run() -> None:
    """The stage."""
    section = params.read("report", Report)
    settings = machine.read()
    manifest, _ = shards.inputs(settings)
    metrics = json.loads(_there(METRICS, "evaluate").read_text())
    network, facts = load(read_model(MODEL), manifest)
    figures = draw(section, manifest, settings, network.first_layer().numpy(), network.model.columns)
    page = render(metrics, manifest, figures, parameters())
    seen = {"report": dataclasses.asdict(section)}
    with tracking.run(settings, facts["fingerprint"], seen, manifest, "report", adopt=True) as record:
        with stage.whole(OUT) as folder:
            folder.mkdir()
            for name, png in figures.items():
                (folder / f"{name}.png").write_bytes(png)
            (folder / "index.html").write_text(page, encoding="utf-8")
        record.artifact(OUT, "report")
    print(f"report: {OUT / 'index.html'}")


def draw(
    section: Report, manifest: Manifest, settings: machine.Machine, kernels: NDArray[np.float32], columns: int
) -> dict[str, bytes]:
    """The figures as PNG, by name; one that has nothing to show is left out."""
    import numpy as np

    from alexnet import figures

    classes = names(manifest.classes)
    epochs, panels = history(HISTORY)
    drawn = {
        "curves": figures.curves(epochs, panels, logarithmic=("learning rate",)),
        "first-layer": figures.first_layer(kernels, columns),
        "confusion": figures.confusion(confusion(EVALUATION / "confusion.csv", classes), classes),
    }
    folder = shards.locate(manifest, settings)
    shown = picked(EVALUATION / "predictions.parquet", section.pictures, section.seed, 0)
    if shown:
        found = fetch([row["id"] for row in shown], "val", manifest, folder)
        pictures = _stack([found[row["id"]][0] for row in shown])
        shares = np.array([row["probabilities"] for row in shown])
        drawn["guesses"] = figures.guesses(pictures, [row["label"] for row in shown], shares, classes)
    if (EVALUATION / "neighbours.parquet").exists():
        queries = picked(EVALUATION / "neighbours.parquet", section.queries, section.seed, 1)
        if queries:
            drawn["neighbours"] = _neighbours(queries, manifest, folder, classes)
    return drawn


def _neighbours(rows: list[dict[str, Any]], manifest: Manifest, folder: Path, classes: Sequence[str]) -> bytes:
    from alexnet import figures

    queries = fetch([row["id"] for row in rows], "val", manifest, folder)
    trained = fetch({name for row in rows for name in row["nearest"]}, "train", manifest, folder)
    return figures.neighbours(
        _stack([queries[row["id"]][0] for row in rows]),
        [_stack([trained[name][0] for name in row["nearest"]]) for row in rows],
        [classes[queries[row["id"]][1]] for row in rows],
        [[classes[trained[name][1]] for name in row["nearest"]] for row in rows],
    )


def picked(file: Path, number: int, seed: int, use: int) -> list[dict[str, Any]]:
    """Rows of a table, chosen by lot among all ids; the table may be larger than the memory."""
    import pyarrow.compute as pc

    ids = sorted(tables.read(_there(file, "evaluate"), ["id"])["id"].to_pylist())
    wanted = [ids[place] for place in choose(len(ids), number, seed, use)]
    found = {}
    for group in tables.groups(file):
        for row in group.filter(pc.is_in(group["id"], pa.array(wanted, pa.string()))).to_pylist():
            found[row["id"]] = row
    return [found[name] for name in wanted]


def choose(count: int, number: int, seed: int, use: int) -> list[int]:
    """Up to `number` of `count` rows, by lot, in the order of the lot; `use` keeps two choices of one seed apart."""
    import numpy as np

    # Philox's raw numbers are the same in every version of numpy
    lots = np.random.Philox(key=np.array([seed, use], np.uint64)).random_raw(count)
    return [int(row) for row in np.argsort(lots, kind="stable")[:number]]


def fetch(ids: Iterable[str], split: str, manifest: Manifest, folder: Path) -> dict[str, tuple[NDArray[np.uint8], int]]:
    """Pictures H x W x 3 with their labels, by id; `ValueError` if the shards lack one."""
    from alexnet.dataset import decode

    wanted, found = set(ids), {}
    for shard in manifest.shards[split]:
        file, first = folder / shard.file, 0
        # the ids of all row groups first: the pictures are most of the bytes, and few of them are wanted
        places = {name: row for row, name in enumerate(tables.read(file, ["id"])["id"].to_pylist()) if name in wanted}
        if not places:
            continue
        for group in tables.groups(file, ["image", "label"]):
            for name, row in places.items():
                if first <= row < first + group.num_rows:
                    picture = decode(group["image"][row - first].as_py()["bytes"])
                    found[name] = (picture.permute(1, 2, 0).numpy(), group["label"][row - first].as_py())
            first += group.num_rows
    if wanted - found.keys():
        raise ValueError(
            f"{folder}: no picture {min(wanted - found.keys())} in {split}, but data/evaluation names it. "
            "Run: dvc repro --force evaluate"
        )
    return found


def history(file: Path) -> tuple[list[float], dict[str, dict[str, list[float]]]]:
    """The epochs, from 1, and what was measured in each: panels of lines for the curves."""
    with _there(file, "train").open(newline="") as handle:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(handle)]
    lines = {
        "loss": {"training": "train_loss", "validation": "val_loss"},
        "error": {
            "training, top-1": "train_top1_error",
            "validation, top-1": "val_top1_error",
            "validation, top-5": "val_top5_error",
        },
        "learning rate": {"rate": "rate"},
    }
    panels = {
        panel: {name: [row.get(key, float("nan")) for row in rows] for name, key in columns.items()}
        for panel, columns in lines.items()
    }
    return [row["epoch"] + 1 for row in rows], panels


def confusion(file: Path, classes: Sequence[str]) -> NDArray[np.int64]:
    """How often a class (row) was taken for a class (column), from the list of answers."""
    import numpy as np

    places = {name: place for place, name in enumerate(classes)}
    matrix_KK = np.zeros((len(classes), len(classes)), np.int64)
    with _there(file, "evaluate").open(newline="") as handle:
        for row in csv.DictReader(handle):
            if row["predicted"] in places:  # "none" is no class
                matrix_KK[places[row["actual"]], places[row["predicted"]]] += 1
    return matrix_KK


def render(
    metrics: Mapping[str, Any], manifest: Manifest, figures: Mapping[str, bytes], settings: Mapping[str, Any]
) -> str:
    """The page. All words in it that come from files are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["percent"] = lambda share: f"{100 * share:.1f}\u00a0%"
    environment.filters["number"] = lambda value: f"{value:,}"
    rejected = tables.read(REJECTED).sort_by("id").to_pylist() if REJECTED.exists() else []
    with _there(EVALUATION / "per_class.csv", "evaluate").open(newline="") as handle:
        measured = [row for row in csv.DictReader(handle) if row["top1_error"]]
    hardest = sorted(measured, key=lambda row: (-float(row["top1_error"]), int(row["label"])))
    return environment.get_template(TEMPLATE.name).render(
        metrics=metrics,
        manifest=manifest,
        splits={split: manifest.rows(split) for split in ("train", "val")},
        paper=PAPER,
        comparable=not manifest.drawn and len(manifest.classes) == 1000 and metrics["images"] >= 49_000,
        figures={name: base64.b64encode(png).decode() for name, png in figures.items()},
        hardest=hardest[:LISTED],
        rejected=rejected[:LISTED],
        parameters={name: tracking.flat(section) for name, section in settings.items()},
    )


def parameters() -> dict[str, Any]:
    """The sections of params.yaml that led to the result."""
    document = params.load(params.PARAMS)
    return {name: document[name] for name in SECTIONS if name in document}


def _there(file: Path, made_by: str) -> Path:
    if not file.exists():
        raise FileNotFoundError(f"{file}: not there. Run: dvc repro {made_by}")
    return file


def _stack(pictures: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    import numpy as np

    return np.stack(pictures) if pictures else np.empty((0, 1, 1, 3), np.uint8)


if __name__ == "__main__":
    stage.main("report", run)
