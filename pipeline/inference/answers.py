"""Answers to pictures: asking the network in batches, and showing the answers as text, CSV, JSON and rows of a table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from alexnet.names import shown
from pipeline.inference.inputs import Item, Unreadable
from pipeline.runtime import documents, files

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.inference.predictor import Guess, Predictor, Views


@dataclass(frozen=True, slots=True)
class Near:
    """A training picture near to the picture."""

    id: str
    wnid: str
    name: str
    distance: float
    """Euclidean, between the features (§6.1)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the network says to one picture, or why it was not asked."""

    path: str
    bytes: int | None
    """The file's length; None if it could not be read."""
    guesses: list[Guess] = field(default_factory=list)
    """The best first; empty if the picture was rejected."""
    reason: str = ""
    """Why the picture was rejected; empty if it was not."""
    warnings: list[str] = field(default_factory=list)
    """What makes the answer doubtful, such as damage."""
    near: list[Near] = field(default_factory=list)
    """The nearest training pictures, the nearest first, if they were asked for."""


@dataclass(frozen=True)
class Asked:
    """A picture that the network was asked about, for whoever wants more of it than the answer."""

    answer: Answer
    picture_CHW: Tensor
    features_F: NDArray[np.float32]


def each(
    items: Sequence[Item],
    read: Callable[[Item], bytes],
    predictor: Predictor,
    views: Views,
    top: int,
    size: int,
) -> Iterator[Asked | Answer]:
    """Yields an `Asked` for each item in order, or the `Answer` with a reason; the network is asked about `size` at a time."""
    for first in range(0, len(items), size):
        some = [_prepared(item, read, predictor) for item in items[first : first + size]]
        pictures = [each[1] for each in some if not isinstance(each, Answer)]
        probabilities_BK, features_BF = predictor.described(pictures, views)
        rows = zip(predictor.guesses(probabilities_BK, top), features_BF.numpy(), strict=True)
        for one in some:
            if isinstance(one, Answer):
                yield one
                continue
            guesses, features_F = next(rows)
            path, count, warnings = one[0]
            yield Asked(Answer(path, count, guesses, warnings=warnings), one[1], features_F)


def _prepared(
    item: Item, read: Callable[[Item], bytes], predictor: Predictor
) -> Answer | tuple[tuple[str, int, list[str]], Tensor]:
    from alexnet.pictures import Undecodable

    try:
        data = read(item)
    except Unreadable as error:
        return Answer(item.name, item.size, reason=str(error))
    try:
        picture_CHW, warnings = predictor.see(data)
    except Undecodable as error:
        return Answer(item.name, len(data), reason=str(error))
    return (item.name, len(data), warnings), picture_CHW


def block(answer: Answer) -> list[str]:
    """Lines for a terminal: the path, then a line for each guess, warning and near picture. The caller escapes them."""
    lines = [answer.path, *(f"  {100 * guess.probability:5.1f} %  {guess.name}" for guess in answer.guesses)]
    lines += [f"  near:    {near.name}, {near.id}, at a distance of {near.distance:.4g}" for near in answer.near]
    return [*lines, *(f"  warning: {words}" for words in answer.warnings)]


def row(answer: Answer, top: int) -> dict[str, Any]:
    """A flat row: path, bytes, then wnid, name and probability of each of the `top` guesses, reason and warnings."""
    cells: dict[str, Any] = {"path": answer.path, "bytes": answer.bytes}
    for rank in range(top):
        guess = answer.guesses[rank] if rank < len(answer.guesses) else None
        cells[f"wnid_{rank + 1}"] = guess.wnid if guess else None
        cells[f"name_{rank + 1}"] = guess.name if guess else None
        cells[f"probability_{rank + 1}"] = guess.probability if guess else None
    return cells | {"reason": answer.reason or None, "warnings": "; ".join(answer.warnings) or None}


def write_csv(file: Path, answers: Iterable[Answer], top: int) -> None:
    """Writes a CSV with a row for each answer; what is missing is an empty cell."""
    head = list(row(Answer("", None), top))
    rows = [["" if cell is None else cell for cell in row(answer, top).values()] for answer in answers]
    with files.atomic(file.absolute()) as partial:
        documents.write_rows(partial, head, rows)


def to_json(answers: Iterable[Answer], about: dict[str, Any]) -> str:
    """One JSON object: `about`, and under `pictures` an object for each answer."""
    return json.dumps({**about, "pictures": [asdict(answer) for answer in answers]}, indent=1) + "\n"


def rejected(answer: Answer) -> str:
    """The line about a picture that was rejected."""
    return f"{shown(answer.path)}: rejected: {answer.reason}"
