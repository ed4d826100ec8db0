"""Small data sets in the real layout of every source, and the index that each has to give."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from scipy.io import savemat

from tests.pipeline.miniature import jpeg

WORDS = {"n01440764": "tench, Tinca tinca", "n02102040": "English springer", "n03417042": "garbage truck, dustcart"}
WNIDS = tuple(WORDS)
TRAIN, VAL, TEST = 4, 2, 1
"""Number of pictures of each class."""


@dataclass
class Layout:
    """A data set in a store: the section of params.yaml, and the expected contents."""

    section: dict[str, Any]
    rows: dict[str, tuple[str, str, bytes]] = field(default_factory=dict)
    """Id → split, class and bytes."""
    words: dict[str, str] = field(default_factory=lambda: dict(WORDS))
    exact: bool = True
    """Whether the store has the pictures' own bytes; if not, only their number and classes are known."""

    def add(self, name: str, split: str, wnid: str) -> bytes:
        """Adds a picture to the expected contents."""
        data = jpeg(len(self.rows), 40)
        self.rows[name] = (split, wnid, data)
        return data


def write(files: Mapping[str, bytes], folder: Path) -> None:
    """Writes files below a folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def tar(files: Mapping[str, bytes], kind: int = tarfile.GNU_FORMAT) -> bytes:
    """Packs a tar of files; a name that ends in a slash is a folder."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as opened:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            if name.endswith("/"):
                member.type = tarfile.DIRTYPE
            member.size = len(data)
            opened.addfile(member, io.BytesIO(data))
    return out.getvalue()


