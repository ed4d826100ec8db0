"""The results of a run → figures, and one HTML page that can be read offline (§6).

Run:    dvc repro report
Reads:  metrics.json, data/evaluation/, data/history/, data/model.pt, data/shards/, params.yaml
Writes: report/index.html, with its figures embedded, and the figures as report/*.png
Takes:  report and results.split; prints source, resize, model, start, augmentation, learning and results
Expect: 2 MB, seconds; equal bytes for equal inputs
"""

from __future__ import annotations

if __name__ == "__main__":  # before the slow imports
    from pipeline.__main__ import main as enter

    enter("report")

import base64
import copy
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from alexnet.names import NO_ANSWER, cut, shown
from pipeline.evaluation import choice, paper
from pipeline.evaluation.results import Results
from pipeline.evaluation.trained import METRICS, MODEL, load, names, read_model
from pipeline.evaluation.trained import OUT as EVALUATION
from pipeline.runtime import digests, documents, files, machines, params
from pipeline.runtime.paths import AnyPath
from pipeline.shards import artifacts, duplicates, lookup, tables
from pipeline.shards.census import Census, ranked
from pipeline.shards.manifest import Manifest
from pipeline.tracking import description, runs

if TYPE_CHECKING:
    from torch import Tensor

    from alexnet.network import Network

OUT = Path("report")
HISTORY = Path("data/history/epochs.csv")
REJECTED = artifacts.SHARDS / "rejected.parquet"
DAMAGED = artifacts.SHARDS / "damaged.parquet"
DUPLICATES = artifacts.SHARDS / duplicates.FILE
PICTURES = artifacts.SHARDS / "pictures.json"
TEMPLATE = Path(__file__).with_name("report.html.j2")

SECTIONS = ("source", "resize", "model", "start", "augmentation", "learning", "results", "report")
"""Sections of params.yaml, printed at the end of the page."""

ABSENT = {
    "guesses": "no picture is shown: report.pictures is 0",
    "saliency": "no picture is shown: report.pictures is 0",
    "neighbours": "no neighbours are shown: results.neighbours or report.queries is 0",
}
"""The text in place of a figure that is not drawn, by the figure's name."""

LONGEST = 120
"""Most characters of a name on the page."""

