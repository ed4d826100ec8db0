"""params.yaml, `results:`: what is measured of a finished network, and on which pictures (§6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """params.yaml, `results:` — what is measured of a finished network, and on which pictures."""

    split: Literal["val", "test"]
    """The pictures it is tested on. §6: test of ILSVRC-2010, val of ILSVRC-2012, whose test split has no labels."""
    neighbours: int
    """So many training pictures nearest to each query are looked up, as for Figure 4; the paper shows 6. They need a
    pass over the training set, and 8 kB for each of its pictures. 0: none, no such pass, and no codes."""
    queries: int
    """So many of the tested pictures, chosen by lot, are the queries. 2012 (findsimilar.py): 128."""
    seed: int
    """Seed of the choice of the queries, and of the codes' first weights and order."""
    code_bits: int
    """§6.1: bits of the short codes that stand for the features; a multiple of 8. 0: none."""
    code_hidden: int
    """Units of the layers between the features and the code."""
    code_epochs: int
    """Times through the training pictures' features in learning the codes."""
    code_batch_size: int
    """Rows of features per update of the codes' weights."""
    code_rate: float
    """The codes' learning rate."""

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
