"""§6 Top-1 and top-5 errors as counts, divided once; means over views and over models.

In shapes: B pictures, V views of each, K classes. Scores are logits or probabilities: only their order counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Z95 = 1.959963984540054
"""The normal distribution's 97.5 % point."""


@dataclass(frozen=True, slots=True)
class Count:
    """How many pictures were seen, and for how many of them the answer was right; counts of parts add up."""

    right: float
    """A sum of credits: with ties it need not be whole."""
    images: int

    def __add__(self, other: Count) -> Count:
        return Count(self.right + other.right, self.images + other.images)

    @property
    def error(self) -> float:
        """The share of wrong answers, 0–1; NaN if nothing was seen."""
        return (self.images - self.right) / self.images if self.images else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Where the error lies with 95 % confidence, for the draw of the pictures alone: Wilson's score interval."""
        return wilson(self.images - self.right, self.images)


def count(scores_BK: Tensor, labels_B: Tensor, top: int) -> Count:
    """The pictures whose label is among the `top` best scores."""
    return Count(float(topk_credit(scores_BK, labels_B, top).sum()), len(labels_B))


def topk_credit(scores_BK: Tensor, labels_B: Tensor, top: int) -> Tensor:
    """Each picture's share in a right answer, float64 in 0–1.

    It is 1 if the label's score is among the `top` best, 0 if not. Where equal scores compete for the last places
    each gets its share of them, as in 2012 (layer.cu), so that a network that says the same of everything errs at
    1 - top/K. A picture with a NaN among its scores has no order and is wrong. With `top` at K or more all others are
    right.
    """
    if top < 1:
        raise ValueError(f"top has to be at least 1, is {top}")
    if len(scores_BK) != len(labels_B):
        raise ValueError(f"{len(scores_BK)} rows of scores for {len(labels_B)} labels")
    own_B1 = scores_BK.gather(1, labels_B[:, None])
    better_B = (scores_BK > own_B1).sum(1)
    equal_B = (scores_BK == own_B1).sum(1).clamp(min=1)  # itself among them, but for NaN
    share_B = ((top - better_B).double() / equal_B).clamp(0, 1)
    return torch.where(scores_BK.isnan().any(1), 0.0, share_B)


def wilson(wrong: float, images: int) -> tuple[float, float]:
    """The 95 % score interval of a share `wrong / images` (Wilson, 1927), within 0–1; NaN if there are no images.

    Unlike the share ± its deviation it makes sense where next to nothing is wrong: 0 of 300 is not 0 ± 0.
    """
    if images == 0:
        return math.nan, math.nan
    share, z2 = wrong / images, Z95**2
    middle = (share + z2 / (2 * images)) / (1 + z2 / images)
    half = Z95 / (1 + z2 / images) * math.sqrt(share * (1 - share) / images + z2 / (4 * images**2))
    # at the ends of the range the bound is the end itself, which rounding would miss
    low = 0.0 if wrong == 0 else max(0.0, middle - half)
    high = 1.0 if wrong == images else min(1.0, middle + half)
    return low, high


def mean_over_views(logits_BVK: Tensor) -> Tensor:
    """The softmax of each view, averaged, B×K: probabilities are averaged, not logits (§4.1)."""
    return torch.softmax(logits_BVK.float(), dim=-1).mean(1)


def mean_over_models(probabilities: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """The mean of several models' probabilities, B×K each, B×K; weighted, if there are `weights`.

    In 2012 avg-valid.py did so, with weights chosen on the validation set. They need not add up to 1, but must not be
    negative or all 0.
    """
    if weights is None:
        weights = [1.0] * len(probabilities)
    if not probabilities or len(weights) != len(probabilities):
        raise ValueError(f"{len(weights)} weights for {len(probabilities)} models")
    if min(weights) < 0 or not math.isfinite(sum(weights)) or sum(weights) == 0:
        raise ValueError(f"weights have to be 0 or more, and not all 0; are {list(weights)}")
    if len({tuple(each.shape) for each in probabilities}) > 1:
        raise ValueError(f"models of other pictures or classes: shapes {[tuple(each.shape) for each in probabilities]}")
    total = sum(
        (weight * each.double() for weight, each in zip(weights, probabilities, strict=True)), start=torch.zeros(())
    )
    return (total / sum(weights)).to(probabilities[0].dtype)


def guesses(scores_BK: Tensor) -> Tensor:
    """The class with the best score, B; of equal ones the lowest; -1, no class, where a score is NaN."""
    return torch.where(scores_BK.isnan().any(1), -1, scores_BK.argmax(1))


def per_class(credits_B: Tensor, labels_B: Tensor, classes: int) -> list[Count]:
    """A count for each class; credits as from `topk_credit`."""
    right = torch.zeros(classes, dtype=torch.float64).index_add_(0, labels_B, credits_B)
    images = torch.bincount(labels_B, minlength=classes)
    return [Count(float(one), int(all_)) for one, all_ in zip(right, images, strict=True)]
