"""Figures that explain an answer: which parts of the picture spoke for it (Grad-CAM), and the nearest training pictures."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from alexnet import figures
from alexnet.augmentation import centre, centre_view
from alexnet.saliency import grad_cam
from pipeline.inference.answers import Answer
from pipeline.inference.predictor import Predictor
from pipeline.runtime import files

LONGEST = 60
"""Characters of a picture's name that the name of its figure has."""


class Figures:
    """The folder of the figures, one or two for each picture."""

    def __init__(self, folder: Path, predictor: Predictor) -> None:
        self.folder, self.predictor = folder.absolute(), predictor
        self.network = copy.deepcopy(predictor.network).cpu().double()
        """In float64, like the report's: the order of sums must not show in the colours."""
        self.mean_CHW = predictor.mean_CHW.cpu().double()
        self.count = 0
        self.folder.mkdir(parents=True, exist_ok=True)

    def add(self, answer: Answer, picture_CHW: Tensor, near: Sequence[NDArray[np.uint8]]) -> None:
        """Writes NUMBER-NAME.png: the centre patch, and a copy with the map of its best guess; with `near`, a second figure."""
        self.count += 1
        name = f"{self.count:04}-{_plain(answer.path)}"
        side = self.predictor.network.model.patch
        label = next(index for index, (wnid, _) in enumerate(self.predictor.classes) if wnid == answer.guesses[0].wnid)
        patches_BCHW = centre_view(picture_CHW[None], self.mean_CHW, side)
        maps_BHW = grad_cam(self.network, patches_BCHW, _one(label))
        shown = centre(picture_CHW[None], side).movedim(1, -1).numpy()
        self._write(f"{name}.png", figures.saliency(shown, maps_BHW.numpy(), [-1], [label], self.predictor.names))
        if near:
            names = [each.name for each in answer.near]
            whole = picture_CHW.permute(1, 2, 0).numpy()[None]
            png = figures.neighbours(whole, [np.stack(near)], [answer.guesses[0].name], [names])
            self._write(f"{name}-similar.png", png)

    def _write(self, name: str, png: bytes) -> None:
        with files.atomic(self.folder / name) as partial:
            partial.write_bytes(png)


def _one(label: int) -> Tensor:
    import torch

    return torch.tensor([label])


def _plain(path: str) -> str:
    """The last part of a path or address without its ending, as a part of a file's name on any system."""
    stem = PurePosixPath(path.partition("?")[0]).stem
    return re.sub(r"[^\w-]+", "_", stem, flags=re.ASCII).strip("_")[:LONGEST] or "picture"
