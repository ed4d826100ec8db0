"""Validation pictures that lie flat in one folder: their labels from what people have beside them, or a message."""

from __future__ import annotations

import gzip
import io
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from pipeline.archives import label_files, tree
from pipeline.archives.store import StorePath
from pipeline.runtime import params
from tests.pipeline import layouts
from tests.pipeline.layouts import WNIDS, WORDS, Layout
from tests.pipeline.sources.test_sources import contents, rows

DEVKIT = "ILSVRC2012_devkit_t12"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


def bare(store: Path) -> tuple[Layout, Path]:
    """ILSVRC-2012 unpacked, without its devkit."""
    layout = layouts.unpacked(store)
    (store / f"imagenet/{DEVKIT}.tar.gz").unlink()
    layout.words = {wnid: wnid for wnid in WNIDS}
    return layout, store / "imagenet"


def shown(layout: Layout) -> dict[str, str]:
    """File name of a validation picture, without its extension → its class."""
    return {name.removeprefix("val/"): wnid for name, (split, wnid, _) in layout.rows.items() if split == "val"}


def kaggle(layout: Layout) -> bytes:
    lines = [f"{name},{wnid} 1 2 3 4 {wnid} 5 6 7 8 " for name, wnid in shown(layout).items()]
    return "\n".join(["ImageId,PredictionString", *reversed(lines), ""]).encode()


def lines(layout: Layout, form: str) -> bytes:
    """Lines of NAME LABEL in a form with the fields n, l and r: name, label and rank."""
    return "".join(
        form.format(n=name, l=wnid, r=WNIDS.index(wnid)) + "\n" for name, wnid in shown(layout).items()
    ).encode()


def devkit(layout: Layout) -> dict[str, bytes]:
    return layouts.devkit(list(shown(layout).values()))


TAKEN: dict[str, Callable[[Layout], dict[str, bytes]]] = {
    "the devkit's archive": lambda layout: {f"{DEVKIT}.tar.gz": gzip.compress(layouts.tar(devkit(layout)))},
    "the devkit's archive in val": lambda layout: {f"val/{DEVKIT}.tgz": gzip.compress(layouts.tar(devkit(layout)))},
    "the devkit unpacked": devkit,
    "the devkit's two files": lambda layout: {path.rpartition("/")[2]: data for path, data in devkit(layout).items()},
    "Kaggle's csv": lambda layout: {"LOC_val_solution.csv": kaggle(layout)},
    "Kaggle's csv in val": lambda layout: {"val/LOC_val_solution.csv": kaggle(layout)},
    "names and WordNet ids": lambda layout: {"val.txt": lines(layout, "{n}.JPEG {l}")},
    "names without extension": lambda layout: {"val_labels.txt": lines(layout, "{n}\t{l}")},
    "names with a folder": lambda layout: {"val/val.txt": lines(layout, "val/{n}.JPEG {l}")},
    "Windows's names": lambda layout: {"val.txt": lines(layout, "val\\{n}.JPEG\t{l}").replace(b"\n", b"\r\n")},
    "names and ranks": lambda layout: {"val.txt": lines(layout, "{n}.JPEG {r}")},
    "a csv with headings": lambda layout: {"val.csv": b"filename,label\n" + lines(layout, '"{n}.JPEG","{l}"')},
    "WordNet ids by number": lambda layout: {
        "imagenet_2012_validation_synset_labels.txt": lines(layout, "{l}"),
    },
    "boxes behind the labels": lambda layout: {
        "val/val_annotations.txt": lines(layout, "{n}.JPEG\t{l}\t0\t32\t44\t62")
    },
    "a list in UTF-16": lambda layout: {"val.txt": lines(layout, "{n} {l}").decode().encode("utf-16")},
    "two lists that agree": lambda layout: {
        "val.txt": lines(layout, "{n} {r}"),
        "LOC_val_solution.csv": kaggle(layout),
    },
}


@pytest.mark.parametrize("kind", TAKEN)
def test_flat_validation_pictures_have_the_labels_that_lie_beside_them(store: Path, kind: str) -> None:
    layout, folder = bare(store)
    files = TAKEN[kind](layout)
    layouts.write(files, folder)
    found = contents(store, layout.section)
    assert rows(found, store) == layout.rows
    file = next(path for path in sorted(files) if not path.endswith("meta.mat"))
    assert found.remarks[0].startswith("the labels of val are those of ")
    assert found.remarks[0].endswith(file) or "agree" in kind
    words = WORDS if "devkit" in kind else layout.words
    assert {synset.wnid: synset.words for synset in found.classes} == words


