"""§6.1 Short binary codes in place of the 4096 numbers: the autoencoder that makes them, and the pictures nearest by them.

The paper only suggests them, after Krizhevsky and Hinton (2011), who gave pictures codes of 28 and 256 bits. In shapes:
N and Q rows of the base and of the queries, F features, D hidden units, Y bytes of a code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet import draws

Floats = NDArray[np.floating[Any]]
Codes = NDArray[np.uint8]
"""Eight bits to a byte, the first the highest: a row is the code of a picture."""

ROWS = 2**40
"""More rows than any base has: a distance times this, plus the row, is one number that sorts by both."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """F features → D hidden units, rectified → a bit for each code unit that is above 0; all numbers float32."""

    mean_F: NDArray[np.float32]
    scale: float
    """One for all features, so that which rows are near each other stays as it was."""
    hidden_FD: NDArray[np.float32]
    hidden_bias_D: NDArray[np.float32]
    code_DU: NDArray[np.float32]
    code_bias_U: NDArray[np.float32]

    def encode(self, features_NF: Floats) -> Codes:
        """The codes N×Y. In float64: only of a unit within some 1e-12 of 0 could the rows beside it decide the bit."""
        mean_F, hidden_FD, hidden_bias_D, code_DU, code_bias_U = (
            torch.from_numpy(each).double()
            for each in (self.mean_F, self.hidden_FD, self.hidden_bias_D, self.code_DU, self.code_bias_U)
        )
        rows_NF = (_tensor(features_NF).double() - mean_F) / self.scale
        hidden_ND = torch.relu(torch.addmm(hidden_bias_D, rows_NF, hidden_FD))
        return np.packbits((torch.addmm(code_bias_U, hidden_ND, code_DU) > 0).numpy(), axis=1)

    def save(self, file: Path | BinaryIO) -> None:
        """Writes an .npz, the same bytes for the same numbers."""
        np.savez(
            file,
            mean=self.mean_F,
            scale=np.float64(self.scale),
            hidden=self.hidden_FD,
            hidden_bias=self.hidden_bias_D,
            code=self.code_DU,
            code_bias=self.code_bias_U,
        )

    @classmethod
    def load(cls, file: Path) -> Encoder:
        """Reads what `save` wrote."""
        with np.load(file) as arrays:
            names = ("mean", "scale", "hidden", "hidden_bias", "code", "code_bias")
            mean, scale, hidden, hidden_bias, code, code_bias = (arrays[name] for name in names)
        return cls(mean, float(scale), hidden, hidden_bias, code, code_bias)


def train(
    blocks: Callable[[], Iterable[Floats]],
    *,
    bits: int,
    hidden: int,
    epochs: int,
    batch_size: int,
    rate: float,
    seed: int,
) -> tuple[Encoder, list[float]]:
    """Learns to code rows so that they can be restored; gives the encoder and the error of each epoch.

    F → `hidden` → `bits` → `hidden` → F, learned by Adam (Kingma and Ba, 2015) on the squared error. A code unit is
    rounded to 0 or 1 on the way forward, and its gradient is that of the logistic unit without the rounding (the
    straight-through rule: Bengio, Léonard and Courville, 2013), so that what is learned is what is stored. The error is
    the share of the rows' variance that is not restored, averaged over an epoch in which the weights change.

    `blocks()` gives the rows N×F, float16 or float32, block after block, the same at each call: one pass measures, then
    there is one for each epoch; one block is in memory at a time. In each block the rows are shuffled by (seed, epoch,
    row) and parted in batches. On one thread, so that the number of cores changes no bit. A row that is not finite is
    left out; `ValueError` if there is no other.
    """
    if bits < 8 or bits % 8:
        raise ValueError(f"bits has to be a multiple of 8, at least 8, is {bits}")
    with _one_thread():
        mean_F, scale = _mean_and_scale(blocks)
        sizes = (len(mean_F), hidden, bits, hidden, len(mean_F))
        weights = [_first_weights(layer, sizes[layer], sizes[layer + 1], seed) for layer in range(4)]
        biases = [torch.zeros(units, requires_grad=True) for units in sizes[1:]]
        rule = torch.optim.Adam([*weights, *biases], lr=rate)
        errors = []
        for epoch in range(epochs):
            error_sum, rows = 0.0, 0
            for block_NF in _finite(blocks):
                rows_NF = (block_NF.float() - mean_F) / scale
                lots_N = draws.bits("order of the codes' rows", seed, epoch, rows + torch.arange(len(rows_NF)))
                for batch_B in torch.split(torch.argsort(lots_N, stable=True), batch_size):
                    error = _error(rows_NF[batch_B], weights, biases)
                    rule.zero_grad()
                    error.backward()  # type: ignore[no-untyped-call]
                    rule.step()
                    error_sum += error.item() * len(batch_B)
                rows += len(rows_NF)
            errors.append(error_sum / rows)
    kept = [each.detach().numpy() for pair in zip(weights[:2], biases[:2], strict=True) for each in pair]
    return Encoder(mean_F.numpy(), scale, *kept), errors


def _error(rows_BF: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    """The mean squared error of the rows, coded and restored."""
    hidden_BD = torch.relu(torch.addmm(biases[0], rows_BF, weights[0]))
    shares_BU = torch.sigmoid(torch.addmm(biases[1], hidden_BD, weights[1]))
    bits_BU = shares_BU + ((shares_BU > 0.5).float() - shares_BU).detach()
    hidden_BD = torch.relu(torch.addmm(biases[2], bits_BU, weights[2]))
    restored_BF = torch.addmm(biases[3], hidden_BD, weights[3])
    error: Tensor = (restored_BF - rows_BF).square().mean()
    return error


def _first_weights(layer: int, ins: int, outs: int, seed: int) -> Tensor:
    keys = (torch.arange(ins)[:, None], torch.arange(outs)[None, :])
    weights: Tensor = (draws.normal(f"first weights of the codes' layer {layer}", seed, *keys) / ins**0.5).float()
    return weights.requires_grad_()


def _finite(blocks: Callable[[], Iterable[Floats]]) -> Iterator[Tensor]:
    for block in blocks():
        rows_NF = _tensor(block)
        finite_N = rows_NF.isfinite().all(1)
        if finite_N.any():
            yield rows_NF if finite_N.all() else rows_NF[finite_N]


def _tensor(array: Floats) -> Tensor:
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))  # torch has no strides below 0, no read-only


def _mean_and_scale(blocks: Callable[[], Iterable[Floats]]) -> tuple[Tensor, float]:
    """The mean of each feature, and the standard deviation of all around their means."""
    rows, sum_F, squares = 0, torch.zeros(()), 0.0
    for block_NF in _finite(blocks):
        wide_NF = block_NF.double()
        rows += len(wide_NF)
        sum_F = sum_F + wide_NF.sum(0)
        squares += wide_NF.square().sum().item()
    if not rows:
        raise ValueError(
            "there is no row of finite features to learn codes from: the network has diverged. Train it at a smaller rate"
        )
    mean_F = sum_F / rows
    variance = squares / rows / len(mean_F) - mean_F.square().mean().item()
    return mean_F.float(), max(variance, 0.0) ** 0.5 or 1.0


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def nearest(queries_QY: Codes, base: Iterable[Codes], number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The `number` rows of the base nearest to each query by Hamming distance, and those distances, both Q×number.

    `base` comes in blocks of rows N×Y, counted on from block to block. All are compared: the result is exact. Of equal
    distances, of which there are many, the lower row comes first. Where there are fewer rows, both are -1.
    """
    if number < 1:
        raise ValueError(f"number has to be at least 1, is {number}")
    none = np.iinfo(np.int64).max
    best_QK = np.full((len(queries_QY), number), none)
    queries_QW, first = _words(queries_QY), 0
    for block_NY in base:
        if block_NY.shape[1] != queries_QY.shape[1]:
            raise ValueError(f"the base has codes of {block_NY.shape[1]} bytes, the queries of {queries_QY.shape[1]}")
        distances_QN = np.zeros((len(queries_QY), len(block_NY)), np.int64)
        for mine_Q, theirs_N in zip(queries_QW.T, _words(block_NY).T, strict=True):
            distances_QN += np.bitwise_count(mine_Q[:, None] ^ theirs_N[None, :])
        keys_QN = distances_QN * ROWS + np.arange(first, first + len(block_NY))
        best_QK = np.partition(np.concatenate([best_QK, keys_QN], axis=1), number - 1, axis=1)[:, :number]
        first += len(block_NY)
    best_QK.sort(axis=1)
    return np.where(best_QK == none, -1, best_QK % ROWS), np.where(best_QK == none, -1, best_QK // ROWS)


def _words(codes_NY: Codes) -> NDArray[np.uint64]:
    """The codes in words of eight bytes, the last filled up with zeros."""
    filled = np.pad(codes_NY, ((0, 0), (0, -codes_NY.shape[1] % 8)))
    return np.ascontiguousarray(filled).view(np.uint64)
