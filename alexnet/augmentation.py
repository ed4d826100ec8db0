"""§4.1 Random patches, reflections and colour for training, and the ten views for testing; batched, on the device.

Pictures are uint8, B×3×256×256; patches are floats, B×3×224×224, with the mean subtracted. 224 stands for `side`, the
side of a network's input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from alexnet import draws

PATCH = 224
"""Side of a patch in the paper, in pixels."""

AREAS, RATIOS = (0.08, 1.0), (3 / 4, 4 / 3)
"""Ranges for resized patches, those of RandomResizedCrop: fraction of the picture's area, and width / height."""

CENTRE = 2
"""Index of the unreflected centre patch among the ten views."""


MeanKind = Literal["centre", "patch", "channels"]
"""See `Augmentation.mean`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """params.yaml, `augmentation:` — §4.1, and the mean of §2. Testing uses only `mean`."""

    patches: Literal["random", "centre", "resized"]
    """How a training patch of 224×224 is cut out. random: at a random position. centre: at the centre. resized: a part of
    random size and aspect ratio, scaled to 224×224 (torchvision's RandomResizedCrop, here of the stored picture)."""
    chunk: int
    """Consecutive pictures that share one patch position and one reflection. The paper says nothing; run in 2012: 32."""
    reflections: bool
    """Whether half of the patches are reflected horizontally."""
    mean: MeanKind
    """What is subtracted. centre: the centre of the mean image, as run in 2012. patch: the mean image at the patch's
    position. channels: one number per colour."""
    colour: Literal["none", "eigenvalues", "deviations"]
    """Colour added along the principal components. eigenvalues: as printed, α times λ for pixels in 0–1. deviations: as run
    in 2012, α times √λ, and then the patch divided by 1 + colour_std."""
    colour_std: float
    """Standard deviation of α. The paper: .1."""
    colour_epochs: int
    """Epochs, from the first, in which colour is added. In 2012 it was off for about the last 25 of 90."""

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ValueError(f"chunk has to be at least 1, is {self.chunk}")
        if self.patches == "resized" and self.mean == "patch":
            raise ValueError(
                "mean cannot be 'patch' where patches is 'resized': no part of the mean matches such a patch"
            )
        if self.colour_std < 0:
            raise ValueError(f"colour_std has to be 0 or more, is {self.colour_std}")


@dataclass(frozen=True, slots=True)
class Statistics:
    """The training set's mean (§2) and colour covariance (§4.1), as tensors on the device."""

    mean_CHW: Tensor
    """The mean image, 3×256×256, 0–255."""
    eigenvalues_C: Tensor
    """Eigenvalues of the covariance of RGB for pixels in 0–255, descending."""
    eigenvectors_CC: Tensor
    """The eigenvectors, as columns."""


def training_patches(
    images_BCHW: Tensor,
    positions_B: Tensor,
    statistics: Statistics,
    section: Augmentation,
    seed: int,
    epoch: int,
    dtype: torch.dtype = torch.float32,
    side: int = PATCH,
) -> Tensor:
    """Pictures uint8 B×3×S×S → training patches B×3×224×224 of `dtype`, augmented, with the mean subtracted.

    `positions_B`: each picture's position in the epoch, int64; together with seed and epoch it keys the random draws. On a
    CPU `Patches` makes them one by one, elsewhere each operation is one of the whole batch; the numbers are equal.
    """
    drawn = draw(positions_B, images_BCHW.shape[-1], statistics, section, seed, epoch, side)
    if images_BCHW.device.type != "cpu":
        return _together(images_BCHW, statistics.mean_CHW.to(dtype), section, drawn, dtype, side)
    patches = Patches(drawn, statistics, section, dtype, side)
    for number, image_CHW in enumerate(images_BCHW):
        patches.make(number, image_CHW)
    return patches.patches_BCHW


@dataclass(frozen=True, slots=True)
class Drawn:
    """What is drawn for each picture of a batch, from its key."""

    corner_B2: Tensor
    """The upper left corner (y, x) of the part of the picture that becomes the patch, in pixels, int64."""
    size_B2: Tensor
    """Height and width of that part in pixels, int64: 224 × 224, or what is scaled to that."""
    reflected_B: Tensor
    """Whether the patch is reflected, bool."""
    light_BC: Tensor | None
    """What is added to the patch's channels; None: no colour is added."""


def draw(
    positions_B: Tensor,
    whole: int,
    statistics: Statistics,
    section: Augmentation,
    seed: int,
    epoch: int,
    side: int = PATCH,
) -> Drawn:
    """What (seed, epoch, position) decides of the patches of pictures of whole×whole pixels."""
    chunks = positions_B // section.chunk
    if section.patches == "resized":
        corner_B2, size_B2 = _parts(whole, seed, epoch, chunks)
    else:
        size_B2 = torch.full((len(chunks), 2), side, device=chunks.device)
        margin = whole - side
        if section.patches == "random":
            places = [draws.integers(margin + 1, f"patch {axis}", seed, epoch, chunks) for axis in "yx"]
        else:
            places = [torch.full_like(chunks, margin // 2)] * 2
        corner_B2 = torch.stack(places, -1)
    reflected_B = torch.zeros(len(chunks), dtype=torch.bool, device=chunks.device)
    if section.reflections:
        reflected_B = draws.integers(2, "reflection", seed, epoch, chunks).bool()
    light_BC = None
    if section.colour != "none" and epoch < section.colour_epochs:
        light_BC = _light(statistics, section, seed, epoch, positions_B)
    return Drawn(corner_B2, size_B2, reflected_B, light_BC)


class Patches:
    """Training patches that are made one by one, by any threads: each stays in a processor's cache until it is finished."""

    def __init__(
        self,
        drawn: Drawn,
        statistics: Statistics,
        section: Augmentation,
        dtype: torch.dtype = torch.float32,
        side: int = PATCH,
    ) -> None:
        self.section, self.side = section, side
        self.patches_BCHW = torch.empty((len(drawn.corner_B2), len(statistics.mean_CHW), side, side), dtype=dtype)
        """Uninitialized until `make` was called for each."""
        self._patches = self.patches_BCHW.numpy()
        self._mean = statistics.mean_CHW.to(dtype).contiguous().numpy()
        self._middle = centre(statistics.mean_CHW, side).to(dtype).contiguous().numpy()
        self._corners, self._sizes, self._reflected = (
            each.tolist() for each in (drawn.corner_B2, drawn.size_B2, drawn.reflected_B)
        )
        self._light = None if drawn.light_BC is None else drawn.light_BC.to(dtype)[:, :, None, None].numpy()
        self._gain = self._middle.dtype.type(1 + section.colour_std)

    def make(self, number: int, image_CHW: Tensor) -> None:
        """Makes the patch of this number in the batch from its picture, uint8 3×S×S in any order of memory."""
        (y, x), (high, wide) = self._corners[number], self._sizes[number]
        here = ..., slice(y, y + high), slice(x, x + wide)
        part_CHW = image_CHW[here]
        pixels = (_scaled(part_CHW, self.side) if self.section.patches == "resized" else part_CHW).numpy()
        mean = self._mean[here] if self.section.mean == "patch" else self._middle
        if self._reflected[number]:
            pixels = pixels[..., ::-1]
            mean = mean[..., ::-1] if self.section.mean == "patch" else mean
        if pixels.strides[-1] != pixels.itemsize:  # a copy of bytes costs less than reading them out of order as floats
            pixels = np.ascontiguousarray(pixels)
        patch = self._patches[number]
        np.subtract(pixels, mean, out=patch)
        if self._light is not None:
            np.add(patch, self._light[number], out=patch)
            if self.section.colour == "deviations":
                np.divide(patch, self._gain, out=patch)


def _together(
    images_BCHW: Tensor, mean_CHW: Tensor, section: Augmentation, drawn: Drawn, dtype: torch.dtype, side: int
) -> Tensor:
    """The patches of a batch, each operation on all of them, as suits a GPU."""
    y_B, x_B = drawn.corner_B2.unbind(-1)
    if section.patches == "resized":
        parts = zip(images_BCHW, drawn.corner_B2.tolist(), drawn.size_B2.tolist(), strict=True)
        cut = [_scaled(image[..., y : y + high, x : x + wide], side) for image, (y, x), (high, wide) in parts]
        patches = torch.stack(cut).to(dtype)
    else:
        patches = _cut(images_BCHW, y_B, x_B, side)
    if section.mean == "patch":
        patches = patches.to(dtype) - _cut(mean_CHW.expand(len(patches), -1, -1, -1), y_B, x_B, side)
    patches = torch.where(drawn.reflected_B[:, None, None, None], patches.flip(-1), patches)
    if section.mean != "patch":
        # after the reflection and itself not reflected, as in 2012 (convdata.py)
        patches = patches.to(dtype) - centre(mean_CHW, side)
    if drawn.light_BC is not None:
        patches = patches + drawn.light_BC.to(dtype)[:, :, None, None]
        if section.colour == "deviations":
            patches = patches / (1 + section.colour_std)
    return patches


def _light(statistics: Statistics, section: Augmentation, seed: int, epoch: int, positions_B: Tensor) -> Tensor:
    """[p1 p2 p3][α1 λ1, α2 λ2, α3 λ3]ᵀ, to be added to all pixels of each patch (§4.1), B×3, with one draw of α per patch."""
    components = torch.arange(3, device=positions_B.device)
    alpha_BC = section.colour_std * draws.normal("colour", seed, epoch, positions_B[:, None], components)
    values_C = statistics.eigenvalues_C.clamp(min=0)
    # as printed, λ is for pixels in 0–1, 255² times smaller; the offset is then scaled back to 0–255
    size_C = values_C / 255 if section.colour == "eigenvalues" else values_C.sqrt()
    light_BC: Tensor = (alpha_BC * size_C.to(alpha_BC.dtype)) @ statistics.eigenvectors_CC.to(alpha_BC.dtype).T
    return light_BC


def mean_to_subtract(mean_CHW: Tensor, section: Augmentation) -> Tensor:
    """The mean to subtract, 3×256×256: the mean image, or, for `channels`, each channel's mean at every pixel."""
    if section.mean != "channels":
        return mean_CHW
    return mean_CHW.mean((1, 2), keepdim=True).expand_as(mean_CHW).contiguous()


def centre(images: Tensor, side: int = PATCH) -> Tensor:
    """The central square: …×H×W → …×224×224."""
    top, left = ((length - side) // 2 for length in images.shape[-2:])
    return images[..., top : top + side, left : left + side]


def centre_view(images_BCHW: Tensor, mean_CHW: Tensor, side: int = PATCH) -> Tensor:
    """The centre patch of each picture, B×3×224×224, with the mean subtracted."""
    return centre(images_BCHW, side).to(mean_CHW.dtype) - centre(mean_CHW, side)


def ten_views(images_BCHW: Tensor, mean_CHW: Tensor, side: int = PATCH, kind: MeanKind = "centre") -> Tensor:
    """The four corner patches and the centre patch, then their reflections: B×10×3×224×224, with the mean subtracted.

    The order is that of 2012 (convdata.py): upper left, upper right, centre, lower left, lower right. Subtracted is the
    centre of the mean, unreflected also for reflected views; for kind "patch", the mean at the view's position.
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
    """Cuts a patch of side×side out of each picture, with its upper left corner at (y, x): B×C×H×W → B×C×side×side."""
    windows = images_BCHW.unfold(2, side, 1).unfold(3, side, 1)  # a view: B×C×Y×X×224×224
    return windows[torch.arange(len(y_B), device=y_B.device), :, y_B, x_B]


def _parts(whole: int, seed: int, epoch: int, chunks_B: Tensor) -> tuple[Tensor, Tensor]:
    """Corner (y, x) and size (height, width) of a random part of each picture, int64 B×2.

    As in torchvision: the area is uniform in `AREAS`, the aspect ratio log-uniform in `RATIOS`, the position uniform where
    the part fits; if ten draws do not fit, the whole (square) picture.
    """
    attempts = torch.arange(10, device=chunks_B.device)
    area, shape = (
        draws.uniform(f"resized {what}", seed, epoch, chunks_B[:, None], attempts) for what in ("area", "shape")
    )
    area = whole**2 * (AREAS[0] + area * (AREAS[1] - AREAS[0]))
    ratio = RATIOS[0] * (RATIOS[1] / RATIOS[0]) ** shape
    size_BA2 = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], -1).round().long()
    fits_BA = (size_BA2.amin(-1) > 0) & (size_BA2.amax(-1) <= whole)
    first_B = fits_BA.int().argmax(1)
    size_B2 = torch.where(fits_BA.any(1)[:, None], size_BA2[torch.arange(len(first_B)), first_B], whole)
    corner_B2 = torch.stack([draws.uniform(f"resized {axis}", seed, epoch, chunks_B) for axis in "yx"], -1)
    return (corner_B2 * (whole - size_B2 + 1)).long(), size_B2


def _scaled(part_CHW: Tensor, side: int) -> Tensor:
    """A part of a picture, resized with antialiasing to side×side, float32."""
    scaled_CHW: Tensor = F.interpolate(part_CHW[None].float(), (side, side), mode="bilinear", antialias=True)[0]
    return scaled_CHW
