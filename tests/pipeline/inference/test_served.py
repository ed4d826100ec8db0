"""The served model, in this process and behind MLflow's server, answers for originals as `evaluate` for the stored pictures."""

from __future__ import annotations

import ast
import base64
import io
import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image

from pipeline.inference import served
from pipeline.inference.predictor import Predictor
from pipeline.inference.served import Served
from pipeline.tracking import packing, registry
from tests.pipeline.inference.servers import Row, check, free_port, post, running
from tests.pipeline.inference.test_predictor import COUNT, model, original

# MLflow's own code, on the versions that are pinned
pytestmark = pytest.mark.filterwarnings("ignore:Operation with range is deprecated")


@pytest.fixture(scope="session")
def served_model() -> Served:
    return Served(Predictor.load(model()))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as MLflow stores it."""
    import mlflow.pyfunc

    folder = tmp_path_factory.mktemp("saved")
    mlflow.pyfunc.save_model(folder / "model", **registry.packed(model(), folder))
    return folder / "model"


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def pixels(data: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.slow
def test_mlflow_s_model_answers_as_evaluate_alone_and_in_batches(
    saved: Path, originals: list[bytes], tested: list[Row]
) -> None:
    import mlflow.pyfunc

    loaded = mlflow.pyfunc.load_model(str(saved))
    for size in (1, 32):
        parts = [loaded.predict(originals[first : first + size]) for first in range(0, COUNT, size)]
        check(pd.concat(parts).to_dict("records"), tested)
    check(loaded.predict(originals, params={"views": 1}).to_dict("records"), tested, "centre")
    assert [len(row) for row in loaded.predict(originals[0], params={"top": 2})["wnid"]] == [2]
    assert loaded.metadata.signature.params.to_dict()[0]["name"] == "top"


@pytest.mark.slow
def test_each_form_of_a_picture_is_the_same_picture(served_model: Served, tmp_path: Path) -> None:
    data = original(0)  # a JPEG
    same = pixels(data)
    (tmp_path / "a.jpg").write_bytes(data)
    forms: list[Any] = [
        data,
        bytearray(data),
        text(data),
        f"data:image/jpeg;base64,{text(data)}",
        tmp_path / "a.jpg",
        same,
        same[None],
        [same],
        same.tolist(),
        [data],
        (text(data),),
        pd.DataFrame({"image": [data]}),
        pd.DataFrame({"anything": [tmp_path / "a.jpg"]}),
        pd.DataFrame({"label": [3], "image": [{"bytes": data, "path": "a.jpg"}]}),
        pd.Series([text(data)]),
        {"image": [text(data)]},
        np.array([data], dtype=object),
    ]
    expected = served_model.predict(data, {"views": 1})
    for form in forms:
        answer = served_model.predict(form, {"views": 1})
        assert answer["wnid"].tolist() == expected["wnid"].tolist(), type(form)
        np.testing.assert_allclose(answer["probability"][0], expected["probability"][0], atol=1e-5)
    frame = pd.DataFrame({"image": [data, data]}, index=["x", "y"])
    assert list(served_model.predict(frame, {"views": 1}).index) == ["x", "y"]
    assert len(served_model.predict([])) == 0


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (
            [original(0), b"not a picture"],
            "row 1, counted from 0, is no picture: no known format of pictures: 13 bytes",
        ),
        (original(0)[:2000], "row 0, .* is no picture: damaged"),
        ([None], "row 0, .* it is a NoneType; a picture is bytes, base64"),
        (["not base64!"], "row 0, .* it is no base64. Text is the base64 of"),
        ([text(b"GIF")], "row 0, .* no known format"),
        (Path("/no/such.jpg"), "row 0, .* /no/such.jpg: no such file"),
        (Path("/dev/zero"), "row 0, .* /dev/zero: no such file"),
        (np.zeros((4, 4, 3)), "row 0, .* whole numbers from 0 to 255, such as uint8; these are float64"),
        (np.full((4, 4, 3), 256), "row 0, .* from 256 to 256"),
        (np.zeros((3, 4, 4), np.uint8), "row 0, .* H x W x 3, .* this array has 3 x 4 x 4"),
        (np.zeros((2, 2), np.uint8), "row 0, .* this array has 2 x 2"),
        (np.array([b"ab\0"]), "lose zeros at their end"),
        ([[[0, 0, 0]], [[0, 0]]], "the pixels of pictures of one size"),
        (pd.DataFrame({"a": [b""], "b": [b""]}), r"the columns are \['a', 'b'\], of which exactly one"),
        (pd.DataFrame({"image": [b""], "path": [""]}), "of which exactly one"),
        (bytes(served.LARGEST + 1), "has 33,554,433 bytes, more than 33,554,432"),
        ("A" * (served.LARGEST * 3 // 2 + 1), "characters are more than"),
        ([b""] * (served.MOST + 1), "10,001 pictures are more than 10,000. Send them in parts"),
    ],
)
def test_what_is_no_picture_is_refused_with_its_row_and_why(served_model: Served, given: Any, why: str) -> None:
    with pytest.raises(MlflowException, match=why) as refused:
        served_model.predict(given)
    assert refused.value.get_http_status_code() == 400


@pytest.mark.parametrize(
    ("params", "why"),
    [
        ({"top": 0}, "top has to be a whole number of at least 1, is 0"),
        ({"top": 2.5}, "is 2.5"),
        ({"top": True}, "is True"),
        ({"views": 5}, "views has to be 10 or 1, is 5"),
    ],
)
def test_other_params_are_refused(served_model: Served, params: dict[str, Any], why: str) -> None:
    with pytest.raises(MlflowException, match=why) as refused:
        served_model.predict(original(0), params)
    assert refused.value.get_http_status_code() == 400


def test_text_is_a_path_only_where_the_environment_says_so(
    served_model: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client of a server can send text alone, which must not have a file of the server read."""
    file = tmp_path / "a.jpg"
    file.write_bytes(original(0))
    with pytest.raises(MlflowException, match="it is no base64"):
        served_model.predict(str(file))
    monkeypatch.setenv(served.PATHS, "1")
    assert len(served_model.predict(str(file), {"views": 1})) == 1


