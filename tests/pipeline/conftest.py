"""Fixtures with the outs of `evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.evaluation import scores
from pipeline.shards.manifest import Manifest
from tests.pipeline.noise import RESULTS, parts, world


@pytest.fixture(scope="module")
def summarized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("world")
    manifest = world(folder)
    out = folder / "data/evaluation"
    out.mkdir()
    return folder, manifest, scores.summarize(parts(folder, manifest), manifest, RESULTS, out)
