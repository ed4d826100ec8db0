"""A network's mistakes: pairs of classes that it confuses, its most confident mistakes, and the pictures it is least sure of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from alexnet.errors import wilson


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The first guess for one picture."""

    id: str
    label: int
    guess: int
    """The lowest class of a tie; -1 if a probability is NaN: no answer."""
    probability: float
    """Probability of the guess, 0 to 1; NaN without an answer."""

    @property
    def wrong(self) -> bool:
        """Whether it is a mistake: another class than the picture's. No answer is no confusion."""
        return self.guess not in (self.label, -1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Direction:
    """How often pictures of one class were taken for another."""

    label: int
    guess: int
    count: int
    images: int
    """Tested pictures of the class."""

    @property
    def rate(self) -> float:
        """The fraction of the class's pictures, 0 to 1; 0 if it has none."""
        return self.count / self.images if self.images else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the rate; NaN if the class has no picture."""
        return wilson(self.count, self.images)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two classes that are taken for each other; `more` is the direction with more mistakes."""

    more: Direction
    less: Direction

    @property
    def count(self) -> int:
        """Mistakes in both directions."""
        return self.more.count + self.less.count

    def has(self, answer: Answer) -> bool:
        """Whether an answer is one of the mistakes."""
        return (answer.label, answer.guess) in {(each.label, each.guess) for each in (self.more, self.less)}


def read(name: str, handle: BinaryIO) -> list[Answer]:
    """The answers in a predictions.parquet, by row groups; `ValueError` if it is damaged. `name`: for the message."""
    from alexnet.errors import guesses
    from pipeline.evaluation.vectors import to_matrix

    answers: list[Answer] = []
    try:
        parquet = pq.ParquetFile(handle, page_checksum_verification=True)
        for group in range(parquet.num_row_groups):
            table = parquet.read_row_group(group, columns=["id", "label", "probabilities"])
            shares_BK = to_matrix(table["probabilities"])
            first_B = guesses(shares_BK)
            best_B = shares_BK.gather(1, first_B.clamp(min=0)[:, None])[:, 0]
            best_B[first_B < 0] = float("nan")
            columns = (table["id"].to_pylist(), table["label"].to_pylist(), first_B.tolist(), best_B.tolist())
            answers += [
                Answer(id=each, label=label, guess=guess, probability=share)
                for each, label, guess, share in zip(*columns, strict=True)
            ]
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ValueError(f"{name}: damaged, or not a predictions.parquet: {' '.join(str(error).split())}") from None
    return answers


def pairs(answers: Sequence[Answer]) -> list[Pair]:
    """The pairs of classes with mistakes, most mistakes first; equal ones in the order of their labels."""
    images = Counter(answer.label for answer in answers)
    counts = Counter((answer.label, answer.guess) for answer in answers if answer.wrong)
    found = []
    for one, other in {(min(pair), max(pair)) for pair in counts}:
        both = [
            Direction(label=label, guess=guess, count=counts[label, guess], images=images[label])
            for label, guess in ((one, other), (other, one))
        ]
        more, less = sorted(both, key=lambda each: (-each.count, each.label))
        found.append(Pair(more=more, less=less))
    return sorted(found, key=lambda pair: (-pair.count, pair.more.label, pair.more.guess))


def most_confident(answers: Sequence[Answer]) -> list[Answer]:
    """The mistakes, the highest probability of the wrong guess first."""
    return sorted((answer for answer in answers if answer.wrong), key=lambda each: (-each.probability, each.id))


def least_sure(answers: Sequence[Answer]) -> list[Answer]:
    """All answered pictures, the lowest probability of the guess first, whether it was right or not."""
    answered = (answer for answer in answers if answer.guess >= 0)
    return sorted(answered, key=lambda each: (each.probability, each.id))
