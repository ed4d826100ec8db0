"""The drawn sample, read back with tarfile, scipy and Pillow alone; and that no linear look at it tells the classes."""

from __future__ import annotations

import hashlib
import io
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy.io import loadmat

from pipeline.archives import drawing
from pipeline.sources import sample
from pipeline.sources.ilsvrc import YEAR_2012 as YEAR

TRAIN, VAL, DEVKIT = YEAR.archives

ROOT = Path(__file__).parents[3]
IMAGES = (30, 10)
Files = dict[str, bytes]


LEVELS: tuple[sample.Level, ...] = ("easy", "hard")

EASY = {
    DEVKIT: "187b8a89e7595c499fc7432cf54059e514b0021139de38a2d8f8fbff2520a2a7",
    TRAIN: "1887bad24076b0c43c778b0b00ede737aa8a4f1ca319ec2ae6c77886b8c92851",
    VAL: "1857fd6956fbe1f9d43701ddab24074345a6cdefd5e648bc82ae37750e60552b",
}
"""sha256 of the archives with seed 0 and `IMAGES`, drawn by commit 31f9525, which had no levels."""


@pytest.fixture(scope="module", params=["easy", pytest.param("hard", marks=pytest.mark.slow)])
def level(request: pytest.FixtureRequest) -> sample.Level:
    return cast("sample.Level", request.param)


