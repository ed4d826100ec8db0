"""Drawn folders, tars and tables: each ends in the right index, or in a message that names the file; nothing is lost unsaid.

`make test` draws some 500 cases, `make fuzz` 10,000; both draw the same ones each time.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from pipeline.archives.class_folders import SPLITS
from pipeline.archives.contents import Contents
from pipeline.archives.leftovers import SYSTEM
from pipeline.download import check, read_contents
from pipeline.sources import huggingface
from pipeline.sources.huggingface import HuggingFace
from pipeline.sources.imagefolder import ImageFolder
from pipeline.sources.synsets import Synsets
from tests.pipeline import layouts
from tests.pipeline.miniature import jpeg

pytestmark = pytest.mark.slow

PICTURES = [jpeg(number, 8) for number in range(8)]

ENDINGS = (".jpg", ".JPEG", ".jpe", ".PNG", ".tif", ".webp", ".jfif", ".pgm", "", ".jpg.bak", ".txt")
"""Endings of pictures; their bytes are always those of a JPEG."""

LETTERS = st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\\")

ODD = (
    "$\\frac{$",
    "CON",
    "a_b",
    "a b",
    "..b",
    "-rf",
    "n01440764",
    "train2",
    "%41",
    "é",
    "e\u0301",
    "ß",
    "\u202egpj",
    "<b>",
)


def _is_plain(name: str) -> bool:
    return not name.startswith(".") and name.casefold() not in SYSTEM and len(name.encode()) < 200


NAMES = (
    st.text(LETTERS, min_size=1, max_size=12) | st.sampled_from([name for name in ODD if "\\" not in name])
).filter(_is_plain)

CLASSES = NAMES.filter(lambda name: name.casefold() not in SPLITS)

JUNK = st.sampled_from(
    (
        "Thumbs.db",
        ".DS_Store",
        "._1.jpg",
        ".ipynb_checkpoints/1.jpg",
        "__MACOSX/1.jpg",
        "@eaDir/1.jpg/SYNO.jpg",
        ".1.jpg.swp",
    )
)
"""Hidden and system files, some of them pictures."""

TEXTS = st.sampled_from(("README.md", "labels.csv", "annotation.xml", "list", "Makefile"))


@dataclass
class Drawn:
    """A drawn data set: its files, and what its index has to hold."""

    files: dict[str, bytes] = field(default_factory=dict)
    pictures: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Path → split and class of each picture that has to be in the index."""
    left_out: int = 0
    """Files that are to be counted as left out."""

    def add(self, path: str, data: bytes) -> bool:
        """Adds a file unless its path is taken, also by a folder."""
        above = {str(Path(*path.split("/")[:depth])) for depth in range(1, path.count("/") + 1)}
        if path in self.files or above & self.files.keys() or any(name.startswith(f"{path}/") for name in self.files):
            return False
        self.files[path] = data
        return True


@st.composite
def good_trees(draw: st.DrawFn) -> tuple[Drawn, float]:
    """A folder in one of the layouts that are documented, with what lies about in such folders; and `val_share`."""
    drawn = Drawn()
    classes = draw(st.lists(CLASSES, min_size=2, max_size=4, unique=True))
    halves = draw(st.booleans())
    if halves:
        names = {
            split: draw(st.sampled_from([key for key, of in SPLITS.items() if of == split]))
            for split in ("train", "val")
        }
        tops = {split: draw(st.sampled_from((name, name.upper(), name.title()))) for split, name in names.items()}
    else:
        tops = {"train": ""}
    number = 0
    for split, top in tops.items():
        for wnid in classes:
            folder = f"{top}/{wnid}" if top else wnid
            for index in range(draw(st.integers(2, 4) if split == "train" else st.integers(1, 2))):
                below = draw(st.sampled_from(("", "a/", "deep/er/"))) if index else ""
                path = f"{folder}/{below}{index}{draw(st.sampled_from(ENDINGS))}"
                if drawn.add(path, PICTURES[number % len(PICTURES)]):
                    drawn.pictures[path] = split, wnid
                number += 1
            for junk in draw(st.lists(JUNK, max_size=2, unique=True)):
                drawn.left_out += drawn.add(f"{folder}/{junk}", PICTURES[0])
            for text in draw(st.lists(TEXTS, max_size=2, unique=True)):
                drawn.left_out += drawn.add(f"{folder}/{text}", b"a text\n")
        for junk in draw(st.lists(JUNK, max_size=1)):
            drawn.left_out += drawn.add(f"{top}/{junk}".lstrip("/"), PICTURES[0])
        if draw(st.booleans()):
            drawn.left_out += drawn.add(f"{top}/stray.jpg".lstrip("/"), PICTURES[1])
        for empty in draw(st.lists(CLASSES, max_size=1)):
            drawn.left_out += drawn.add(f"{top}/{empty}/notes.rst".lstrip("/"), b"none\n")
    return drawn, 0.0 if halves else 0.5