@pytest.mark.parametrize("kind", TAKEN)
def test_they_may_be_elsewhere_and_named(store: Path, kind: str) -> None:
    layout, _ = bare(store)
    if kind == "two lists that agree":
        return
    files = TAKEN[kind](layout)
    layouts.write(files, store / "labels")
    one = next(path for path in sorted(files) if not path.endswith("meta.mat"))
    found = contents(store, layout.section | {"val_labels": f"labels/{one}"})
    assert rows(found, store) == layout.rows
    if kind == "the devkit unpacked":
        for name in ("labels", f"labels/{DEVKIT}", f"labels/{DEVKIT}/data"):
            assert rows(contents(store, layout.section | {"val_labels": name}), store) == layout.rows


def test_the_index_is_that_of_class_folders(store: Path) -> None:
    layout = layouts.unpacked(store)
    flat = contents(store, layout.section)
    for name, wnid in shown(layout).items():
        (store / f"imagenet/val/{wnid}").mkdir(exist_ok=True)
        (store / f"imagenet/val/{name}.JPEG").rename(store / f"imagenet/val/{wnid}/{name}.JPEG")
    moved = contents(store, layout.section)
    assert moved.remarks == ()
    kept = [
        [(row["split"], row["label"], row["crc32"]) for row in found.pictures.to_pylist()] for found in (flat, moved)
    ]
    assert sorted(kept[0]) == sorted(kept[1])


def test_they_may_lie_flat_in_a_folder_below(store: Path) -> None:
    """As in Tiny ImageNet's val/images/."""
    layout, folder = bare(store)
    (folder / "val").rename(folder / "images")
    (folder / "val").mkdir()
    (folder / "images").rename(folder / "val/images")
    layouts.write({"val/val.txt": lines(layout, "{n} {l}")}, folder)
    found = contents(store, layout.section)
    assert sorted(row["split"] for row in found.pictures.to_pylist()).count("val") == len(shown(layout))
    assert {name.rpartition("/")[2]: row[1] for name, row in rows(found, store).items() if row[0] == "val"} == shown(
        layout
    )


def test_without_labels_the_folder_is_named_and_what_would_be_taken(store: Path) -> None:
    layout, folder = bare(store)
    with pytest.raises(ValueError, match="lie flat") as caught:
        contents(store, layout.section)
    said = str(caught.value)
    assert said.startswith(
        f"{folder}/val: its 6 pictures lie flat, not in folders of the training classes, and no labels"
    )
    for word in (f"{DEVKIT}.tar.gz", "LOC_val_solution.csv", "val.txt", f"into {folder}", "source.val_labels"):
        assert word in said
    assert "\n" not in said


def sorted_by_hand(layout: Layout, folder: Path) -> None:
    """Half of the pictures were moved to class folders, as by a script that was stopped."""
    for name, wnid in list(shown(layout).items())[::2]:
        (folder / f"val/{wnid}").mkdir(exist_ok=True)
        (folder / f"val/{name}.JPEG").rename(folder / f"val/{wnid}/{name}.JPEG")


def changed(data: bytes, line: int, new: bytes | None) -> bytes:
    """The text with another line in place of one, counted from 0, or without it."""
    all_of_it = data.splitlines()
    all_of_it[line : line + 1] = [] if new is None else [new]
    return b"\n".join(all_of_it)


def meta_without_synsets() -> bytes:
    out = io.BytesIO()
    savemat(out, {"synsets": np.zeros((1, 1))})
    return out.getvalue()


