"""The appearance of the training pictures, for model.pt: a network that is shown a picture can say that it is unlike these."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor

from alexnet.appearance import FEWEST, SMALLEST, Appearance, measure
from alexnet.pictures import decode
from pipeline.runtime.paths import AnyPath
from pipeline.shards import tables
from pipeline.shards.manifest import Manifest

PICTURES = 512
"""The most pictures that are measured, in some seconds: eleven measures have 77 numbers to estimate."""


def of_training(manifest: Manifest, folder: AnyPath) -> dict[str, Any] | None:
    """The appearance of the training pictures in `folder`, for a file; None if they are too few, or too small.

    The pictures are in random order, so that the first ones of the shards are a random choice.
    """
    if manifest.side < SMALLEST or manifest.rows("train") < FEWEST:
        return None
    some = islice(_first(manifest, folder), PICTURES)
    return Appearance.of(np.array([measure(picture_CHW) for picture_CHW in some])).plain


def _first(manifest: Manifest, folder: AnyPath) -> Iterator[Tensor]:
    """Yields the pictures of the first row group of each training shard, then those of the second, and so on."""
    groups = [
        tables.groups(folder / shard.file, ["image"], "resize") for shard in manifest.shards["train"] if shard.rows
    ]
    while groups:
        for group in list(groups):
            rows = next(group, None)
            if rows is None:
                groups.remove(group)
                continue
            for image in rows["image"].to_pylist():
                yield decode(image["bytes"])
