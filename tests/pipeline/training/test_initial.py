"""What a training begins with: which layers of another network fit, in which words the others do not, and the clusters."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from alexnet import dataset, figures, pretraining
from alexnet.augmentation import Augmentation, centre_view
from alexnet.build import save
from alexnet.dataset import Mean
from alexnet.model import AlexNet
from alexnet.network import Model
from alexnet.pictures import Undecodable, decode
from pipeline.runtime.machines import Machine
from pipeline.shards import batches
from pipeline.shards.manifest import Manifest
from pipeline.sources import sample
from pipeline.training import initial
from pipeline.training.spec import FirstWeights, Start, TrainingSpec
from tests.pipeline import miniature
from tests.pipeline.test_train import SECTIONS
from tests.sections import AUGMENTATION, LEARNING

MODEL = Model(**{name: tuple(item) if isinstance(item, list) else item for name, item in SECTIONS["model"].items()})
NONE = Start(**SECTIONS["start"])
KMEANS = dataclasses.replace(NONE, unsupervised="kmeans", unsupervised_layers=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    miniature.prepared(home, train=24, val=12, classes=3)
    return home


@pytest.fixture
def manifest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    monkeypatch.setenv("DVC_ROOT", str(folder))
    return Manifest.read(folder / "data/shards")


def weights(classes: int = 3, **changes: Any) -> dict[str, Tensor]:
    network = AlexNet(dataclasses.replace(MODEL, **changes), classes)
    network.draw_first_weights(4)
    return network.state_dict()


def saved(file: Path, wnids: list[str], **changes: Any) -> bytes:
    network = AlexNet(dataclasses.replace(MODEL, **changes), len(wnids))
    network.draw_first_weights(4)
    with file.open("wb") as handle:
        save(handle, network, fingerprint="0123", classes=[[wnid, "words"] for wnid in wnids])
    return file.read_bytes()


def layers(named: dict[str, Tensor]) -> list[str]:
    return list(dict.fromkeys(name.split(".")[0] for name in named))


ALL = ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers": ()}, r"layers has to name a layer, or to be 'fitting', is \[\]"),
        ({"unsupervised_layers": 0}, "unsupervised_layers has to be 1 or 2, is 0"),
        ({"unsupervised_layers": 3}, "unsupervised_layers has to be 1 or 2, is 3"),
        ({"unsupervised_patches": 0}, "unsupervised_patches has to be at least 1, is 0"),
        ({"unsupervised_iterations": -1}, "unsupervised_iterations has to be at least 1, is -1"),
        (
            {"network": "a.pt", "unsupervised": "kmeans"},
            r"from network \(a.pt\) or are unsupervised \(kmeans\), not both",
        ),
    ],
)
def test_impossible_values_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(NONE, **change)


# Another network


def test_all_that_fits_is_taken_over_to_the_last_bit() -> None:
    theirs = weights()
    taken, left = initial.choose_weights(theirs, weights(), "fitting", same_classes=True)
    assert layers(taken) == ALL
    assert all(taken[name] is theirs[name] for name in theirs)
    assert left == {}


@pytest.mark.parametrize("classes", [3, 5])
def test_the_last_layer_is_drawn_where_it_tells_other_classes_apart(classes: int) -> None:
    taken, left = initial.choose_weights(weights(classes), weights(3), "fitting", same_classes=False)
    assert layers(taken) == ALL[:-1]
    assert left == {
        "fc8": "that network has other classes"
        if classes == 3
        else "fc8.weight is 5×256 in that network and 3×256 in this one"
    }


def test_the_layers_that_are_named_are_taken_over_and_no_others() -> None:
    taken, left = initial.choose_weights(weights(), weights(), ("fc6", "conv1"), same_classes=True)
    assert sorted(taken) == ["conv1.bias", "conv1.weight", "fc6.bias", "fc6.weight"]
    assert left == dict.fromkeys(["conv2", "conv3", "conv4", "conv5", "fc7", "fc8"], "not asked for")


def test_of_one_column_s_network_what_sees_one_column_does_not_fit_two() -> None:
    taken, left = initial.choose_weights(weights(columns=1), weights(), "fitting", same_classes=True)
    assert layers(taken) == ["conv1", "conv3", "fc6", "fc7", "fc8"]
    assert left["conv2"] == "conv2.weight is 16×6×5×5 in that network and 16×3×5×5 in this one"


@pytest.mark.parametrize(
    ("wanted", "there", "same", "words"),
    [
        (("conv1", "conv2"), {"columns": 1}, True, "conv2 does not fit: conv2.weight is 16×6×5×5 in that network and 16×3×5×5"),
        (("fc8",), {}, False, "fc8 does not fit: that network has other classes"),
        (("conv9",), {}, True, "no layer 'conv9' here; there are conv1, conv2, conv3"),
        ("fitting", {"width": 0.125}, False, "conv1 does not fit: conv1.weight is 12×3×11×11 in .*; conv2 does not"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_with_its_shapes(wanted: Any, there: Any, same: bool, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        initial.choose_weights(weights(**there), weights(), wanted, same_classes=same)


def test_a_layer_that_one_of_the_two_lacks_does_not_fit() -> None:
    more = {**weights(), "norm1.weight": torch.ones(6), "conv1.scale": torch.ones(())}
    _, left = initial.choose_weights(weights(), more, "fitting", same_classes=True)
    assert left == {
        "norm1": "norm1.weight is absent in that network and 6 in this one",
        "conv1": "conv1.scale is absent in that network and a number in this one",
    }
    _, left = initial.choose_weights(more, weights(), "fitting", same_classes=True)
    assert left == {"conv1": "conv1.scale is a number in that network and absent in this one"}


def test_a_file_is_read_and_its_layers_said(manifest: Manifest, folder: Path) -> None:
    wnids = [synset.wnid for synset in manifest.classes]
    data = saved(folder / "same.pt", wnids)
    origin = initial.read_pretrained(dataclasses.replace(NONE, network="same.pt"), MODEL, manifest, Machine())
    assert origin.digest == hashlib.sha256(data).hexdigest()
    assert layers(origin.weights) == ALL
    assert origin.summary == f"{', '.join(ALL)} of {folder}/same.pt (run 0123)"
    saved(folder / "other.pt", [*wnids[:2], "n99999999"])
    origin = initial.read_pretrained(
        dataclasses.replace(NONE, network=str(folder / "other.pt")), MODEL, manifest, Machine()
    )
    assert origin.summary.endswith(f"fc7 of {folder}/other.pt (run 0123); fc8 random: that network has other classes")


def test_a_network_that_this_code_could_not_build_gives_what_fits(manifest: Manifest, folder: Path) -> None:
    contents = torch.load(io.BytesIO(saved(folder / "own.pt", ["a"])), weights_only=True)
    contents["model"]["swish"] = True
    torch.save(contents, folder / "own.pt")
    origin = initial.read_pretrained(dataclasses.replace(NONE, network="own.pt"), MODEL, manifest, Machine())
    assert layers(origin.weights) == ALL[:-1]


def test_without_a_network_nothing_is_taken_over(manifest: Manifest) -> None:
    origin = initial.read_pretrained(NONE, MODEL, manifest, Machine())
    assert (origin.digest, origin.weights, origin.summary) == ("none", {}, "")
    assert (
        initial.read_pretrained(KMEANS, MODEL, manifest, Machine()).summary
        == "conv1 and conv2 of 200 patches each, clustered"
    )


@pytest.mark.parametrize("data", [b"", b"no network", b"PK\x03\x04", "a pickle", "a dictionary"])
def test_a_file_of_something_else_is_named(data: bytes | str, manifest: Manifest, folder: Path) -> None:
    file = folder / "strange.pt"
    if isinstance(data, bytes):
        file.write_bytes(data)
    else:
        torch.save({"weights": {}} if data == "a dictionary" else Path("x"), file)
    with pytest.raises(ValueError, match=r"params\.yaml: start\.network: .*strange\.pt: .*not a network saved here"):
        initial.read_pretrained(dataclasses.replace(NONE, network="strange.pt"), MODEL, manifest, Machine())


def test_a_file_that_is_not_there_is_named_with_what_would_do(manifest: Manifest, folder: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=f"start.network: {folder}/gone.pt: no such file.*models:/alexnet@champion"
    ):
        initial.read_pretrained(dataclasses.replace(NONE, network="gone.pt"), MODEL, manifest, Machine())


def test_a_layer_that_does_not_fit_is_said_with_the_file(manifest: Manifest, folder: Path) -> None:
    saved(folder / "wide.pt", ["n1"], width=0.125)
    section = dataclasses.replace(NONE, network="wide.pt", layers=("conv1",))
    with pytest.raises(ValueError, match=r"params\.yaml: start\.layers: .*wide\.pt: conv1 does not fit: .*12×3×11×11"):
        initial.read_pretrained(section, MODEL, manifest, Machine())


# Clusters


def found(
    section: Start, manifest: Manifest, folder: Path, augmentation: Augmentation = AUGMENTATION, **learning: Any
) -> dict[str, Tensor]:
    spec = spec_of(section, manifest, folder, augmentation, **learning)
    return initial.with_clusters(spec, folder / "data/shards").first.weights


def spec_of(
    section: Start, manifest: Manifest, folder: Path, augmentation: Augmentation = AUGMENTATION, **learning: Any
) -> TrainingSpec:
    return TrainingSpec(
        model=MODEL,
        start=section,
        augmentation=augmentation,
        learning=dataclasses.replace(LEARNING, **learning),
        manifest=manifest,
        mean=Mean.load(folder / "data/mean.npz"),
        mean_digest="",
        first=FirstWeights(digest="none", weights={}, summary=""),
    )


def test_the_clusters_do_not_depend_on_the_threads(manifest: Manifest, folder: Path) -> None:
    made, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            made.append(found(KMEANS, manifest, folder))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert list(made[0]) == ["conv1.weight", "conv2.weight"]
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert not torch.equal(made[0]["conv1.weight"], found(KMEANS, manifest, folder, seed=1)["conv1.weight"])
    (only,) = found(dataclasses.replace(KMEANS, unsupervised_layers=1), manifest, folder).values()
    assert torch.equal(only, made[0]["conv1.weight"])


def test_without_clusters_no_picture_is_read(manifest: Manifest, folder: Path) -> None:
    spec = spec_of(NONE, manifest, folder)
    assert initial.with_clusters(spec, Path("nowhere")) is spec


@pytest.mark.slow
@pytest.mark.parametrize("held_out", [0.0, 0.3])
@pytest.mark.parametrize("mean", ["centre", "channels"])
def test_they_are_clusters_of_the_pictures_learned_from_less_the_mean(
    manifest: Manifest, folder: Path, mean: Any, held_out: float
) -> None:
    """The same from the pictures themselves, all in one block."""
    mean_CHW = torch.from_numpy(Mean.load(folder / "data/mean.npz").image_CHW)
    if mean == "channels":
        mean_CHW = mean_CHW.mean((1, 2))[:, None, None].repeat(1, 256, 256)
    aside = batches.held_out(24, dataclasses.replace(LEARNING, held_out=held_out))
    learned = [number for number in range(24) if not aside[number]][:20]
    assert learned != [*range(20)] or not held_out
    pictures = torch.stack([decode(miniature.jpeg(number, 256)) for number in learned])
    network = AlexNet(MODEL, 3)
    network.draw_first_weights(0)
    block = torch.arange(len(learned)), centre_view(pictures, mean_CHW)
    for layer in ("conv1", "conv2"):
        pretraining.cluster(network, layer, [block], pictures=len(learned), patches=200, iterations=2, seed=0)
    augmentation = dataclasses.replace(AUGMENTATION, mean=mean)
    for name, kernels in found(KMEANS, manifest, folder, augmentation, held_out=held_out).items():
        torch.testing.assert_close(kernels, network.state_dict()[name])


def drawn_views(folder: Path) -> Tensor:
    """60 pictures of the drawn sample as the network sees them."""
    sample.make(folder, 0, 60, 10, "easy")
    pictures = []
    with tarfile.open(folder / "ILSVRC2012_img_train.tar") as outer:
        for inner in outer:
            with tarfile.open(fileobj=outer.extractfile(inner)) as tar:
                for member in tar:
                    data = tar.extractfile(member)
                    assert data is not None
                    try:
                        pictures.append(dataset.resize(decode(data.read()), 256, "bilinear"))
                    except Undecodable:
                        continue
    images = torch.stack(pictures)
    return centre_view(images, images.double().mean(0).float())


def oriented(kernels_KCHW: Tensor) -> Tensor:
    """How much more each changes along one direction than across it: 1 for a straight edge, near 0 for noise."""
    y, x = torch.gradient(kernels_KCHW.double(), dim=(2, 3))
    yy, xx, xy = ((one * other).sum((1, 2, 3)) for one, other in ((y, y), (x, x), (y, x)))
    return ((yy - xx).square() + 4 * xy.square()).sqrt() / (yy + xx)


def in_a_quarter(kernels_KCHW: Tensor) -> Tensor:
    """The share of each one's energy that lies in the strongest quarter of its places."""
    energy = kernels_KCHW.double().square().sum(1).flatten(1)
    strongest = energy.sort(dim=1, descending=True).values[:, : energy.shape[1] // 4]
    return strongest.sum(1) / energy.sum(1)


@pytest.mark.slow
def test_kernels_found_in_drawn_pictures_are_edges_and_noise_is_none(tmp_path: Path) -> None:
    views = drawn_views(tmp_path)
    network = AlexNet(dataclasses.replace(MODEL, width=0.25), 10)
    network.draw_first_weights(0)
    noise = network.first_layer().clone()
    pretraining.cluster(
        network, "conv1", [(torch.arange(len(views)), views)],
        pictures=len(views), patches=4000, iterations=10, seed=0,
    )  # fmt: skip
    edges = network.first_layer()
    (tmp_path / "first-layer.png").write_bytes(figures.first_layer(edges.numpy()))
    assert oriented(noise).max() < 0.25
    assert oriented(edges).median() > 0.7
    assert in_a_quarter(noise).median() < 0.57
    assert in_a_quarter(edges).median() > 0.65
    with Image.open(tmp_path / "first-layer.png") as image:
        assert np.asarray(image).std() > 10
