"""The JPEG codec, libjpeg-turbo: simplejpeg decodes, Pillow encodes. What it refuses, `pictures` hands to Pillow."""

from __future__ import annotations

import io

import simplejpeg
import torch
from PIL import Image
from torch import Tensor

RECOVERABLE = "Corrupt JPEG data"
"""How libjpeg begins its warnings about coded data that it can decode only in part."""


def decode_jpeg(data: bytes) -> tuple[Tensor, str]:
    """Decodes a JPEG of one or three components to uint8 3×H×W in red, green, blue.

    With it comes libjpeg's warning if the coded data are damaged, such as by zeros in the middle of the file; an intact
    file gives "". The slow integer DCT and the smooth upsampling are used, as in Pillow and torchvision, which give the
    same bits. `ValueError` if the file ends early, or if libjpeg stops.
    """
    try:
        return _decode(data, strict=True), ""
    except ValueError as error:
        warning = str(error)
        if not warning.startswith(RECOVERABLE):
            raise
    return _decode(data, strict=False), warning


def _decode(data: bytes, *, strict: bool) -> Tensor:
    """`strict`: a warning is raised as a `ValueError`."""
    pixels_HWC = simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False, strict=strict)
    return torch.from_numpy(pixels_HWC).permute(2, 0, 1)


def encode_jpeg(picture_CHW: Tensor, quality: int) -> bytes:
    """Encodes uint8 3×H×W as a JPEG file with 4:2:0 chroma subsampling. `quality` is libjpeg's, 1 to 100.

    By Pillow: simplejpeg cannot be told to use the slow integer DCT below a quality of 96. The bytes are torchvision's.
    """
    file = io.BytesIO()
    pixels_HWC = picture_CHW.permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(pixels_HWC).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return file.getvalue()
