"""A working copy for each file of tests, in which the user's commands run whole: `make whole`, a quarter of an hour.

`make test` runs parts of it: each source up to the mean, each recipe for two steps in one process.
"""

import pytest
from ruamel.yaml import YAML

from tests.test_workflow import Copy

TWO_STEPS = {
    "source": {"name": "sample", "seed": 0, "train_images": 20, "val_images": 10, "level": "easy"},
    "resize": {"max_rejected": 0.5},
    # the recipes' rates are for larger batches: ResNet-50 comes to no number at .1
    "learning": {"epochs": 1, "batch_size": 10, "log_steps": 1, "rate": 0.0001},
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    copy = Copy(tmp_path_factory.mktemp("whole"))
    with (copy.folder / "recipes/sources/two-steps.yaml").open("w") as file:
        YAML().dump(TWO_STEPS, file)
    copy.run("git", "add", "-A")
    copy.run("git", "commit", "-qm", "pictures for two steps")
    return copy