@pytest.fixture(scope="module")
def made(level: sample.Level, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store") / "sample"
    sample.make(folder, 0, *IMAGES, level)
    return folder


def members(data: bytes, mode: str = "r:") -> Files:
    with tarfile.open(fileobj=io.BytesIO(data), mode=mode) as tar:  # type: ignore[call-overload]
        return {member.name: cast("io.BufferedReader", tar.extractfile(member)).read() for member in tar}


def train_pictures(folder: Path) -> Files:
    inner = members((folder / TRAIN).read_bytes())
    return {name: data for tar in inner.values() for name, data in members(tar).items()}


def val_pictures(folder: Path) -> Files:
    return members((folder / VAL).read_bytes())


def archives(folder: Path) -> Files:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def decoded(data: bytes) -> Image.Image | None:
    try:
        picture = Image.open(io.BytesIO(data))
        picture.load()
    except OSError:
        return None
    return picture


def test_the_easy_level_has_the_bytes_from_before_there_were_levels(tmp_path: Path) -> None:
    """Runs, digests and folders from before name these bytes. Their oracle is the drawing as it was."""
    sample.make(tmp_path / "sample", 0, *IMAGES, "easy")
    found = {name: hashlib.sha256((tmp_path / "sample" / name).read_bytes()).hexdigest() for name in EASY}
    assert found == EASY
    assert sample.folder(0, *IMAGES, "easy") == "sample-240ea037bbcb"


def test_the_levels_share_no_picture_and_have_the_same_classes(tmp_path: Path) -> None:
    for level in LEVELS:
        sample.make(tmp_path / level, 0, sample.LEAST_TRAIN, sample.LEAST_VAL, level)
    easy, hard = (train_pictures(tmp_path / level) | val_pictures(tmp_path / level) for level in LEVELS)
    assert easy.keys() == hard.keys()
    assert not set(easy.values()) & set(hard.values())
    assert (tmp_path / "easy" / DEVKIT).read_bytes() == (tmp_path / "hard" / DEVKIT).read_bytes()


def test_the_training_archive_is_a_tar_of_a_tar_for_each_class(made: Path) -> None:
    inner = members((made / TRAIN).read_bytes())
    assert list(inner) == sorted(f"{kind.wnid}.tar" for kind in sample.KINDS)
    for name, tar in inner.items():
        pictures = members(tar)
        assert len(pictures) == IMAGES[0] / 10
        assert all(picture.startswith(name.removesuffix(".tar") + "_") for picture in pictures)
        assert all(picture.endswith(".JPEG") for picture in pictures)


def test_the_validation_archive_is_a_tar_of_numbered_pictures(made: Path) -> None:
    assert list(val_pictures(made)) == [f"ILSVRC2012_val_{number:08}.JPEG" for number in range(1, IMAGES[1] + 1)]


def test_the_devkit_lists_the_classes_then_the_inner_nodes_and_has_the_ground_truth(made: Path) -> None:
    parts = members((made / DEVKIT).read_bytes(), "r:gz")
    top = "ILSVRC2012_devkit_t12/data"
    synsets = loadmat(io.BytesIO(parts[f"{top}/meta.mat"]), squeeze_me=True)["synsets"]  # type: ignore[arg-type]
    assert synsets.dtype.names == (
        "ILSVRC2012_ID",
        "WNID",
        "words",
        "gloss",
        "num_children",
        "children",
        "wordnet_height",
        "num_train_images",
    )
    assert synsets["ILSVRC2012_ID"].tolist() == list(range(1, len(synsets) + 1))
    leaves = synsets["num_children"] == 0
    assert leaves.tolist() == [True] * 10 + [False] * (len(synsets) - 10)
    assert len(synsets) > 10
    for row in synsets[~leaves]:
        assert row["num_children"] == np.size(row["children"])
        heights = [synsets[int(child) - 1]["wordnet_height"] for child in np.atleast_1d(row["children"])]
        assert row["wordnet_height"] == 1 + max(heights)
    wnids = synsets["WNID"].tolist()
    assert wnids[:10] != sorted(wnids[:10])  # else a reader could take the one order for the other
    counts = Counter(name.split("_")[0] for name in train_pictures(made))
    assert synsets["num_train_images"].tolist() == [counts[wnid] for wnid in wnids]
    truth = parts[f"{top}/ILSVRC2012_validation_ground_truth.txt"].decode().splitlines()
    assert Counter(truth) == {str(number): IMAGES[1] // 10 for number in range(1, 11)}


def test_the_classes_are_five_shapes_in_two_textures_each() -> None:
    pairs = Counter((kind.shape, kind.texture) for kind in sample.KINDS)
    assert len(pairs) == len(sample.KINDS) == 10
    assert len({shape for shape, _ in pairs}) == 5


@pytest.mark.parametrize("shape", ["disc", "ring", "star", "triangle", "wings"])
def test_a_shape_is_its_own_mirror_image_and_none_is_larger_than_the_others(shape: drawing.Shape) -> None:
    corners = drawing._outline(shape)
    mirrored = corners * [-1, 1]
    gaps = np.linalg.norm(corners[:, None] - mirrored[None], axis=2).min(axis=1)
    assert gaps.max() < 1e-9
    (x, y), (x1, y1) = corners.T, np.roll(corners, -1, axis=0).T
    hole = 0.45**2 if shape == "ring" else 0
    area = abs(float((x * y1 - x1 * y).sum())) / 2 * (1 - hole)
    assert 1.8 < area < 2.2


@pytest.mark.parametrize("texture", ["dots", "stripes"])
def test_each_texture_gives_half_of_the_figure_to_either_colour(texture: drawing.Texture) -> None:
    shares = []
    for number in range(20):
        rng = sample._rng(0, sample.TRAIN_SPLIT, number)
        mask = drawing.texture_mask(
            rng, texture, (200, 200), np.array([100.0, 100.0]), 200, rng.uniform(14, 26), turn=3.14
        )
        shares.append(np.asarray(mask, np.float64)[30:170, 30:170].mean() / 255)
    assert abs(np.mean(shares) - 0.5) < 0.02


def test_each_odd_file_is_there_and_all_others_are_whole_jpegs(made: Path) -> None:
    train = {name: decoded(data) for name, data in train_pictures(made).items()}
    val = [decoded(data) for data in val_pictures(made).values()]
    assert [picture for picture in val if picture is None] == []
    assert len([picture for picture in train.values() if picture is None]) == 1
    whole = [picture for picture in [*train.values(), *val] if picture is not None]
    assert Counter(picture.format for picture in whole) == {"JPEG": len(whole) - 1, "PNG": 1}
    modes = Counter(picture.mode for picture in whole)
    assert modes["CMYK"] == 1
    assert set(modes) <= {"RGB", "L", "CMYK"}
    tags = [picture.getexif().get(0x0112) for picture in whole]
    assert len([tag for tag in tags if tag is not None]) == 3
    assert set(tags) <= {None, 3, 6, 8}


def drawn(name: str, level: sample.Level) -> NDArray[np.float32]:
    """The pixels of a training picture before any file was made of it."""
    number = int(name.split("_")[1].removesuffix(".JPEG")) - 1
    kind = sample.KINDS[number % 10]
    assert name.startswith(kind.wnid)
    rng = sample._rng(0, sample.TRAIN_SPLIT, number)
    return np.asarray(sample.DRAW[level](rng, kind.shape, kind.texture), np.float32)


def test_who_inverts_the_inks_as_adobe_did_or_turns_as_the_tag_says_sees_the_picture(
    made: Path, level: sample.Level
) -> None:
    seen = Counter[str]()
    for name, data in train_pictures(made).items():
        picture = decoded(data)
        if picture is None or picture.mode == "L":
            continue
        if picture.mode == "CMYK":
            assert b"Adobe" in data[:1000]
            assert np.asarray(picture)[..., 3].max() > 0
            seen["cmyk"] += 1
        if 0x0112 in picture.getexif():
            seen["turned"] += 1
        upright = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"), np.float32)
        before = drawn(name, level)
        assert upright.shape == before.shape
        assert np.abs(upright - before).mean() < 12, name
    assert seen == {"cmyk": 1, "turned": 3}


def test_the_same_seed_gives_the_same_bytes_at_any_time_and_another_seed_other_pictures(
    made: Path, level: sample.Level, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "asctime", lambda *_: "Thu Jan  1 00:00:00 1970")
    monkeypatch.setattr(time, "time", lambda: 1e9)
    sample.make(tmp_path / "again", 0, *IMAGES, level)
    sample.make(tmp_path / "other", 1, *IMAGES, level)
    assert archives(tmp_path / "again") == archives(made)
    assert not set(train_pictures(tmp_path / "other").values()) & set(train_pictures(made).values())
    assert not set(val_pictures(tmp_path / "other").values()) & set(val_pictures(made).values())


def test_a_picture_is_the_same_in_a_larger_sample(made: Path, level: sample.Level, tmp_path: Path) -> None:
    sample.make(tmp_path / "larger", 0, IMAGES[0] + 20, IMAGES[1], level)
    small, large = train_pictures(made), train_pictures(tmp_path / "larger")
    same = [name for name in small if small[name] == large[name]]
    assert len(same) >= IMAGES[0] - 2 * 6  # the odd ones are others
    assert set(small) <= set(large)


def test_training_and_validation_share_no_picture(made: Path) -> None:
    both = [*train_pictures(made).values(), *val_pictures(made).values()]
    assert len(set(both)) == sum(IMAGES)


def test_the_folder_s_name_stands_for_what_decides_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = ((0, 30, 10), (1, 30, 10), (0, 31, 10), (0, 30, 11))
    names = {sample.folder(*three, level) for three in numbers for level in LEVELS}
    for level in LEVELS:
        monkeypatch.setitem(sample.DRAWINGS, level, f"{sample.DRAWINGS[level]} changed")
        names.add(sample.folder(0, 30, 10, level))
    assert len(names) == 10


def altered(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "harm"),
    [(TRAIN, altered), (VAL, altered), (DEVKIT, altered), (sample.RECORD, altered), (VAL, cut), (TRAIN, Path.unlink)],
)
def test_what_was_altered_cut_or_lost_is_drawn_again(
    made: Path, level: sample.Level, name: str, harm: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "sample"
    folder.mkdir()
    for file, data in archives(made).items():
        (folder / file).write_bytes(data)
    sample.make(folder, 0, *IMAGES, level)
    before = (folder / TRAIN).stat().st_mtime_ns
    harm(folder / name)
    sample.make(folder, 0, *IMAGES, level)
    assert (folder / TRAIN).stat().st_mtime_ns > before
    assert archives(folder) == archives(made)


def test_what_is_whole_is_left_alone(made: Path, level: sample.Level) -> None:
    before = {file: file.stat().st_mtime_ns for file in made.iterdir()}
    sample.make(made, 0, *IMAGES, level)
    assert {file: file.stat().st_mtime_ns for file in made.iterdir()} == before


@pytest.mark.slow
def test_after_a_kill_in_the_middle_all_is_drawn_again_to_the_same_bytes(
    made: Path, level: sample.Level, tmp_path: Path
) -> None:
    folder = tmp_path / "sample"
    # as long as it takes: another sample would be other bytes, so this one waits inside its second archive
    program = (
        "import sys, time; from pathlib import Path; from pipeline.sources import sample\n"
        "sample._val = lambda file, *_: (file.write(b'half'), file.flush(), time.sleep(600))\n"
        f"sample.make(Path(sys.argv[1]), 0, {IMAGES[0]}, {IMAGES[1]}, {level!r})"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(folder)], cwd=ROOT) as process:
        deadline = time.monotonic() + 60
        while not any(part.stat().st_size for part in folder.glob(f"{VAL}.*.part")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert list(folder.glob(f"{VAL}.*.part"))
    assert not (folder / VAL).exists()
    sample.make(folder, 0, *IMAGES, level)
    assert archives(folder) == archives(made)


# The whole sample, as params.yaml has it


@pytest.fixture(scope="module")
def pictures(
    level: sample.Level, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[list[Image.Image], NDArray[np.int64]]]:
    folder = tmp_path_factory.mktemp("store") / "sample"
    sample.make(folder, 0, 1500, 300, level)
    parts = members((folder / DEVKIT).read_bytes(), "r:gz")
    truth = [
        int(line) - 1 for line in parts["ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"].split()
    ]
    places = {kind.wnid: place for place, kind in enumerate(sample.KINDS)}
    labelled = {
        "train": [(data, places[name.split("_")[0]]) for name, data in train_pictures(folder).items()],
        "val": list(zip(val_pictures(folder).values(), truth, strict=True)),
    }
    seen = {split: [(decoded(data), place) for data, place in rows] for split, rows in labelled.items()}
    return {
        split: (
            [picture for picture, _ in rows if picture is not None],
            np.array([place for picture, place in rows if picture is not None]),
        )
        for split, rows in seen.items()
    }


@pytest.mark.slow
def test_the_pictures_have_many_sizes_both_orientations_and_one_in_fifty_is_grey(pictures: Any) -> None:
    whole = [*pictures["train"][0], *pictures["val"][0]]
    assert len(whole) == 1799
    sizes = {picture.size for picture in whole}
    assert len(sizes) > 500
    assert max(max(size) for size in sizes) > 500
    assert sum(picture.width > picture.height for picture in whole) > 400
    assert sum(picture.width < picture.height for picture in whole) > 400
    assert 0.04 < sum(min(picture.size) < 256 for picture in whole) / len(whole) < 0.15
    assert 0.01 < sum(picture.mode == "L" for picture in whole) / len(whole) < 0.04


def mean_colour(pixels_BHWC: NDArray[np.uint8]) -> NDArray[np.float64]:
    return np.asarray(pixels_BHWC.mean(axis=(1, 2)))


def colour_histogram(pixels_BHWC: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Shares of 8×8×8 boxes of RGB."""
    boxes = (pixels_BHWC // 32).astype(np.int64) @ [64, 8, 1]
    return np.stack([np.bincount(box.ravel(), minlength=512) / box.size for box in boxes])


def coarse_pixels(pixels_BHWC: NDArray[np.uint8]) -> NDArray[np.float64]:
    """16×16 means of boxes."""
    boxes = pixels_BHWC.reshape(len(pixels_BHWC), 16, 8, 16, 8, 3)
    return np.asarray(boxes.mean(axis=(2, 4)).reshape(len(pixels_BHWC), -1))


def squares(pictures: list[Image.Image]) -> NDArray[np.uint8]:
    """Their middles, 128×128 RGB."""
    return np.stack([np.asarray(ImageOps.fit(picture.convert("RGB"), (128, 128))) for picture in pictures])


def linear_error(train: tuple[Any, Any], val: tuple[Any, Any]) -> float:
    """The least validation error of multinomial logistic regression, over three strengths of weight decay."""
    middle, spread = train[0].mean(axis=0), train[0].std(axis=0) + 1e-6
    x, x_val = (torch.tensor((features - middle) / spread, dtype=torch.float32) for features in (train[0], val[0]))
    y, y_val = torch.tensor(train[1]), torch.tensor(val[1])
    errors = []
    for decay in (1e-3, 1e-2, 1e-1):
        weights = torch.zeros(x.shape[1] + 1, 10, requires_grad=True)
        rule = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

        def loss(rule: torch.optim.LBFGS = rule, weights: torch.Tensor = weights, decay: float = decay) -> torch.Tensor:
            rule.zero_grad()
            value = (
                torch.nn.functional.cross_entropy(x @ weights[1:] + weights[0], y) + decay * weights[1:].square().sum()
            )
            value.backward()  # type: ignore[no-untyped-call]
            return value

        rule.step(loss)  # type: ignore[no-untyped-call]
        guesses = (x_val @ weights[1:] + weights[0]).argmax(dim=1)
        errors.append(float((guesses != y_val).double().mean()))
    return min(errors)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small products are slower on many threads where other programs run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("look", [mean_colour, colour_histogram, coarse_pixels])
def test_a_linear_classifier_cannot_tell_the_classes_by(look: Any, pictures: Any) -> None:
    rows = {split: (look(squares(images)), labels) for split, (images, labels) in pictures.items()}
    error = linear_error(rows["train"], rows["val"])
    print(f"{look.__name__}: {error:.1%}")
    assert error > 0.6
    # and it is no lame classifier: it does tell what is in the features, tenths of the redness
    red = {
        split: features[:, 0] if look is mean_colour else _redness(pictures[split][0])
        for split, (features, _) in rows.items()
    }
    edges = np.quantile(red["train"], np.linspace(0, 1, 4)[1:-1])
    told = {split: (rows[split][0], np.digitize(red[split], edges)) for split in rows}
    assert linear_error(told["train"], told["val"]) < 0.35


def _redness(images: list[Image.Image]) -> NDArray[np.float64]:
    return mean_colour(squares(images))[:, 0]