LISTED = 20
"""Most rows of the tables of rejected pictures, damaged ones, duplicates, and hard classes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """params.yaml, `report:` — what is shown."""

    pictures: int
    """Tested pictures shown with their five guesses and a saliency map of the first. Figure 4: 8."""
    queries: int
    """Queries (of `results.queries`) shown with their nearest training pictures. Figure 4: 5."""
    seed: int
    """Seed of the choice of the pictures and the queries."""

    def __post_init__(self) -> None:
        for name in ("pictures", "queries", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} has to be 0 or more, is {getattr(self, name)}")


def run() -> None:
    """Runs the stage."""
    section = params.read("report", Report)
    machine = machines.read()
    manifest = artifacts.manifest(machine)
    metrics = read_metrics(METRICS)
    split = params.read("results", Results).split
    network, facts = load(read_model(MODEL), manifest, split)
    figures = draw(section, split, manifest, machine, network, facts["mean"])
    page = render(metrics, split, manifest, figures, parameters())
    sections = {"report": dataclasses.asdict(section)}
    with runs.run(machine, facts["fingerprint"], sections, manifest, "report", adopt=True) as record:
        with files.atomic(OUT) as folder:
            folder.mkdir()
            for name, png in plots(figures).items():
                (folder / f"{name}.png").write_bytes(png)
            (folder / "index.html").write_text(page, encoding="utf-8")
        record.artifact(OUT, "report")
    print(f"report: {OUT / 'index.html'}")


def draw(
    section: Report, split: str, manifest: Manifest, machine: machines.Machine, network: Network, mean_CHW: Tensor
) -> dict[str, bytes]:
    """The figures as PNG, by name, without those that have nothing to show."""
    from alexnet import figures

    classes = names(manifest.classes)
    epochs, panels = history(HISTORY)
    pngs = {
        "curves": figures.curves(epochs, panels, logarithmic=("learning rate",)),
        "first-layer": figures.first_layer(network.first_layer().numpy(), network.columns),
        "confusion": figures.confusion(confusion(EVALUATION / "confusion.csv", classes), classes),
    }
    folder = artifacts.locate(manifest, machine)
    rows = random_rows("predictions.parquet", section.pictures, section.seed, 0)
    if rows:
        tested = lookup.fetch([row["id"] for row in rows], split, manifest, folder)
        pictures = _stack([tested[row["id"]][0] for row in rows])
        probabilities_NK, labels = np.array([row["probabilities"] for row in rows]), [row["label"] for row in rows]
        pngs["guesses"] = figures.guesses(pictures, labels, probabilities_NK, classes)
        pngs["saliency"] = _saliency(network, mean_CHW, pictures, labels, probabilities_NK, classes)
    if "neighbours.parquet" in digests.recorded(EVALUATION):
        queries = random_rows("neighbours.parquet", section.queries, section.seed, 1)
        if queries:
            pngs["neighbours"] = _neighbours(queries, split, manifest, folder, classes)
    return pngs


def plots(figures: Mapping[str, bytes]) -> dict[str, bytes]:
    """The figures, with a note in place of each missing one: `dvc plots show` needs the file of every plot."""
    from alexnet.figures import note

    return {name: note(why) for name, why in ABSENT.items()} | dict(figures)


def _saliency(
    network: Network,
    mean_CHW: Tensor,
    pictures: NDArray[np.uint8],
    labels: Sequence[int],
    probabilities_NK: NDArray[np.floating[Any]],
    classes: Sequence[str],
) -> bytes:
    """The figure `saliency`: Grad-CAM of each picture's best guess, on its centre patch."""
    import torch

    from alexnet import errors, figures
    from alexnet.augmentation import centre, centre_view
    from alexnet.saliency import grad_cam

    images_BCHW = torch.from_numpy(pictures).movedim(-1, 1)
    guesses_B = errors.guesses(torch.from_numpy(probabilities_NK))
    # in float64: the order of sums depends on the number of cores, and must not show in 256 colours
    patches_BCHW = centre_view(images_BCHW, mean_CHW.double(), network.model.patch)
    maps_BHW = grad_cam(copy.deepcopy(network).double(), patches_BCHW, guesses_B.clamp(min=0))
    maps_BHW[guesses_B < 0] = 0
    shown = centre(images_BCHW, network.model.patch).movedim(1, -1).numpy()
    return figures.saliency(shown, maps_BHW.numpy(), labels, guesses_B.tolist(), classes)


def _neighbours(
    rows: list[dict[str, Any]], split: str, manifest: Manifest, folder: AnyPath, classes: Sequence[str]
) -> bytes:
    from alexnet import figures

    queries = lookup.fetch([row["id"] for row in rows], split, manifest, folder)
    trained = lookup.fetch({name for row in rows for name in row["nearest"]}, "train", manifest, folder)
    return figures.neighbours(
        _stack([queries[row["id"]][0] for row in rows]),
        [_stack([trained[name][0] for name in row["nearest"]]) for row in rows],
        [classes[queries[row["id"]][1]] for row in rows],
        [[classes[trained[name][1]] for name in row["nearest"]] for row in rows],
    )


def read_metrics(file: Path) -> dict[str, Any]:
    """The contents of metrics.json, checked against the digest that `evaluate` recorded."""
    return documents.load(digests.read(file, "evaluate", EVALUATION), file, "evaluate")


def random_rows(name: str, number: int, seed: int, use: int) -> list[dict[str, Any]]:
    """Random rows of a table that `evaluate` wrote; see `choice.random_rows`."""
    digests.check(EVALUATION / name, "evaluate")
    rows: list[dict[str, Any]] = choice.random_rows(EVALUATION / name, number, seed, use).to_pylist()
    return rows


