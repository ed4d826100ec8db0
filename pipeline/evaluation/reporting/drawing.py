"""The report's figures as PNG, equal bytes for equal inputs: curves, first layer, confusion, guesses, saliency, neighbours."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.reporting.reading import ERROR, HISTORY, LOSS, RATE, confusion, history, random_rows
from pipeline.evaluation.reporting.section import Report
from pipeline.evaluation.trained import OUT as EVALUATION
from pipeline.evaluation.trained import names
from pipeline.runtime import digests
from pipeline.runtime.paths import AnyPath
from pipeline.shards import lookup
from pipeline.shards.manifest import Manifest

if TYPE_CHECKING:
    from torch import Tensor

    from alexnet.network import Network

CURVES = {LOSS: "loss", ERROR: "errors", RATE: "rate"}
"""Title of the curves over the epochs → name of their figure."""

ABSENT = {
    "guesses": "no picture is shown: report.pictures is 0",
    "saliency": "no picture is shown: report.pictures is 0",
    "neighbours": "no neighbours are shown: results.neighbours or report.queries is 0",
}
"""The text in place of a figure that is not drawn, by the figure's name."""


def draw(
    section: Report, split: str, manifest: Manifest, folder: AnyPath, network: Network, mean_CHW: Tensor
) -> dict[str, bytes]:
    """The figures as PNG, by name, without those that have nothing to show. `folder`: that of the shards."""
    from alexnet import figures

    classes = names(manifest.classes)
    epochs, panels = history(HISTORY)
    pngs = {
        **{CURVES[title]: figures.curves(epochs, {title: lines}, (RATE,)) for title, lines in panels.items()},
        "first-layer": figures.first_layer(network.first_layer().numpy(), network.columns),
        "confusion": figures.confusion(confusion(EVALUATION / "confusion.csv", classes), classes),
    }
    rows = random_rows("predictions.parquet", section.pictures, section.seed, 0)
    if rows:
        tested = lookup.fetch([row["id"] for row in rows], split, manifest, folder)
        pictures = _stack([tested[row["id"]][0] for row in rows])
        probabilities_NK, labels = np.array([row["probabilities"] for row in rows]), [row["label"] for row in rows]
        pngs["guesses"] = figures.guesses(pictures, labels, probabilities_NK, classes)
        pngs["saliency"] = _saliency(network, mean_CHW, pictures, labels, probabilities_NK, classes)
    if "neighbours.parquet" in digests.recorded(EVALUATION):
        queries = random_rows("neighbours.parquet", section.queries, section.seed, 1)
        if queries:
            pngs["neighbours"] = _neighbours(queries, split, manifest, folder, classes)
    return pngs


def plots(figures: Mapping[str, bytes]) -> dict[str, bytes]:
    """The figures, with a note in place of each missing one: `dvc plots show` needs the file of every plot."""
    from alexnet.figures import note

    return {name: note(why) for name, why in ABSENT.items()} | dict(figures)


def _saliency(
    network: Network,
    mean_CHW: Tensor,
    pictures: NDArray[np.uint8],
    labels: Sequence[int],
    probabilities_NK: NDArray[np.floating[Any]],
    classes: Sequence[str],
) -> bytes:
    """The figure `saliency`: Grad-CAM of each picture's best guess, on its centre patch."""
    import torch

    from alexnet import errors, figures
    from alexnet.augmentation import centre, centre_view
    from alexnet.saliency import grad_cam

    images_BCHW = torch.from_numpy(pictures).movedim(-1, 1)
    guesses_B = errors.guesses(torch.from_numpy(probabilities_NK))
    # in float64: the order of sums depends on the number of cores, and must not show in 256 colours
    patches_BCHW = centre_view(images_BCHW, mean_CHW.double(), network.model.patch)
    maps_BHW = grad_cam(copy.deepcopy(network).double(), patches_BCHW, guesses_B.clamp(min=0))
    maps_BHW[guesses_B < 0] = 0
    shown = centre(images_BCHW, network.model.patch).movedim(1, -1).numpy()
    return figures.saliency(shown, maps_BHW.numpy(), labels, guesses_B.tolist(), classes)


def _neighbours(
    rows: list[dict[str, Any]], split: str, manifest: Manifest, folder: AnyPath, classes: Sequence[str]
) -> bytes:
    from alexnet import figures

    queries = lookup.fetch([row["id"] for row in rows], split, manifest, folder)
    trained = lookup.fetch({name for row in rows for name in row["nearest"]}, "train", manifest, folder)
    return figures.neighbours(
        _stack([queries[row["id"]][0] for row in rows]),
        [_stack([trained[name][0] for name in row["nearest"]]) for row in rows],
        [classes[queries[row["id"]][1]] for row in rows],
        [[classes[trained[name][1]] for name in row["nearest"]] for row in rows],
    )


def _stack(pictures: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return np.stack(pictures) if pictures else np.empty((0, 1, 1, 3), np.uint8)
