"""ILSVRC-2012: the official archives, 1,281,167 training and 50,000 validation pictures of 1,000 classes (§2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.archives import ilsvrc
from pipeline.archives.contents import Choice, Contents, check_choice
from pipeline.archives.ilsvrc import Year
from pipeline.runtime.fetch import Remote
from pipeline.runtime.paths import AnyPath

YEAR = Year(
    number=2012,
    train="ILSVRC2012_img_train.tar",
    val="ILSVRC2012_img_val.tar",
    devkit="ILSVRC2012_devkit_t12.tar.gz",
)
URL = "https://image-net.org/data/ILSVRC/2012"
REMOTES = (
    Remote(url=f"{URL}/{YEAR.devkit}", md5="fa75699e90414af021442c21a62c3abf"),
    Remote(url=f"{URL}/{YEAR.val}", bytes=6_744_924_160, md5="29b22e2961454d5413ddabcf34fc5622"),
    Remote(url=f"{URL}/{YEAR.train}", bytes=147_897_477_120, md5="1d675b47d978889d74fa0da5fadfb00e"),
)
COUNTS = {"classes": 1000, "train": 1_281_167, "val": 50_000}


@dataclass(frozen=True, kw_only=True, slots=True)
class Ilsvrc2012:
    """params.yaml, `source:` with `name: ilsvrc2012`."""

    name: Literal["ilsvrc2012"]
    classes: Choice
    """all, the first so many by WordNet id, or a list of WordNet ids."""
    complete: bool
    """Whether the archives have to be the official ones, by their MD5 and counts; false: what is there is taken."""

    def __post_init__(self) -> None:
        check_choice(self.classes)

    @property
    def remotes(self) -> tuple[Remote, ...]:
        """The archives that are fetched if they are not in the store."""
        return REMOTES if self.complete else ()

    def contents(self, store: AnyPath) -> Contents:
        """What the archives hold, in the store's folder `ilsvrc2012`; they are fetched if they are not there."""
        if self.complete:
            return ilsvrc.official(store / self.name, store, YEAR, REMOTES, COUNTS, self.classes)
        return ilsvrc.contents(store / self.name, store, YEAR, self.classes, complete=False)
