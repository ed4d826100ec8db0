"""torchvision's JPEG codec as two torch operators: the only module that depends on how torchvision is built."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

RGB = 3
"""`torchvision.io.ImageReadMode.RGB`: three channels, however many the file has."""


def _load() -> None:
    """Loads the library that holds the codec.

    `import torchvision` also imports all of its models and half a compiler: two seconds in every process that decodes a
    picture. torchvision's own Python functions warn at every call that TorchCodec will replace them.
    """
    spec = find_spec("torchvision")
    folder = Path(spec.origin).parent if spec and spec.origin else Path("torchvision")
    libraries = sorted(folder.glob("image*.so"))
    if not libraries:
        raise ImportError(f"{folder}: no image*.so; torchvision is not installed, or was built without its JPEG codec")
    torch.ops.load_library(libraries[0])  # type: ignore[no-untyped-call]


_load()


def decode_jpeg(data: bytes) -> Tensor:
    """Decodes a JPEG file to uint8 3×H×W in red, green, blue. `RuntimeError` if libjpeg cannot."""
    file = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    picture_CHW: Tensor = torch.ops.image.decode_jpeg(file, RGB)
    return picture_CHW


def encode_jpeg(picture_CHW: Tensor, quality: int) -> bytes:
    """Encodes uint8 3×H×W as a JPEG file with 4:2:0 chroma subsampling. `quality` is libjpeg's, 1 to 100."""
    data: Tensor = torch.ops.image.encode_jpeg(picture_CHW, quality)
    return data.numpy().tobytes()
