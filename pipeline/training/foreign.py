"""Files of weights that other programs wrote: a state_dict, a checkpoint that has one, safetensors; no code in them is run."""

from __future__ import annotations

import io
import json
import math
import pickletools
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import torch
from torch import Tensor

from alexnet.names import cut

LARGEST = 4 * 2**30
"""Bytes of the largest file that is read. VGG-16's weights with Adam's two averages take 1.7 GB."""

HEADER = 100_000_000
"""Bytes of the longest header of a safetensors file, by the format's own definition."""

WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "network", "net", "weights", "params")
"""Keys under which a checkpoint keeps the network's state_dict. One file has at most one of them, or one within another."""

DEPTH = 3
"""Number of such keys within each other."""

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""Names of number formats in safetensors files."""

KINDS = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, such as Keras writes (.h5)"),
    (b"\x93NUMPY", "a NumPy array (.npy)"),
    (b"GGUF", "a GGUF file"),
    (b"MATLAB", "a MATLAB file (.mat)"),
    (b"version https://git-lfs", "a pointer of Git LFS and not the file itself: git lfs pull fetches it"),
    (b"outs:", "a file of DVC that names another file: dvc pull fetches it"),
    (b"<", "a web page or another text: the download was answered with a page"),
    (b"\x1f\x8b", "a gzip archive: unpack it, and name the file inside"),
    (b"\xfd7zXZ", "an xz archive: unpack it, and name the file inside"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it, and name the file inside"),
    (b"Rar!", "a RAR archive: unpack it, and name the file inside"),
)  # fmt: skip
"""First bytes of files that hold no weights of PyTorch, and words for them."""

HARMFUL = frozenset(
    ("os", "posix", "nt", "sys", "subprocess", "runpy", "importlib", "shutil", "socket", "ctypes", "pty")
)
"""Modules whose functions no checkpoint needs. Their names in a file are reported as what they are."""

PLAIN = frozenset(
    ("object", "list", "dict", "tuple", "set", "frozenset", "slice", "int", "float", "complex", "str", "bool", "range")
)
"""Builtin types that a checkpoint's settings may contain."""

ADVICE = "It has to be a network's state_dict: torch.save(network.state_dict(), 'network.pt')"


