"""A source's archives, found or made in the data store → the index: where each picture lies, and what it shows (§2).

Run:    dvc repro download
Reads:  the archives in the data store (machine.yaml: store), which `sample` draws if they are not there
Writes: data/index/ {index.parquet (tables.INDEX), classes.json, archives.json}
Takes:  source
Expect: sample: 1,500 + 300 pictures of 10 classes, drawn in some 15 s on one core; a second run takes one
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline import machine, params, stage, tables
from pipeline.sources import ilsvrc, sample

OUT = Path("data/index")


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """params.yaml, `source:`: where the pictures come from (§2)."""

    name: Literal["sample"]
    """sample: a miniature of ILSVRC-2012, drawn by a program, not photographed."""
    seed: int
    """Of the drawing: another one gives other pictures of the same ten classes. From 0."""
    train_images: int
    """Training pictures to draw, over all classes. At least 20: the odd files are among them."""
    val_images: int
    """Validation pictures to draw, over all classes. At least 10."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed has to be at least 0, is {self.seed}")
        for name, least in (("train_images", sample.LEAST_TRAIN), ("val_images", sample.LEAST_VAL)):
            count = getattr(self, name)
            if not least <= count <= sample.MOST:
                raise ValueError(f"{name} has to be from {least} to {sample.MOST}, is {count}")


def main() -> None:
    """The stage as a program."""
    stage.main("download", run)


def run() -> None:
    """Sees that the source's archives are in the data store, whole, and writes the index."""
    section = params.read("source", Source)
    store = machine.store(machine.read())
    contents = fetch(section, store)
    check(contents, store)
    with stage.whole(OUT) as folder:
        folder.mkdir()
        write(contents, folder)
    print(summary(section.name, contents))


def fetch(section: Source, store: Path) -> ilsvrc.Contents:
    """The contents of the source, when its archives are in the store: drawn or fetched there if they were not."""
    folder = sample.folder(store, section.seed, section.train_images, section.val_images)
    sample.make(folder, section.seed, section.train_images, section.val_images)
    return ilsvrc.contents(folder, store, drawn=True)


def check(contents: ilsvrc.Contents, store: Path) -> None:
    """The promises of the index: ids unique, labels those of the classes, every picture's bytes inside its archive."""
    wnids = [synset.wnid for synset in contents.classes]
    sizes = {archive.name: archive.bytes for archive in contents.archives}
    assert wnids == sorted(set(wnids)), wnids
    assert len({picture.id for picture in contents.pictures}) == len(contents.pictures)
    for name, size in sizes.items():
        assert (store / name).stat().st_size == size, name
    for picture in contents.pictures:
        assert wnids[picture.label] == picture.wnid, picture
        assert picture.length > 0, picture
        assert 0 < picture.offset <= sizes[picture.archive] - picture.length, picture


def write(contents: ilsvrc.Contents, folder: Path) -> None:
    """Writes the index of the pictures as they lie, training first, and the lists of the classes and the archives."""
    rows = {name: [getattr(picture, name) for picture in contents.pictures] for name in tables.INDEX.names}
    tables.write(rows, tables.INDEX, folder / "index.parquet")
    classes = [dataclasses.asdict(synset) for synset in contents.classes]
    (folder / "classes.json").write_text(json.dumps(classes, indent=1) + "\n")
    archives = [dataclasses.asdict(archive) for archive in contents.archives]
    listed = {"drawn": contents.drawn, "archives": archives}
    (folder / "archives.json").write_text(json.dumps(listed, indent=1) + "\n")


def summary(name: str, contents: ilsvrc.Contents) -> str:
    """One line: how many pictures of each split, classes and bytes."""
    counts = Counter(picture.split for picture in contents.pictures)
    splits = " + ".join(f"{count:,} {split}" for split, count in counts.items())
    megabytes = sum(archive.bytes for archive in contents.archives) / 1e6
    drawn = " (drawn, not photographed)" if contents.drawn else ""
    return f"{name}: {splits} pictures of {len(contents.classes)} classes in {megabytes:,.1f} MB of archives{drawn}"


if __name__ == "__main__":
    main()