PARTS = (
    "train",
    "Val",
    "test",
    "cat",
    "dog",
    "CAT",
    ".git",
    "x",
    "1.jpg",
    "2.jfif",
    "3.txt",
    "val.txt",
    "Thumbs.db",
    "é.png",
)

ANYTHING = st.dictionaries(
    st.lists(st.sampled_from(PARTS), min_size=1, max_size=4).map("/".join),
    st.sampled_from((*PICTURES[:3], b"", b"a text\n", b"\x89PNG\r\n\x1a\nbroken")),
    max_size=8,
)

BASES: tuple[dict[str, bytes], ...] = (
    {},
    {f"{name}/{number}.jpg": PICTURES[number] for name in ("cat", "dog") for number in (2, 3)},
    {f"train/{name}/{number}.jpg": PICTURES[number] for name in ("cat", "dog") for number in (2, 3)},
    {
        f"{top}/{name}/{number}.jpg": PICTURES[number]
        for top in ("train", "Val")
        for name in ("cat", "dog")
        for number in (2, 3)
    },
)

CHAOS = st.builds(lambda anything, base: base | anything, ANYTHING, st.sampled_from(BASES))


def written(files: Mapping[str, bytes], folder: Path) -> dict[str, bytes]:
    """Writes the files, without those whose path is another one's folder, and returns what was written."""
    folder.mkdir(parents=True)
    kept = {}
    for name, data in files.items():
        try:
            layouts.write({name: data}, folder)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            continue
        kept[name] = data
    return kept


def index_or_message(source: Any, store: Path, name: str) -> Contents | None:
    """The contents; None if there is a message, which has to name the data set's folder, or a file in it, and say what to do."""
    try:
        found = read_contents(source.contents, store)
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
    else:
        event("an index")
        check(found)
        return found
    event("a message: " + re.sub(r"/tmp/\S+|'[^']*'|[0-9]+", "_", message)[:60])
    assert str(store / name) in message
    assert "Errno" not in message
    assert re.search(r"[.?:;] [A-Z`]|has to|[Ss]et params", message), f"does not say what to do: {message}"
    return None


def indexed(found: Contents, store: Path) -> list[tuple[str, str, str, bytes]]:
    """Archive, split, class and bytes of each row."""
    out = []
    for row in found.pictures.to_pylist():
        data = (store / row["archive"]).read_bytes()[row["offset"] : row["offset"] + row["length"]]
        out.append((row["archive"], row["split"], row["wnid"], data))
    return out


def counted(notes: tuple[str, ...]) -> int:
    """The sum of the numbers of files that notes count."""
    numbers = [re.search(r"(?:^|: )([0-9,]+) (?:test |val )?(?:files|pictures|members)", note) for note in notes]
    return sum(int(number.group(1).replace(",", "")) for number in numbers if number)