def test_a_request_to_a_server_has_fewer_pictures(served_model: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(served.SERVING, "true")
    with pytest.raises(MlflowException, match="257 pictures are more than 256"):
        served_model.predict([b""] * 257)


@pytest.mark.slow
def test_no_pickle_is_stored_and_the_packages_are_those_of_the_lock(saved: Path) -> None:
    names = [file.name for file in saved.rglob("*") if file.is_file()]
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".joblib"))]
    assert "model.pt" in names
    assert "served.py" in names
    lines = (saved / "requirements.txt").read_text().splitlines()
    assert {line.partition("==")[0] for line in lines} == {
        "mlflow",
        "torch",
        "numpy",
        "pandas",
        "pillow",
        "simplejpeg",
    }
    lock = (packing.ROOT / "requirements.lock").read_text()
    assert all(f"\n{line.strip()} " in lock for line in lines), lines


def test_a_model_that_somebody_changed_runs_no_code_of_its_own(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "model.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match=r"model\.pt: damaged"):
        served._load_pyfunc(str(tmp_path / "model.pt"))
    assert not (tmp_path / "ran").exists()


def test_the_packed_code_imports_only_itself_and_libraries(tmp_path: Path) -> None:
    package, loader = packing.pack(tmp_path)
    assert loader == f"{package.name}.served"
    for file in package.glob("*.py"):
        for line in file.read_text(encoding="utf-8").splitlines():
            assert not line.strip().startswith(
                ("from alexnet ", "from alexnet.", "from pipeline", "import pipeline")
            ), file
    with pytest.raises(AssertionError, match="use from"):
        packing.renamed("import alexnet.names\n", "other")
    text = (
        "from alexnet.names import a\ndef f():\n    from pipeline.inference.predictor import b\n'from alexnet import'\n"
    )
    assert packing.renamed(text, "x") == text.replace("alexnet.names", "x.names").replace("pipeline.inference", "x")


def test_the_packed_code_needs_the_named_packages_and_no_other(tmp_path: Path) -> None:
    package, _ = packing.pack(tmp_path)
    needed, waiting, done = set(), ["served"], set()
    while waiting:
        name = waiting.pop()
        done.add(name)
        for node in ast.walk(ast.parse((package / f"{name}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                needed |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                words = str(node.module).split(".")
                mine = words[1:] or [alias.name for alias in node.names]
                waiting += [each for each in mine if words[0] == package.name and each not in done]
                needed |= {words[0]} - {package.name}
    named = {"pillow": "PIL"}
    listed = {named.get(each, each) for each in registry.PACKAGES} | {"mlflow", "torchvision"}
    assert needed - sys.stdlib_module_names == listed


@pytest.mark.slow
def test_mlflow_s_server_needs_no_clone_and_answers_as_evaluate(
    saved: Path, originals: list[bytes], tested: list[Row], tmp_path: Path
) -> None:
    """Other packages that are called alexnet and pipeline lie where the server finds them first."""
    for name in ("alexnet", "pipeline"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('another one')\n")
    port = free_port()
    command = ["mlflow", "models", "serve", "-m", str(saved), "--env-manager", "local", "-p", str(port)]
    with running(command, tmp_path, f"http://127.0.0.1:{port}/ping", PYTHONPATH=str(tmp_path)):
        url = f"http://127.0.0.1:{port}/invocations"

        def ask(some: list[Any], **params: int) -> tuple[int, Any]:
            frame = {"columns": ["image"], "data": [[each] for each in some]}
            return post(url, json.dumps({"dataframe_split": frame, "params": params}).encode())

        answers = [ask([text(data)]) for data in originals]
        assert {status for status, _ in answers} == {200}
        check([row for _, answer in answers for row in answer["predictions"]], tested)
        for first in (0, 32):
            _, answer = ask([text(data) for data in originals[first : first + 32]])
            check(answer["predictions"], tested[first : first + 32])
        status, answer = post(url, (saved / "serving_input_example.json").read_bytes())
        assert (status, len(answer["predictions"][0]["name"])) == (200, 5)
        status, answer = ask([text(originals[0]), text(b"not a picture")])
        assert status == 400
        assert "row 1, counted from 0, is no picture: no known format of pictures: 13 bytes" in answer["message"]
        (tmp_path / "a.jpg").write_bytes(originals[0])
        for secret in (str(tmp_path / "a.jpg"), {"path": str(tmp_path / "a.jpg")}):
            assert ask([secret])[0] == 400, "a client had a file of the server read"
        assert ask([text(originals[0])], views=3)[0] == 400
