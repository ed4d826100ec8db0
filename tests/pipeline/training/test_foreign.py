"""First weights from the files that people have, torchvision's, Lightning's and others': they are taken, or told apart."""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import io
import json
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from alexnet.build import build
from alexnet.model import AlexNet
from alexnet.network import Model
from pipeline.runtime import params
from pipeline.runtime.machines import Machine
from pipeline.shards.manifest import Manifest
from pipeline.shards.tables import Synset
from pipeline.training import foreign, initial
from pipeline.training.spec import FirstWeights, Start
from tests.pipeline.test_train import SECTIONS
from tests.sections import PREPARATION

ROOT = Path(__file__).parents[3]
MODEL = dataclasses.replace(
    Model(**{name: tuple(item) if isinstance(item, list) else item for name, item in SECTIONS["model"].items()}),
    columns=1,
)
LAYERS = ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]
NUMBERS = (0, 3, 6, 8, 10, 1, 4, 6)


def manifest(classes: int) -> Manifest:
    synsets = tuple(Synset(wnid=f"n{number:08}", words=f"class {number}") for number in range(classes))
    return Manifest(side=256, classes=synsets, shards={}, indexed=0, rejected=0, drawn=True, preparation=PREPARATION)


OURS = AlexNet(MODEL, 3)
OURS.draw_first_weights(4)
PLAIN = {name: tensor.clone() for name, tensor in OURS.state_dict().items()}
THEIRS = {
    f"{'features' if layer.startswith('conv') else 'classifier'}.{number}.{kind}": PLAIN[f"{layer}.{kind}"]
    for layer, number in zip(LAYERS, NUMBERS, strict=True)
    for kind in ("weight", "bias")
}
"""The same weights under the names of torchvision's alexnet."""


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


def read(file: str, model: Model = MODEL, classes: int = 3, **start: Any) -> FirstWeights:
    section = Start(**{**SECTIONS["start"], "network": file, **start})
    return initial.read_pretrained(section, model, manifest(classes), Machine())


