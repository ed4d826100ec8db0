"""§2 The preparation of a picture: the bytes of a picture file → the square of pixels that the network is later shown."""

# torch is imported by the functions: the stage `resize` reads its parameters before that, and torch takes seconds

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from torch import Tensor

MOST_PIXELS = 4096
"""Largest side of a stored picture, in pixels."""

MEGAPIXELS, DAMAGED = BY_PARAMETER = ("resize.max_megapixels", "resize.damaged")
"""The parameters for which a picture that can be decoded may be rejected, as the reasons name them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preparation:
    """How a picture becomes what is stored, and shown to the network: the keys of params.yaml, `resize:`, that decide it."""

    side: int
    """Side of the stored square in pixels. The paper: 256."""
    fit: Literal["crop", "warp"]
    """crop: the central square, as in the paper. warp: the whole picture, stretched to a square, as Caffe's users did."""
    filter: Literal["bilinear", "bicubic", "area"]
    """The resampling filter; bilinear and bicubic are antialiased. area, cuda-convnet2's: means of the covered pixels, or
    bicubic where a picture is enlarged. The paper does not say."""
    quality: Literal["raw"] | int
    """JPEG quality of the stored pictures, 1 to 100; raw: uncompressed pixels, six times as large and six times as fast to
    decode. cuda-convnet2: 95."""
    max_megapixels: float
    """Pictures of more million pixels are rejected. Each is decoded within 1 GiB (alexnet/limits.py), whatever stands here:
    a JPEG has room for 250 megapixels if it is not progressive, and for 100 if it is; a PNG for 130, a WEBP for 40."""
    damaged: Literal["keep", "reject"]
    """What becomes of a grey or coloured JPEG that the decoder warns about: its coded data are damaged, such as by zeros in
    the middle of the file, and what lies behind may be noise. keep: stored as decoded, and counted. reject: rejected."""

    def __post_init__(self) -> None:
        if not 1 <= self.side <= MOST_PIXELS:
            raise ValueError(f"side has to be 1 to {MOST_PIXELS} pixels, is {self.side}")
        if self.fit == "warp" and self.filter == "area":
            raise ValueError("filter cannot be 'area' where fit is 'warp': it merges squares")
        if self.quality != "raw" and not 1 <= self.quality <= 100:
            raise ValueError(f"quality has to be 1 to 100, or raw, is {self.quality}")
        if not self.max_megapixels > 0:
            raise ValueError(f"max_megapixels has to be above 0, is {self.max_megapixels}")

    @classmethod
    def of(cls, facts: object) -> Preparation:
        """The preparation in a model.pt's facts, as `plain` gave it. `ValueError` if a key or a value is wrong."""
        kinds = get_type_hints(Preparation)
        if not isinstance(facts, dict) or facts.keys() != kinds.keys():
            raise ValueError(f"a preparation has the keys {', '.join(kinds)}")
        for name, kind in kinds.items():
            if not _fits(facts[name], kind):
                raise ValueError(f"the preparation's {name} cannot be {facts[name]!r}")
        return Preparation(**facts)

    @property
    def plain(self) -> dict[str, Any]:
        """These six keys and their values, for a file; keys of a subclass are left out."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(Preparation)}

    def accept(self, data: bytes) -> tuple[Tensor, str]:
        """Decodes a picture file: uint8 3×H×W, and the decoder's warning or "". `Undecodable`, with the reason, if rejected."""
        from alexnet.pictures import TooManyPixels, Undecodable, decode_with_warning

        try:
            picture_CHW, warning = decode_with_warning(data, int(1e6 * self.max_megapixels))
        except TooManyPixels as error:
            raise Undecodable(f"{error} ({MEGAPIXELS}: {self.max_megapixels:g})") from None
        if warning and self.damaged == "reject":
            raise Undecodable(f"damaged: {warning} ({DAMAGED}: reject)")
        return picture_CHW, warning

    def store(self, picture_CHW: Tensor) -> bytes:
        """The file that is stored for a decoded picture, uint8 3×H×W: a JPEG or, raw, a PPM of side × side pixels."""
        from alexnet.dataset import resize
        from alexnet.pictures import encode

        return encode(resize(picture_CHW, self.side, self.filter, self.fit), self.quality)

    def prepare(self, data: bytes) -> Tensor:
        """The bytes of a picture file → what the network is shown of it, uint8 3×side×side. `Undecodable` if it is rejected.

        The picture is stored and read again, as between `resize` and the network: a stored JPEG's pixels are other ones.
        """
        from alexnet.pictures import decode

        return decode(self.store(self.accept(data)[0]))


def _fits(value: object, kind: Any) -> bool:
    """Whether a value has the type: a class, a Literal, or a union of these."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    return any(_fits(value, each) for each in get_args(kind)) if get_args(kind) else type(value) is kind