REFUSED: dict[str, tuple[Callable[[Layout], dict[str, bytes]], str]] = {
    "a line too few": (
        lambda layout: {"val.txt": changed(lines(layout, "{n} {l}"), 2, None)},
        r"val\.txt: 1 of the 6 pictures in .*/val have no label, the first is val/ILSVRC2012_val_00000003\.JPEG\. Remove the",
    ),
    "two lines too many": (
        lambda layout: {"val.txt": lines(layout, "{n} {l}") + b"x.JPEG n01440764\ny n01440764\n"},
        r"val\.txt: 2 of 8 labels are of no picture in .*/val, the first is line 7: 'x\.JPEG'\. Unpack the pictures again",
    ),
    "names of other pictures": (
        lambda layout: {"val.txt": lines(layout, "a{n} {l}")},
        r"6 of 6 labels are of no picture .*; 6 of the 6 pictures in .* have no label",
    ),
    "a picture twice": (
        lambda layout: {"val.txt": lines(layout, "{n} {l}") + b"ILSVRC2012_val_00000001.JPEG n01440764\n"},
        r"val\.txt: lines 1 and 7 both label val/ILSVRC2012_val_00000001\.JPEG: 'n01440764' and 'n01440764'\. Remove one",
    ),
    "an unknown class": (
        lambda layout: {"val.txt": changed(lines(layout, "{n} {l}"), 1, b"ILSVRC2012_val_00000002 n00000001")},
        r"val\.txt: 1 labels are neither a training class nor the rank of one, the first is line 2: 'n00000001'.*3 classes",
    ),
    "names and ranks": (
        lambda layout: {"val.txt": changed(lines(layout, "{n} {l}"), 1, b"ILSVRC2012_val_00000002 1")},
        r"val\.txt: line 1 has the name of a class, 'n01440764', and line 2 a number, '1'\. Write all labels as",
    ),
    "ranks from 1": (
        lambda layout: {
            "val.txt": "".join(f"{name} {WNIDS.index(wnid) + 1}\n" for name, wnid in shown(layout).items()).encode()
        },
        r"val\.txt: its labels are the numbers 1 to 3 .*, but the ranks of 3 classes go from 0 to 2\. Numbers from 1",
    ),
    "numbers without a 0": (
        lambda layout: {"val.txt": "".join(f"{name} {1 + (name > 'J')}\n" for name in shown(layout)).encode()},
        r"val\.txt: its labels are the numbers 1 to 1",
    ),
    "the ground truth alone": (
        lambda layout: {
            "ILSVRC2012_validation_ground_truth.txt": devkit(layout)[
                f"{DEVKIT}/data/ILSVRC2012_validation_ground_truth.txt"
            ]
        },
        r"ILSVRC2012_validation_ground_truth\.txt: its numbers are ILSVRC's own, .*only the devkit's meta\.mat .*beside it",
    ),
    "the ground truth under another name": (
        lambda layout: {"val_labels.txt": devkit(layout)[f"{DEVKIT}/data/ILSVRC2012_validation_ground_truth.txt"]},
        r"val_labels\.txt: its numbers are ILSVRC's own",
    ),
    "two lists that disagree": (
        lambda layout: {
            "val.txt": changed(lines(layout, "{n} {l}"), 1, f"ILSVRC2012_val_00000002 {WNIDS[0]}".encode()),
            "LOC_val_solution.csv": kaggle(layout),
        },
        r"LOC_val_solution\.csv and .*val\.txt disagree on 1 of 6 pictures, the first is val/ILSVRC2012_val_00000002\.JPEG: "
        r"'n03417042' or 'n01440764'\. .*source\.val_labels .*imagenet/LOC_val_solution\.csv",
    ),
    "Kaggle's csv of a part": (
        lambda layout: {"LOC_val_solution.csv": changed(kaggle(layout), 6, None)},
        r"LOC_val_solution\.csv: 1 of the 6 pictures .* have no label, the first is val/ILSVRC2012_val_00000001\.JPEG",
    ),
    "Kaggle's csv of other classes": (
        lambda layout: {"LOC_val_solution.csv": kaggle(layout).replace(b"n03417042", b"n09999999")},
        r"LOC_val_solution\.csv: 2 labels are no training class, the first is line \d: 'n09999999'",
    ),
    "Kaggle's csv with a line of something else": (
        lambda layout: {"LOC_val_solution.csv": changed(kaggle(layout), 3, b"a,b,c")},
        r"LOC_val_solution\.csv: line 4 is 'a,b,c', not a picture and its class",
    ),
    "a devkit of fewer pictures": (
        lambda layout: layouts.devkit(list(shown(layout).values())[:-1]),
        r"ground_truth\.txt: 1 of the 6 pictures .* have no label, the first is val/ILSVRC2012_val_00000006\.JPEG",
    ),
    "a devkit with another meta.mat": (
        lambda layout: devkit(layout) | {f"{DEVKIT}/data/meta.mat": meta_without_synsets()},
        r"meta\.mat: no list of synsets in it",
    ),
    "a list of names alone": (
        lambda layout: {"val.txt": lines(layout, "{n}.JPEG")},
        r"val\.txt: 6 labels are neither a training class",
    ),
    "a line of one word": (
        lambda layout: {"val.txt": changed(lines(layout, "{n} {l}"), 1, b"ILSVRC2012_val_00000002")},
        r"val\.txt: line 2 is 'ILSVRC2012_val_00000002', not NAME LABEL",
    ),
    "a line without an end": (lambda layout: {"val.txt": b"x " * 9999}, r"val\.txt: line 1 has more than 4,096 char"),
    "no text": (
        lambda layout: {"val.txt": b"\xff" + lines(layout, "{n} {l}")},
        r"val\.txt: no text in UTF-8 \(.*byte 0",
    ),
    "an empty list": (lambda layout: {"val.txt": b"\n"}, r"val\.txt: 6 of the 6 pictures in .*/val have no label"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_labels_that_are_not_one_for_each_picture_are_refused_in_plain_words(store: Path, case: str) -> None:
    make, said = REFUSED[case]
    layout, folder = bare(store)
    layouts.write(make(layout), folder)
    with pytest.raises(ValueError, match=said) as caught:
        contents(store, layout.section)
    assert "\n" not in str(caught.value)
    assert "source.val_labels" in str(caught.value) or "ground truth" in case


def test_a_ground_truth_alone_does_not_matter_beside_another_list(store: Path) -> None:
    layout, folder = bare(store)
    truth = devkit(layout)[f"{DEVKIT}/data/ILSVRC2012_validation_ground_truth.txt"]
    layouts.write({"ILSVRC2012_validation_ground_truth.txt": truth, "val.txt": lines(layout, "{n} {l}")}, folder)
    assert rows(contents(store, layout.section), store) == layout.rows


def test_a_picture_is_told_by_its_extension_where_two_have_its_name(store: Path) -> None:
    layout, folder = bare(store)
    wnid = WNIDS[1]
    layouts.write({"val/ILSVRC2012_val_00000001.png": layout.add("x", "val", wnid)}, folder)
    layouts.write({"val.txt": lines(layout, "{n} {l}")}, folder)
    with pytest.raises(
        ValueError, match=r"line 1: 'ILSVRC2012_val_00000001' is .*\.JPEG or .*\.png\. Write it with its ext"
    ):
        contents(store, layout.section)
    text = lines(layout, "{n}.JPEG {l}").replace(b"\nx.JPEG ", b"\nILSVRC2012_val_00000001.png ")
    layouts.write({"val.txt": text}, folder)
    val = [row["wnid"] for row in contents(store, layout.section).pictures.to_pylist() if row["split"] == "val"]
    assert val == [WNIDS[0], wnid, *list(shown(layout).values())[1:-1]]


def test_numbers_that_are_names_of_classes_and_ranks_are_refused_where_they_differ(store: Path) -> None:
    section = {"name": "imagefolder", "folder": "digits", "classes": "all", "val_share": 0.0, "seed": 0}

    def write(classes: int) -> None:
        for label in range(classes):
            layouts.write(
                {f"train/{label}/a.png": b"x%d" % label, f"val/{label}.png": b"y%d" % label}, store / "digits"
            )
        layouts.write(
            {"val.txt": "".join(f"{label}.png {label}\n" for label in range(classes)).encode()}, store / "digits"
        )

    write(10)
    val = {row["id"]: row["wnid"] for row in contents(store, section).pictures.to_pylist() if row["split"] == "val"}
    assert val == {f"val/{label}": str(label) for label in range(10)}
    write(11)
    with pytest.raises(
        ValueError, match=r"line 3: '2' is the name of a class, and also the rank of the class '10'\. Rename"
    ):
        contents(store, section)


def test_names_that_can_be_parted_in_two_ways_are_refused(store: Path) -> None:
    section = {"name": "imagefolder", "folder": "pets", "classes": "all", "val_share": 0.0, "seed": 0}
    files = {f"train/{name}/0.jpg": name.encode() for name in ("dog", "big dog")}
    layouts.write(files | {"val/a.jpg": b"1", "val/a big.jpg": b"2", "val.txt": b"a big dog\na dog\n"}, store / "pets")
    with pytest.raises(ValueError, match=r"line 1, 'a big dog', can be read as 'a' with .*, or as 'a big' .*Put a tab"):
        contents(store, section)
    layouts.write({"val.txt": b"a\tbig dog\na big\tdog\n"}, store / "pets")
    val = {row["id"]: row["wnid"] for row in contents(store, section).pictures.to_pylist() if row["split"] == "val"}
    assert val == {"val/a": "big dog", "val/a big": "dog"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"val_labels": "gone.txt"},
            r"store/gone\.txt: no such file\. .*source\.val_labels is a path in the data store",
        ),
        ({"val_labels": "imagenet/train"}, r"imagenet/train: a folder with 0 ILSVRC.*has to be a devkit"),
        ({"val_labels": "/data/val.txt"}, r"val_labels has to be the name of a file in the data store.*ln -s"),
        ({"val_labels": 3}, r"source\.val_labels: .*string \(found 3\)"),
    ],
)
def test_a_name_of_labels_that_cannot_be_is_refused(store: Path, changes: dict[str, Any], said: str) -> None:
    layout, _ = bare(store)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        contents(store, layout.section | changes)


