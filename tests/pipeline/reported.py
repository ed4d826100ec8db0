"""What the report shows of a working copy, with single parts replaced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.evaluation.reporting import settings
from pipeline.evaluation.reporting.gallery import Gallery
from pipeline.evaluation.reporting.page import Contents, render
from pipeline.shards.manifest import Manifest
from pipeline.tracking import description

RECIPES = settings.recipes(Path(__file__).parents[2] / "recipes")


def page(manifest: Manifest, document: dict[str, Any] | None = None, *shown: str, **replaced: Any) -> str:
    """The page of the working copy in the current folder. `document`: params.yaml; `shown`: further figures, without content."""
    document = {"learning": {"rate": 0.01}} if document is None else document
    fields: dict[str, Any] = {
        "metrics": json.loads(Path("metrics.json").read_text()),
        "split": "val",
        "manifest": manifest,
        "source": document.get("source", {}).get("name", ""),
        "figures": dict.fromkeys(("curves", "first-layer", "confusion", *shown), b"png"),
        "parameters": {name: description.words(section) for name, section in document.items()},
        "weights": 1234567,
        "differences": settings.differences(document, RECIPES),
        "gallery": Gallery(wrong=0, confident=(), unsure=()),
        "no_run_before": "none",
    }
    return render(Contents(**fields | replaced))
