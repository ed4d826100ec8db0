"""§6.1 Short binary codes instead of features: the autoencoder that makes them, and the nearest pictures by them.

The paper only suggests them, after Krizhevsky and Hinton (2011), who gave pictures codes of 28 and 256 bits. Axes: N rows
of the base, Q queries, F features, D hidden units, U bits and Y bytes of a code.
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
"""Codes, a row per picture: eight bits a byte, the first bit the most significant."""

ROWS = 2**40
"""More rows than any base has: distance · ROWS + row is a single key that sorts by both."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """The encoder: F features → D hidden ReLUs → U code units, each giving the bit 1 if it is above 0. Float32 weights."""

    mean_F: NDArray[np.float32]
    """Subtracted from the features."""
    scale: float
    """Divisor of all features; a single one, so that nearest rows stay nearest."""
    hidden_FD: NDArray[np.float32]
    hidden_bias_D: NDArray[np.float32]
    code_DU: NDArray[np.float32]
    code_bias_U: NDArray[np.float32]

    def encode(self, features_NF: Floats) -> Codes:
        """Features N×F → codes N×Y.

        In float64, so that a code does not depend on which rows share its batch (except within 1e-12 of the threshold).
        """
        mean_F, hidden_FD, hidden_bias_D, code_DU, code_bias_U = (
            torch.from_numpy(each).double()
            for each in (self.mean_F, self.hidden_FD, self.hidden_bias_D, self.code_DU, self.code_bias_U)
        )
        rows_NF = (_tensor(features_NF).double() - mean_F) / self.scale
        hidden_ND = torch.relu(torch.addmm(hidden_bias_D, rows_NF, hidden_FD))
        return np.packbits((torch.addmm(code_bias_U, hidden_ND, code_DU) > 0).numpy(), axis=1)

    def save(self, file: Path | BinaryIO) -> None:
        """Writes an .npz file; equal numbers give equal bytes."""
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
        """Reads a file that `save` wrote."""
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
    """Trains an autoencoder on rows of features; returns its encoder and the reconstruction error of each epoch.

    F → `hidden` → `bits` → `hidden` → F, trained by Adam (Kingma and Ba, 2015) on the squared error. In the forward pass a
    code unit is rounded to 0 or 1; its gradient is that of the logistic unit without rounding (straight-through estimator:
    Bengio, Léonard and Courville, 2013). The error is the fraction of the rows' variance that is not reconstructed,
    averaged over an epoch while the weights change.

    `blocks()` gives the rows, N×F, float16 or float32, in blocks, the same at each call. It is called once for mean and
    scale, and once per epoch; one block is in memory at a time. Rows are shuffled within a block by (seed, epoch, row).
    Training uses one thread, so that the number of cores does not change any bit. Rows that are not finite are skipped;
    `ValueError` if no finite row remains, or if `bits` is not a positive multiple of 8.
    """
    if bits < 8 or bits % 8:
        raise ValueError(f"bits has to be a multiple of 8, at least 8, is {bits}")
    with _one_thread():
        mean_F, scale = _mean_and_scale(blocks)
        sizes = (len(mean_F), hidden, bits, hidden, len(mean_F))
        weights = [_first_weights(layer, sizes[layer], sizes[layer + 1], seed) for layer in range(4)]
        biases = [torch.zeros(units, requires_grad=True) for units in sizes[1:]]
        optimizer = torch.optim.Adam([*weights, *biases], lr=rate)
        errors = []
        for epoch in range(epochs):
            error_sum, rows = 0.0, 0
            for block_NF in _finite(blocks):
                rows_NF = (block_NF.float() - mean_F) / scale
                keys_N = draws.bits("order of the codes' rows", seed, epoch, rows + torch.arange(len(rows_NF)))
                for batch_B in torch.split(torch.argsort(keys_N, stable=True), batch_size):
                    error = _error(rows_NF[batch_B], weights, biases)
                    optimizer.zero_grad()
                    error.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    error_sum += error.item() * len(batch_B)
                rows += len(rows_NF)
            errors.append(error_sum / rows)
    encoder = [each.detach().numpy() for pair in zip(weights[:2], biases[:2], strict=True) for each in pair]
    return Encoder(mean_F.numpy(), scale, *encoder), errors


def _error(rows_BF: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    """The mean squared reconstruction error of the rows."""
    hidden_BD = torch.relu(torch.addmm(biases[0], rows_BF, weights[0]))
    units_BU = torch.sigmoid(torch.addmm(biases[1], hidden_BD, weights[1]))
    bits_BU = units_BU + ((units_BU > 0.5).float() - units_BU).detach()
    hidden_BD = torch.relu(torch.addmm(biases[2], bits_BU, weights[2]))
    output_BF = torch.addmm(biases[3], hidden_BD, weights[3])
    error: Tensor = (output_BF - rows_BF).square().mean()
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
    return torch.from_numpy(
        np.require(array, requirements=["C", "W"])
    )  # torch takes no negative strides and no read-only array


def _mean_and_scale(blocks: Callable[[], Iterable[Floats]]) -> tuple[Tensor, float]:
    """The mean of each feature, and one standard deviation of all features about their means (1 if that is 0)."""
    rows, sum_F, squares = 0, torch.zeros(()), 0.0
    for block_NF in _finite(blocks):
        wide_NF = block_NF.double()
        rows += len(wide_NF)
        sum_F = sum_F + wide_NF.sum(0)
        squares += wide_NF.square().sum().item()
    if not rows:
        raise ValueError(
            "no row of features is finite, so codes cannot be learned: the network has diverged. Lower learning.rate"
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
    """The `number` rows of the base nearest to each query by Hamming distance, and their distances, both Q×number.

    `base` gives blocks of rows, N×Y; rows are numbered through all blocks. All are compared, so the result is exact. Ties,
    which are frequent, are ordered by row. If the base has fewer than `number` rows, the rest are row -1, distance -1.
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
        for query_Q, row_N in zip(queries_QW.T, _words(block_NY).T, strict=True):
            distances_QN += np.bitwise_count(query_Q[:, None] ^ row_N[None, :])
        keys_QN = distances_QN * ROWS + np.arange(first, first + len(block_NY))
        best_QK = np.partition(np.concatenate([best_QK, keys_QN], axis=1), number - 1, axis=1)[:, :number]
        first += len(block_NY)
    best_QK.sort(axis=1)
    return np.where(best_QK == none, -1, best_QK % ROWS), np.where(best_QK == none, -1, best_QK // ROWS)


def _words(codes_NY: Codes) -> NDArray[np.uint64]:
    """Codes as 64-bit words, the last padded with zeros."""
    filled = np.pad(codes_NY, ((0, 0), (0, -codes_NY.shape[1] % 8)))
    return np.ascontiguousarray(filled).view(np.uint64)