def listed_pictures(file: Path) -> list[dict[str, Any]]:
    """The rows of rejected.parquet, damaged.parquet or duplicates.parquet, sorted by id."""
    rows: list[dict[str, Any]] = tables.parse(digests.read(file, "resize"), file).sort_by("id").to_pylist()
    return rows


def history(file: Path) -> tuple[list[float], dict[str, dict[str, list[float]]]]:
    """The epochs, counted from 1, and the panels for `figures.curves`: panel → line → value per epoch."""
    rows = documents.rows(digests.read(file, "train"), {"epoch": float}, file, "train", others=_measured)
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
    """Counts of true classes (rows) by answers (columns), K×K, from confusion.csv; missing answers are not counted."""
    label_of = {name: label for label, name in enumerate(classes)}
    matrix_KK = np.zeros((len(classes), len(classes)), np.int64)
    for row in documents.rows(digests.read(file, "evaluate"), {"actual": str, "predicted": str}, file, "evaluate"):
        actual, predicted = row["actual"], row["predicted"]
        if unknown := {actual, predicted} - label_of.keys() - {NO_ANSWER}:
            raise ValueError(f"{file}: data/shards has no class '{min(unknown)}'. {digests.again('evaluate')}")
        if predicted != NO_ANSWER:
            matrix_KK[label_of[actual], label_of[predicted]] += 1
    return matrix_KK


def _measured(text: str) -> float:
    return float(text) if text else float("nan")


def render(
    metrics: Mapping[str, Any],
    split: str,
    manifest: Manifest,
    figures: Mapping[str, bytes],
    sections: Mapping[str, Any],
) -> str:
    """The HTML page. All text from files is escaped, for HTML and for characters that would not be visible."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["percent"] = lambda fraction: f"{100 * fraction:.1f}\u00a0%"
    environment.filters["number"] = lambda value: f"{value:,}"
    environment.filters["name"] = lambda name: cut(name, LONGEST)
    environment.filters["shown"] = shown
    rejected, damaged = listed_pictures(REJECTED), listed_pictures(DAMAGED)
    hardest = hard_classes(EVALUATION / "per_class.csv")
    source = sections.get("source", {}).get("name", "")
    contest = paper.contest(source)
    return environment.get_template(TEMPLATE.name).render(
        metrics=metrics,
        manifest=manifest,
        tested={"val": "validation", "test": "test"}[split],
        splits={"train": manifest.rows("train"), "tested": manifest.rows(split)},
        contest=contest,
        paper=paper.PAPER[contest],
        comparable=paper.comparable(source, split, metrics["images"], len(manifest.classes), manifest.drawn),
        figures={name: base64.b64encode(png).decode() for name, png in figures.items()},
        hardest=hardest[:LISTED],
        rejected=rejected[:LISTED],
        damaged=damaged[:LISTED],
        duplicates=listed_pictures(DUPLICATES)[:LISTED],
        in_words=duplicates.words,
        census=Census.read(PICTURES),
        ranked=ranked,
        parameters={name: description.words(section) for name, section in sections.items()},
    )


def parameters() -> dict[str, Any]:
    """The sections of params.yaml that the page prints."""
    document = params.load(params.PARAMS)
    return {name: document[name] for name in SECTIONS if name in document}


def hard_classes(file: Path) -> list[dict[str, Any]]:
    """The rows of per_class.csv for classes with tested pictures, highest top-1 error first."""
    columns: dict[str, Callable[[str], Any]] = {"label": int, "top1_error": _measured, "top5_error": _measured}
    rows = documents.rows(digests.read(file, "evaluate"), columns, file, "evaluate")
    tested = [row for row in rows if not math.isnan(row["top1_error"])]
    return sorted(tested, key=lambda row: (-row["top1_error"], row["label"]))


def _stack(pictures: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return np.stack(pictures) if pictures else np.empty((0, 1, 1, 3), np.uint8)