def zipped(files: Mapping[str, bytes]) -> bytes:
    """Packs a compressed zip of files."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in files.items():
            opened.writestr(name, data)
    return out.getvalue()


def ilsvrc(store: Path, year: int) -> Layout:
    """Makes a year's archives; the classes' numbers are not in the order of their WordNet ids."""
    layout = Layout({"name": f"ilsvrc{year}", "classes": "all", "complete": False})
    number = {wnid: 1 + (place + 1) % len(WNIDS) for place, wnid in enumerate(WNIDS)}
    train: dict[str, dict[str, bytes]] = {}
    for wnid in WNIDS:
        names = [f"{wnid}_{7 * each}" for each in range(1, TRAIN + 1)]
        train[wnid] = {f"{name}.JPEG": layout.add(name, "train", wnid) for name in names}
    numbered: dict[str, dict[str, bytes]] = {}
    truths = {}
    for split, each in (("val", VAL), ("test", TEST)) if year == 2010 else (("val", VAL),):
        shown = [WNIDS[(5 * place) % len(WNIDS)] for place in range(each * len(WNIDS))]
        names = [f"ILSVRC{year}_{split}_{place:08}" for place in range(1, len(shown) + 1)]
        numbered[split] = {
            f"{split}/{name}.JPEG": layout.add(name, split, wnid) for name, wnid in zip(names, shown, strict=True)
        }
        truths[split] = "".join(f"{number[wnid]}\n" for wnid in shown).encode()
    top, devkit = ("devkit-1.0", "devkit-1.0") if year == 2010 else ("ILSVRC2012_devkit_t12", "devkit_t12")
    kit = {
        f"{top}/data/meta.mat": meta(year, {wnid: (number[wnid], TRAIN) for wnid in WNIDS}),
        f"{top}/data/ILSVRC{year}_validation_ground_truth.txt": truths["val"],
    }
    between = "images" if year == 2010 else "img"
    files = {
        f"ILSVRC{year}_{between}_train.tar": tar({f"{wnid}.tar": tar(files) for wnid, files in train.items()}),
        f"ILSVRC{year}_{between}_val.tar": tar(numbered["val"]),
        f"ILSVRC{year}_{devkit}.tar.gz": gzip.compress(tar(kit)),
    }
    if year == 2010:
        replaced = "ILSVRC2010_val_00000002"
        wnid = layout.rows[replaced][1]
        files["ILSVRC2010_images_test.tar"] = tar(numbered["test"])
        files["ILSVRC2010_test_ground_truth.txt"] = truths["test"]
        layout.rows[replaced] = ("val", wnid, jpeg(999, 40))
        files["patch_images.tar"] = tar({f"patch_images/val/{replaced}.JPEG": layout.rows[replaced][2]})
    write(files, store / f"ilsvrc{year}")
    return layout


def meta(year: int, classes: Mapping[str, tuple[int, int]]) -> bytes:
    """Makes a devkit's meta.mat: each class's number and count of training pictures, and their common inner node."""
    fields = (f"ILSVRC{year}_ID", "WNID", "words", "num_children", "children", "num_train_images")
    synsets = np.empty((len(classes) + 1, 1), dtype=[(name, object) for name in fields])
    for row, (wnid, (number, count)) in enumerate(classes.items()):
        synsets[row, 0] = (float(number), wnid, WORDS[wnid], 0.0, np.zeros((1, 0)), float(count))
    inner = np.arange(1.0, len(classes) + 1)
    synsets[-1, 0] = (len(classes) + 1.0, "n00000001", "all", float(len(classes)), inner, 0.0)
    out = io.BytesIO()
    savemat(out, {"synsets": synsets})  # type: ignore[arg-type]
    return out.getvalue()


def synsets(store: Path) -> Layout:
    """Makes tars of synsets, two single ones and a tar of tars. The expected contents leave open which pictures are held out."""
    layout = Layout({"name": "synsets", "folder": "fall11", "classes": "all", "val_share": 0.25, "seed": 0})
    layout.words["n03417042"] = "n03417042"
    tars = {
        wnid: tar({f"{wnid}_{each}.JPEG": layout.add(f"{wnid}_{each}", "", wnid) for each in range(TRAIN + VAL)})
        for wnid in WNIDS
    }
    files = {f"{wnid}.tar": tars[wnid] for wnid in WNIDS[:2]} | {"more.tar": tar({f"{WNIDS[2]}.tar": tars[WNIDS[2]]})}
    words = "".join(f"{wnid}\t{WORDS[wnid]}\n" for wnid in WNIDS[:2]).encode()
    write({**files, "words.txt": words}, store / "fall11")
    return layout


def imagefolder(store: Path) -> Layout:
    """Makes class folders with oddities: unusual extensions, hidden files, equal names."""
    layout = Layout({"name": "imagefolder", "folder": "my/pets", "classes": "all", "val_share": 0.0, "seed": 0})
    layout.words = {name: name for name in ("Cat", "dog breed", "ümlaut")}
    files = {}
    for split, each in (("train", TRAIN), ("val", VAL), ("test", TEST)):
        for name in layout.words:
            for number in range(each):
                ending = (".jpg", ".JPEG", ".png", ".jpg")[number]
                path = f"{split}/{name}/{'deep/' if number == 1 else ''}{number}"
                files[path + ending] = layout.add(path, split, name)
    files["train/Cat/same.jpg"] = layout.add("train/Cat/same.jpg", "train", "Cat")
    files["train/Cat/same.png"] = layout.add("train/Cat/same.png", "train", "Cat")
    files |= {"train/.DS_Store": b"x", "train/Cat/._0.jpg": b"x", "val/Cat/notes.txt": b"x", "train/stray.jpg": b"x"}
    write(files, store / "my/pets")
    return layout


def kaggle(store: Path) -> Layout:
    """Makes Kaggle's copy of ILSVRC-2012: the validation pictures in one folder, their classes in a list."""
    layout = Layout({"name": "imagefolder", "folder": "kaggle", "classes": "all", "val_share": 0.0, "seed": 0})
    base, files, solution = "ILSVRC/Data/CLS-LOC", {}, ["ImageId,PredictionString"]
    for wnid in WNIDS:
        for number in range(TRAIN):
            name = f"{wnid}_{number}"
            files[f"{base}/train/{wnid}/{name}.JPEG"] = layout.add(name, "train", wnid)
    for number in range(VAL * len(WNIDS)):
        name, wnid = f"ILSVRC2012_val_{number + 1:08}", WNIDS[number % len(WNIDS)]
        files[f"{base}/val/{name}.JPEG"] = layout.add(name, "val", wnid)
        solution.insert(1, f"{name},{wnid} 1 2 3 4 {wnid} 5 6 7 8 ")
    files[f"{base}/test/ILSVRC2012_test_00000001.JPEG"] = jpeg(0, 40)
    files["LOC_val_solution.csv"] = "\n".join(solution).encode()
    files["LOC_synset_mapping.txt"] = "".join(f"{wnid} {words}\n" for wnid, words in WORDS.items()).encode()
    files["ILSVRC/Annotations/CLS-LOC/val/ILSVRC2012_val_00000001.xml"] = b"<annotation/>"
    write(files, store / "kaggle")
    return layout


