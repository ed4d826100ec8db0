"""Shards → batches of uint8 pictures, in an order fixed by (seed, epoch), starting from any batch.

The order is that of the whole batch. Each replica reads its part; together the replicas read what a single one would.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet import draws
from alexnet.learning import Learning
from alexnet.pictures import decode
from pipeline.runtime import digests, files
from pipeline.runtime.paths import AnyPath
from pipeline.shards import tables
from pipeline.shards.tables import Shard

AHEAD, AHEAD_MADE = 3, 2
"""Batches that are prefetched: enough to hide one slow read; of patches fewer, since floats take four times the memory."""


SHARES = 8
"""Shares of a batch for each decoding thread: a task for each picture costs more, and one share waits for the slowest."""


@dataclass(frozen=True, slots=True)
class Order:
    """The order in which an epoch, or a measurement, reads its N pictures."""

    pictures_N: NDArray[np.int64]
    """Index of the picture at each position, counted through all shards of the split."""
    streams_N: NDArray[np.int64]
    """The stream of each position, 0 … streams - 1. A replica reads the streams that equal its number modulo replicas."""


class Making(Protocol):
    """What makes a tensor of a batch's pictures: `alexnet.augmentation.Patches`."""

    patches_BCHW: Tensor

    def make(self, number: int, image_CHW: Tensor) -> None:
        """Makes the part of this number from its picture, uint8 3×side×side; called by several threads, once for each."""


Plan = Callable[[Tensor], Making]
"""Positions in the epoch, int64 B → what makes the patches of these pictures."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One replica's B pictures of one batch."""

    number: int
    """Number of the batch in the epoch, from 0."""
    count: int
    """Pictures in the batch, all replicas together."""
    positions_B: Tensor
    """Each picture's position in the epoch's order, int64: the key of its random draws."""
    images_BCHW: Tensor
    """The pictures, uint8 B×3×side×side, or what was made of them; of shape (0,) if B is 0."""
    labels_B: Tensor
    """int64."""