@given(good_trees())
def test_a_folder_in_a_documented_layout_gives_its_pictures_and_counts_the_rest(
    given_tree: tuple[Drawn, float],
) -> None:
    drawn, share = given_tree
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        assert written(drawn.files, store / "cats") == drawn.files
        source = ImageFolder(name="imagefolder", folder="cats", classes="all", val_share=share, seed=0)
        found = read_contents(source.contents, store)
        check(found)
        rows = indexed(found, store)
    expected = {
        (f"cats/{path}", split if not share else "", wnid, drawn.files[path])
        for path, (split, wnid) in drawn.pictures.items()
    }
    assert {(path, split if not share else "", wnid, data) for path, split, wnid, data in rows} == expected
    assert len(rows) == len(expected)
    assert {synset.wnid for synset in found.classes} == {wnid for _, wnid in drawn.pictures.values()}
    assert counted(found.notes) == drawn.left_out, found.notes


@given(CHAOS, st.sampled_from((0.0, 0.5)))
def test_any_folder_ends_in_an_index_that_accounts_for_its_pictures_or_in_a_message(
    files: dict[str, bytes], share: float
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        files = written(files, store / "cats")
        source = ImageFolder(name="imagefolder", folder="cats", classes="all", val_share=share, seed=0)
        found = index_or_message(source, store, "cats")
        if found is None:
            return
        rows = indexed(found, store)
    for path, split, wnid, data in rows:
        parts = path.removeprefix("cats/").split("/")
        assert not any(part.startswith(".") or part.casefold() in SYSTEM for part in parts), path
        assert wnid in parts[:-1]
        assert data == files["/".join(parts)]
        assert SPLITS.get(parts[0].casefold(), split) == split or share
    pictures = sum(data[:3] == b"\xff\xd8\xff" for data in files.values())
    assert sum(data[:3] == b"\xff\xd8\xff" for *_, data in rows) + counted(found.notes) >= pictures, found.notes


WNID = st.sampled_from(("n01440764", "n02102040", "n03417042"))

KINDS = (
    tarfile.REGTYPE,
    tarfile.AREGTYPE,
    tarfile.DIRTYPE,
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.FIFOTYPE,
    tarfile.CHRTYPE,
)


@dataclass(frozen=True)
class Drawer:
    """A member of a tar: name, kind and bytes."""

    name: str
    kind: bytes
    data: bytes


MEMBERS = st.builds(
    Drawer,
    name=st.tuples(
        st.sampled_from(("", "./", "images/", "../", "/", "a/b/", ".hidden/", "__MACOSX/")),
        WNID,
        st.sampled_from(("_1.JPEG", "_2.JPEG", "_3.JPEG", "_10026.JPEG", ".JPEG", "_x.JPEG", "_4.jpg")),
    ).map("".join)
    | st.sampled_from(("._n01440764_1.JPEG", "", "x" * 150 + ".JPEG", "é.JPEG")),
    kind=st.sampled_from((tarfile.REGTYPE,) * 6 + KINDS),
    data=st.sampled_from((*PICTURES[:4], b"")),
)


def packed(members: list[Drawer], form: int) -> bytes:
    """A tar with these members."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as opened:
        for each in members:
            member = tarfile.TarInfo(each.name)
            member.type, member.linkname = each.kind, "elsewhere"
            member.size = len(each.data) if each.kind in (tarfile.REGTYPE, tarfile.AREGTYPE) else 0
            opened.addfile(member, io.BytesIO(each.data))
    return out.getvalue()


@st.composite
def members(draw: st.DrawFn) -> dict[str, list[Drawer]]:
    """The members of each synset's tar: pictures as they are called, what desktops add, and sometimes a member of any kind."""
    drawn: dict[str, list[Drawer]] = {}
    for wnid in draw(st.lists(WNID, min_size=1, max_size=3, unique=True)):
        top = draw(st.sampled_from(("", "./", "images/", f"{wnid}/")))
        numbers = draw(st.lists(st.integers(1, 99_999), min_size=1, max_size=4, unique=True))
        own = [Drawer(f"{top}{wnid}_{number}.JPEG", tarfile.REGTYPE, PICTURES[number % 8]) for number in numbers]
        own += [
            Drawer(f"{top}._{wnid}_{number}.JPEG", tarfile.REGTYPE, b"mac")
            for number in numbers[: draw(st.integers(0, 2))]
        ]
        if top and draw(st.booleans()):
            own.insert(0, Drawer(top, tarfile.DIRTYPE, b""))
        if draw(st.integers(0, 4)) == 0:
            own.insert(draw(st.integers(0, len(own))), draw(MEMBERS))
        drawn[wnid] = own
    return drawn


@given(
    members(),
    st.sampled_from((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)),
    st.sampled_from((None, None, None, 1, 511, 512, 1024, 1025, 3000)),
    st.booleans(),
)
def test_tars_of_synsets_end_in_an_index_with_every_picture_or_in_a_message(
    drawn: dict[str, list[Drawer]], form: int, cut: int | None, nested: bool
) -> None:
    tars = {f"{wnid}.tar": packed(members, form) for wnid, members in drawn.items()}
    files = {"all.tar": layouts.tar(tars)} if nested else tars
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        for number, (name, data) in enumerate(files.items()):
            layouts.write({name: data[: len(data) - cut] if cut and not number else data}, store / "fall")
        source = Synsets(name="synsets", folder="fall", classes="all", val_share=0.5, seed=0)
        found = index_or_message(source, store, "fall")
        if found is None:
            return
        rows = indexed(found, store)
    plain = [(wnid, each) for wnid, members in drawn.items() for each in members if each.kind != tarfile.DIRTYPE]
    assert not {each.kind for _, each in plain} - {tarfile.REGTYPE, tarfile.AREGTYPE}
    hidden = [
        each for _, each in plain if any(part.startswith(".") or part == "__MACOSX" for part in Path(each.name).parts)
    ]
    wanted = Counter((wnid, each.data) for wnid, each in plain if each not in hidden)
    assert Counter((wnid, data) for _, _, wnid, data in rows) == wanted
    assert counted(found.notes) == len(hidden), found.notes


IMAGES = {
    "struct": pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    "bytes alone": pa.struct([("bytes", pa.binary())]),
    "binary": pa.binary(),
    "large": pa.large_binary(),
    "paths": pa.string(),
    "pixels": pa.list_(pa.uint8()),
    "nothing": pa.null(),
}
"""Kinds of a column of pictures; the first four hold their bytes."""

LABELS = {
    "int64": pa.int64(),
    "uint8": pa.uint8(),
    "names": pa.string(),
    "category": pa.dictionary(pa.int32(), pa.string()),
    "fractions": pa.float64(),
}

CALLED = ("a", "b", "c/d", "c_d", "é", "", "..", "n01440764", "a b", "x" * 300)
"""Names of classes; `c/d` and `c_d` would be one folder, and two of them name none."""


@dataclass(frozen=True)
class Table:
    """A drawn Parquet file: its name, columns and rows."""

    file: str
    image: tuple[str, str]
    """Name and kind of the column of pictures."""
    label: tuple[str, str]
    names: bool
    """Whether the metadata name the classes."""
    rows: list[tuple[int | None, bytes | None, str | None]]
    """Label, an index of `CALLED`; bytes; path."""

    @property
    def split(self) -> str:
        """The split that the name says."""
        return "val" if self.file.startswith("val") else "test" if self.file.startswith("test") else "train"

    def write(self, folder: Path) -> None:
        """Writes the file."""
        (image, kind), (label, labels) = self.image, self.label
        numbers = [number for number, _, _ in self.rows]
        cells: dict[str, list[Any]] = {
            "struct": [
                None if data is None and path is None else {"bytes": data, "path": path} for _, data, path in self.rows
            ],
            "bytes alone": [{"bytes": data} for _, data, _ in self.rows],
            "paths": [path for _, _, path in self.rows],
            "pixels": [[0, 1] for _ in self.rows],
            "nothing": [None for _ in self.rows],
        }
        pictures = cells.get(kind, [data for _, data, _ in self.rows])
        given: list[Any] = numbers
        if labels in ("names", "category"):
            given = [None if number is None or number < 0 else CALLED[number] for number in numbers]
        elif labels == "uint8":
            given = [None if number is None or number < 0 else number for number in numbers]
        table = pa.table(
            {image: pa.array(pictures, IMAGES[kind]), label: pa.array(given, LABELS[labels]), "extra": numbers}
        )
        if self.names:
            features = {image: {"_type": "Image"}, label: {"names": list(CALLED), "_type": "ClassLabel"}}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / self.file, row_group_size=2)


