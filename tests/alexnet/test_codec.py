"""The JPEG codec gives the bits of torchvision's and Pillow's and says what is damaged; an upgrade that changes it fails here."""

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet import codec
from alexnet.pictures import Undecodable, decode

NOISE_CHW = torch.from_numpy(np.random.default_rng(0).integers(256, size=(3, 120, 104), dtype=np.uint8))
SMOOTH_CHW = torch.from_numpy(
    np.stack([np.add.outer(np.arange(120), shift * np.arange(104)) % 256 for shift in (1, 2, 3)]).astype(np.uint8)
)


def torchvision_decodes(data: bytes) -> torch.Tensor:
    from torchvision import io as theirs

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchCodec is to replace these functions
        return theirs.decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=theirs.ImageReadMode.RGB)


def torchvision_encodes(picture_CHW: torch.Tensor, quality: int) -> bytes:
    from torchvision import io as theirs

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return theirs.encode_jpeg(picture_CHW, quality).numpy().tobytes()


def saved(**options) -> bytes:
    """A JPEG that Pillow has written."""
    file = io.BytesIO()
    Image.fromarray(NOISE_CHW.permute(1, 2, 0).numpy()).save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize("quality", [1, 50, 75, 95, 96, 100])
@pytest.mark.parametrize("picture_CHW", [NOISE_CHW, SMOOTH_CHW], ids=["noise", "smooth"])
def test_it_encodes_the_bytes_and_decodes_the_pixels_of_torchvision(picture_CHW: torch.Tensor, quality: int) -> None:
    data = codec.encode_jpeg(picture_CHW, quality)
    assert data == torchvision_encodes(picture_CHW, quality)
    pixels_CHW, warning = codec.decode_jpeg(data)
    assert warning == ""
    assert torch.equal(pixels_CHW, torchvision_decodes(data))


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_it_decodes_as_pillow_and_torchvision_do(subsampling: str, progressive: bool) -> None:
    data = saved(quality=80, subsampling=subsampling, progressive=progressive)
    pixels_CHW, warning = codec.decode_jpeg(data)
    assert warning == ""
    assert torch.equal(pixels_CHW, torchvision_decodes(data))
    with Image.open(io.BytesIO(data)) as picture:
        assert torch.equal(pixels_CHW, torch.from_numpy(np.array(picture)).permute(2, 0, 1))


def test_its_files_have_colours_at_half_the_resolution() -> None:
    with Image.open(io.BytesIO(codec.encode_jpeg(NOISE_CHW, 90))) as picture:
        assert picture.size == (104, 120)
        assert [component[1:3] for component in picture.layer] == [(2, 2), (1, 1), (1, 1)]


def test_grey_becomes_three_equal_channels() -> None:
    file = io.BytesIO()
    Image.fromarray(NOISE_CHW[0].numpy()).save(file, "JPEG")
    pixels_CHW, _ = codec.decode_jpeg(file.getvalue())
    assert torch.equal(pixels_CHW[0], pixels_CHW[1])
    assert torch.equal(pixels_CHW[0], pixels_CHW[2])
    assert torch.equal(pixels_CHW, torchvision_decodes(file.getvalue()))


def test_damaged_data_are_decoded_as_far_as_they_go_and_that_is_said() -> None:
    """Zeros in the middle, which torchvision and Pillow pass over in silence."""
    seen = 0
    for start in range(2000, 12000, 500):
        data = bytearray(saved(quality=95))
        data[start : start + 400] = bytes(400)
        pixels_CHW, warning = codec.decode_jpeg(bytes(data))
        assert torch.equal(pixels_CHW, torchvision_decodes(bytes(data)))
        if warning:
            assert warning.startswith("Corrupt JPEG data: ")
            seen += 1
    assert seen >= 18, f"{seen} of 20"


def test_a_file_that_ends_early_is_refused() -> None:
    data = saved(quality=95)
    with pytest.raises(ValueError, match="Premature end of JPEG file"):
        codec.decode_jpeg(data[: len(data) // 2])
    with pytest.raises(Undecodable, match="damaged: image file is truncated"):
        decode(data[: len(data) // 2])


def test_what_it_will_not_decode_pillow_decodes_to_the_same_pixels() -> None:
    """A warning about a header stops simplejpeg, which reads that before it is told to go on."""
    data = bytearray(saved(quality=95))
    whole_CHW = decode(bytes(data))
    data[data.index(b"JFIF\0") + 5] = 95  # the revision
    with pytest.raises(ValueError, match="unknown JFIF revision"):
        codec.decode_jpeg(bytes(data))
    assert torch.equal(decode(bytes(data)), whole_CHW)


def test_what_is_no_jpeg_is_a_value_error() -> None:
    with pytest.raises(ValueError):
        codec.decode_jpeg(b"no picture")
