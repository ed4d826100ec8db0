"""The appearance of pictures apart from what they show: grain, flat areas, edges. A network knows only what looks as it learned.

The paper has nothing of the kind. The measures do not see colour, so that a grey photograph is like a coloured one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]

BLOCK = 8
"""Side of the blocks whose contrasts are compared, in pixels: small enough to lie between edges."""

QUANTILES = (0.1, 0.5, 0.75, 0.9)
"""Quantiles of the contrasts of all blocks: grain shows in the lowest, texture in the middle, edges in the highest."""

BANDS = ((2, 6), (6, 16), (16, 40), (40, 80), (80, 120))
"""Spatial frequencies in cycles per 256 pixels: photographs lose power evenly from one to the next, drawings do not."""

FEWEST, SMALLEST = 50, 64
"""Pictures that a distribution of 11 measures needs, and pixels of a side that have all the bands."""

SHARE, ROOM = 0.99, 1.1
"""The limit is the distance that this share of the training pictures keep, and a tenth more for those not seen.

Measured with the limit of 512 drawn pictures of the sample: outside were 1 % of 300 others of the sample, and 99 % of 200
photographs of ImageNet. With that of 100 of these photographs, in the mean of ten halves: outside were 3 % (0 to 9 %) of the
other 100, as many at a JPEG quality of 20 and in grey, and 60 % if they were enlarged from 64 pixels; of pictures made by a
program, 100 % of 100 screenshots, 70 % of 100 of clip art, and 53 % of the sample's, whose grain is like a camera's.
"""


def measure(picture_CHW: Tensor) -> Floats:
    """The measures of a picture, uint8 3×S×S: eleven numbers, in logarithms where they span orders of magnitude."""
    red, green, blue = picture_CHW.numpy().astype(np.float64)
    light_HW = 0.299 * red + 0.587 * green + 0.114 * blue
    count = len(light_HW) // BLOCK
    blocks = light_HW[: count * BLOCK, : count * BLOCK].reshape(count, BLOCK, count, BLOCK)
    contrasts = np.log(blocks.std(axis=(1, 3)) + 0.5)
    steps = np.concatenate([np.diff(light_HW, axis=axis).ravel() for axis in (0, 1)])
    peaked = ((steps - steps.mean()) ** 4).mean() / (steps.var() ** 2 + 1e-6)
    still = (np.abs(steps) < 1.01).mean()
    return np.array([*np.quantile(contrasts, QUANTILES), np.log(peaked + 1e-6), still, *_bands(light_HW)])


def _bands(light_HW: Floats) -> list[float]:
    """The logarithm of the mean power in each of `BANDS`."""
    side = len(light_HW)
    power_HW = np.abs(np.fft.fft2(light_HW - light_HW.mean())) ** 2
    cycles = np.fft.fftfreq(side, 1 / 256)
    radius_HW = np.hypot(cycles[:, None], cycles[None, :])
    return [float(np.log(power_HW[(radius_HW >= low) & (radius_HW < high)].mean() + 1)) for low, high in BANDS]


@dataclass(frozen=True, slots=True)
class Appearance:
    """The distribution of the measures over training pictures, as a normal one."""

    mean_M: Floats
    inverse_MM: Floats
    """Inverse of the covariance."""
    limit: float
    """The Mahalanobis distance above which a picture is unlike the training pictures."""

    @classmethod
    def of(cls, measures_NM: Floats) -> Appearance:
        """The distribution of N pictures' measures; N has to be at least `FEWEST`."""
        assert len(measures_NM) >= FEWEST, len(measures_NM)
        mean_M = measures_NM.mean(axis=0)
        # a thousandth of a unit more: a measure may be the same in all pictures
        inverse_MM: Floats = np.linalg.inv(np.cov(measures_NM.T) + 1e-3 * np.eye(measures_NM.shape[1])).astype(
            np.float64
        )
        known = cls(mean_M, inverse_MM, 0.0)
        distances = [known.distance(measure_M) for measure_M in measures_NM]
        return cls(mean_M, inverse_MM, ROOM * float(np.quantile(distances, SHARE)))

    def distance(self, measure_M: Floats) -> float:
        """The Mahalanobis distance of a picture's measures from the training pictures' mean."""
        away_M = measure_M - self.mean_M
        return math.sqrt(max(0.0, float(away_M @ self.inverse_MM @ away_M)))

    @property
    def plain(self) -> dict[str, Any]:
        """The numbers as lists, for a file; `read` reads them back."""
        return {"mean": self.mean_M.tolist(), "inverse": self.inverse_MM.tolist(), "limit": self.limit}

    @classmethod
    def read(cls, plain: Any) -> Appearance:
        """The distribution in a file's facts. `ValueError` if they are not those that `plain` gave."""
        try:
            known = cls(np.array(plain["mean"], float), np.array(plain["inverse"], float), float(plain["limit"]))
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"no appearance of pictures ({type(error).__name__})") from None
        size = len(QUANTILES) + 2 + len(BANDS)
        if known.mean_M.shape != (size,) or known.inverse_MM.shape != (size, size):
            raise ValueError(f"an appearance of pictures has {size} measures")
        return known
