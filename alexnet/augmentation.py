"""§4.1 Patches, reflections and the colour of light, and the ten views of testing; on batches, on the device.

Pictures come as bytes, B×3×256×256, and leave as patches of floats, B×3×224×224, the mean subtracted. 224 stands for
`side`, the side of a network's patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from alexnet import draws

PATCH = 224
"""Side of a patch in the paper, in pixels."""

AREAS, RATIOS = (0.08, 1.0), (3 / 4, 4 / 3)
"""The range of a resized patch: its share of the picture's area, and its width by its height (RandomResizedCrop)."""

CENTRE = 2
"""Which of the ten views is the centre patch, not reflected."""


Subtracted = Literal["centre", "patch", "channels"]
"""See `Augmentation.mean`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """params.yaml, `augmentation:` — §4.1, and the mean of §2; of these, testing takes the mean alone."""

    patches: Literal["random", "centre", "resized"]
    """Where the 224×224 patch of a training picture lies. resized: a part of any size and shape, made 224×224, as usual
    since 2014 (torchvision's RandomResizedCrop, here of the stored picture)."""
    chunk: int
    """So many pictures in a row share one place and one reflection. The paper says nothing; run in 2012: 32."""
    reflections: bool
    """Whether half of the patches are reflected, left to right."""
    mean: Subtracted
    """What is subtracted: the mean image's centre, as run in 2012, its part at the patch's place, or one number for each
    colour."""
    colour: Literal["none", "eigenvalues", "deviations"]
    """Light added along the principal components of colour. eigenvalues: as printed, α times λ of pixels in 0–1.
    deviations: as run in 2012, α times √λ, then the patch shrunk by 1 + colour_std."""
    colour_std: float
    """Standard deviation of α. The paper: .1."""
    colour_epochs: int
    """Colour is added in so many epochs, then no more. 2012: off for about the last 25 of 90."""

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ValueError(f"chunk has to be at least 1, is {self.chunk}")
        if self.patches == "resized" and self.mean == "patch":
            raise ValueError("mean cannot be 'patch' where patches is 'resized': such a patch has no place in the mean")
        if self.colour_std < 0:
            raise ValueError(f"colour_std has to be 0 or more, is {self.colour_std}")


@dataclass(frozen=True, slots=True)
class Statistics:
    """What §2 and §4.1 take from the training set, on the device that computes."""

    mean_CHW: Tensor
    """The mean picture, 3×256×256, 0–255."""
    eigenvalues_C: Tensor
    """Eigenvalues of the covariance of RGB, 0–255 squared, falling."""
    eigenvectors_CC: Tensor
    """In its columns."""


def training_patches(
    images_BCHW: Tensor,
    places_B: Tensor,
    statistics: Statistics,
    section: Augmentation,
    seed: int,
    epoch: int,
    dtype: torch.dtype = torch.float32,
    side: int = PATCH,
) -> Tensor:
    """Patches B×3×224×224 of pictures B×3×S×S, uint8. `places_B`: each one's place in the epoch, which keys its draws."""
    chunks = places_B // section.chunk
    if section.patches == "resized":
        patches = _resized(images_BCHW, side, seed, epoch, chunks).to(dtype)
    else:
        margin = images_BCHW.shape[-1] - side
        if section.patches == "random":
            y, x = (draws.integers(margin + 1, f"patch {axis}", seed, epoch, chunks) for axis in "yx")
        else:
            y = x = torch.full_like(chunks, margin // 2)
        patches = _cut(images_BCHW, y, x, side)
        if section.mean == "patch":
            patches = patches.to(dtype) - _cut(statistics.mean_CHW.to(dtype).expand(len(y), -1, -1, -1), y, x, side)
    if section.reflections:
        reflected = draws.integers(2, "reflection", seed, epoch, chunks).bool()
        patches = torch.where(reflected[:, None, None, None], patches.flip(-1), patches)
    if section.mean != "patch":
        # after the reflection and itself not reflected, as in 2012 (convdata.py)
        patches = patches.to(dtype) - centre(statistics.mean_CHW, side).to(dtype)
    if section.colour != "none" and epoch < section.colour_epochs:
        patches = add_colour(patches, statistics, section, seed, epoch, places_B)
    return patches


def add_colour(
    patches_BCHW: Tensor, statistics: Statistics, section: Augmentation, seed: int, epoch: int, places_B: Tensor
) -> Tensor:
    """The patches, each under another light: [p1 p2 p3][α1 λ1, α2 λ2, α3 λ3]ᵀ added to its pixels."""
    components = torch.arange(3, device=places_B.device)
    alpha_BC = section.colour_std * draws.normal("colour", seed, epoch, places_B[:, None], components)
    values_C = statistics.eigenvalues_C.clamp(min=0)
    # as printed: λ of pixels in 0–1, where the covariance is 255² times smaller, and then back to 0–255
    size_C = values_C / 255 if section.colour == "eigenvalues" else values_C.sqrt()
    light_BC = (alpha_BC * size_C.to(alpha_BC.dtype)) @ statistics.eigenvectors_CC.to(alpha_BC.dtype).T
    patches_BCHW = patches_BCHW + light_BC.to(patches_BCHW.dtype)[:, :, None, None]
    if section.colour == "deviations":
        patches_BCHW = patches_BCHW / (1 + section.colour_std)
    return patches_BCHW


def mean_to_subtract(mean_CHW: Tensor, section: Augmentation) -> Tensor:
    """What is subtracted of pictures, 3×256×256: the mean image, or the same number everywhere for each colour."""
    if section.mean != "channels":
        return mean_CHW
    return mean_CHW.mean((1, 2), keepdim=True).expand_as(mean_CHW).contiguous()


def centre(images: Tensor, side: int = PATCH) -> Tensor:
    """The 224×224 at the centre of …×H×W."""
    top, left = ((length - side) // 2 for length in images.shape[-2:])
    return images[..., top : top + side, left : left + side]


def centre_view(images_BCHW: Tensor, mean_CHW: Tensor, side: int = PATCH) -> Tensor:
    """The centre patch of each picture, B×3×224×224, the mean subtracted."""
    return centre(images_BCHW, side).to(mean_CHW.dtype) - centre(mean_CHW, side)


def ten_views(images_BCHW: Tensor, mean_CHW: Tensor, side: int = PATCH, kind: Subtracted = "centre") -> Tensor:
    """The four corner patches and the centre, then the same reflected: B×10×3×224×224, the mean subtracted.

    In the order of 2012 (convdata.py): upper left, upper right, centre, lower left, lower right. What is subtracted is the
    centre of the mean, not reflected, for a reflected view too; or, as in training, the mean at the view's own place.
    """
    last = images_BCHW.shape[-1] - side
    middle = last // 2
    offsets = ((0, 0), (0, last), (middle, middle), (last, 0), (last, last))
    five = [images_BCHW[..., y : y + side, x : x + side].to(mean_CHW.dtype) for y, x in offsets]
    if kind == "patch":
        five = [patch - mean_CHW[:, y : y + side, x : x + side] for patch, (y, x) in zip(five, offsets, strict=True)]
        return torch.stack(five + [patch.flip(-1) for patch in five], dim=1)
    mean = centre(mean_CHW, side)
    return torch.stack([patch - mean for patch in five] + [patch.flip(-1) - mean for patch in five], dim=1)


def _cut(images_BCHW: Tensor, y_B: Tensor, x_B: Tensor, side: int) -> Tensor:
    """From each picture the 224×224 at its own place."""
    windows = images_BCHW.unfold(2, side, 1).unfold(3, side, 1)  # a view: B×C×Y×X×224×224
    return windows[torch.arange(len(y_B), device=y_B.device), :, y_B, x_B]


def _resized(images_BCHW: Tensor, side: int, seed: int, epoch: int, chunks_B: Tensor) -> Tensor:
    """From each picture a part of its own, made 224×224 with antialiasing, in floats.

    As torchvision does: an area uniform in `AREAS`, a shape uniform in the logarithm of `RATIOS`, at a place where it
    fits; after ten draws that do not fit, all of the (square) picture.
    """
    whole = images_BCHW.shape[-1]
    attempts = torch.arange(10, device=chunks_B.device)
    area, shape = (
        draws.uniform(f"resized {what}", seed, epoch, chunks_B[:, None], attempts) for what in ("area", "shape")
    )
    area = whole**2 * (AREAS[0] + area * (AREAS[1] - AREAS[0]))
    ratio = RATIOS[0] * (RATIOS[1] / RATIOS[0]) ** shape
    size_BA2 = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], -1).round().long()
    fits_BA = (size_BA2.amin(-1) > 0) & (size_BA2.amax(-1) <= whole)
    first_B = fits_BA.int().argmax(1)
    chosen_B2 = size_BA2[torch.arange(len(first_B)), first_B]
    chosen_B2 = torch.where(fits_BA.any(1)[:, None], chosen_B2, whole)
    place_B2 = torch.stack([draws.uniform(f"resized {axis}", seed, epoch, chunks_B) for axis in "yx"], -1)
    place_B2 = (place_B2 * (whole - chosen_B2 + 1)).long()
    parts = []
    for image_CHW, (y, x), (high, wide) in zip(images_BCHW, place_B2.tolist(), chosen_B2.tolist(), strict=True):
        part = image_CHW[None, :, y : y + high, x : x + wide].float()
        parts.append(F.interpolate(part, (side, side), mode="bilinear", antialias=True))
    return torch.cat(parts)
