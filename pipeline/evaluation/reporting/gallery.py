"""The pictures that the network got wrong with most confidence, and those that it was least sure of."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.evaluation import mistakes
from pipeline.evaluation.mistakes import Answer
from pipeline.evaluation.trained import OUT as EVALUATION
from pipeline.runtime import digests
from pipeline.runtime.paths import AnyPath
from pipeline.shards import lookup
from pipeline.shards.manifest import Manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """A picture with the network's first guess."""

    answer: Answer
    jpeg: str
    """The stored picture in base64."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gallery:
    """The pictures that are shown of the network's answers."""

    wrong: int
    """Pictures taken for another class, whether they are shown or not."""
    confident: Sequence[Shown]
    """Mistakes, the highest probability of the wrong guess first."""
    unsure: Sequence[Shown]
    """Pictures whose first guess has the lowest probability, right or wrong."""


def pick(number: int, split: str, manifest: Manifest, folder: AnyPath) -> Gallery:
    """Picks the first `number` of each kind, and reads their pictures from the shards in `folder`."""
    file = EVALUATION / "predictions.parquet"
    digests.check(file, "evaluate")
    with file.open("rb") as handle:
        answers = mistakes.read(str(file), handle)
    confident, unsure = mistakes.most_confident(answers), mistakes.least_sure(answers)[:number]
    wanted = {answer.id for answer in [*confident[:number], *unsure]}
    found = lookup.encoded(wanted, split, manifest, folder) if wanted else {}
    jpegs = {name: base64.b64encode(lookup.as_jpeg(data)).decode() for name, (data, _) in found.items()}
    best, last = ([Shown(answer=each, jpeg=jpegs[each.id]) for each in some] for some in (confident[:number], unsure))
    return Gallery(wrong=len(confident), confident=best, unsure=last)
