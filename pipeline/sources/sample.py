"""The sample: a synthetic miniature of ILSVRC-2012 with the real layout and its oddities, drawn from a seed (§2).

Each of the ten classes is one of five shapes with one of two textures, stripes or dots. Colours, size, position, rotation
and background are random and independent of the class, so neither colour nor coarse structure tells the classes apart. Of
the two levels, easy is learned almost without errors; hard is not, so that changes of the network can show in its error.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.random import Generator, Philox, SeedSequence
from PIL import Image
from scipy.io import savemat

from pipeline.archives import drawing, harder, ilsvrc
from pipeline.archives.contents import Contents
from pipeline.archives.drawing import Shape, Texture
from pipeline.archives.ilsvrc import META
from pipeline.archives.store import StorePath
from pipeline.runtime import files
from pipeline.runtime.paths import AnyPath
from pipeline.sources.ilsvrc import YEAR_2012 as YEAR

Level = Literal["easy", "hard"]

DRAW: dict[Level, Callable[[Generator, Shape, Texture], Image.Image]] = {
    "easy": drawing.picture,
    "hard": harder.picture,
}

DRAWINGS: dict[Level, int | str] = {"easy": 1, "hard": "hard 1"}
"""Version of each level's drawing. Increase it with each change of the pictures: it is part of the folder's name."""

LEAST_TRAIN, LEAST_VAL, MOST = 20, 10, 100_000
"""The fewest pictures in which the oddities fit, and the most for which the names have digits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """params.yaml, `source:` with `name: sample`: a synthetic miniature of ILSVRC-2012."""

    name: Literal["sample"]
    seed: int
    """Seed of the drawing, at least 0. Another seed gives other pictures of the same ten classes."""
    train_images: int
    """Number of training pictures, over all classes: 20, so that the odd files fit in, to 100,000."""
    val_images: int
    """Number of validation pictures, over all classes: 10 to 100,000."""
    level: Level = field(
        metadata={"missing": "Add `level: easy` for the pictures as they were before this key, or `level: hard`"}
    )
    """easy: the network of params.yaml ends below 1 % top-1 error. hard: it has errors left to make, so that changes can show."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed has to be at least 0, is {self.seed}")
        for name, least in (("train_images", LEAST_TRAIN), ("val_images", LEAST_VAL)):
            count = getattr(self, name)
            if not least <= count <= MOST:
                raise ValueError(f"{name} has to be from {least} to {MOST}, is {count}")

    def contents(self, store: AnyPath) -> Contents:
        """The contents of the sample's archives in the store, which are drawn if they are missing."""
        drawn = StorePath(store) / folder(self.seed, self.train_images, self.val_images, self.level)
        make(drawn.path, self.seed, self.train_images, self.val_images, self.level)
        return ilsvrc.contents(drawn, YEAR, drawn=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A class: a synset of ILSVRC-2012, and the shape and texture drawn for it."""

    wnid: str
    words: str
    gloss: str
    shape: Shape
    texture: Texture


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    """An inner node of WordNet's tree. The devkit lists it after the classes; it has no pictures of its own."""

    wnid: str
    words: str
    gloss: str
    children: tuple[str, ...]


# In the order of ILSVRC2012_ID, which is not that of the WordNet ids, as in the real devkit
KINDS = (
    Kind(
        wnid="n02317335",
        words="starfish, sea star",
        gloss="echinoderms characterized by five arms extending from a central disk",
        shape="star",
        texture="dots",
    ),
    Kind(
        wnid="n07873807",
        words="pizza, pizza pie",
        gloss="Italian open pie made of thin bread dough spread with a spiced mixture of e.g. tomato sauce and cheese",
        shape="triangle",
        texture="dots",
    ),
    Kind(
        wnid="n02165456",
        words="ladybug, ladybeetle, lady beetle, ladybird, ladybird beetle",
        gloss="small round bright-colored and spotted beetle that usually feeds on aphids and other insect pests",
        shape="disc",
        texture="dots",
    ),
    Kind(
        wnid="n01734418",
        words="king snake, kingsnake",
        gloss="any of numerous nonvenomous North American constrictors; feed on other snakes and small mammals",
        shape="ring",
        texture="stripes",
    ),
    Kind(
        wnid="n03792972",
        words="mountain tent",
        gloss="a lightweight tent with a floor; flaps close with a zipper",
        shape="triangle",
        texture="stripes",
    ),
    Kind(
        wnid="n02277742",
        words="ringlet, ringlet butterfly",
        gloss="any of various butterflies belonging to the family Satyridae",
        shape="wings",
        texture="dots",
    ),
    Kind(
        wnid="n02643566",
        words="lionfish",
        gloss="brightly striped fish of the tropical Pacific having elongated spiny fins",
        shape="star",
        texture="stripes",
    ),
    Kind(
        wnid="n07693725",
        words="bagel, beigel",
        gloss="(Yiddish) glazed yeast-raised doughnut-shaped roll with hard crust",
        shape="ring",
        texture="dots",
    ),
    Kind(
        wnid="n02268443",
        words="dragonfly, darning needle, devil's darning needle, sewing needle, snake feeder, snake doctor, "
        "mosquito hawk, skeeter hawk",
        gloss="slender-bodied non-stinging insect having iridescent wings that are outspread at rest; "
        "adults and nymphs feed on mosquitoes etc.",
        shape="wings",
        texture="stripes",
    ),
    Kind(
        wnid="n03134739",
        words="croquet ball",
        gloss="a wooden ball used in playing croquet",
        shape="disc",
        texture="stripes",
    ),
)

INNER = (
    Inner(
        wnid="n02159955",
        words="insect",
        gloss="small air-breathing arthropod",
        children=("n02165456", "n02277742", "n02268443"),
    ),
    Inner(
        wnid="n00015388",
        words="animal, animate being, beast, brute, creature, fauna",
        gloss="a living organism characterized by voluntary movement",
        children=("n02317335", "n01734418", "n02643566", "n02159955"),
    ),
    Inner(
        wnid="n00021939",
        words="artifact, artefact",
        gloss="a man-made object taken as a whole",
        children=("n03792972", "n03134739"),
    ),
)

TRAIN_SPLIT, VAL_SPLIT, LABELS, ODDITIES = range(4)
"""The uses of random numbers. Each has its own stream: the use is the second word of the stream's key, after the seed."""

RECORD = "made.json"


def folder(seed: int, train_images: int, val_images: int, level: Level) -> str:
    """The name of the sample's folder in the store: a hash of everything that decides its bytes."""
    decides = json.dumps([DRAWINGS[level], seed, train_images, val_images])
    return f"sample-{hashlib.sha256(decides.encode()).hexdigest()[:12]}"


def make(target: AnyPath, seed: int, train_images: int, val_images: int, level: Level) -> None:
    """Draws the three archives into `target`, unless they exist unchanged.

    The record of sizes and checksums is written last; if it is missing or does not match, everything is drawn again.
    """
    with files.locked(target):
        if _intact(target):
            return
        target = files.on_disk(target)
        files.discard(target)
        target.mkdir()
        odd = _oddities(seed, train_images)
        _write(target / YEAR.train, lambda file: _train(file, seed, train_images, odd, level))
        _write(target / YEAR.val, lambda file: _val(file, seed, val_images, level))
        _write(target / YEAR.devkit, lambda file: _devkit(file, seed, train_images, val_images))
        record = {name: _fingerprint(target / name) for name in YEAR.archives}
        _write(target / RECORD, lambda file: file.write(json.dumps(record, indent=1).encode()))


def _intact(target: AnyPath) -> bool:
    try:
        record = json.loads((target / RECORD).read_text())
        return bool(record == {name: _fingerprint(target / name) for name in YEAR.archives})
    except (FileNotFoundError, ValueError):
        return False


def _fingerprint(file: AnyPath) -> list[int | str]:
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
        return [handle.tell(), digest]


def _write(file: Path, fill: Callable[[IO[bytes]], object]) -> None:
    with files.atomic(file) as made, made.open("wb") as handle:
        fill(handle)


# The archives


def _train(file: IO[bytes], seed: int, images: int, odd: dict[int, Oddity], level: Level) -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for index, kind in sorted(enumerate(KINDS), key=lambda item: item[1].wnid):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w", format=tarfile.GNU_FORMAT) as pictures:
                for number in range(index, images, len(KINDS)):
                    rng = _rng(seed, TRAIN_SPLIT, number)
                    data = _encoded(DRAW[level](rng, kind.shape, kind.texture), rng, odd.get(number))
                    _add(pictures, f"{kind.wnid}_{number + 1}.JPEG", data)
            _add(tar, f"{kind.wnid}.tar", inner.getvalue())


def _val(file: IO[bytes], seed: int, images: int, level: Level) -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for number, index in enumerate(_val_kinds(seed, images)):
            rng, kind = _rng(seed, VAL_SPLIT, number), KINDS[index]
            data = _encoded(DRAW[level](rng, kind.shape, kind.texture), rng, None)
            _add(tar, f"ILSVRC2012_val_{number + 1:08}.JPEG", data)


def _val_kinds(seed: int, images: int) -> list[int]:
    """The class of each validation picture, as an index into `KINDS`: all classes equally often, in random order."""
    indices = np.arange(images) % len(KINDS)
    return [int(index) for index in _rng(seed, LABELS, 0).permutation(indices)]


def _devkit(file: IO[bytes], seed: int, train_images: int, val_images: int) -> None:
    truth = "".join(f"{index + 1}\n" for index in _val_kinds(seed, val_images))
    with (
        gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        top = YEAR.devkit.removesuffix(".tar.gz")
        _add(
            tar, f"{top}/readme.txt", b"Drawn by a program in the layout of ILSVRC-2012. No picture is a photograph.\n"
        )
        _add(tar, f"{top}/{META}", _meta(train_images))
        _add(tar, f"{top}/{YEAR.truth}", truth.encode())


FIELDS = (
    "ILSVRC2012_ID",
    "WNID",
    "words",
    "gloss",
    "num_children",
    "children",
    "wordnet_height",
    "num_train_images",
)
"""Fields of a synset in meta.mat, in the order of the real devkit."""


def _meta(train_images: int) -> bytes:
    """The bytes of meta.mat: the struct array `synsets`, the classes first, then the inner nodes."""
    wnids = [kind.wnid for kind in KINDS] + [node.wnid for node in INNER]
    ids = {wnid: index + 1 for index, wnid in enumerate(wnids)}
    heights: dict[str, int] = {}
    rows: list[tuple[Any, ...]] = []
    for index, kind in enumerate(KINDS):
        count = len(range(index, train_images, len(KINDS)))
        rows.append((ids[kind.wnid], kind.wnid, kind.words, kind.gloss, 0, np.zeros((1, 0)), 0, count))
    for node in INNER:
        heights[node.wnid] = 1 + max(heights.get(child, 0) for child in node.children)
        children = np.array([[float(ids[child]) for child in node.children]])
        height = heights[node.wnid]
        rows.append((ids[node.wnid], node.wnid, node.words, node.gloss, len(node.children), children, height, 0))
    synsets = np.empty((len(rows), 1), dtype=[(name, object) for name in FIELDS])
    for index, row in enumerate(rows):
        numbers = (float(value) if isinstance(value, int) else value for value in row)  # MATLAB's numbers are doubles
        synsets[index, 0] = tuple(numbers)
    mat = io.BytesIO()
    savemat(mat, {"synsets": synsets}, do_compression=True)  # type: ignore[arg-type]  # a file object will do
    # the file begins with 116 bytes of text, into which savemat writes the time
    return b"MATLAB 5.0 MAT-file, of a drawn sample in the layout of ILSVRC-2012".ljust(116) + mat.getvalue()[116:]


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # user 0 and time 0, so that equal files give equal bytes
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


# The pictures' files: JPEG settings, and the oddities of the real archive


Oddity = Literal["truncated", "cmyk", "png", "exif"]


def _oddities(seed: int, images: int) -> dict[int, Oddity]:
    """Number of a picture → its oddity: one truncated, one CMYK, one PNG, and one in 50 (at least 3) with an EXIF rotation."""
    turned = max(3, images // 50)
    kinds: list[Oddity] = ["truncated", "cmyk", "png", *["exif"] * turned]  # type: ignore[list-item]
    numbers = _rng(seed, ODDITIES, 0).permutation(images)
    return {int(number): kind for number, kind in zip(numbers, kinds, strict=False)}


def _encoded(picture: Image.Image, rng: Generator, odd: Oddity | None) -> bytes:
    """Encodes a picture as a JPEG of random quality, one in 50 of them grey, or as its oddity demands."""
    grey = rng.random() < 0.02 and odd is None
    options: dict[str, Any] = {
        "format": "JPEG",
        "quality": int(rng.integers(75, 97)),
        "subsampling": int(rng.integers(0, 3)),
        "progressive": bool(rng.random() < 0.1),
    }
    tag = int(rng.choice([3, 6, 8]))
    if grey:
        picture = picture.convert("L")
    elif odd == "cmyk":
        picture = _cmyk(picture)  # Pillow writes it inverted with Adobe's marker, as Photoshop did
    elif odd == "png":
        options = {"format": "PNG"}
    elif odd == "exif":
        # stored rotated; a reader that applies the EXIF tag sees it upright
        turn = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[tag]
        picture = picture.transpose(turn)
        exif = Image.Exif()
        exif[0x0112] = tag
        options["exif"] = exif
    file = io.BytesIO()
    picture.save(file, **options)
    data = file.getvalue()
    return data[: len(data) * 6 // 10] if odd == "truncated" else data


def _cmyk(picture: Image.Image) -> Image.Image:
    """Converts RGB to CMYK; black replaces the common part of the three inks."""
    ink = 1 - np.asarray(picture, np.float32) / 255
    black = ink.min(axis=2, keepdims=True)
    inks = np.concatenate([(ink - black) / np.maximum(1 - black, 1e-6), black], axis=2)
    planes = np.round(inks * 255).astype(np.uint8)
    return Image.merge("CMYK", [Image.fromarray(np.ascontiguousarray(planes[..., ink])) for ink in range(4)])


def _rng(seed: int, use: int, number: int) -> Generator:
    return Generator(Philox(SeedSequence([seed, use, number])))