FILES = (
    "train-00000-of-00001.parquet",
    "train-00000-of-00001-0123456789abcdef.parquet",
    "train.parquet",
    "validation-00000-of-00001.parquet",
    "val.parquet",
    "test-00000-of-00001.parquet",
)

ROWS = st.tuples(
    st.sampled_from((0, 0, 1, 1, 2, 7, 8, -1, None)),
    st.sampled_from((*PICTURES, None)),
    st.sampled_from((None, None, None, "1.jpg", "a/b.jfif", "no ending", "é.PNG")),
)

ODD_ROWS = st.tuples(
    st.sampled_from((2, 3, 4, 5, 6, 7, 9)),
    st.sampled_from((PICTURES[0], None)),
    st.sampled_from(("x_n01440764.JPEG", "..", None)),
)


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[Table], float]:
    """Files, mostly of kinds that are taken, and `val_share`, mostly as the files need it."""
    good = draw(st.integers(0, 3)) > 0
    image = draw(st.sampled_from(("image", "image", "img")) if good else st.sampled_from(("image", "photo")))
    label = draw(st.sampled_from(("label", "label", "labels")) if good else st.sampled_from(("label", "breed")))
    kind = draw(st.sampled_from(tuple(IMAGES)[:4] if good else tuple(IMAGES)))
    labels = draw(st.sampled_from(tuple(LABELS)[:4] if good else tuple(LABELS)))
    drawn = []
    for file in draw(st.lists(st.sampled_from(FILES), min_size=1, max_size=3, unique_by=lambda name: name[:3])):
        rows: list[tuple[int | None, bytes | None, str | None]] = [(0, PICTURES[2], None), (1, PICTURES[3], None)] * 2
        rows += draw(st.lists(ROWS, max_size=5))
        if not good or draw(st.integers(0, 4)) == 0:
            rows += draw(st.lists(ODD_ROWS, max_size=2))
        names = draw(st.booleans()) if labels in ("names", "category") or not good else True
        drawn.append(Table(file, (image, kind), (label, labels), names, draw(st.permutations(rows))))
    validated = any(table.split == "val" for table in drawn)
    share = draw(st.sampled_from((0.0, 0.5))) if draw(st.integers(0, 4)) == 0 else 0.0 if validated else 0.5
    return drawn, share


