"""The order of the pictures and how they are read: nothing twice, nothing lost, by whomever, from wherever."""

from __future__ import annotations

import dataclasses
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.stats import chi2_contingency, chisquare

from alexnet.learning import Learning
from alexnet.pictures import decode
from pipeline import resize
from pipeline.runtime import digests
from pipeline.shards import batches, tables
from pipeline.shards.batches import Batch, Order, Pictures, order
from pipeline.shards.tables import Shard
from tests import sections
from tests.pipeline import miniature
from tests.pipeline.flips import unsaid
from tests.pipeline.sections import RESIZE

SIDE = 16


def learning(**changes: Any) -> Learning:
    return dataclasses.replace(sections.LEARNING, **({"batch_size": 8, "epochs": 2, "streams": 4} | changes))


class Sizes(Pictures):
    """Shards of which only the sizes of the row groups matter."""

    def __init__(self, sizes: list[int]) -> None:
        self.files = []
        self.groups = [(0, group) for group in range(len(sizes))]
        self.sizes = np.array(sizes, dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)])


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    """90 pictures in 3 shards, 7 to a row group; the label is the picture's number."""
    folder = tmp_path_factory.mktemp("shards")
    parts = (range(40), range(40, 45), range(45, 90))
    shards = [miniature.shard(folder / f"{place}.parquet", each, each, SIDE, 7) for place, each in enumerate(parts)]
    return Pictures(folder, shards)


def numbers(found: list[Batch]) -> list[int]:
    return [label for batch in found for label in batch.labels_B.tolist()]


# The order


@pytest.mark.parametrize("streams", [1, 2, 3, 7, 64, 500])
@pytest.mark.parametrize("sizes", [[1], [5], [7, 7, 3], [1, 1, 1, 1], [128] * 9 + [17], [3, 200, 1, 40]])
@pytest.mark.parametrize("kind", ["shuffled", "cyclic"])
def test_every_epoch_has_every_picture_once(sizes: list[int], streams: int, kind: str) -> None:
    for epoch in range(3):
        made = order(Sizes(sizes), learning(streams=streams, order=kind), epoch)
        assert sorted(made.pictures_N.tolist()) == list(range(sum(sizes)))
        assert made.streams_N.shape == made.pictures_N.shape
        assert 0 <= made.streams_N.min() <= made.streams_N.max() < streams


def test_the_order_is_fixed_by_seed_and_epoch() -> None:
    sizes = Sizes([50] * 20)
    made = {(seed, epoch): order(sizes, learning(seed=seed), epoch) for seed in (0, 1) for epoch in (0, 1)}
    again = order(Sizes([50] * 20), learning(seed=1), 1)
    assert np.array_equal(made[1, 1].pictures_N, again.pictures_N)
    assert np.array_equal(made[1, 1].streams_N, again.streams_N)
    assert len({made[key].pictures_N.tobytes() for key in made}) == 4


def test_the_cyclic_order_is_that_of_the_shards_in_every_epoch() -> None:
    for epoch in (0, 5):
        made = order(Sizes([3, 200, 1]), learning(order="cyclic"), epoch)
        assert made.pictures_N.tolist() == list(range(204))


@pytest.mark.parametrize("streams", [1, 3, 6, 16])
def test_every_stretch_of_the_order_takes_evenly_from_all_streams(streams: int) -> None:
    made = order(Sizes([37] * 40), learning(streams=streams), 0)
    for first in range(0, len(made.pictures_N) - 32, 32):
        counts = np.bincount(made.streams_N[first : first + 32], minlength=streams)
        assert abs(counts - 32 / streams).max() <= 1.5


def test_a_stream_reads_one_row_group_after_the_other() -> None:
    """Each is left for good before the next begins; only at its two ends does a stream share one with a neighbour."""
    sizes = Sizes([37] * 40)
    made = order(sizes, learning(streams=6), 3)
    groups = np.searchsorted(sizes.starts, made.pictures_N, side="right") - 1
    visits = Counter()
    for stream in range(6):
        own = groups[made.streams_N == stream]
        visits.update(own[np.concatenate([[True], own[1:] != own[:-1]])].tolist())
    assert set(visits) == set(range(40))
    assert visits.total() <= 40 + 6 - 1


