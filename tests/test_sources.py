"""Every source as users run it: a fresh copy, a small set in the real layout, the real dvc, up to shards and mean.

The stages after the mean do not depend on the source; tests/whole/test_sources.py runs them nevertheless.
"""

import json
import os

import numpy as np
import pytest
import ray
from ruamel.yaml import YAML

from alexnet.pictures import decode
from pipeline.runtime import params
from pipeline.shards import tables
from pipeline.shards.manifest import Manifest
from pipeline.workflow import recipe
from tests.pipeline import layouts
from tests.test_workflow import Copy

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    return Copy(tmp_path_factory.mktemp("sources"))


@pytest.mark.parametrize("name", [name for name in layouts.ALL if ", " not in name])  # one for each source
def test_a_source_becomes_shards_and_their_mean(copy, name, ray_session):
    layout = layouts.ALL[name](copy.folder / "data/store" / name)
    (copy.folder / "machine.yaml").write_text(json.dumps({"store": f"data/store/{name}", "workers": 1}))
    copy.replace("source", layout.section)
    # forced, since DVC sees the parameters and not the store: two of these sets have the same
    said = copy.run("dvc", "repro", "--force", "mean", **here())
    assert f"{layout.section['name']}: " in said
    manifest = check(copy.folder, layout)
    shards = [copy.folder / "data/shards" / shard.file for shard in manifest.shards["train"]]
    pictures_BCHW = [
        decode(image["bytes"]).numpy() for shard in shards for image in tables.read(shard)["image"].to_pylist()
    ]
    with np.load(copy.folder / "data/mean.npz") as made:
        np.testing.assert_allclose(made["mean"], np.mean(pictures_BCHW, axis=0), atol=1e-3)


def here():
    """The Ray of all tests, for stages in separate processes."""
    token = {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")}
    return {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", **token}


def check(folder, layout):
    """Checks that the shards hold the layout's pictures; returns the manifest."""
    manifest = Manifest.read(folder / "data/shards")
    assert manifest.drawn is False
    assert manifest.rejected == 0
    assert {synset.wnid: synset.words for synset in manifest.classes} == layout.words
    shards = [folder / "data/shards" / shard.file for shards in manifest.shards.values() for shard in shards]
    rows = [row for shard in shards for row in tables.read(shard, ["id", "wnid", "label"]).to_pylist()]
    assert {(row["id"], row["wnid"]) for row in rows} == {(name, row[1]) for name, row in layout.rows.items()}
    assert all(manifest.classes[row["label"]].wnid == row["wnid"] for row in rows)
    return manifest


def test_a_recipe_of_another_source_runs_beside_the_working_copy_up_to_the_mean(tmp_path, ray_session, monkeypatch):
    copy = Copy(tmp_path)
    before = (tmp_path / "params.yaml").read_text()
    layout = layouts.imagefolder(tmp_path / "data/store")
    layout.section["classes"] = [*layout.words]
    document = YAML().load(tmp_path / "params.yaml")
    document["source"] = layout.section
    YAML().dump(document, tmp_path / "recipes/pets.yaml")
    copy.run("git", "add", "-A")
    copy.run("git", "commit", "-qm", "a recipe")
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "recipes/pets.yaml"
    copy.run(*recipe.command(file, params.load(file), "pets", "mean"), **here())
    assert (tmp_path / "params.yaml").read_text() == before
    assert copy.run("git", "status", "--porcelain") == ""
    refs = copy.run("git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
    (ref,) = (ref for ref in refs if ref.endswith("/pets"))
    copy.run("git", "checkout", ref, "--", "params.yaml", "dvc.lock")
    copy.run("dvc", "checkout", "data/shards")
    assert params.load(tmp_path / "params.yaml") == params.load(file)
    check(tmp_path, layout)
