"""A source's archives in the data store → the index: each picture's byte range and label (§2).

Run:    dvc repro download
Reads:  archives and folders, or links to them, in the data store (machine.yaml: store); fetches or draws missing ones
Writes: data/index/ {index.parquet (tables.INDEX), archives.parquet (tables.ARCHIVES), contents.json, SHA256SUMS}
Takes:  source
Expect: sample: 1,500 + 300 pictures of 10 classes, drawn in some 15 s on one core; a second run takes 1 s. Archives are
        read once, from start to end, for their checksums: 150 GB in some 10 minutes on a fast disk
"""

from __future__ import annotations

if __name__ == "__main__":  # before the slow imports
    from pipeline.__main__ import main as enter

    enter("download")

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pyarrow.compute as pc

from pipeline.archives.contents import Contents
from pipeline.runtime import digests, files, machines, params
from pipeline.runtime.paths import AnyPath
from pipeline.runtime.printing import say
from pipeline.shards import duplicates, tables
from pipeline.sources.cifar10 import Cifar10
from pipeline.sources.huggingface import HuggingFace
from pipeline.sources.ilsvrc import Ilsvrc
from pipeline.sources.imagefolder import ImageFolder
from pipeline.sources.imagenette import Imagenette
from pipeline.sources.sample import Sample
from pipeline.sources.synsets import Synsets
from pipeline.sources.tiny_imagenet import TinyImageNet

OUT = Path("data/index")

Source = Sample | Ilsvrc | Synsets | ImageFolder | Imagenette | HuggingFace | TinyImageNet | Cifar10

SOURCES: tuple[type[Source], ...] = get_args(Source)
"""The classes of params.yaml's section `source:`; `source.name` selects one."""


def run() -> None:
    """Runs the stage."""
    section = params.read("source", SOURCES)
    contents = read_contents(section.contents, machines.store(machines.read()))
    check(contents)
    with files.atomic(OUT) as folder:
        folder.mkdir()
        write(contents, folder)
    say(*summary(section.name, contents))


def read_contents(contents: Callable[[AnyPath], Contents], store: AnyPath) -> Contents:
    """The source's contents in the store; `ValueError` if a name is not valid Unicode, which no table can hold."""
    try:
        return contents(store)
    except UnicodeEncodeError as error:
        raise ValueError(_no_text(store, str(error.object))) from None


def _no_text(where: object, name: str) -> str:
    return f"{where}: the name {name[:200]!a} is no Unicode text. Rename that file or class, or make its list anew in UTF-8"


def check(contents: Contents) -> None:
    """Checks the index: ids are unique, labels are those of the classes, and each picture's bytes are inside its archive.

    `ValueError` for a class without a name, or with a name that is not valid Unicode.
    """
    for synset in contents.classes:
        if not synset.wnid:
            raise ValueError("a class has no name: the folder of its pictures is called nothing. Give it one")
        for name in (synset.wnid, synset.words):
            if not _is_text(name):
                raise ValueError(_no_text(f"class {synset.wnid[:200]!a}", name))
    wnids = [synset.wnid for synset in contents.classes]
    assert wnids == sorted(set(wnids)), wnids
    tables.check_index(contents.pictures, contents.classes, contents.archives, OUT / "index.parquet")


def _is_text(name: str) -> bool:
    return name == name.encode("utf-8", "replace").decode()


def write(contents: Contents, folder: Path) -> None:
    """Writes the files of the stage's out: index.parquet, archives.parquet, contents.json and SHA256SUMS."""
    tables.write(contents.pictures, tables.INDEX, folder / "index.parquet")
    tables.write(contents.archives, tables.ARCHIVES, folder / "archives.parquet")
    facts = {"drawn": contents.drawn, "classes": [dataclasses.asdict(synset) for synset in contents.classes]}
    (folder / "contents.json").write_text(json.dumps(facts, indent=1) + "\n")
    digests.seal(folder)


def summary(name: str, contents: Contents) -> list[str]:
    """Lines for the user: the numbers of pictures, classes and bytes, what was done, duplicates, and what was left out."""
    counted = pc.value_counts(contents.pictures["split"]).to_pylist()
    splits = " + ".join(f"{split['counts']:,} {split['values']}" for split in counted)
    megabytes = (pc.sum(contents.archives["bytes"]).as_py() or 0) / 1e6
    files = contents.archives.num_rows
    drawn = " (drawn, not photographed)" if contents.drawn else ""
    line = (
        f"{name}: {splits} pictures of {len(contents.classes)} classes in {megabytes:,.1f} MB of {files:,} files{drawn}"
    )
    alike = duplicates.in_index(contents.pictures)
    said = [f"{duplicates.words(duplicates.by_split(alike))}. The first of them:"] if alike else []
    said += [f"  {row['id']} has {row['reason']}" for row in alike[:5]]
    return [
        line,
        *(f"{name}: {remark}" for remark in [*contents.remarks, *said]),
        *(f"{name}: left out: {note}" for note in contents.notes),
    ]
