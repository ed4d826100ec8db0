"""Imagenette: ten easy classes of ImageNet, 9,469 + 3,925 pictures; from fast.ai's archive, packed or unpacked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.archives import class_folders, published, repacked, tree
from pipeline.archives.contents import Choice, Contents, check_choice
from pipeline.archives.store import StorePath
from pipeline.runtime.fetch import Remote
from pipeline.runtime.paths import AnyPath

URL = "https://s3.amazonaws.com/fast-ai-imageclas"
ARCHIVES: dict[str | int, Remote] = {
    "full": Remote(url=f"{URL}/imagenette2.tgz", bytes=1_557_161_267, md5="fe2fc210e6bb7c5664d602c3cd71e612"),
    320: Remote(url=f"{URL}/imagenette2-320.tgz", bytes=341_663_724, md5="3df6f0d01a2c9592104656642f5e78a3"),
    160: Remote(url=f"{URL}/imagenette2-160.tgz", md5="e793b78cc4c9e9a4ccc0c1155377a412"),
}
COUNTS = {"train": 9469, "val": 3925}
WORDS = {
    "n01440764": "tench, Tinca tinca",
    "n02102040": "English springer, English springer spaniel",
    "n02979186": "cassette player",
    "n03000684": "chain saw, chainsaw",
    "n03028079": "church, church building",
    "n03394916": "French horn, horn",
    "n03417042": "garbage truck, dustcart",
    "n03425413": "gas pump, gasoline pump, petrol pump, island dispenser",
    "n03445777": "golf ball",
    "n03888257": "parachute, chute",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Imagenette:
    """params.yaml, `source:` with `name: imagenette`."""

    name: Literal["imagenette"]
    size: Literal["full", 320, 160]
    """full: ImageNet's own files; 320, 160: resized by fast.ai to this shorter side in pixels."""
    classes: Choice
    """all, the first N in the order of WordNet ids, or a list of WordNet ids."""
    complete: bool
    """Whether the data set must be the published one, whole; a missing archive is then fetched. false: any subset."""

    def __post_init__(self) -> None:
        check_choice(self.classes)

    @property
    def remotes(self) -> tuple[Remote, ...]:
        """The archives to fetch if they are missing."""
        return (ARCHIVES[self.size],) if self.complete else ()

    def contents(self, store: AnyPath) -> Contents:
        """The contents of `imagenette/` in the store: of the unpacked folder if there is one, else of the archive."""
        folder, archive = StorePath(store) / self.name, ARCHIVES[self.size]
        top = archive.name.removesuffix(".tgz")
        if (folder / top).path.is_dir():
            root = tree.of_folder(folder / top)
        else:
            root = published.open_archive(archive, folder, self.complete, repacked.untar).under(top)
        notes: list[str] = []
        pictures = [picture for split in COUNTS for picture in class_folders.find_pictures(root, split, split, notes)]
        if self.complete:
            published.check_complete(root.where, pictures, COUNTS, WORDS)
        return class_folders.contents(root, pictures, WORDS, self.classes, notes, short_names=True)
