"""The served model: pictures in the forms that people have → a data frame of classes with probabilities; what MLflow loads."""

# This file is stored in MLflow's models, which are used without this repository: of it, it imports alexnet and the predictor

from __future__ import annotations

import base64
import binascii
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from torch import Tensor

from alexnet.pictures import Undecodable
from pipeline.inference.predictor import LARGEST, Predictor

MOST, MOST_SERVED = 10_000, 256
"""The most pictures of one call; of one HTTP request, since a server gives up after a minute."""

SERVING = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"
"""MLflow's server sets this variable in its process."""

PATHS = "ALEXNET_PATHS"
"""The variable that lets text be the path of a file. Whoever sends the rows then has the pictures of this machine read."""

COLUMNS = ("image", "picture", "bytes", "path")
"""The names by which a frame's column of pictures is known; a frame of one column may call it anything."""

TOGETHER = 32
"""Pictures that are decoded before the network is asked about them, which bounds the memory."""

DEFAULTS = {"top": 5, "views": 10}


class Served:
    """What `mlflow.pyfunc.load_model` wraps."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self._one = threading.Lock()  # a server has dozens of threads, and decoding a picture may take a gigabyte

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """A row for each picture: lists of the `top` classes, the best first (wnid, name, probability), and warnings.

        `model_input`: a picture, or a list, series, array or data frame of them. A picture is the bytes of a file; their
        base64 as text; a `pathlib.Path`; or pixels, integers from 0 to 255, H×W×3. `params`: `top`, and `views`, 10 or 1.
        `MlflowException`, for which MLflow's server answers 400, names the row that is none, and why.
        """
        top, views = _asked(params or {})
        rows = _rows(model_input)
        most = MOST_SERVED if os.environ.get(SERVING) else MOST
        if len(rows) > most:
            _refuse(f"{len(rows):,} pictures are more than {most:,}. Send them in parts")
        answers: list[dict[str, Any]] = []
        with self._one:
            for first in range(0, len(rows), TOGETHER):
                seen = [self._see(rows[number], number) for number in range(first, min(first + TOGETHER, len(rows)))]
                guesses = self.predictor.answer([picture_CHW for picture_CHW, _ in seen], views, top)
                answers += [
                    {key: [getattr(guess, key) for guess in some] for key in ("wnid", "name", "probability")}
                    | {"warnings": warnings}
                    for some, (_, warnings) in zip(guesses, seen, strict=True)
                ]
        index = model_input.index if isinstance(model_input, pd.DataFrame | pd.Series) else None
        return pd.DataFrame(answers, index=index, columns=["wnid", "name", "probability", "warnings"])

    def _see(self, row: Any, number: int) -> tuple[Tensor, list[str]]:
        try:
            if isinstance(row, np.ndarray | list):
                return self.predictor.see_pixels(_pixels(row))
            return self.predictor.see(_bytes(row))
        except (Undecodable, ValueError, OSError) as error:
            why = getattr(error, "strerror", None) or str(error)
            hint = f". {_TEXT}" if isinstance(row, str) else ""
            _refuse(f"row {number}, counted from 0, is no picture: {why}{hint}")


_TEXT = (
    "Text is the base64 of a picture file's bytes. Give a path as pathlib.Path, or as text where the environment has "
    f"{PATHS}=1"
)


def _load_pyfunc(path: str) -> Served:
    """Called by MLflow with the path of model.pt; runs no code from it."""
    device = os.environ.get("MLFLOW_DEFAULT_PREDICTION_DEVICE") or "cpu"
    return Served(Predictor.load(Path(path).read_bytes(), device=device))


def _refuse(why: str) -> NoReturn:
    raise MlflowException.invalid_parameter_value(why)


def _asked(params: Mapping[str, Any]) -> tuple[int, Any]:
    """`top` and `views`, from the params of a call."""
    top, views = (params.get(name, value) for name, value in DEFAULTS.items())
    if isinstance(top, bool) or not isinstance(top, int | np.integer) or top < 1:
        _refuse(f"params: top has to be a whole number of at least 1, is {top!r}")
    if views not in (10, 1):
        _refuse(f"params: views has to be 10 or 1, is {views!r}")
    return int(top), int(views)


def _rows(data: Any) -> Sequence[Any]:
    """The pictures of a call, one by one, in any of their forms."""
    if isinstance(data, pd.DataFrame | Mapping):
        data = _column(data)
    if isinstance(data, pd.Series):
        return list(data)
    if isinstance(data, list | tuple):
        numbers = bool(data) and isinstance(data[0], list | tuple)  # pixels in JSON
        return _rows(_array(list(data))) if numbers else list(data)
    if isinstance(data, np.ndarray):
        if data.ndim in (3, 4):
            return [data] if data.ndim == 3 else list(data)
        if data.dtype.kind == "S":
            _refuse("bytes in a numpy array lose zeros at their end. Give them as a list")
        if data.dtype.kind in "OU":
            return list(data.ravel())
    return [data]


def _column(data: Any) -> Any:
    """The column of pictures of a frame, or of a dict of columns."""
    names = list(data.keys())
    known = [name for name in names if name in COLUMNS] if len(names) > 1 else names
    if len(known) != 1:
        _refuse(f"the columns are {names}, of which exactly one has to be {' or '.join(COLUMNS)}")
    column = data[known[0]]
    return list(column) if isinstance(column, pd.Series) else column


def _array(numbers: list[Any]) -> Any:
    try:
        return np.asarray(numbers)
    except ValueError:
        _refuse("lists of lists are the pixels of pictures of one size, H x W x 3 or N x H x W x 3")


def _pixels(row: Any) -> Tensor:
    """Pixels H×W×3 → uint8 3×H×W."""
    pixels_HWC = np.asarray(row)
    shape = " x ".join(map(str, pixels_HWC.shape))
    if pixels_HWC.ndim != 3 or pixels_HWC.shape[2] != 3 or not pixels_HWC.size:
        raise ValueError(f"pixels are H x W x 3, red, green and blue; this array has {shape or 'no'} numbers")
    if pixels_HWC.dtype.kind not in "iu" or pixels_HWC.min() < 0 or pixels_HWC.max() > 255:
        raise ValueError(
            f"pixels are whole numbers from 0 to 255, such as uint8; these are {pixels_HWC.dtype} from "
            f"{pixels_HWC.min()} to {pixels_HWC.max()}"
        )
    return torch.from_numpy(pixels_HWC.astype(np.uint8)).permute(2, 0, 1)


def _bytes(row: Any) -> bytes:
    """The bytes of a picture file that a row is, or names. `ValueError` or `OSError` with the reason if it does not."""
    if isinstance(row, Mapping):  # as the library `datasets` has a picture: {"bytes": ..., "path": ...}
        row = row.get("bytes")
    if isinstance(row, str):
        row = _of_text(row)
    if isinstance(row, Path):
        row = _read(row)
    if not isinstance(row, bytes | bytearray | memoryview):
        raise ValueError(
            f"it is a {type(row).__name__}; a picture is bytes, base64 as text, a pathlib.Path, or an array of pixels"
        )
    if len(row) > LARGEST:
        raise ValueError(f"it has {len(row):,} bytes, more than {LARGEST:,}")
    return bytes(row)


def _of_text(text: str) -> bytes | Path:
    if os.environ.get(PATHS) == "1" and len(text) < 4096 and "\0" not in text and Path(text).is_file():
        return Path(text)
    if len(text) > LARGEST * 3 // 2:
        raise ValueError(f"its {len(text):,} characters are more than {LARGEST:,} bytes")
    words = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode("".join(words.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("it is no base64") from None


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with path.open("rb") as file:
        return file.read(LARGEST + 1)
