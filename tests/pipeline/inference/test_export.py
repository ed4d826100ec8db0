"""`alexnet export`: each format answers, by its own reader, as the network does; what does not is not written."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch

from alexnet import build
from alexnet.augmentation import centre_view
from alexnet.network import Model
from alexnet.preparation import Preparation
from pipeline.inference.export import check, formats, program
from pipeline.inference.predictor import Predictor
from pipeline.runtime import params
from pipeline.training import foreign
from tests.pipeline import miniature, noise
from tests.pipeline.inference.test_predictor import model

SOME = 10

ROOT = Path(__file__).parents[3]

INSTALLED = {
    name: all(importlib.util.find_spec(each) for each in one.packages) for name, one in formats.FORMATS.items()
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/model.pt").write_bytes(model())
    (tmp_path / "mine").mkdir()
    monkeypatch.setattr(check, "PICTURES", SOME)
    for number in range(SOME):
        (tmp_path / f"mine/{number}.jpg").write_bytes(miniature.jpeg(number, 48))
    return tmp_path


def skip_without(name: str) -> None:
    if not INSTALLED[name]:  # type: ignore[index]
        pytest.skip(f"the packages of {name} are not installed")


def asked() -> tuple[Predictor, list[torch.Tensor]]:
    predictor = Predictor.load(model())
    return predictor, [predictor.prepare(miniature.jpeg(number, 300)) for number in (200, 201, 202)]


@pytest.mark.slow
@pytest.mark.parametrize("views", [10, 1])
def test_onnxruntime_answers_any_number_of_pictures_as_the_network(here: Path, views: Any) -> None:
    skip_without("onnx")
    import onnxruntime

    assert program.export(here / "out", to="onnx", views=views, check=here / "mine") <= check.LARGEST
    predictor, pictures = asked()
    session = onnxruntime.InferenceSession("out/model.onnx", providers=["CPUExecutionProvider"])
    for some in (pictures, pictures[:1]):
        arrays = np.stack([picture.permute(1, 2, 0).numpy() for picture in some])
        (answers,) = session.run(None, {"pictures": arrays})
        np.testing.assert_allclose(answers, predictor.described(some, views)[0], atol=1e-5)
    assert str(ROOT).encode() not in (here / "out/model.onnx").read_bytes()


@pytest.mark.slow
def test_torch_export_answers_any_number_of_pictures_as_the_network(here: Path) -> None:
    program.export(here / "out", to="torch-export", check=here / "mine")
    predictor, pictures = asked()
    loaded = torch.export.load("out/model.pt2").module()
    for some in (pictures, pictures[:1]):
        answers = loaded(torch.stack(some).permute(0, 2, 3, 1).contiguous())
        torch.testing.assert_close(answers, predictor.described(some)[0], atol=1e-5, rtol=0)


@pytest.mark.slow
def test_safetensors_and_what_is_beside_them_are_the_network(here: Path) -> None:
    skip_without("safetensors")
    from safetensors.torch import load_file

    program.export(here / "out", to="safetensors", views=1, check=here / "mine")
    about = json.loads((here / "out/preparation.json").read_text())
    predictor, pictures = asked()
    weights = load_file("out/model.safetensors")
    assert foreign.read(Path("out/model.safetensors").read_bytes(), "x").keys() == weights.keys()
    shape = {key: tuple(value) if isinstance(value, list) else value for key, value in about["model"].items()}
    network = build.build(Model(**shape), about["classes"]).eval()
    network.load_state_dict(weights)
    patches = centre_view(torch.stack(pictures), torch.from_numpy(np.load("out/mean.npy")), about["patch"])
    with torch.no_grad():
        torch.testing.assert_close(network(patches).softmax(1), predictor.described(pictures, 1)[0], atol=1e-5, rtol=0)
    assert Preparation.of(about["preparation"]) == predictor.preparation


@pytest.mark.slow
@pytest.mark.parametrize("name", list(formats.FORMATS))
def test_the_five_lines_of_the_card_name_the_class_that_predict_names(here: Path, name: Any) -> None:
    skip_without(name)
    if name == "torchvision":
        pytest.skip("its network has 57 million parameters: the test of torchvision runs them")
    program.export(here / "out", to=name, views=1, check=here / "mine")
    run_the_lines(here, Predictor.load(model()))


def run_the_lines(here: Path, predictor: Predictor) -> None:
    (here / "out/picture.jpg").write_bytes(miniature.jpeg(300, 256))
    (found,) = re.findall(r"```python\n(.*?)```", (here / "out/README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(found.splitlines()) == 5
    printed: list[tuple[Any, ...]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here / "out")
        exec(found, {"print": lambda *words: printed.append(words)})
    ((guess,),) = predictor.answer([predictor.prepare(miniature.jpeg(300, 256))], 1, 1)
    assert printed[0][0] == guess.name
    assert abs(printed[0][1] - guess.probability) < 0.01


@pytest.mark.slow
def test_a_hundred_validation_pictures_are_asked_where_they_are_prepared(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(here)
    miniature.prepared(here, train=4, val=101, classes=2)
    program.export(here / "out", to="torch-export", views=1)
    assert "checked on 100 pictures; largest difference of probabilities: " in capsys.readouterr().out


@pytest.mark.slow
def test_what_is_beside_has_the_classes_as_they_are_and_its_digests(here: Path) -> None:
    program.export(here / "out", to="torch-export", views=1, check=here / "mine")
    classes = json.loads((here / "out/classes.json").read_text(encoding="utf-8"))
    assert [(each["id"], each["words"]) for each in classes] == [(one.wnid, one.words) for one in noise.CLASSES]
    card = (here / "out/README.md").read_text(encoding="utf-8")
    for part in ("## Data", "## Parameters", "## Errors", "## Limits", "## Licence", "drawn by a program", "f" * 16):
        assert part in card
    assert "no evaluation of this very network" in card
    verify = ["sha256sum", "--quiet", "-c", "SHA256SUMS"]
    assert subprocess.run(verify, cwd=here / "out", check=False).returncode == 0
    (here / "out/classes.json").write_text("[]")
    assert subprocess.run(verify, cwd=here / "out", check=False, capture_output=True).returncode != 0


@pytest.mark.parametrize("change", [1e-3, float("nan")])
@pytest.mark.slow
def test_what_answers_otherwise_is_not_written(here: Path, monkeypatch: pytest.MonkeyPatch, change: float) -> None:
    true = check.expected
    monkeypatch.setattr(check, "expected", lambda *given: true(*given) + change)
    one = formats.FORMATS["torchvision"]
    stand_in = formats.Format(
        "x", (), lambda *_: None, lambda *_: lambda x: Predictor.load(model()).described(list(x), 1)[0], False
    )
    monkeypatch.setattr(formats, "FORMATS", {"torch-export": stand_in, "torchvision": one})
    with pytest.raises(ValueError, match="other probabilities than the network"):
        program.export(here / "out", to="torch-export", views=1, check=here / "mine")
    assert sorted(path.name for path in here.iterdir()) == ["data", "mine"]
    monkeypatch.setattr(check, "expected", true)
    assert program.export(here / "out", to="torch-export", views=1, check=here / "mine") <= check.LARGEST


def test_what_exists_is_replaced_only_if_an_export_wrote_it(here: Path) -> None:
    for folder in ("mine", "data"):
        with pytest.raises(click.UsageError, match="exists"):
            program.export(here / folder, to="safetensors")
        with pytest.raises(ValueError, match="was not written by an export"):
            program.export(here / folder, to="safetensors", force=True)
    assert len(list((here / "mine").iterdir())) == check.PICTURES


def test_too_few_pictures_are_refused(here: Path) -> None:
    (here / "mine/7.jpg").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match="mine: 9 pictures, and an export is checked on 10"):
        program.export(here / "out", to="torch-export", check=here / "mine")
    with pytest.raises(OSError, match=r"--check DIR"):
        program.export(here / "out", to="torch-export")
    assert not (here / "out").exists()


def test_a_tampered_network_is_refused(here: Path) -> None:
    data = bytearray((here / "data/model.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (here / "data/model.pt").write_bytes(data)
    with pytest.raises(ValueError, match=r"data/model\.pt"):
        program.export(here / "out", to="torch-export", check=here / "mine")
    assert not (here / "out").exists()


def test_torchvision_refuses_another_architecture_and_names_the_recipe(here: Path) -> None:
    with pytest.raises(ValueError, match="--recipe torchvision"):
        program.export(here / "out", to="torchvision", check=here / "mine")
    assert (ROOT / "recipes/torchvision.yaml").exists()
    assert not (here / "out").exists()


@pytest.mark.slow
def test_torchvision_reads_a_network_of_its_recipe_as_the_card_says(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = params.load(ROOT / "recipes/torchvision.yaml")["model"]
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    monkeypatch.setattr(noise, "MODEL", Model(**plain))
    (here / "data/model.pt").write_bytes(data := model())
    program.export(here / "out", to="torchvision", views=1, check=here / "mine")
    run_the_lines(here, Predictor.load(data))


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(ValueError, match=r"not installed: onnxscript\. Run: python -m pip install onnxscript$"):
        formats.require("onnx")
