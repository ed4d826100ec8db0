"""The training pictures nearest to new pictures, by the features that `evaluate` stored (§6.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from alexnet.features import nearest
from pipeline.evaluation import vectors
from pipeline.evaluation.trained import OUT
from pipeline.inference.answers import Near
from pipeline.inference.predictor import Predictor
from pipeline.runtime import digests
from pipeline.runtime.machines import Machine
from pipeline.shards import artifacts, lookup, tables

FEATURES = OUT / "features-train.parquet"

AGREE = 0.01
"""The largest relative distance between the features of one picture by one network: those stored have 11 bits."""


class Neighbours:
    """The features of all training pictures, and the pictures themselves."""

    def __init__(self, predictor: Predictor, machine: Machine) -> None:
        """Checks the table's digest, and that its features are this network's.

        `FileNotFoundError` or `ValueError`, with the parameter or the command that makes the table, if not.
        """
        if not FEATURES.exists():
            raise FileNotFoundError(
                f"{FEATURES}: not there, so the features of the training pictures are not known. Set in params.yaml, "
                "results: neighbours: 6, and run: dvc repro evaluate"
            )
        digests.check(FEATURES, "evaluate")
        self.predictor = predictor
        self.rows = tables.read(FEATURES, ["id", "label"], "evaluate")
        self.manifest = artifacts.manifest(machine)
        self.folder = artifacts.locate(self.manifest, machine)
        self._check()

    def _check(self) -> None:
        """`ValueError` if the network gives the first training picture other features than the table has."""
        first = self.rows["id"][0].as_py()
        picture = torch.from_numpy(self.pictures([first])[0]).permute(2, 0, 1).contiguous()
        ours = self.predictor.described([picture], 1)[1][0].numpy().astype(np.float64)
        stored = next(vectors.blocks(FEATURES))[0].astype(np.float64)
        if len(ours) != len(stored) or np.linalg.norm(ours - stored) > AGREE * np.linalg.norm(stored):
            raise ValueError(
                f"{FEATURES}: has the features of another network than this. They are known for the network that was evaluated "
                "last: give no other --model, and run: dvc repro evaluate"
            )

    def nearest(self, features_QF: NDArray[np.float32], number: int) -> list[list[Near]]:
        """The `number` training pictures nearest to each row of features, the nearest first."""
        rows_QK, distances_QK = nearest(features_QF, vectors.blocks(FEATURES), number)
        return [self._named(*pair) for pair in zip(rows_QK.tolist(), distances_QK.tolist(), strict=True)]

    def _named(self, rows: Sequence[int], distances: Sequence[float]) -> list[Near]:
        near = []
        for row, distance in zip(rows, distances, strict=True):
            if row >= 0:
                picture, label = self.rows["id"][row].as_py(), self.rows["label"][row].as_py()
                near.append(Near(picture, self.predictor.classes[label][0], self.predictor.names[label], distance))
        return near

    def pictures(self, ids: Sequence[str]) -> list[NDArray[np.uint8]]:
        """The stored training pictures with these ids, H×W×3."""
        found = lookup.fetch(ids, "train", self.manifest, self.folder)
        return [found[name][0] for name in ids]
