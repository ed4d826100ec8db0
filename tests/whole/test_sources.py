"""Every source through all six stages, by the user's command."""

import json

import pytest

from tests.pipeline import layouts
from tests.test_sources import check, here

pytestmark = [pytest.mark.slow, pytest.mark.whole]


@pytest.mark.parametrize("name", [name for name in layouts.ALL if ", " not in name])  # one for each source
def test_a_source_is_learned_from_tested_and_reported(copy, name, ray_session):
    layout = layouts.ALL[name](copy.folder / "data/store" / name)
    (copy.folder / "machine.yaml").write_text(json.dumps({"store": f"data/store/{name}", "workers": 1}))
    copy.replace("source", layout.section)
    # forced, since DVC sees the parameters and not the store: two of these sets have the same
    copy.run("dvc", "repro", "--force", **here())
    manifest = check(copy.folder, layout)
    metrics = json.loads((copy.folder / "metrics.json").read_text())
    assert metrics["classes"] == len(layout.words)
    assert metrics["images"] == manifest.rows("val") > 0
    assert "drawn by a program" not in (copy.folder / "report/index.html").read_text()
    assert "Data and pipelines are up to date" in copy.run("dvc", "status")
