"""The contents of a source, as each source returns them: classes, pictures with their byte ranges, archives."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal, Self

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.runtime.paths import AnyPath
from pipeline.shards import tables
from pipeline.shards.tables import Synset

Choice = Literal["all"] | int | tuple[str, ...]
"""The classes of a data set to use: all, the first N in the order of their ids, or those with these ids."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ByteRange:
    """The position of a file's bytes in the data store: `archive[offset : offset + length]`."""

    archive: str
    """Path from the root of the data store."""
    offset: int
    length: int
    crc32: int | None = None
    """CRC-32 of these bytes; None for a whole file that is not hashed yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A row of the index (`tables.INDEX`) without its label: the picture is `archive[offset : offset + length]`."""

    id: str
    split: str
    wnid: str
    archive: str
    offset: int
    length: int
    crc32: int | None
    """CRC-32 of the picture's bytes; None if the picture is a whole file, whose `Archive` has the CRC-32."""

    @classmethod
    def at(cls, part: ByteRange, name: str, split: str, wnid: str) -> Self:
        """The picture with that byte range and name."""
        return cls(
            id=name,
            split=split,
            wnid=wnid,
            archive=part.archive,
            offset=part.offset,
            length=part.length,
            crc32=part.crc32,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Archive:
    """A row of `tables.ARCHIVES`: one file of the source in the store."""

    name: str
    bytes: int
    sha256: str
    md5: str | None
    """The checksum that data sets publish; None if the file is a single picture."""
    crc32: int | None = None
    """CRC-32 of the file if it is a single picture, else None."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """The classes, pictures and archives of a source."""

    classes: tuple[Synset, ...]
    """The index of a class is its label."""
    pictures: pa.Table
    """A table with the schema `tables.INDEX`."""
    archives: pa.Table
    """A table with the schema `tables.ARCHIVES`."""
    drawn: bool
    """Whether the pictures are synthetic, drawn by a program; false: photographs."""
    notes: tuple[str, ...]
    """Lines for the user on what was left out."""
    remarks: tuple[str, ...] = ()
    """Lines for the user on what was done, such as from which file labels were taken."""


def gather(
    pictures: Iterable[Picture],
    archives: Callable[[list[str]], Iterable[Archive]],
    words: Mapping[str, str],
    store: AnyPath,
    classes: Choice = "all",
    *,
    where: object = None,
    drawn: bool = False,
    notes: Sequence[str] = (),
    remarks: Sequence[str] = (),
) -> Contents:
    """Collects a source's contents: the pictures of the chosen classes, with their labels.

    `archives` is called with the names of the pictures' archives after `pictures` is exhausted. `where` names the set in
    messages. Pictures of classes without a training picture are left out, and counted in the notes. `ValueError` if two
    pictures have the same id, if fewer than two classes have training pictures, or if no validation picture is left.
    """
    rows = tables.collect(pictures, pa.schema([field for field in tables.INDEX if field.name != "label"]))
    _refuse_repeated_ids(rows, store)
    trained = pc.unique(rows["wnid"].filter(pc.equal(rows["split"], "train")))
    if len(trained) < 2:
        found = ", ".join(repr(name) for name in trained.to_pylist()) or "none"
        raise ValueError(
            f"{where or store}: needs training pictures of at least 2 classes, found {found}. In folders, each class is a folder "
            "of pictures, named by the class"
        )
    left_out = []
    known = pc.is_in(rows["wnid"], value_set=trained)
    for split in ("val", "test"):
        count = pc.sum(pc.and_(pc.invert(known), pc.equal(rows["split"], split))).as_py()
        if count:
            left_out.append(f"{count:,} {split} pictures of classes that have no training picture")
    taken = choose_classes((Synset(wnid=wnid, words=words.get(wnid, wnid)) for wnid in trained.to_pylist()), classes)
    labels = pc.index_in(rows["wnid"], value_set=pa.array([synset.wnid for synset in taken], pa.string()))
    rows = rows.append_column("label", labels.cast(pa.int64())).filter(pc.is_valid(labels))
    rows = rows.select(tables.INDEX.names).combine_chunks()
    if not pc.any(pc.equal(rows["split"], "val")).as_py():
        why = "; ".join([*notes, *left_out][:3])
        raise ValueError(
            f"{where or store}: no validation picture of these classes was found"
            + (f". Left out: {why}" if why else "")
            + ". Add some, or hold out more of the training pictures (source.val_share, where the source has it)"
        )
    hashed = tables.collect(archives(pc.unique(rows["archive"]).to_pylist()), _HASHED)
    rows = _with_checksums(rows, hashed, store)
    listed = hashed.select(tables.ARCHIVES.names)
    return Contents(
        classes=taken,
        pictures=rows,
        archives=listed,
        drawn=drawn,
        notes=(*notes, *left_out),
        remarks=tuple(remarks),
    )


_HASHED = tables.ARCHIVES.append(tables.INDEX.field("crc32"))


def _with_checksums(rows: pa.Table, archives: pa.Table, store: AnyPath) -> pa.Table:
    """Fills in the missing checksums: a picture that is a whole file has the checksum of its archive."""
    indices = pc.index_in(rows["archive"], value_set=archives["name"].combine_chunks())
    alone = pc.is_null(rows["crc32"])
    changed = pc.and_(alone, pc.not_equal(rows["length"], archives["bytes"].take(indices)))
    if pc.any(changed).as_py():
        name = rows["archive"].filter(changed)[0].as_py()
        raise ValueError(f"{store / name}: changed while it was read. Run it again")
    crc32 = pc.coalesce(rows["crc32"], archives["crc32"].take(indices))
    assert crc32.null_count == 0, rows.filter(pc.is_null(crc32))
    return rows.set_column(rows.schema.get_field_index("crc32"), "crc32", crc32)


def _refuse_repeated_ids(rows: pa.Table, store: AnyPath) -> None:
    counts = pc.value_counts(rows["id"])
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(twice) == 0:
        return
    name = twice[0]["values"].as_py()
    first, second, *_ = rows.filter(pc.equal(rows["id"], name)).select(["archive", "offset"]).to_pylist()
    raise ValueError(
        f"{store / second['archive']}: {name} is there twice: at byte {first['offset']} of {first['archive']} and at byte "
        f"{second['offset']} of {second['archive']}. Fetch the archive again"
    )


def check_folder(folder: str, key: str = "folder") -> None:
    """`ValueError` unless `folder`, the value of `key`, is a relative path inside the data store."""
    path = PurePosixPath(folder)
    if folder != str(path) or path.is_absolute() or not path.parts or {"..", "~"} & set(path.parts):
        raise ValueError(
            f"{key} has to be the name of a {'folder' if key == 'folder' else 'file'} in the data store, is '{folder}'. Where "
            "that lies is no parameter but the machine's: make a link, such as ln -s /data/cats data/store/cats, and say cats"
        )


def check_choice(classes: Choice) -> None:
    """`ValueError` for a choice of fewer than two classes, or with an id twice."""
    if isinstance(classes, int) and classes < 2:
        raise ValueError(f"classes has to be 'all', at least 2, or a list of ids, is {classes}")
    if isinstance(classes, tuple):
        if len(classes) < 2:
            raise ValueError(f"classes has to name at least 2 ids, is {list(classes)}")
        if len(set(classes)) < len(classes):
            raise ValueError(f"classes has to name each id once, is {list(classes)}")


def choose_classes(synsets: Iterable[Synset], classes: Choice) -> tuple[Synset, ...]:
    """The chosen classes in the order of their WordNet ids, which is that of their labels. `ValueError` if one is missing."""
    known = sorted(synsets, key=lambda synset: synset.wnid)
    if isinstance(classes, int):
        if classes > len(known):
            raise ValueError(f"params.yaml: source.classes: {classes}, but the set has {len(known)}")
        return tuple(known[:classes])
    if isinstance(classes, tuple):
        names = [synset.wnid for synset in known]
        for name in classes:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
                hint = f", did you mean '{near[0]}'?" if near else f"; the first are {', '.join(names[:5])}"
                raise ValueError(f"params.yaml: source.classes: the set has no class '{name}'{hint}")
        return tuple(synset for synset in known if synset.wnid in classes)
    return tuple(known)