def test_labels_that_no_picture_needs_are_refused(store: Path) -> None:
    layout = layouts.imagefolder(store)
    layouts.write({"val.txt": b"not of these\n"}, store / "my/pets")
    assert rows(contents(store, layout.section), store) == layout.rows, "class folders label the pictures"
    with pytest.raises(
        ValueError, match=r"pets/val: has class folders, .*val_labels has to be auto, is my/pets/val\.txt"
    ):
        contents(store, layout.section | {"val_labels": "my/pets/val.txt"})
    shutil.rmtree(store / "my/pets/val")
    with pytest.raises(ValueError, match=r"pets: has no validation folder, .*val_labels has to be auto"):
        contents(store, layout.section | {"val_share": 0.2, "val_labels": "my/pets/val.txt"})


def test_pictures_that_kaggle_lists_are_taken_beside_those_in_class_folders(store: Path) -> None:
    layout = layouts.kaggle(store)
    folder = store / "kaggle/ILSVRC/Data/CLS-LOC"
    named = {name: wnid for name, (split, wnid, _) in layout.rows.items() if split == "val"}
    for name, wnid in list(named.items())[::2]:
        layouts.write({f"val/{wnid}/{name}.JPEG": (folder / f"val/{name}.JPEG").read_bytes()}, folder)
        (folder / f"val/{name}.JPEG").unlink()
    assert rows(contents(store, layout.section), store) == layout.rows


