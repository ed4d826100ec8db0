"""The formats: each one's files, the packages that it needs, and its own reader, which answers from the files alone."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from alexnet import build
from alexnet.augmentation import centre_view, ten_views
from alexnet.errors import mean_over_views
from alexnet.network import Model, Network
from pipeline.inference.export import graph
from pipeline.inference.predictor import Predictor, Views

Name = Literal["onnx", "torch-export", "safetensors", "torchvision"]

PREPARATION, CLASSES, MEAN = "preparation.json", "classes.json", "mean.npy"
"""Files beside each format."""

Answer = Callable[[Tensor], Tensor]
"""Prepared pictures, uint8 B×3×S×S → probabilities B×K."""


@dataclass(frozen=True, slots=True)
class Format:
    """One format: the name of its file, and how it is written and read."""

    file: str
    packages: tuple[str, ...]
    """What has to be installed besides this project's own packages, by the names of the registry, which are the modules'."""
    write: Callable[[Predictor, Views, Path], None]
    """Writes the file. `ValueError` if the network does not fit the format."""
    read: Callable[[Path, Views], Answer]
    """Answers from the files in a folder, by the format's own reader."""
    whole: bool
    """Whether views, mean and softmax are in the file."""


def require(name: Name) -> None:
    """`ValueError`, with what to install, if a package that the format needs is missing."""
    needed = FORMATS[name].packages
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(
            f"--to {name} needs {', '.join(needed)}; not installed: {', '.join(missing)}. "
            f"Run: python -m pip install {' '.join(missing)}"
        )


def check_fit(name: Name, network: Network) -> None:
    """`ValueError`, with the recipe that fits, if the network cannot have the format."""
    if name == "torchvision":
        _torchvision_weights(network)


def _traced(predictor: Predictor, views: Views) -> torch.export.ExportedProgram:
    program = graph.traced(predictor, views)
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # it names folders of this machine
    return program


def _write_onnx(predictor: Predictor, views: Views, file: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):  # its progress
        written = torch.onnx.export(
            _traced(predictor, views),
            dynamo=True,
            opset_version=graph.OPSET,
            verbose=False,
            input_names=[graph.INPUT],
            output_names=[graph.OUTPUT],
        )
    assert written is not None
    written.save(str(file), external_data=False)


def _read_onnx(folder: Path, views: Views) -> Answer:  # noqa: ARG001
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])

    def answer(pictures_BCHW: Tensor) -> Tensor:
        pictures_BHWC = np.ascontiguousarray(pictures_BCHW.permute(0, 2, 3, 1).numpy())
        return torch.from_numpy(session.run([graph.OUTPUT], {graph.INPUT: pictures_BHWC})[0])

    return answer


def _write_program(predictor: Predictor, views: Views, file: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No complete tensor found")  # weights that are channels last
        torch.export.save(_traced(predictor, views), file)


def _read_program(folder: Path, views: Views) -> Answer:  # noqa: ARG001
    program = torch.export.load(folder / "model.pt2").module()
    return lambda pictures_BCHW: program(pictures_BCHW.permute(0, 2, 3, 1).contiguous())


def _write_safetensors(predictor: Predictor, _: Views, file: Path) -> None:
    from safetensors.torch import save_file

    save_file(_whole(predictor.network.state_dict()), str(file), {"format": "pt"})


def _read_safetensors(folder: Path, views: Views) -> Answer:
    from safetensors.torch import load_file

    about = json.loads((folder / PREPARATION).read_text(encoding="utf-8"))
    return _by_views(built(about, load_file(str(folder / "model.safetensors"))), folder, about, views)


def built(about: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Network:
    """The network that preparation.json describes, in eval mode, with weights from model.safetensors."""
    network = build.build(_model(about["model"]), about["classes"])
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)


def _write_torchvision(predictor: Predictor, _: Views, file: Path) -> None:
    torch.save(_whole(_torchvision_weights(predictor.network)), file)


def _read_torchvision(folder: Path, views: Views) -> Answer:
    from torchvision import models

    about = json.loads((folder / PREPARATION).read_text(encoding="utf-8"))
    network = getattr(models, about["model"]["network"])(weights=None, num_classes=about["classes"]).eval()
    network.load_state_dict(torch.load(folder / "weights.pth", weights_only=True))
    deviation_CHW = torch.tensor(about["deviation"])[:, None, None]
    return _by_views(lambda patches_BCHW: network(patches_BCHW / deviation_CHW), folder, about, views)


def _by_views(network: Callable[[Tensor], Tensor], folder: Path, about: Mapping[str, Any], views: Views) -> Answer:
    """Answers by a network without views and mean, which are in the files beside it."""
    mean_CHW, side = torch.from_numpy(np.load(folder / MEAN, allow_pickle=False)), about["patch"]

    def answer(pictures_BCHW: Tensor) -> Tensor:
        views_BVCHW = (
            ten_views(pictures_BCHW, mean_CHW, side, about["mean_kind"])
            if views == 10
            else centre_view(pictures_BCHW, mean_CHW, side)[:, None]
        )
        return mean_over_views(network(views_BVCHW.flatten(0, 1)).reshape(*views_BVCHW.shape[:2], -1))

    return answer


def _torchvision_weights(network: Network) -> dict[str, Tensor]:
    """The state_dict for torchvision's class of the same network. `ValueError`, with the recipe that fits, if there is none."""
    from alexnet.model import AlexNet
    from alexnet.peers import to_torchvision

    model = network.model
    if isinstance(network, AlexNet):
        try:
            return to_torchvision(network)
        except ValueError:
            raise ValueError(_UNFIT) from None
    if model.network == "vgg16" and model.dropout and model.dropout_layers and model.dropout_scale == "test":
        raise ValueError("torchvision's vgg16 rescales units in training: model: dropout_scale: training, as in vgg-16")
    return {name.removeprefix("body."): value for name, value in network.state_dict().items()}


_UNFIT = (
    "--to torchvision: torchvision's alexnet has another architecture than this network: one column of 64, 192, 384, 256, 256"
    " kernels and 4096, 4096 units, no normalization, border padded. Train one that fits: alexnet run --recipe torchvision;"
    " or take --to onnx, torch-export or safetensors, which any network fits"
)


def _whole(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in weights.items()}


def _model(fields: Mapping[str, Any]) -> Model:
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    return Model(**values)


FORMATS: Mapping[Name, Format] = {
    "onnx": Format("model.onnx", ("onnx", "onnxscript", "onnxruntime"), _write_onnx, _read_onnx, True),
    "torch-export": Format("model.pt2", (), _write_program, _read_program, True),
    "safetensors": Format("model.safetensors", ("safetensors",), _write_safetensors, _read_safetensors, False),
    "torchvision": Format("weights.pth", (), _write_torchvision, _read_torchvision, False),
}