def safetensors(tensors: dict[str, Tensor], **changes: Any) -> bytes:
    """A file by the format's own page: 8 bytes, a header in JSON, the tensors' bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, tensor in tensors.items():
        values = tensor.numpy().tobytes()
        header[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(values)],
            **changes,
        }
        data += values
    words = json.dumps(header).encode()
    return struct.pack("<Q", len(words)) + words + data


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


ADAM = {
    "state": {0: {"step": torch.tensor(5.0), "exp_avg": torch.ones(3)}},
    "param_groups": [{"lr": 0.1, "params": [0]}],
}
LIGHTNING = {
    "epoch": 3,
    "global_step": 12,
    "pytorch-lightning_version": "2.5.0",
    "state_dict": {**prefixed("model.", THEIRS), "criterion.weight": torch.ones(3)},
    "loops": {"fit_loop": {"state_dict": {}}},
    "callbacks": {"ModelCheckpoint{'monitor': 'val_loss'}": {"best_model_score": torch.tensor(0.5), "dirpath": "/x"}},
    "optimizer_states": [ADAM],
    "lr_schedulers": [],
    "hparams_name": "kwargs",
    "hyper_parameters": {"lr": 0.1, "path": Path("x"), "more": collections.defaultdict(list, a=[1])},
}
REFERENCES = {"model": THEIRS, "optimizer": ADAM, "lr_scheduler": {}, "epoch": 4, "args": argparse.Namespace(lr=0.1)}
EXAMPLES = {"epoch": 3, "arch": "alexnet", "state_dict": prefixed("module.", THEIRS), "best_acc1": torch.tensor(56.5)}


@pytest.mark.parametrize(
    "contents",
    [
        THEIRS,
        PLAIN,
        prefixed("module.", THEIRS),
        prefixed("_orig_mod.", THEIRS),
        prefixed("module._orig_mod.", PLAIN),
        {"model_state_dict": THEIRS, "optimizer_state_dict": ADAM, "loss": 0.5, "score": np.float64(0.5)},
        {"model": {"state_dict": prefixed("net.", PLAIN)}, "epoch": 3},
        LIGHTNING,
        REFERENCES,
        EXAMPLES,
        {name: nn.Parameter(tensor) for name, tensor in THEIRS.items()},
        {name: tensor.double() for name, tensor in THEIRS.items()},
    ],
)
def test_what_people_have_is_taken_to_the_last_bit(contents: dict[str, Any], tmp_path: Path) -> None:
    torch.save(contents, tmp_path / "a.pth", _use_new_zipfile_serialization=contents is not EXAMPLES)
    first = read("a.pth")
    assert list(first.weights) == list(PLAIN)
    assert all(torch.equal(first.weights[name], tensor) for name, tensor in PLAIN.items())
    assert {tensor.dtype for tensor in first.weights.values()} == {torch.float32}
    assert "its 3 outputs are taken for the classes here, in their order" in first.summary
    theirs = any("features" in name for name in str(contents).split("'"))
    words = "torchvision's alexnet" if theirs else "a state_dict"
    assert f"fc8 of {tmp_path}/a.pth ({words})" in first.summary
    assert ("it was trained with model.border padded" in first.summary) == theirs


@pytest.mark.parametrize("names", [THEIRS, PLAIN, prefixed("model.", THEIRS)])
def test_safetensors_are_taken_to_the_last_bit(names: dict[str, Tensor], tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(safetensors(names))
    first = read("a.safetensors")
    assert all(torch.equal(first.weights[name], tensor) for name, tensor in PLAIN.items())


def test_safetensors_hold_half_numbers_and_numbers_alone(tmp_path: Path) -> None:
    halves = {name: tensor.to(torch.float16) for name, tensor in THEIRS.items()}
    (tmp_path / "a.safetensors").write_bytes(safetensors(halves, dtype="F16"))
    assert torch.equal(read("a.safetensors").weights["fc8.bias"], PLAIN["fc8.bias"].half().float())
    data = safetensors({"a": torch.tensor(3.0), "b": torch.zeros(0, 2), "c": torch.ones(1)})
    found = foreign.state_dict(foreign.read(data, "a"), "a")
    assert [tuple(tensor.shape) for tensor in found.values()] == [(), (0, 2), (1,)]
    assert found["a"] == 3


def test_layers_of_another_shape_or_none_at_all_are_left_out_and_said(tmp_path: Path) -> None:
    other = {**THEIRS, "classifier.6.weight": torch.ones(10, 256), "classifier.6.bias": torch.ones(10)}
    torch.save(other, tmp_path / "a.pth")
    first = read("a.pth")
    assert "fc8.weight" not in first.weights
    assert "fc8 random: fc8.weight is 10×256 in that network and 3×256 in this one" in first.summary
    assert "outputs are taken" not in first.summary
    torch.save({name: tensor for name, tensor in THEIRS.items() if "features" in name}, tmp_path / "a.pth")
    first = read("a.pth")
    assert list(dict.fromkeys(name.split(".")[0] for name in first.weights)) == LAYERS[:5]
    assert "fc6 random: fc6.weight is absent in that network" in first.summary
    torch.save(THEIRS, tmp_path / "a.pth")
    assert list(read("a.pth", layers=("conv2",)).weights) == ["conv2.weight", "conv2.bias"]


def wide(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, "features.0.weight": torch.ones(64, 3, 11, 11)}


NAN = {**THEIRS, "features.0.bias": torch.full_like(PLAIN["conv1.bias"], float("nan"))}
RESNET18 = {"conv1.weight": torch.ones(64, 3, 7, 7), "layer1.0.conv1.weight": torch.ones(3), "fc.weight": torch.ones(3)}
OTHER = "It has to be a network's state_dict"


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        (wide(THEIRS), "looks like torchvision's alexnet; recipes/torchvision.yaml has its shape. conv1 does not fit: "
         "conv1.weight is 64×3×11×11 in that network and"),
        ({**THEIRS, "features.1.weight": torch.ones(6)}, "torchvision's alexnet has no features.1.weight"),
        ({f"features.{n}.weight": torch.ones(3) for n in (0, 2, 28)}, "torchvision's vgg16; recipes/vgg-16.yaml has its"),
        ({"layer3.5.conv3.weight": torch.ones(3), **RESNET18}, "torchvision's resnet50; recipes/resnet-50.yaml has"),
        ({"state_dict": prefixed("module.", RESNET18)}, "a ResNet of another depth than 50"),
        ({"blocks.0.attn": torch.ones(3), "head.weight": torch.ones(3)}, "none of the networks here. It lacks conv1.weight, "
         "conv1.bias, conv2.weight and 13 more. It has blocks.0.attn, head.weight"),
        ({**prefixed("student.", THEIRS), **prefixed("teacher.", THEIRS)}, "several such networks.*'student.', 'teacher.'"),
        ({"model": THEIRS, "state_dict": THEIRS}, "several networks: state_dict, model"),
        ({"epoch": 3, "lr": 0.1}, "it has no state_dict, but epoch, lr"),
        ({}, "no state_dict, but no keys"),
        (NAN, "conv1.bias has values that are infinite or no numbers"),
        ({**THEIRS, "features.0.bias": PLAIN["conv1.bias"].to(torch.int8)}, "conv1.bias has numbers of another kind"),
        ({**THEIRS, "features.0.bias": PLAIN["conv1.bias"].to_sparse()}, "features.0.bias is quantized, sparse"),
        ({**THEIRS, "features.0.bias": torch.ones(1).expand(2**40)}, "conv1.bias is 1099511627776 in that network"),
        ([1, 2], "not a network saved here, but a list"),
        (torch.ones(3), "not a network saved here, but a Tensor"),
        (nn.Linear(2, 2), "not a network saved here, but a whole module"),
        ({"model": nn.Linear(2, 2), "epoch": 1}, "no state_dict, but model, epoch"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_apart(contents: Any, words: str, tmp_path: Path) -> None:
    torch.save(contents, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=rf"params\.yaml: start\.network: {tmp_path}/a.pth: .*{words}") as caught:
        read("a.pth")
    assert "\n" not in str(caught.value)


class Harm:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("how", [pickle.dumps, "zip", "legacy"])
def test_no_code_in_a_file_is_run(how: Any, protocol: int, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    for harm in (Harm(os.mkdir, str(proof)), Harm(exec, f"open({str(proof)!r}, 'w')"), Harm(Path.touch, proof)):
        contents = {"state_dict": THEIRS, "harm": harm}
        if callable(how):
            (tmp_path / "a.pth").write_bytes(how(contents, protocol=protocol))
        else:
            torch.save(
                contents, tmp_path / "a.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=how == "zip"
            )
        with contextlib.suppress(ValueError):  # an object of another class is left out, and the weights are taken
            read("a.pth")
        assert not proof.exists()
    with pytest.raises(ValueError, match=r"code, which is not run \(posix.mkdir\)"):
        torch.save({"a": Harm(os.mkdir, str(proof))}, tmp_path / "a.pth")
        read("a.pth")


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.ones(3))
    return file.getvalue()


def zipped(names: list[str], packed: int = zipfile.ZIP_STORED, data: bytes = b"x") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", packed) as archive:
        for name in names:
            archive.writestr(name, data)
    return file.getvalue()


def deflated(contents: Any) -> bytes:
    file, again = io.BytesIO(), io.BytesIO()
    torch.save(contents, file)
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(again, "w", zipfile.ZIP_DEFLATED) as other:
        for name in archive.namelist():
            other.writestr(name, archive.read(name))
    return again.getvalue()


def program() -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), file)
    return file.getvalue()


GOOD = safetensors(THEIRS)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.h5", b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file, such as Keras writes"),
        ("a.npy", b"\x93NUMPY" + bytes(99), "a NumPy array"),
        ("a.npz", npz(), "NumPy's arrays"),
        ("a.onnx", b"\x08\x07\x12\x07pytorch", "ONNX's"),
        ("a.caffemodel", b"\n\x07AlexNet", "another program's"),
        ("a.zip", zipped(["a/1.jpg", "b.txt"]), r"a zip of other files \(a/1.jpg, b.txt\)"),
        ("a.pt", program(), "a program of TorchScript"),
        ("a.pth", deflated({"a": torch.zeros(10**6)}), "unpacks to more than its own size"),
        ("a.pth", zipped(["a/data.pkl"], data=b"\x80\x02}."), "not a network saved here"),
        ("a.pth", b"<!DOCTYPE html><html>", "a web page"),
        ("a.pth", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        ("a.pt", b"outs:\n- md5: 123\n", "a file of DVC that names another file"),
        ("a.pth.gz", b"\x1f\x8b" + bytes(99), "a gzip archive: unpack it"),
        ("a.pkl", pickle.dumps({"a": [1.5] * 99}), "not a network saved here"),
        ("a.bin", b"anything", "of no kind that is known"),
        ("a.safetensors", GOOD[:-1], "a safetensors file that is damaged or cut short"),
        ("a.safetensors", GOOD[:99], "a safetensors file that is damaged or cut short"),
        ("a.safetensors", safetensors(THEIRS, dtype="F8_E4M3"), "damaged or cut short"),
        ("a.safetensors", safetensors(THEIRS, data_offsets=[0, 4]), "damaged or cut short"),
        ("a.safetensors", safetensors(THEIRS, data_offsets=[-4, 0]), "damaged or cut short"),
        ("a.safetensors", safetensors(THEIRS, shape=[2**40, 0]), "damaged or cut short"),
        ("a.safetensors", safetensors(THEIRS, shape="x"), "damaged or cut short"),
        ("a.safetensors", struct.pack("<Q", 10**5) + b"{" + b'"a":[' * 10**5, "damaged or cut short"),
    ],
)
def test_a_file_of_another_kind_is_named(name: str, data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=rf"params\.yaml: start\.network: {tmp_path}/{name}: .*{words}") as caught:
        read(name)
    assert "\n" not in str(caught.value)


def test_a_folder_an_address_and_a_file_too_large_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run/extra_files").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"run: is a folder. Write the path of the file in it$"):
        read("run")
    (tmp_path / "run/extra_files/model.pt").touch()
    with pytest.raises(
        ValueError, match=r"is a folder. Write the path of the file in it, such as .*/extra_files/model.pt"
    ):
        read("run")
    with pytest.raises(ValueError, match=r"alexnet.pth: is an address. Fetch the file, and write its path"):
        read("https://download.pytorch.org/models/alexnet.pth")
    monkeypatch.setattr(foreign, "LARGEST", 20)
    (tmp_path / "a.pth").write_bytes(bytes(21))
    with pytest.raises(ValueError, match=r"a.pth: has 21 bytes, more than 20. Save the network's state_dict alone"):
        read("a.pth")


@pytest.mark.parametrize("keep", [1, 100, 0.5, 0.99, -1])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_cut_anywhere_is_refused(keep: float, legacy: bool, tmp_path: Path) -> None:
    torch.save(THEIRS, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    whole = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(whole[: int(keep * len(whole) if 0 < keep < 1 else keep)])
    with pytest.raises(ValueError, match="not a network saved here"):
        read("a.pth")


@pytest.mark.slow
@pytest.mark.parametrize("zipped", [True, False])
def test_torchvision_s_alexnet_gives_torchvision_s_logits(zipped: bool, tmp_path: Path) -> None:
    from torchvision import models

    torch.manual_seed(3)
    theirs = models.alexnet().eval()
    torch.save(theirs.state_dict(), tmp_path / "alexnet.pth", _use_new_zipfile_serialization=zipped)
    model = params.check(
        params.load(ROOT / "recipes/torchvision.yaml")["model"], Model, Path("recipes/torchvision.yaml")
    )
    first = read("alexnet.pth", model, 1000)
    assert first.summary.endswith(
        "(torchvision's alexnet); its 1000 outputs are taken for the classes here, in their order"
    )
    ours = build(model, 1000).eval()
    ours.load_state_dict(first.weights)
    patches = 60 * torch.randn(2, 3, 224, 224)
    expected = theirs(patches / torch.tensor(model.deviation)[:, None, None])
    torch.testing.assert_close(ours(patches), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"looks like torchvision's alexnet; recipes/torchvision.yaml has its shape"):
        read("alexnet.pth", dataclasses.replace(model, kernels=(96, 256, 384, 384, 256, 0)), 1000)


@pytest.mark.slow
def test_torchvision_s_resnet50_gives_torchvision_s_logits(tmp_path: Path) -> None:
    from torchvision import models

    torch.manual_seed(3)
    theirs = models.resnet50(num_classes=5).eval()
    torch.save({"state_dict": prefixed("module.", theirs.state_dict())}, tmp_path / "a.pth")
    model = dataclasses.replace(MODEL, network="resnet50", deviation=(58.0, 57.0, 56.0))
    ours = build(model, 5).eval()
    ours.load_state_dict(read("a.pth", model, 5).weights)
    patches = 60 * torch.randn(2, 3, 224, 224)
    expected = theirs(patches / torch.tensor(model.deviation)[:, None, None])
    torch.testing.assert_close(ours(patches), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="looks like torchvision's resnet50"):
        read("a.pth")