@pytest.mark.parametrize("above", ["", "kaggle", "kaggle/ILSVRC"])
def test_kaggle_s_tree_is_found_from_above_and_from_inside(store: Path, above: str) -> None:
    layout = layouts.kaggle(store)
    if above == "":
        (store / "kaggle").rename(store / "unpacked")
        (store / "kaggle").mkdir()
        (store / "unpacked").rename(store / "kaggle/imagenet-object-localization-challenge")
    if above == "kaggle/ILSVRC":
        for name in ("LOC_val_solution.csv", "LOC_synset_mapping.txt"):
            (store / "kaggle" / name).rename(store / above / name)
    found = contents(store, layout.section | {"folder": above or "kaggle"})
    assert rows(found, store) == layout.rows
    assert {synset.wnid: synset.words for synset in found.classes} == layout.words


@pytest.mark.parametrize("linked", [False, True])
def test_a_csv_of_kaggle_s_above_the_folder_is_pointed_at(store: Path, tmp_path: Path, *, linked: bool) -> None:
    layout = layouts.kaggle(store)
    folder, do = "kaggle/ILSVRC/Data/CLS-LOC", r"set params\.yaml: source\.folder: kaggle\. "
    if linked:
        (store / "kaggle").rename(tmp_path / "kaggle")
        (store / "in").symlink_to(tmp_path / folder)
        folder, do = "in", rf"link {tmp_path}/kaggle instead\. "
    with pytest.raises(ValueError, match=rf"lie flat.*/kaggle/LOC_val_solution\.csv lies above this folder: {do}"):
        contents(store, layout.section | {"folder": folder})


@pytest.mark.parametrize("complete", [False, True])
def test_an_unpacked_tree_is_not_for_ilsvrc2012_and_it_says_what_reads_it(store: Path, *, complete: bool) -> None:
    layout = layouts.unpacked(store)
    (store / "imagenet").rename(store / "ilsvrc2012")
    section = {"name": "ilsvrc2012", "classes": "all", "complete": complete}
    with pytest.raises(ValueError, match="imagefolder") as caught:
        contents(store, section)
    said = str(caught.value)
    assert "has no ILSVRC2012_img_train.tar, but 18 pictures in folders (train, val): it is unpacked" in said
    (store.parent / "advice.yaml").write_text(said.partition("params.yaml: ")[2])
    advice = params.load(store.parent / "advice.yaml")["source"]
    assert rows(contents(store, advice), store) == layout.rows