class Here:
    """Takes the place of the process with limited memory, whose start takes half a second: runs the readers in this one."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def items(self, function: Any, file: Path, more: tuple[Any, ...] = ()) -> Iterator[Any]:
        """Yields what the function yields."""
        yield from function(file, *more)


@given(tables())
def test_parquet_files_end_in_an_index_with_every_labelled_row_or_in_a_message(
    given_set: tuple[list[Table], float],
) -> None:
    drawn, share = given_set
    source = HuggingFace(
        name="huggingface", dataset="a/b", revision="main", classes="all", complete=False, val_share=share
    )
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface, "Apart", Here)
        store = Path(folder)
        for table in drawn:
            table.write(store / "huggingface/a/b")
        found = index_or_message(source, store, "huggingface/a/b")
        if found is None:
            return
        rows = indexed(found, store)
    expected = Counter[tuple[str, bytes]]()
    unlabelled = 0
    for table in drawn:
        assert table.image[1] in ("struct", "bytes alone", "binary", "large")
        assert table.label[1] != "fractions"
        for number, data, _ in table.rows:
            if number is None or number < 0:
                unlabelled += 1
            else:
                expected[table.split if not share or table.split != "train" else "", data or b""] += 1
    got = Counter(("" if share and split != "test" else split, data) for _, split, _, data in rows)
    assert not got - expected
    untrained = [
        int(number) for note in found.notes for number in re.findall("^([0-9]+) test pictures of classes that", note)
    ]
    assert sum((expected - got).values()) == sum(untrained)
    assert {split for split, _ in expected - got} <= {"test"}
    assert len({synset.wnid for synset in found.classes}) == len(found.classes) >= 2
    assert unlabelled == 0 or found.notes
