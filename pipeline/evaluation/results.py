"""params.yaml, `results:`: what is measured of a trained network, and on which pictures (§6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """params.yaml, `results:` — what is measured of a trained network, and on which pictures."""

    split: Literal["val", "test"]
    """The split that is tested. §6: test of ILSVRC-2010, val of ILSVRC-2012, whose test split has no labels."""
    neighbours: int
    """Nearest training pictures per query, as in Figure 4, which shows 6. They need a pass over the training set, and 8 kB
    for each of its pictures. 0: no neighbours, no pass, no codes."""
    queries: int
    """Number of queries, chosen at random among the tested pictures. In 2012 (findsimilar.py): 128."""
    seed: int
    """Seed of the choice of the queries, and of the initial weights and the order in training the codes."""
    code_bits: int
    """§6.1: bits of the short codes that replace the features; a multiple of 8. 0: no codes."""
    code_hidden: int
    """Units of the autoencoder's hidden layers, one on each side of the code."""
    code_epochs: int
    """Epochs over the training pictures' features in training the autoencoder."""
    code_batch_size: int
    """Rows of features per update of the autoencoder."""
    code_rate: float
    """The autoencoder's learning rate."""

    def __post_init__(self) -> None:
        for name in ("neighbours", "seed", "code_bits"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} has to be 0 or more, is {getattr(self, name)}")
        for name in ("queries", "code_hidden", "code_epochs", "code_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} has to be at least 1, is {getattr(self, name)}")
        if self.code_bits % 8:
            raise ValueError(f"code_bits has to be a multiple of 8, is {self.code_bits}")
        if self.code_rate <= 0:
            raise ValueError(f"code_rate has to be above 0, is {self.code_rate}")
