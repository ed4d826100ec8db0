"""§6.1 Features: the 4096 activations of the last hidden layer, and the nearest pictures by them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet.network import Network

Floats = NDArray[np.floating[Any]]

ROWS = 2048
"""Rows whose exact distances are computed at a time."""


@torch.inference_mode()
def features_and_logits(network: Network, patches_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Features B×4096 and logits B×K of patches, in one forward pass. The network must be whole and in eval mode."""
    assert network.fraction == 1, "features need a whole network"
    assert not network.training, "features need eval mode"
    features_BF = network.features(patches_BCHW)
    logits_BK: Tensor = network.classify(features_BF)
    return features_BF, logits_BK


def of_views(network: Network, views_BVCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Features B×V×4096 and logits B×V×K of the views B×V×3×224×224 of B pictures, float32, in one forward pass."""
    answers = features_and_logits(network, views_BVCHW.flatten(0, 1))
    features_BVF, logits_BVK = (each.float().reshape(*views_BVCHW.shape[:2], -1) for each in answers)
    return features_BVF, logits_BVK


def nearest(queries_QF: Floats, base: Iterable[Floats], number: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The `number` rows of the base nearest to each query by Euclidean distance, and their distances, both Q×number.

    `base` gives blocks of rows, N×F, float16 or float32; rows are numbered through all blocks. Blocks are requested one at
    a time; one takes about 40·Q·N + 4·N·F bytes. The result is exact and does not depend on the blocks: a matrix product
    with an error bound selects candidates, and their distances are computed from differences in float64. Ties are ordered
    by row. If fewer than `number` rows have a finite distance, the rest are row -1 with infinite distance.
    """
    if number < 1:
        raise ValueError(f"number has to be at least 1, is {number}")
    queries = np.ascontiguousarray(queries_QF, dtype=np.float32)
    rows = np.full((len(queries), number), -1, dtype=np.int64)
    squares = np.full((len(queries), number), np.inf)
    first = 0
    for block in base:
        if block.shape[1] != queries.shape[1]:
            raise ValueError(f"the base has {block.shape[1]} features a row, the queries have {queries.shape[1]}")
        # torch widens float16 five times as fast as numpy
        block_NF = torch.from_numpy(np.require(block, requirements=["C", "W"])).float().numpy()
        candidates_QN = _candidates(queries, block_NF, squares)
        for query in np.flatnonzero(candidates_QN.any(axis=1)):
            candidates = np.flatnonzero(candidates_QN[query])
            distances = _squares(queries[query], block_NF, candidates)
            all_rows = np.concatenate([rows[query], first + candidates])
            all_squares = np.concatenate([squares[query], distances])
            order = np.lexsort((all_rows, all_squares))[:number]
            # unfilled entries have row -1 and an infinite distance: they sort after all finite ones
            rows[query], squares[query] = all_rows[order], all_squares[order]
        first += len(block_NF)
    return rows, np.sqrt(squares)


def _candidates(queries_QF: Floats, block_NF: Floats, squares_QK: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Rows of the block that may be among the nearest, bool Q×N: a superset, whatever the rounding of the product."""
    q = np.einsum("qf,qf->q", queries_QF, queries_QF, dtype=np.float64)[:, None]
    n = np.einsum("nf,nf->n", block_NF, block_NF, dtype=np.float64)[None, :]
    near_QN = q + n - 2 * (queries_QF @ block_NF.T).astype(np.float64)
    # the error of a float32 sum of F products, in any order, is at most F·ε·|q|·|n|; here doubled
    slack_QN = 2 * (queries_QF.shape[1] + 2) * np.finfo(np.float32).eps * np.sqrt(q * n)
    number = squares_QK.shape[1]
    limit_Q = squares_QK.max(axis=1)
    if block_NF.shape[0] > number:
        upper = near_QN + slack_QN
        limit_Q = np.minimum(limit_Q, np.partition(upper, number - 1, axis=1)[:, number - 1])
    limit_Q = np.where(np.isnan(limit_Q), np.inf, limit_Q)
    candidates: NDArray[np.bool_] = near_QN - slack_QN <= limit_Q[:, None]
    return candidates


def _squares(query_F: Floats, block_NF: Floats, rows: NDArray[np.intp]) -> NDArray[np.float64]:
    """Squared distances, in float64, of the given rows of the block to the query."""
    parts = []
    for start in range(0, len(rows), ROWS):
        differences = block_NF[rows[start : start + ROWS]].astype(np.float64) - query_F
        parts.append(np.square(differences).sum(axis=1))
    return np.concatenate(parts) if parts else np.empty(0)
