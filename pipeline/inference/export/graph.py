"""The whole of an answer as one graph: uint8 pictures in, probabilities out; views, mean image and softmax are inside."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from alexnet.augmentation import MeanKind, centre_view, ten_views
from alexnet.errors import mean_over_views
from alexnet.network import Network
from pipeline.inference.predictor import Predictor, Views

OPSET = 20
"""The version of ONNX's operators; onnxruntime reads it since 1.17, of January 2024."""

INPUT, OUTPUT = "pictures", "probabilities"
"""Names of the graph's only input and output."""


class Graph(nn.Module):
    """Prepared pictures, uint8 B×S×S×3 → probabilities B×K, float32. B is any number above 0.

    The channels are last, red first, as in the arrays that Pillow and most other decoders give.
    """

    mean_CHW: Tensor

    def __init__(self, network: Network, mean_CHW: Tensor, kind: MeanKind, views: Views) -> None:
        super().__init__()
        self.network, self.kind, self.views = network, kind, views
        self.register_buffer("mean_CHW", mean_CHW.clone())

    def forward(self, pictures_BHWC: Tensor) -> Tensor:
        """Pictures → probabilities, averaged over the views as in §4.1."""
        images_BCHW, side = pictures_BHWC.permute(0, 3, 1, 2), self.network.model.patch
        views_BVCHW = (
            ten_views(images_BCHW, self.mean_CHW, side, self.kind)
            if self.views == 10
            else centre_view(images_BCHW, self.mean_CHW, side)[:, None]
        )
        logits_BK = self.network(views_BVCHW.flatten(0, 1))
        return mean_over_views(logits_BK.reshape(-1, self.views, self.network.classes))


def traced(predictor: Predictor, views: Views) -> torch.export.ExportedProgram:
    """The graph of a network on the CPU, as torch.export sees it, with the number of pictures left open."""
    graph = Graph(predictor.network, predictor.mean_CHW, predictor.mean_kind, views).eval().requires_grad_(False)
    side = predictor.preparation.side
    pictures = torch.zeros(2, side, side, 3, dtype=torch.uint8)  # 1 would be taken for a constant
    with torch.no_grad():
        graph(pictures)  # the matrices that normalization keeps between calls become real ones, not the tracer's
        return torch.export.export(graph, (pictures,), dynamic_shapes=({0: torch.export.Dim("pictures", min=1)},))
