"""ILSVRC-2010, the only year whose test labels are public: 1,261,406 + 50,000 + 150,000 pictures of 1,000 classes (§2).

`patch_images.tar`, with pictures that replace some that are blank, is used if it is there. One picture is gzipped, and
so is rejected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.archives import ilsvrc
from pipeline.archives.contents import Choice, Contents, check_choice
from pipeline.archives.ilsvrc import Year
from pipeline.runtime.fetch import Remote
from pipeline.runtime.paths import AnyPath

YEAR = Year(
    number=2010,
    train="ILSVRC2010_images_train.tar",
    val="ILSVRC2010_images_val.tar",
    devkit="ILSVRC2010_devkit-1.0.tar.gz",
    test="ILSVRC2010_images_test.tar",
    test_truth="ILSVRC2010_test_ground_truth.txt",
    patch="patch_images.tar",
)
URL = "https://image-net.org/data/ILSVRC/2010"
REMOTES = tuple(Remote(url=f"{URL}/{name}") for name in (YEAR.devkit, YEAR.test_truth, YEAR.val, YEAR.test, YEAR.train))
COUNTS = {"classes": 1000, "train": 1_261_406, "val": 50_000, "test": 150_000}


@dataclass(frozen=True, kw_only=True, slots=True)
class Ilsvrc2010:
    """params.yaml, `source:` with `name: ilsvrc2010`."""

    name: Literal["ilsvrc2010"]
    classes: Choice
    """all, the first so many by WordNet id, or a list of WordNet ids."""
    complete: bool
    """Whether every picture has to be there; false: what is there is taken. No checksums were published."""

    def __post_init__(self) -> None:
        check_choice(self.classes)

    def contents(self, store: AnyPath) -> Contents:
        """What the archives hold, in the store's folder `ilsvrc2010`; they are fetched if they are not there."""
        if self.complete:
            return ilsvrc.official(store / self.name, store, YEAR, REMOTES, COUNTS, self.classes)
        return ilsvrc.contents(store / self.name, store, YEAR, self.classes, complete=False)
