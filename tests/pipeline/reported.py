"""A working copy before `report`, and the report's page of it, with single parts replaced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline import evaluate
from pipeline.evaluation import scores
from pipeline.evaluation.reporting import settings
from pipeline.evaluation.reporting.gallery import Gallery
from pipeline.evaluation.reporting.page import Before, Contents, render
from pipeline.runtime import digests
from pipeline.runtime.clock import PARTS
from pipeline.runtime.run_record import RunRecord
from pipeline.shards.census import Census
from pipeline.shards.manifest import Manifest
from pipeline.tracking import description
from tests.pipeline.noise import RESULTS, parts, world

ROOT = Path(__file__).parents[2]

RECIPES = settings.recipes(ROOT / "recipes")


CENSUS = Census(
    formats={"JPEG colour": 21, "GIF <palette>": 2, "JPEG grey": 1},
    rejected={"damaged": 1},
    orientations={"6": 3, "8": 1},
    smaller=17,
    damaged=1,
    duplicates={"val": 1200},
    file_bytes=24,
    pixels=24,
)

EPOCHS = """epoch,step,rate,train_loss,train_top1_error,val_loss,val_top1_error,val_top5_error
0,2,0.01,2.5,0.9,2.4,0.9,0.6
1,4,0.001,2.0,0.8,nan,0.7,0.5
"""


RECORD = RunRecord(
    began="2026-11-27T16:40:11+01:00",
    seconds=3723.4,
    sessions=2,
    unended=1,
    facts={
        "host": "<b>node</b>", "cores": 16, "processor": "some CPU", "gpu": "H100", "memory": 2**37, "threads": 8,
        "commit": "c0ffee", "changed_files": True, "changed": {"learning.rate": "0.02"}, "run_id": "4f00",
        "placement": "2 processes", "python": "3.12.1", "libraries": {"torch": "2.9.1"},
    },
    epochs=[dict.fromkeys(PARTS, 0.0) | {"epoch": 0, "images": 3000, "waiting": 30.0, "computing": 70.0}],
)  # fmt: skip

BEFORE = Before(
    name="<i>an older run</i>",
    begun="2026-11-20T03:04:00+00:00",
    errors={"top1_error": 0.2, "top1_low": 0.15, "top1_high": 0.26, "top5_error": 0.1},
    seconds=60.0,
    images_per_second=None,
    beside="better by 7.70 points than it",
)


def after_evaluate(folder: Path) -> Manifest:
    """A working copy as `evaluate` leaves it, with pictures of noise."""
    manifest = world(folder)
    (folder / "data/evaluation").mkdir()
    (folder / "data/history").mkdir()
    (folder / "recipes").symlink_to(ROOT / "recipes")
    (folder / "data/history/epochs.csv").write_text(EPOCHS)
    summary = scores.summarize(parts(folder, manifest), manifest, RESULTS, folder / "data/evaluation")
    (folder / "metrics.json").write_text(json.dumps(summary))
    evaluate.seal(folder / "data/evaluation", json.dumps(summary))
    (folder / "data/shards/pictures.json").write_text(CENSUS.to_json())
    for part in ("shards", "history"):
        digests.seal(folder / "data" / part)
    return manifest


def page(manifest: Manifest, document: dict[str, Any] | None = None, *shown: str, **replaced: Any) -> str:
    """The page of the working copy in the current folder. `document`: params.yaml; `shown`: further figures, without content."""
    document = {"learning": {"rate": 0.01}} if document is None else document
    fields: dict[str, Any] = {
        "metrics": json.loads(Path("metrics.json").read_text()),
        "split": "val",
        "manifest": manifest,
        "source": document.get("source", {}).get("name", ""),
        "figures": dict.fromkeys(("loss", "errors", "rate", "first-layer", "confusion", *shown), b"png"),
        "parameters": {name: description.words(section) for name, section in document.items()},
        "weights": 1234567,
        "differences": settings.differences(document, RECIPES),
        "gallery": Gallery(wrong=0, confident=(), unsure=()),
        "no_run_before": "none",
    }
    return render(Contents(**fields | replaced))
