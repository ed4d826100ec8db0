"""A folder of tars, one for each WordNet id, or of tars of such tars: ImageNet's releases of Fall 2009 and Fall 2011 (§6).

These releases have no validation pictures, so a share of each class is held out. An optional `words.txt` in the folder has a
line for each WordNet id: the id, a tab, and the words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pipeline.archives import bounds, ilsvrc, tree
from pipeline.archives.class_folders import random_share
from pipeline.archives.contents import Archive, Choice, Contents, Picture, check_choice, check_folder, gather
from pipeline.archives.store import StorePath
from pipeline.archives.tars import leftovers_note, open_hashed
from pipeline.runtime.paths import AnyPath

WORDS = "words.txt"

_SYNSET_TAR = re.compile(r"(n[0-9]{8})\.tar")


@dataclass(frozen=True, kw_only=True, slots=True)
class Synsets:
    """params.yaml, `source:` with `name: synsets`."""

    name: Literal["synsets"]
    folder: str
    """The folder's name in the data store. It may be a link: `ln -s /data/fall11 data/store/fall11`."""
    classes: Choice
    """all, the first N in the order of WordNet ids, or a list of WordNet ids."""
    val_share: float
    """Share (above 0, below 1) of each class's pictures to hold out as `val`. The paper: 0.5 for Fall 2009."""
    seed: int
    """Seed of the choice of the pictures held out."""

    def __post_init__(self) -> None:
        check_folder(self.folder)
        check_choice(self.classes)
        if not 0 < self.val_share < 1:
            raise ValueError(f"val_share has to be between 0 and 1, is {self.val_share}")

    def contents(self, store: AnyPath) -> Contents:
        """The contents of the folder's tars. Each is read once, from start to end."""
        folder = StorePath(store) / self.folder
        tars = [folder / name for name in sorted(file.name for file in folder.path.glob("[!.]*.tar"))]
        if not tars:
            tree.check_folder(folder)
            raise FileNotFoundError(
                f"{folder}: no tar is in it, and params.yaml: source.name: synsets reads n01440764.tar and the like, or tars of "
                "those. Class folders are read by imagefolder"
            )
        archives: list[Archive] = []
        notes: list[str] = []

        def pictures() -> Iterator[Picture]:
            for tar in tars:
                with open_hashed(tar) as file:
                    alone = _SYNSET_TAR.fullmatch(tar.path.name)
                    parts = [(alone.group(1), 0, file.bytes)] if alone else ilsvrc.synset_tars(file)
                    for wnid, start, length in parts:
                        ranges = list(ilsvrc.synset_pictures(file, wnid, start, length))
                        held_out = random_share((name for name, _ in ranges), self.val_share, self.seed)
                        for name, part in ranges:
                            yield Picture.at(part, name, "val" if name in held_out else "train", wnid)
                    archives.append(file.archive())
                    notes.extend(leftovers_note(file))

        return gather(
            pictures(), lambda _: archives, _words(folder.path), store, self.classes, where=folder, notes=notes
        )


def _words(folder: AnyPath) -> dict[str, str]:
    if not (folder / WORDS).is_file():
        return {}
    lines = bounds.read_small(folder / WORDS).decode("utf-8", "replace").splitlines()
    return {wnid: words for wnid, _, words in (line.partition("\t") for line in lines) if words}