def test_where_a_picture_comes_in_an_epoch_is_a_uniform_draw() -> None:
    """Over many epochs, picture 0 comes in each tenth of the order equally often, and so does picture 137."""
    sizes = Sizes([20] * 30)
    for picture in (0, 137):
        places = [int(np.flatnonzero(order(sizes, learning(), epoch).pictures_N == picture)[0]) for epoch in range(500)]
        assert chisquare(np.bincount(np.array(places) * 10 // 600, minlength=10)).pvalue > 0.001


CLASSES = 10
STORED = 200 * 128
"""Pictures: 200 batches of 128 in an epoch."""


def drawn_evenly(seed: int) -> float:
    """How likely the labels of an epoch's 200 batches, or less even ones, would be in uniform draws: chi-square's p.

    The index is sorted by class, as every source lists it; the rows go through the plan of `resize` and the order of
    training. Since an epoch has every picture once, both margins of the table of batches and labels are fixed.
    """
    names = [f"n{label:08}_{number:05}" for label in range(CLASSES) for number in range(STORED // CLASSES)]
    columns = {"id": names, "label": [int(name[1:9]) for name in names], "split": ["train"] * STORED}
    index = resize.Index(
        rows=pa.table(columns), classes=(), archives=tables.ARCHIVES.empty_table(), drawn=False, digest=""
    )
    section = dataclasses.replace(RESIZE, shuffle_seed=seed)
    shards = [task.rows["label"].to_numpy() for task in resize.plan(section, index, Path(), Path())]
    sizes = [min(resize.GROUP, len(shard) - first) for shard in shards for first in range(0, len(shard), resize.GROUP)]
    epoch = order(Sizes(sizes), learning(seed=seed, batch_size=128, streams=6), epoch=seed)
    labels = np.concatenate(shards)[epoch.pictures_N].reshape(200, 128)
    return float(chi2_contingency([np.bincount(batch, minlength=CLASSES) for batch in labels]).pvalue)


@pytest.mark.parametrize("seed", range(5))
def test_batches_of_class_sorted_pictures_look_like_uniform_draws_of_labels(seed: int) -> None:
    assert drawn_evenly(seed) > 0.001


@pytest.mark.parametrize("seed", range(5))
def test_they_would_not_if_the_shards_were_not_shuffled(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of training alone does not do it: a batch comes from a few row groups, and each would be of one class."""
    monkeypatch.setattr(resize, "random_order", lambda count, seed, split: np.arange(count))
    assert drawn_evenly(seed) < 1e-9


# Reading


def test_a_picture_is_found_where_it_lies(stored: Pictures) -> None:
    assert len(stored) == 90
    assert stored.sizes.tolist() == [7, 7, 7, 7, 7, 5, 5, 7, 7, 7, 7, 7, 7, 3]
    for picture in range(90):
        group, row = stored.find(picture)
        assert stored.read(group)[1][row] == picture


def test_batches_hold_the_pictures_their_labels_and_their_places(stored: Pictures) -> None:
    epoch = order(stored, learning(), 0)
    found = list(batches.batches(stored, epoch, 8))
    assert [batch.number for batch in found] == list(range(12))
    assert [batch.count for batch in found] == [8] * 11 + [2], "the last batch is short, and there"
    assert numbers(found) == epoch.pictures_N.tolist()
    assert torch.cat([batch.positions_B for batch in found]).tolist() == list(range(90))
    for batch in found[::5]:
        assert batch.images_BCHW.dtype == torch.uint8
        assert batch.images_BCHW.shape == (len(batch.labels_B), 3, SIDE, SIDE)
        for image, number in zip(batch.images_BCHW, batch.labels_B.tolist(), strict=True):
            assert torch.equal(image, decode(miniature.jpeg(number, SIDE)))


@pytest.mark.parametrize(("replica", "replicas", "threads"), [(0, 1, 1), (0, 1, 3), (1, 2, 2)])
def test_patches_are_made_of_the_pictures_by_their_places(
    stored: Pictures, replica: int, replicas: int, threads: int
) -> None:
    class Halves:
        """The upper half of each picture, with its position in the epoch added."""

        def __init__(self, positions_B: torch.Tensor) -> None:
            self.positions_B = positions_B
            self.patches_BCHW = torch.full((len(positions_B), 3, SIDE // 2, SIDE), torch.nan)

        def make(self, number: int, image_CHW: torch.Tensor) -> None:
            self.patches_BCHW[number] = image_CHW[:, : SIDE // 2].float() + self.positions_B[number]

    epoch = order(stored, learning(), 0)
    plain = list(batches.batches(stored, epoch, 8, replica=replica, replicas=replicas))
    made = list(batches.batches(stored, epoch, 8, replica=replica, replicas=replicas, threads=threads, plan=Halves))
    for one, other in zip(plain, made, strict=True):
        assert torch.equal(one.positions_B, other.positions_B)
        assert torch.equal(one.labels_B, other.labels_B)
        if len(one.labels_B):
            halves = one.images_BCHW[:, :, : SIDE // 2].float() + one.positions_B[:, None, None, None]
            assert torch.equal(other.images_BCHW, halves)


@pytest.mark.parametrize("kind", ["shuffled", "cyclic"])
@pytest.mark.parametrize("replicas", [1, 2, 3, 4])
def test_the_replicas_together_read_the_whole_batch(stored: Pictures, replicas: int, kind: str) -> None:
    epoch = order(stored, learning(streams=6, order=kind), 1)
    shares = [list(batches.batches(stored, epoch, 8, replica=each, replicas=replicas)) for each in range(replicas)]
    for parts in zip(*shares, strict=True):
        (number,) = {part.number for part in parts}
        (count,) = {part.count for part in parts}
        places = np.concatenate([part.positions_B for part in parts])
        assert sorted(places.tolist()) == list(range(number * 8, number * 8 + count))
        assert np.concatenate([part.labels_B for part in parts]).tolist() == epoch.pictures_N[places].tolist()
    sizes = [len(numbers(share)) for share in shares]
    assert max(sizes) - min(sizes) <= 2 * 90 / 6


def test_a_replica_without_a_picture_in_a_batch_gets_it_empty(stored: Pictures) -> None:
    epoch = Order(np.arange(90), np.array([0] * 8 + [1] * 82))
    first, *rest = batches.batches(stored, epoch, 8, replica=1, replicas=2)
    assert (len(first.labels_B), len(first.images_BCHW), len(first.positions_B), first.count) == (0, 0, 0, 8)
    assert numbers(rest) == list(range(8, 90))


@pytest.mark.parametrize("first", [0, 1, 5, 11, 12])
@pytest.mark.parametrize(("replica", "replicas"), [(0, 1), (1, 2)])
def test_going_on_from_a_batch_gives_the_tail_of_the_undisturbed_epoch(
    stored: Pictures, first: int, replica: int, replicas: int
) -> None:
    epoch = order(stored, learning(), 2)
    whole = list(batches.batches(stored, epoch, 8, replica=replica, replicas=replicas))
    tail = list(batches.batches(stored, epoch, 8, first=first, replica=replica, replicas=replicas))
    assert [batch.number for batch in tail] == list(range(first, 12))
    for one, other in zip(tail, whole[first:], strict=True):
        assert torch.equal(one.positions_B, other.positions_B)
        assert torch.equal(one.images_BCHW, other.images_BCHW)
        assert torch.equal(one.labels_B, other.labels_B)


@pytest.mark.parametrize(("streams", "replicas"), [(1, 1), (4, 1), (4, 2), (6, 3)])
def test_a_row_group_is_read_once_and_few_are_kept(
    stored: Pictures, monkeypatch: pytest.MonkeyPatch, streams: int, replicas: int
) -> None:
    epoch = order(stored, learning(streams=streams), 0)
    for replica in range(replicas):
        read: Counter[int] = Counter()
        kept = []

        class Counting(batches._Reader):
            def batch(self, number: int, count: int, places: Any, pictures: Any, soon: Any) -> Batch:
                before = set(self.kept)
                answer = super().batch(number, count, places, pictures, soon)
                read.update(set(self.kept) - before)  # noqa: B023
                needed = {stored.find(picture)[0] for picture in (*pictures.tolist(), *soon.tolist())}
                kept.append(len(self.kept) - len(needed))  # noqa: B023
                return answer

        monkeypatch.setattr(batches, "_Reader", Counting)
        list(batches.batches(stored, epoch, 8, replica=replica, replicas=replicas))
        own = -(-streams // replicas)
        assert max(kept) <= own + 1, "beside what this batch and the next ones need"
        assert read.total() <= len(stored.groups) + streams, "a row group is read again only by another stream"


def test_who_stops_asking_waits_for_nothing(stored: Pictures) -> None:
    running = batches.batches(stored, order(stored, learning(), 0), 8)
    assert next(running).number == 0
    running.close()


GONE = r"train-0\.parquet: (not there|gone or damaged|damaged, or not Parquet).*Run: dvc repro --force --single-item resize"


@pytest.fixture
def one(tmp_path: Path) -> Shard:
    return miniature.shard(tmp_path / "train-0.parquet", range(20), range(20), SIDE, 7)


def pictures(folder: Path, shard: Shard) -> list[tuple[list[bytes], list[int]]]:
    """All that a new process reads of a shard."""
    stored = Pictures(folder, [shard])
    return [stored.read(group) for group in range(len(stored.groups))]


def test_a_shard_with_any_other_byte_is_refused_with_what_to_do(tmp_path: Path, one: Shard) -> None:
    """In its pages, their heads, its index and its footer."""
    places = [*range(0, one.bytes, 151), *range(one.bytes - 60, one.bytes)]
    assert unsaid(tmp_path / one.file, lambda: pictures(tmp_path, one), places, always=True) == []


def test_another_shard_in_its_place_is_refused(tmp_path: Path, one: Shard) -> None:
    """Whole by itself, of the same name, size and rows."""
    other = miniature.shard(tmp_path / "other/train-0.parquet", range(20), [1, 0, *range(2, 20)], SIDE, 7)
    assert (other.rows, other.bytes) == (one.rows, one.bytes)
    with pytest.raises(ValueError, match=r"train-0\.parquet: not as 'resize' wrote it: .*Run: dvc repro --force"):
        pictures(tmp_path / "other", one)


@pytest.mark.parametrize("fault", ["a flipped bit", "cut off", "gone"])
def test_what_happens_to_a_shard_after_its_first_picture_is_noticed(tmp_path: Path, one: Shard, fault: str) -> None:
    stored, file = Pictures(tmp_path, [one]), tmp_path / one.file
    stored.read(0)
    data = bytearray(file.read_bytes())
    middle = data.find(miniature.jpeg(12, SIDE)) + 100
    assert middle > 100
    if fault == "cut off":
        data = data[:middle]
    data[middle - 1] ^= 1
    file.unlink()
    if fault != "gone":
        file.write_bytes(data)
    with pytest.raises(OSError, match=GONE):
        list(batches.batches(stored, order(stored, learning(), 0), 8))


def test_a_shard_that_is_gone_is_named(tmp_path: Path, one: Shard) -> None:
    stored = Pictures(tmp_path, [one])
    (tmp_path / one.file).unlink()
    with pytest.raises(OSError, match=GONE):
        list(batches.batches(stored, order(stored, learning(), 0), 8))


def test_a_file_that_is_no_shard_is_named(tmp_path: Path, one: Shard) -> None:
    (tmp_path / one.file).write_bytes(b"PAR1" + b"0" * 1000)
    with pytest.raises(OSError, match=GONE):
        Pictures(tmp_path, [one])


def test_a_shard_is_hashed_once_however_many_read_of_it(
    tmp_path: Path, one: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = []
    of = digests.of
    monkeypatch.setattr(digests, "of", lambda file: hashed.append(file) or of(file))
    stored = Pictures(tmp_path, [one])
    with ThreadPoolExecutor(4) as readers:
        read = list(readers.map(stored.read, [0, 1, 2, 0, 1, 2]))
    assert read[:3] == read[3:]
    assert hashed == [tmp_path / one.file]


@pytest.mark.parametrize("groups", [[7, 7, 5], [7, 6, 7], [8, 7, 5], [20, 1], []])
def test_the_order_is_made_of_row_groups_as_they_were_written(groups: list[int]) -> None:
    """Before most shards are hashed: a footer that claims other sizes would move every picture behind it."""
    batches._check_rows(Path("x"), [7, 7, 6], 20)
    batches._check_rows(Path("x"), [20], 20)
    batches._check_rows(Path("x"), [], 0)
    with pytest.raises(OSError, match=r"x: damaged: row groups of .* rows, was made with 20\. Run: dvc repro"):
        batches._check_rows(Path("x"), groups, 20)


@pytest.mark.parametrize("kind", ["shuffled", "cyclic"])
def test_what_is_held_out_is_in_no_epoch_and_all_else_is_in_every_one(kind: str) -> None:
    stored = Sizes([50] * 40)
    settings = learning(held_out=0.1, order=kind, streams=4)
    aside = set(np.flatnonzero(batches.held_out(len(stored), settings)).tolist())
    assert 150 < len(aside) < 250
    for epoch in range(3):
        found = order(stored, settings, epoch)
        assert sorted(found.pictures_N.tolist()) == [picture for picture in range(2000) if picture not in aside]
        assert len(found.streams_N) == len(found.pictures_N)
    assert not batches.held_out(len(stored), learning()).any()
    assert (batches.held_out(500, settings) == batches.held_out(2000, settings)[:500]).all()
