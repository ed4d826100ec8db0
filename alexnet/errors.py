"""§6 Top-1 and top-5 error rates with their 95 % intervals; averaging over views and over models.

Axes: B pictures, V views of each, K classes. Scores are logits or probabilities: only their order counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Z95 = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""


@dataclass(frozen=True, slots=True)
class Count:
    """How many pictures were tested, and how many answers were right. Counts of disjoint sets can be added."""

    right: float
    """A sum of credits; with ties it need not be a whole number."""
    images: int
    """Pictures tested."""

    def __add__(self, other: Count) -> Count:
        return Count(self.right + other.right, self.images + other.images)

    @property
    def error(self) -> float:
        """The fraction of wrong answers, 0–1; NaN if there are no pictures."""
        return (self.images - self.right) / self.images if self.images else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % confidence interval of the error; it covers the choice of the test pictures, not of the seed."""
        return wilson(self.images - self.right, self.images)


def count(scores_BK: Tensor, labels_B: Tensor, top: int) -> Count:
    """Counts the pictures whose label is among the `top` best scores, with credit for ties as in `topk_credit`."""
    return Count(float(topk_credit(scores_BK, labels_B, top).sum()), len(labels_B))


def topk_credit(scores_BK: Tensor, labels_B: Tensor, top: int) -> Tensor:
    """Each picture's credit for a right answer, float64 in 0–1, B.

    The credit is 1 if the label's score is among the `top` best, 0 if not. If equal scores tie for the last ranks among
    them, each gets an equal share, as in 2012 (layer.cu): a network with constant outputs then has the error 1 - top/K. A
    picture with a NaN score gets 0; if `top` ≥ K, all others get 1.
    """
    if top < 1:
        raise ValueError(f"top has to be at least 1, is {top}")
    if len(scores_BK) != len(labels_B):
        raise ValueError(f"{len(scores_BK)} rows of scores for {len(labels_B)} labels")
    own_B1 = scores_BK.gather(1, labels_B[:, None])
    better_B = (scores_BK > own_B1).sum(1)
    equal_B = (scores_BK == own_B1).sum(1).clamp(min=1)  # NaN is not equal to itself
    credit_B = ((top - better_B).double() / equal_B).clamp(0, 1)
    return torch.where(scores_BK.isnan().any(1), 0.0, credit_B)


def wilson(wrong: float, images: int) -> tuple[float, float]:
    """The 95 % score interval of the proportion `wrong / images` (Wilson, 1927), within 0–1; NaN if there are no images.

    Unlike the proportion ± 1.96 standard errors, it holds near 0 and 1: 0 wrong of 300 does not give 0 ± 0.
    """
    if images == 0:
        return math.nan, math.nan
    share, z2 = wrong / images, Z95**2
    middle = (share + z2 / (2 * images)) / (1 + z2 / images)
    half = Z95 / (1 + z2 / images) * math.sqrt(share * (1 - share) / images + z2 / (4 * images**2))
    # exactly 0 or 1 at the ends of the range, without a rounding error
    low = 0.0 if wrong == 0 else max(0.0, middle - half)
    high = 1.0 if wrong == images else min(1.0, middle + half)
    return low, high


def summary(counts: Mapping[int, Count]) -> dict[str, float]:
    """Error rates and the ends of their 95 % intervals, by the names of metrics.json: `top1_error`, `top1_low`, …

    `counts`: top → count of right answers.
    """
    rates: dict[str, float] = {}
    for top, right in counts.items():
        low, high = right.interval
        rates |= {f"top{top}_error": right.error, f"top{top}_low": low, f"top{top}_high": high}
    return rates


def mean_over_views(logits_BVK: Tensor) -> Tensor:
    """Logits B×V×K → probabilities B×K: the mean of the views' softmax (§4.1), not of their logits."""
    return torch.softmax(logits_BVK.float(), dim=-1).mean(1)


def mean_over_models(probabilities: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """The mean, B×K, of several models' probabilities, B×K each, weighted by `weights` if given.

    In 2012 avg-valid.py did this, with weights chosen on the validation set. Weights need not sum to 1. `ValueError` if
    a weight is negative, all are 0, or shapes differ.
    """
    if weights is None:
        weights = [1.0] * len(probabilities)
    if not probabilities or len(weights) != len(probabilities):
        raise ValueError(f"{len(weights)} weights for {len(probabilities)} models")
    if min(weights) < 0 or not math.isfinite(sum(weights)) or sum(weights) == 0:
        raise ValueError(f"weights have to be 0 or more, and not all 0; are {list(weights)}")
    if len({tuple(each.shape) for each in probabilities}) > 1:
        raise ValueError(
            f"the models have different pictures or classes: shapes {[tuple(each.shape) for each in probabilities]}"
        )
    total = sum(
        (weight * each.double() for weight, each in zip(weights, probabilities, strict=True)), start=torch.zeros(())
    )
    return (total / sum(weights)).to(probabilities[0].dtype)


def guesses(scores_BK: Tensor) -> Tensor:
    """The class with the best score, B; the lowest class of a tie; -1 if a score is NaN."""
    return torch.where(scores_BK.isnan().any(1), -1, scores_BK.argmax(1))


def per_class(credits_B: Tensor, labels_B: Tensor, classes: int) -> list[Count]:
    """One count per class, from credits as `topk_credit` gives them and labels, both B."""
    right = torch.zeros(classes, dtype=torch.float64).index_add_(0, labels_B, credits_B)
    images = torch.bincount(labels_B, minlength=classes)
    return [Count(float(one), int(all_)) for one, all_ in zip(right, images, strict=True)]
