"""ILSVRC-2010 and ILSVRC-2012, each of 1,000 classes, from their official archives (§2).

2012 has 1,281,167 training and 50,000 validation pictures. 2010, the only year with public test labels, has 1,261,406,
50,000 and 150,000 test pictures. 2010's `patch_images.tar` replaces some blank pictures; it is used if present. One of
2010's pictures is gzipped, so `resize` rejects it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.archives import ilsvrc, tree
from pipeline.archives.contents import Choice, Contents, check_choice
from pipeline.archives.ilsvrc import Year
from pipeline.archives.store import StorePath
from pipeline.runtime.fetch import Remote
from pipeline.runtime.paths import AnyPath

URL = "https://image-net.org/data/ILSVRC"

YEAR_2012 = Year(
    number=2012,
    train="ILSVRC2012_img_train.tar",
    val="ILSVRC2012_img_val.tar",
    devkit="ILSVRC2012_devkit_t12.tar.gz",
    remotes=(
        Remote(url=f"{URL}/2012/ILSVRC2012_devkit_t12.tar.gz", md5="fa75699e90414af021442c21a62c3abf"),
        Remote(url=f"{URL}/2012/ILSVRC2012_img_val.tar", bytes=6_744_924_160, md5="29b22e2961454d5413ddabcf34fc5622"),
        Remote(
            url=f"{URL}/2012/ILSVRC2012_img_train.tar", bytes=147_897_477_120, md5="1d675b47d978889d74fa0da5fadfb00e"
        ),
    ),
    counts={"classes": 1000, "train": 1_281_167, "val": 50_000},
)

YEAR_2010 = Year(
    number=2010,
    train="ILSVRC2010_images_train.tar",
    val="ILSVRC2010_images_val.tar",
    devkit="ILSVRC2010_devkit-1.0.tar.gz",
    test="ILSVRC2010_images_test.tar",
    test_truth="ILSVRC2010_test_ground_truth.txt",
    patch="patch_images.tar",
    remotes=(  # without checksums, which were not published
        Remote(url=f"{URL}/2010/ILSVRC2010_devkit-1.0.tar.gz"),
        Remote(url=f"{URL}/2010/ILSVRC2010_test_ground_truth.txt"),
        Remote(url=f"{URL}/2010/ILSVRC2010_images_val.tar"),
        Remote(url=f"{URL}/2010/ILSVRC2010_images_test.tar"),
        Remote(url=f"{URL}/2010/ILSVRC2010_images_train.tar"),
    ),
    counts={"classes": 1000, "train": 1_261_406, "val": 50_000, "test": 150_000},
)

YEARS = {"ilsvrc2012": YEAR_2012, "ilsvrc2010": YEAR_2010}


@dataclass(frozen=True, kw_only=True, slots=True)
class Ilsvrc:
    """params.yaml, `source:` with `name: ilsvrc2012` or `name: ilsvrc2010`."""

    name: Literal["ilsvrc2012", "ilsvrc2010"]
    classes: Choice
    """all, the first N in the order of WordNet ids, or a list of WordNet ids."""
    complete: bool
    """Whether the archives must be the official ones, checked by their counts and published MD5s; missing ones are then
    fetched. false: the archives in the store are used as they are."""

    def __post_init__(self) -> None:
        check_choice(self.classes)

    @property
    def remotes(self) -> tuple[Remote, ...]:
        """The archives to fetch if they are missing."""
        return YEARS[self.name].remotes if self.complete else ()

    def contents(self, store: AnyPath) -> Contents:
        """The contents of the archives in the store's folder `<name>/`; with `complete`, missing ones are fetched first."""
        folder, year = StorePath(store) / self.name, YEARS[self.name]
        _refuse_unpacked(folder, year)
        if self.complete:
            return ilsvrc.official(folder, year, self.classes)
        return ilsvrc.contents(folder, year, self.classes, complete=False)


def _refuse_unpacked(folder: StorePath, year: Year) -> None:
    """`ValueError` if the folder has folders of pictures in place of the archive of training pictures."""
    if (folder / year.train).path.is_file() or not folder.path.is_dir():
        return
    unpacked = tree.of_folder(folder)
    paths, _ = unpacked.pictures()
    tops = sorted({path.partition("/")[0] for path in paths if "/" in path})
    if tops:
        raise ValueError(
            f"{folder}: has no {year.train}, but {len(paths):,} pictures in folders ({', '.join(tops[:3])}): it is unpacked, "
            f"and ilsvrc{year.number} reads the archives alone. imagefolder reads train/CLASS/ and val/. Set params.yaml: "
            f"source: {{name: imagefolder, folder: {folder.inside}, classes: all, val_share: 0.0, seed: 0}}"
        )