def unpacked(store: Path) -> Layout:
    """Makes ILSVRC-2012 as people unpack it: class folders, the validation pictures flat, the devkit beside them."""
    layout = Layout({"name": "imagefolder", "folder": "imagenet", "classes": "all", "val_share": 0.0, "seed": 0})
    files = {
        f"train/{wnid}/{wnid}_{number}.JPEG": layout.add(f"train/{wnid}/{wnid}_{number}", "train", wnid)
        for wnid in WNIDS
        for number in range(TRAIN)
    }
    shown = [WNIDS[(5 * place) % len(WNIDS)] for place in range(VAL * len(WNIDS))]
    for number, wnid in enumerate(shown, start=1):
        name = f"val/ILSVRC2012_val_{number:08}"
        files[f"{name}.JPEG"] = layout.add(name, "val", wnid)
    files["ILSVRC2012_devkit_t12.tar.gz"] = gzip.compress(tar(devkit(shown)))
    write(files, store / "imagenet")
    return layout


def devkit(shown: list[str]) -> dict[str, bytes]:
    """Makes the files of a devkit of 2012 for validation pictures of these classes, whose numbers are not in their order."""
    number = {wnid: 1 + (place + 1) % len(WNIDS) for place, wnid in enumerate(WNIDS)}
    return {
        "ILSVRC2012_devkit_t12/data/meta.mat": meta(2012, {wnid: (number[wnid], TRAIN) for wnid in WNIDS}),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": "".join(
            f"{number[wnid]}\n" for wnid in shown
        ).encode(),
    }


def imagenette(store: Path) -> Layout:
    """Makes fast.ai's archive."""
    layout = Layout({"name": "imagenette", "size": 160, "classes": "all", "complete": False})
    layout.words["n02102040"] = "English springer, English springer spaniel"
    files = {"imagenette2-160/": b"", "imagenette2-160/noisy_imagenette.csv": b"path,noisy_labels_0\n"}
    for split, each in (("train", TRAIN), ("val", VAL)):
        for wnid in WNIDS:
            for number in range(each):
                name = f"{wnid}_{split}{number}"
                files[f"imagenette2-160/{split}/{wnid}/{name}.JPEG"] = layout.add(name, split, wnid)
    write({"imagenette2-160.tgz": gzip.compress(tar(files))}, store / "imagenette")
    return layout


def tiny_imagenet(store: Path, unpacked: bool = False) -> Layout:
    """Makes Stanford's zip, packed or unpacked."""
    layout = Layout({"name": "tiny_imagenet", "classes": "all", "complete": False})
    files: dict[str, bytes] = {"wnids.txt": "\n".join(reversed(WNIDS)).encode()}
    for wnid in WNIDS:
        for number in range(TRAIN):
            files[f"train/{wnid}/images/{wnid}_{number}.JPEG"] = layout.add(f"{wnid}_{number}", "train", wnid)
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b"0\t0\t1\t1\n"
    annotations = []
    for number in range(VAL * len(WNIDS)):
        wnid = WNIDS[number % len(WNIDS)]
        files[f"val/images/val_{number}.JPEG"] = layout.add(f"val_{number}", "val", wnid)
        annotations.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    files["val/val_annotations.txt"] = "".join(annotations).encode()
    files["test/images/test_0.JPEG"] = jpeg(0, 40)
    files["words.txt"] = "".join(f"{wnid}\t{words}\n" for wnid, words in {"n1": "x", **WORDS}.items()).encode()
    top = {f"tiny-imagenet-200/{name}": data for name, data in files.items()}
    write(top if unpacked else {"tiny-imagenet-200.zip": zipped(top)}, store / "tiny_imagenet")
    return layout


