"""The codec that is loaded by its file is torchvision's: an upgrade that moves or changes it has to fail here."""

import io
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet import codec

NOISE_CHW = torch.from_numpy(np.random.default_rng(0).integers(256, size=(3, 48, 40), dtype=np.uint8))


@pytest.mark.parametrize("quality", [1, 75, 95, 100])
def test_it_encodes_and_decodes_as_torchvision_does(quality: int) -> None:
    from torchvision import io as theirs

    data = codec.encode_jpeg(NOISE_CHW, quality)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchCodec is to replace these functions
        assert torch.frombuffer(bytearray(data), dtype=torch.uint8).equal(theirs.encode_jpeg(NOISE_CHW, quality))
        expected = theirs.decode_jpeg(
            torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=theirs.ImageReadMode.RGB
        )
    assert torch.equal(codec.decode_jpeg(data), expected)


def test_its_files_have_colours_at_half_the_resolution() -> None:
    with Image.open(io.BytesIO(codec.encode_jpeg(NOISE_CHW, 90))) as picture:
        assert picture.size == (40, 48)
        assert [component[1:3] for component in picture.layer] == [(2, 2), (1, 1), (1, 1)]


def test_grey_becomes_three_equal_channels() -> None:
    file = io.BytesIO()
    Image.fromarray(NOISE_CHW[0].numpy()).save(file, "JPEG")
    red, green, blue = codec.decode_jpeg(file.getvalue())
    assert torch.equal(red, green)
    assert torch.equal(red, blue)


def test_what_is_no_jpeg_is_a_runtime_error() -> None:
    with pytest.raises(RuntimeError):
        codec.decode_jpeg(b"no picture")


WITHOUT = """
import importlib.machinery, importlib.util, sys
found = importlib.util.find_spec
def find_spec(name, package=None):
    return importlib.machinery.ModuleSpec(name, None, origin=sys.argv[1]) if name == "torchvision" else found(name, package)
importlib.util.find_spec = find_spec
import alexnet.codec
"""


def test_a_torchvision_without_its_codec_is_said_on_import(tmp_path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(tmp_path / "__init__.py")], capture_output=True, text=True, check=False
    )
    assert ended.returncode != 0
    assert f"ImportError: {tmp_path}: no image*.so; torchvision is not installed, or was built without" in ended.stderr