class Pictures:
    """A split's pictures, numbered through all of its shards, and read by row group.

    Before the first read from a shard, its sha256 is compared, once per process: the 40 GB of ILSVRC-2012 at 1 GB/s take
    40 seconds of the reading threads, spread over the first epoch. Later reads verify the checksums of pages.
    """

    def __init__(self, folder: AnyPath, shards: Sequence[Shard]) -> None:
        self.folder, self.shards = folder, tuple(shards)
        self.files = [folder / shard.file for shard in shards]
        self._unseen = {shard: threading.Lock() for shard in range(len(self.files))}
        self.groups: list[tuple[int, int]] = []  # (shard, group in it)
        sizes = []
        with ThreadPoolExecutor(files.at_once(folder)) as readers:
            self.metadata = list(readers.map(_metadata, self.files))
        for shard, metadata in enumerate(self.metadata):
            rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
            _check_rows(self.files[shard], rows, shards[shard].rows)
            self.groups += [(shard, group) for group in range(len(rows))]
            sizes += rows
        self.sizes = np.array(sizes, dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def find(self, picture: int) -> tuple[int, int]:
        """The row group of a picture, and its row in the group."""
        group = int(self.group(picture))
        return group, picture - int(self.starts[group])

    def group(self, pictures: int | NDArray[np.int64]) -> NDArray[np.int64]:
        """The row group of each picture."""
        groups: NDArray[np.int64] = np.searchsorted(self.starts, pictures, side="right") - 1
        return groups

    def read(self, group: int) -> tuple[list[bytes], list[int]]:
        """The encoded pictures of a row group, and their labels."""
        shard, own_group = self.groups[group]
        self._see(shard)
        # opened for each row group: no handle stays open, and a group is megabytes, so that opening costs little
        with tables.readable(self.files[shard], digests.again("resize")) as source:
            parquet = pq.ParquetFile(
                source, metadata=self.metadata[shard], page_checksum_verification=True, pre_buffer=True
            )
            table = parquet.read_row_group(own_group, columns=["image.bytes", "label"])
            if table.num_rows != self.sizes[group]:
                raise OSError(f"{table.num_rows} rows, its metadata says {self.sizes[group]}")
        return table["image"].combine_chunks().field("bytes").to_pylist(), table["label"].to_pylist()

    def _see(self, shard: int) -> None:
        """Compares a shard's sha256 if this process has not done so; other threads that read the shard wait."""
        lock = self._unseen.get(shard)
        if lock is None:
            return
        with lock:
            if shard in self._unseen:
                digests.compare(self.files[shard], self.shards[shard].sha256, "resize")
                del self._unseen[shard]


def _check_rows(file: AnyPath, groups: Sequence[int], rows: int) -> None:
    """`OSError` if the row groups do not add up to `rows`, or differ in size other than by a shorter last one.

    The order of an epoch is computed from these sizes, before most shards are read.
    """
    if sum(groups) != rows or any(size != groups[0] for size in groups[:-1]) or (groups and groups[-1] > groups[0]):
        raise OSError(
            f"{file}: damaged: row groups of {groups[:9]} rows, was made with {rows}. {digests.again('resize')}"
        )


def _metadata(file: AnyPath) -> pq.FileMetaData:
    with tables.readable(file, digests.again("resize")) as source:
        return pq.read_metadata(source)


def held_out(count: int, learning: Learning) -> NDArray[np.bool_]:
    """Whether each of `count` training pictures is held out of training, bool, by (seed, picture)."""
    aside: NDArray[np.bool_] = draws.uniform("held out", learning.seed, torch.arange(count)).numpy() < learning.held_out
    return aside


def order(stored: Pictures, learning: Learning, epoch: int) -> Order:
    """The order of an epoch, without held-out pictures: a function of row group sizes, `learning.seed`, streams and epoch.

    shuffled: row groups in random order are divided into streams of equal length. A stream is read from start to end, with
    the pictures of each row group in random order, and the positions of a batch are shared evenly among the streams.
    (`resize` has already shuffled the pictures globally.) cyclic: the stored order in every epoch.
    """
    aside = held_out(len(stored), learning)
    if learning.order == "cyclic":
        pictures = np.flatnonzero(~aside)
        return Order(pictures, np.arange(len(pictures), dtype=np.int64) % learning.streams)
    key = learning.seed, epoch
    rank = draws.bits("row group", *key, torch.arange(len(stored.sizes))).numpy()
    within = draws.bits("picture", *key, torch.arange(len(stored))).numpy()
    pictures = np.lexsort((within, np.repeat(rank, stored.sizes)))
    pictures = pictures[~aside[pictures]]
    count = len(pictures)
    streams = np.arange(count, dtype=np.int64) * learning.streams // max(1, count)
    lengths = np.bincount(streams, minlength=learning.streams)
    along = np.arange(count) - np.concatenate([[0], np.cumsum(lengths)])[streams]
    dealt = np.lexsort((streams, (along + 0.5) / lengths[streams]))
    return Order(pictures[dealt], streams[dealt])


def batches(
    stored: Pictures,
    epoch: Order,
    size: int,
    *,
    first: int = 0,
    replica: int = 0,
    replicas: int = 1,
    threads: int = 1,
    plan: Plan | None = None,
) -> Iterator[Batch]:
    """Yields the batches of an epoch from number `first` on, each with the pictures of this replica's streams.

    `size`: pictures per batch, over all replicas. `threads`: decoding threads. `plan`: makes patches of the pictures, in the
    thread that has just decoded them.
    """
    own_streams = sum(stream % replicas == replica for stream in set(epoch.streams_N.tolist()))
    reader = _Reader(stored, threads, own_streams + 1, plan)
    ahead = AHEAD if plan is None else AHEAD_MADE
    with ThreadPoolExecutor(1) as loader:
        pending: deque[Future[Batch]] = deque()
        try:
            for number in range(first, -(-len(epoch.pictures_N) // size)):
                positions_B = np.arange(number * size, min((number + 1) * size, len(epoch.pictures_N)))
                own_B = positions_B[epoch.streams_N[positions_B] % replicas == replica]
                soon = slice((number + 1) * size, (number + 1 + ahead) * size)
                next_own = epoch.pictures_N[soon][epoch.streams_N[soon] % replicas == replica]
                pending.append(
                    loader.submit(reader.batch, number, len(positions_B), own_B, epoch.pictures_N[own_B], next_own)
                )
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
            loader.shutdown()
            reader.close()


class _Reader:
    """Decodes pictures, and caches the row group at which each of its streams is."""

    def __init__(self, stored: Pictures, threads: int, keep: int, plan: Plan | None) -> None:
        self.stored, self.keep, self.plan, self.threads = stored, keep, plan, threads
        self.decoders = ThreadPoolExecutor(threads)
        self.readers = ThreadPoolExecutor(files.at_once(stored.folder))
        self.kept: OrderedDict[int, Future[tuple[list[bytes], list[int]]]] = OrderedDict()

    def batch(
        self,
        number: int,
        count: int,
        positions_B: NDArray[np.int64],
        pictures_B: NDArray[np.int64],
        soon: NDArray[np.int64],
    ) -> Batch:
        """A batch of the given pictures; the row groups of the pictures in `soon` are prefetched."""
        of_each = self.stored.group(np.concatenate([pictures_B, soon]))
        groups = dict.fromkeys(of_each.tolist())
        for group in groups:
            if group not in self.kept:
                self.kept[group] = self.readers.submit(self.stored.read, group)
            self.kept.move_to_end(group)
        # a stream is in one row group at a time; when it moves on, the least recently used group is the one it left
        while len(self.kept) > max(self.keep, len(groups)):
            self.kept.popitem(last=False)
        own = of_each[: len(pictures_B)]
        places = zip(own.tolist(), (pictures_B - self.stored.starts[own]).tolist(), strict=True)
        rows = [self._one(group, row) for group, row in places]
        positions = torch.from_numpy(positions_B.copy())
        return Batch(
            number,
            count,
            positions,
            self._images(positions, [data for data, _ in rows]),
            torch.tensor([label for _, label in rows], dtype=torch.int64),
        )

    def _images(self, positions_B: Tensor, data: Sequence[bytes]) -> Tensor:
        if not data:
            return torch.empty(0, dtype=torch.uint8)
        if self.plan is None:
            return torch.stack(list(self.decoders.map(decode, data)))
        making = self.plan(positions_B)

        def some(numbers: range) -> None:
            for number in numbers:
                making.make(number, decode(data[number]))

        size = max(1, len(data) // (SHARES * self.threads))
        for _ in self.decoders.map(
            some, (range(len(data))[first : first + size] for first in range(0, len(data), size))
        ):
            pass
        return making.patches_BCHW

    def _one(self, group: int, row: int) -> tuple[bytes, int]:
        jpegs, labels = self.kept[group].result()
        return jpegs[row], labels[row]

    def close(self) -> None:
        self.decoders.shutdown()
        self.readers.shutdown(cancel_futures=True)