def cifar10(store: Path) -> Layout:
    """Makes the binary archive: a byte for the class, then three planes of 32 × 32."""
    layout = Layout({"name": "cifar10", "classes": "all", "complete": False})
    layout.words = {name: name for name in ("airplane", "bird", "ship")}
    names = ["ship", "airplane", "bird"]
    files = {"cifar-10-batches-bin/batches.meta.txt": ("\n".join(names) + "\n\n").encode()}
    number = 0
    for batch, split, each in (
        ("data_batch_1", "train", TRAIN - 1),
        ("data_batch_2", "train", 1),
        ("test_batch", "val", VAL),
    ):
        records = b""
        for place in range(each * len(names)):
            pixels_HWC = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels_HWC).save(file, "PPM")
            label = place % len(names)
            folder = "test" if split == "val" else "train"
            layout.rows[f"{folder}/{names[label]}/{batch}_{place:05}"] = (split, names[label], file.getvalue())
            records += bytes([label]) + pixels_HWC.transpose(2, 0, 1).tobytes()
            number += 1
        files[f"cifar-10-batches-bin/{batch}.bin"] = records
    layout.exact = False
    write({"cifar-10-binary.tar.gz": gzip.compress(tar(files))}, store / "cifar10")
    return layout


def huggingface(store: Path) -> Layout:
    """Makes imagenet-1k's files as on the Hub: compressed columns, labels in WordNet order, WordNet ids in the paths."""
    layout = Layout(
        {
            "name": "huggingface",
            "dataset": "ILSVRC/imagenet-1k",
            "revision": "main",
            "classes": "all",
            "complete": False,
        }
    )
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    for number in range(TRAIN * len(WNIDS)):
        label = (2 * number) % len(WNIDS)
        name = f"{WNIDS[label]}_{number}"
        data = layout.add(name, "train", WNIDS[label])
        rows["train"].append({"image": {"bytes": data, "path": f"{name}_{WNIDS[label]}.JPEG"}, "label": label})
    for number in range(VAL * len(WNIDS)):
        label = number % len(WNIDS)
        name = f"ILSVRC2012_val_{number + 1:08}"
        data = layout.add(name, "val", WNIDS[label])
        rows["validation"].append({"image": {"bytes": data, "path": f"{name}_{WNIDS[label]}.JPEG"}, "label": label})
    rows["test"].append({"image": {"bytes": jpeg(0, 40), "path": "ILSVRC2012_test_00000001.JPEG"}, "label": -1})
    folder = store / "huggingface/ILSVRC/imagenet-1k/data"
    folder.mkdir(parents=True)
    half = len(rows["train"]) // 2
    parquet(rows["train"][:half], folder / "train-00000-of-00002.parquet")
    parquet(rows["train"][half:], folder / "train-00001-of-00002.parquet")
    parquet(rows["validation"], folder / "validation-00000-of-00001.parquet")
    parquet(rows["test"], folder / "test-00000-of-00001.parquet")
    return layout


def parquet(rows: list[dict[str, Any]], file: Path, names: list[str] | None = None) -> None:
    """Writes rows of pictures and labels as the library `datasets` does."""
    features = {"image": {"_type": "Image"}, "label": {"names": names or list(WORDS.values()), "_type": "ClassLabel"}}
    schema = pa.schema(
        {"image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.int64()},
        {"huggingface": json.dumps({"info": {"features": features}})},
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), file, row_group_size=4)


ALL: dict[str, Callable[[Path], Layout]] = {
    "ilsvrc2012": lambda store: ilsvrc(store, 2012),
    "ilsvrc2010": lambda store: ilsvrc(store, 2010),
    "synsets": synsets,
    "imagefolder": imagefolder,
    "imagefolder, Kaggle's": kaggle,
    "imagefolder, unpacked": unpacked,
    "imagenette": imagenette,
    "huggingface": huggingface,
    "tiny_imagenet": tiny_imagenet,
    "tiny_imagenet, unpacked": lambda store: tiny_imagenet(store, unpacked=True),
    "cifar10": cifar10,
}