class _Object:
    """Stands for an object of a class that is not torch's, such as the command line in a checkpoint; its contents are dropped."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


class _Dict:
    """Stands for a dict of a class that is not torch's, such as a defaultdict."""

    def __new__(cls, *_: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


def read(data: bytes, where: str) -> dict[Any, Any]:
    """The contents of a file that torch wrote, or of a safetensors file, on the CPU. No code in it is run.

    `ValueError` if it is something else, with words for what it looks like.
    """
    if data[8:9] == b"{" and 2 <= int.from_bytes(data[:8], "little") <= HEADER:
        return _safetensors(data, where)
    _check_kind(data, where)
    contents = _unpickled(data, where)
    if not isinstance(contents, dict):
        kind = "a whole module" if isinstance(contents, _Object) else f"a {type(contents).__name__}"
        raise ValueError(f"{where}: not a network saved here, but {kind}. {ADVICE}")
    return contents


def state_dict(contents: dict[Any, Any], where: str) -> dict[str, Tensor]:
    """The state_dict in a file's contents: they are one, or have one under one of `WRAPPERS`.

    `ValueError` if there is none, or more than one.
    """
    for _ in range(DEPTH):
        wrapped = [key for key in WRAPPERS if _holds_tensors(contents.get(key), DEPTH)]
        if len(wrapped) > 1:
            raise ValueError(
                f"{where}: has several networks: {', '.join(wrapped)}. Save the one that is meant. {ADVICE}"
            )
        if not wrapped:
            break
        contents = contents[wrapped[0]]
    found = {str(name): value for name, value in contents.items() if isinstance(value, Tensor)}
    if not found:
        keys = ", ".join(cut(str(key), 80) for key in list(contents)[:6]) or "no keys"
        raise ValueError(f"{where}: not a network saved here: it has no state_dict, but {keys}. {ADVICE}")
    for name, tensor in found.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_complex():
            raise ValueError(f"{where}: {cut(name, 80)} is quantized, sparse, complex or without values. {ADVICE}")
    return found


def _holds_tensors(value: object, depth: int) -> bool:
    return isinstance(value, dict) and any(
        isinstance(item, Tensor) or (depth > 0 and key in WRAPPERS and _holds_tensors(item, depth - 1))
        for key, item in value.items()
    )


def _check_kind(data: bytes, where: str) -> None:
    """`ValueError` if the first bytes are not those of a file that torch writes."""
    if not data:
        raise ValueError(f"{where}: not a network saved here: the file is empty")
    for start, words in KINDS:
        if data.startswith(start):
            raise ValueError(f"{where}: not a network of PyTorch, but {words}. {ADVICE}")
    if data.startswith(b"PK"):
        _check_zip(data, where)
    elif where.lower().endswith(".onnx"):
        raise ValueError(f"{where}: not a network of PyTorch, but ONNX's. {ADVICE}")
    elif where.lower().endswith((".caffemodel", ".pb", ".tflite", ".index", ".ckpt.meta")) or data[257:262] == b"ustar":
        raise ValueError(f"{where}: not a network of PyTorch, but another program's. {ADVICE}")
    elif not data.startswith(b"\x80"):
        raise ValueError(f"{where}: not a network saved here, and of no kind that is known. {ADVICE}")


def _check_zip(data: bytes, where: str) -> None:
    """`ValueError` if a zip is not torch's, or would unpack to more than its own size: torch stores, and never deflates."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, EOFError):
        raise ValueError(
            f"{where}: damaged, or not a network saved here: a zip that is cut short. Copy it again"
        ) from None
    names = {member.filename.rpartition("/")[2] for member in members}
    if "constants.pkl" in names:
        raise ValueError(f"{where}: a program of TorchScript (torch.jit.save), not a network's weights. {ADVICE}")
    if any(name.endswith(".npy") for name in names):
        raise ValueError(f"{where}: not a network of PyTorch, but NumPy's arrays (.npz). {ADVICE}")
    if "data.pkl" not in names:
        some = ", ".join(sorted(member.filename for member in members)[:3]) or "nothing"
        raise ValueError(f"{where}: not a network saved here, but a zip of other files ({some}). {ADVICE}")
    packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if packed or sum(member.file_size for member in members) > len(data):
        raise ValueError(f"{where}: unpacks to more than its own size, which no file of PyTorch does. {ADVICE}")


def _unpickled(data: bytes, where: str) -> Any:
    """The contents of a file that torch wrote, with `weights_only=True`; objects of other classes are empty `_Object`s."""
    try:
        names = _globals(data)
        harmful = sorted(name for name in names if _harmful(name))
        if not harmful:
            empty: list[Any] = [(_Dict if name.lower().endswith("dict") else _Object, name) for name in names]
            with torch.serialization.safe_globals(empty), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about kinds of tensors that `state_dict` refuses
                return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:  # torch's reader can raise anything on a damaged file, and its advice does not apply
        raise ValueError(f"{where}: damaged, or not a network saved here ({type(error).__name__}). {ADVICE}") from None
    raise ValueError(
        f"{where}: not a network saved here, but a pickle with code, which is not run ({harmful[0]}). {ADVICE}"
    )


def _globals(data: bytes) -> set[str]:
    """The classes and functions, as `module.name`, that a file of torch names. None of them is imported."""
    if data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            data = archive.read(next(name for name in archive.namelist() if PurePosixPath(name).name == "data.pkl"))
    handle, found = io.BytesIO(data), set[str]()
    try:
        while handle.tell() < len(data):  # until 2020 torch wrote several pickles, and then the tensors' bytes
            for operation, value, _ in pickletools.genops(handle):
                if operation.name == "GLOBAL":  # torch's reader knows no other operation that names a class
                    found.add(_present_name(*str(value).split(" ", 1)))
    except Exception:  # noqa: S110 - the tensors' bytes begin here, or the file is damaged, which torch's reader reports
        pass
    return found


def _present_name(module: str, name: str) -> str:
    """`module.name` in this Python: a pickle of protocol 2 has the names of Python 2."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"


def _harmful(name: str) -> bool:
    module, _, kind = name.rpartition(".")
    return name.partition(".")[0] in HARMFUL or (module == "builtins" and kind not in PLAIN)


def _safetensors(data: bytes, where: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file: 8 bytes for the header's length, a header of JSON, and the tensors' bytes."""
    start = 8 + int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8:start])
        header.pop("__metadata__", None)
        return {name: _stored(entry, memoryview(data)[start:]) for name, entry in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{where}: a safetensors file that is damaged or cut short ({type(error).__name__})") from None


def _stored(entry: Mapping[str, Any], data: memoryview) -> Tensor:
    """The tensor that a safetensors header describes. `ValueError` if its bytes are not within the file, or too few."""
    dtype, shape, (begin, end) = DTYPES[entry["dtype"]], [int(size) for size in entry["shape"]], entry["data_offsets"]
    if min(shape, default=0) < 0 or not 0 <= begin <= end <= len(data):
        raise ValueError("outside of the file")
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError("another length than its shape has")
    if begin == end:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data[begin:end]), dtype=dtype).reshape(shape)