DRAWN = settings(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)

NAMES = st.text("ab01 é-_.(猫", min_size=1, max_size=9).map(lambda name: f"p{name.strip(' .')}")
"""Names of pictures without their extension."""

CLASSES = st.sets(st.text("ab0 é-_(猫", max_size=6).map(lambda name: f"c{name.rstrip()}"), min_size=2, max_size=6)


@pytest.mark.slow
@DRAWN
@given(
    names=st.lists(NAMES, min_size=1, max_size=12, unique=True),
    classes=CLASSES.map(sorted),
    ending=st.sampled_from((".jpg", ".PNG", ".JPEG")),
    form=st.fixed_dictionaries(
        {
            "above": st.sampled_from(("", "val/", "a/b/", "C:\\val\\")),
            "cut": st.booleans(),
            "quote": st.sampled_from(("", '"', "'")),
            "between": st.sampled_from(("\t", " \t ", "\t\t")),
            "ranks": st.booleans(),
            "head": st.sampled_from(("", "image\tlabel", "filename\tWordNet id")),
            "end": st.sampled_from(("\n", "\r\n", "\r", "\n\n")),
            "encoding": st.sampled_from(("utf-8", "utf-8-sig", "utf-16")),
        }
    ),
    lots=st.randoms(use_true_random=False),
)
def test_a_list_in_any_form_is_read_as_it_was_written(
    names: list[str], classes: list[str], ending: str, form: dict[str, Any], lots: random.Random
) -> None:
    """In any order, quoting, encoding and line end, with or without folders, extensions and headings."""
    labels = {f"{name}{ending}": lots.choice(classes) for name in names} | {f"zero{ending}": classes[0]}
    text = [form["head"]] if form["head"] else []
    for picture, label in lots.sample([*labels.items()], len(labels)):
        name = picture.removesuffix(ending) if form["cut"] else picture
        shown = str(classes.index(label)) if form["ranks"] else label
        text.append(
            form["between"].join(f"{form['quote']}{part}{form['quote']}" for part in (form["above"] + name, shown))
        )
    with tempfile.TemporaryDirectory() as folder:
        files = {f"val/{picture}": b"x" for picture in labels}
        layouts.write(files | {"val.txt": form["end"].join(text).encode(form["encoding"])}, Path(folder) / "set")
        found = label_files.find(tree.of_folder(StorePath(Path(folder)) / "set"), "val", classes, None)
    assert found.wnids == {f"val/{picture}": label for picture, label in labels.items()}


@pytest.mark.slow
@DRAWN
@given(
    labels=st.dictionaries(st.from_regex(r"[a-z]{1,3}_?[0-9]{1,4}", fullmatch=True), st.integers(0, 3), min_size=1),
    between=st.sampled_from((" ", "   ", ",", ", ", ";", " ; ", "\t")),
    spoil=st.sampled_from(("", "drop", "twice", "strange", "class")),
    lots=st.randoms(use_true_random=False),
)
def test_a_list_is_taken_whole_or_refused_in_one_line(
    labels: dict[str, int], between: str, spoil: str, lots: random.Random
) -> None:
    classes = ["n1", "n2", "n3", "n4"]
    lines = [f"{name}.jpg{between}{classes[label]}" for name, label in labels.items()]
    place = lots.randrange(len(lines))
    name = lines[place].partition(between)[0]
    if spoil == "drop":
        del lines[place]
    elif spoil:
        new = {"twice": f"{name}{between}n1", "strange": f"ABC{between}n1", "class": f"{name}{between}n9"}[spoil]
        lines[place : place + (spoil == "class")] = [new]
    with tempfile.TemporaryDirectory() as folder:
        files = {f"val/{each}.jpg": b"x" for each in labels} | {"val.txt": "\n".join(lines).encode()}
        layouts.write(files, Path(folder) / "set")
        root = tree.of_folder(StorePath(Path(folder)) / "set")
        if not spoil:
            found = label_files.find(root, "val", classes, None)
            assert found.wnids == {f"val/{each}.jpg": classes[label] for each, label in labels.items()}
            return
        with pytest.raises(ValueError, match=r"set/val\.txt: ") as caught:
            label_files.find(root, "val", classes, None)
    assert "\n" not in str(caught.value)
