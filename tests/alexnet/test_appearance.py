"""The appearance: what is like the training pictures is within the limit, and pictures of another kind are outside."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from alexnet.appearance import Appearance, measure

SIDE = 64


def natural(seed: int) -> Tensor:
    """A picture whose power falls with frequency, as a photograph's does."""
    lots = np.random.default_rng(seed)
    radius = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.fftfreq(SIDE)[None, :]) + 1 / SIDE
    waves = np.fft.fft2(lots.normal(size=(3, SIDE, SIDE))) / radius ** lots.uniform(1.0, 1.3)
    pixels = np.fft.ifft2(waves).real
    return torch.from_numpy(np.clip(128 + 40 * pixels / pixels.std(), 0, 255).astype(np.uint8))


def drawn(seed: int) -> Tensor:
    """A picture of flat rectangles."""
    lots = np.random.default_rng(seed)
    pixels = np.full((3, SIDE, SIDE), 230, np.uint8)
    for _ in range(6):
        y, x = lots.integers(0, SIDE - 12, 2)
        pixels[:, y : y + lots.integers(8, 40), x : x + lots.integers(8, 40)] = lots.integers(0, 256, (3, 1, 1))
    return torch.from_numpy(pixels)


KINDS = {"natural": natural, "drawn": drawn}


@pytest.mark.parametrize(("known", "other"), [("natural", "drawn"), ("drawn", "natural")])
def test_pictures_of_another_kind_are_outside_the_limit(known: str, other: str) -> None:
    appearance = Appearance.of(np.array([measure(KINDS[known](seed)) for seed in range(100)]))
    outside = {
        kind: np.mean([appearance.distance(measure(KINDS[kind](seed))) > appearance.limit for seed in range(200, 260)])
        for kind in KINDS
    }
    assert outside[known] < 0.15
    assert outside[other] > 0.9


def test_the_distance_is_mahalanobis_s() -> None:
    """Compared with the distance after whitening by the eigenvectors of the covariance."""
    lots = np.random.default_rng(0)
    measures = lots.normal(size=(400, 11)) @ lots.normal(size=(11, 11)) + 3
    appearance = Appearance.of(measures)
    values, vectors = np.linalg.eigh(np.cov(measures.T) + 1e-3 * np.eye(11))
    for row in measures[:5]:
        white = (row - measures.mean(0)) @ vectors / np.sqrt(values)
        assert appearance.distance(row) == pytest.approx(float(np.linalg.norm(white)))
    within = np.mean([appearance.distance(row) <= appearance.limit / 1.1 for row in measures])
    assert within == pytest.approx(0.99, abs=0.005)


def test_measures_do_not_see_colour_and_are_those_of_any_size() -> None:
    grey = natural(0)[:1].repeat(3, 1, 1)
    tinted = torch.stack([grey[0] // 2, grey[1] // 2, grey[2] // 2])
    weighted = (0.299 * tinted[0].double() + 0.587 * tinted[1].double() + 0.114 * tinted[2].double())[None].repeat(
        3, 1, 1
    )
    np.testing.assert_allclose(measure(tinted), measure(weighted.round().to(torch.uint8)), rtol=1e-6, atol=1e-6)
    assert np.isfinite(measure(torch.zeros(3, 70, 70, dtype=torch.uint8))).all()


def test_it_is_read_as_written_and_nothing_else_is() -> None:
    appearance = Appearance.of(np.random.default_rng(0).normal(size=(60, 11)))
    again = Appearance.read(appearance.plain)
    np.testing.assert_array_equal(again.inverse_MM, appearance.inverse_MM)
    assert (again.mean_M.tolist(), again.limit) == (appearance.mean_M.tolist(), appearance.limit)
    for wrong in (None, {}, {**appearance.plain, "mean": [1.0]}, {**appearance.plain, "inverse": "x"}):
        with pytest.raises(ValueError, match="appearance of pictures"):
            Appearance.read(wrong)
