"""§4.1: patches by plain slicing, the light by the formula in a loop, the ten views by symmetry."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop

from alexnet import augmentation
from alexnet.augmentation import (
    AREAS,
    CENTRE,
    RATIOS,
    Augmentation,
    Patches,
    Statistics,
    centre_view,
    draw,
    mean_to_subtract,
    ten_views,
    training_patches,
)

PLAIN = Augmentation(
    patches="random", chunk=1, reflections=False, mean="centre", colour="none", colour_std=0.1, colour_epochs=90
)
SEED, EPOCH = 3, 1


def pictures(count=40):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 256, 256), generator=generator, dtype=torch.uint8)


def statistics():
    generator = torch.Generator().manual_seed(1)
    vectors, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator))
    return Statistics(
        255 * torch.rand(3, 256, 256, generator=generator), torch.tensor([14830.0, 1376.0, 389.0]), vectors
    )


def drawn(section, count=40, epoch=EPOCH, places=None):
    places = torch.arange(count) if places is None else places
    return training_patches(pictures(count), places, statistics(), section, SEED, epoch, torch.float64)


def place_of(patch, picture):
    """Where a patch lies in its picture, and whether it is reflected: by trying all 2178."""
    for reflected in (False, True):
        row = (patch.flip(-1) if reflected else patch)[0, 0]
        for y in range(33):
            for x in range(33):
                if torch.equal(picture[0, y, x : x + 224].double(), row):
                    return y, x, reflected
    raise AssertionError("not a patch of this picture")


def raw(section, **options):
    """Patches with the mean put back on, to compare with the pictures' bytes."""
    without = dataclasses.replace(section, mean="centre")
    mean = statistics().mean_CHW[:, 16:240, 16:240].double()
    return (drawn(without, **options) + mean).round()


def test_patches_are_cut_at_places_from_0_to_32_and_half_are_reflected():
    section = dataclasses.replace(PLAIN, reflections=True)
    places = [place_of(patch, picture) for patch, picture in zip(raw(section), pictures(), strict=True)]
    assert len({(y, x) for y, x, _ in places}) > 30
    assert min(min(y, x) for y, x, _ in places) >= 0 and max(max(y, x) for y, x, _ in places) <= 32
    assert 8 < sum(reflected for *_, reflected in places) < 32


def test_each_of_the_33_by_33_places_can_be_drawn():
    y, x = torch.meshgrid(torch.arange(36), torch.arange(36), indexing="ij")
    images = torch.stack([y, x, y]).to(torch.uint8).expand(30_000, -1, -1, -1)
    nothing = Statistics(torch.zeros(3, 36, 36), torch.zeros(3), torch.eye(3))
    corners = training_patches(images, torch.arange(30_000), nothing, PLAIN, SEED, EPOCH, side=4)[:, :2, 0, 0]
    assert {tuple(place) for place in corners.tolist()} == {(y, x) for y in range(33) for x in range(33)}


def test_a_chunk_shares_one_place_and_one_reflection():
    section = dataclasses.replace(PLAIN, reflections=True, chunk=8)
    places = [place_of(patch, picture) for patch, picture in zip(raw(section), pictures(), strict=True)]
    assert [len(set(places[start : start + 8])) for start in range(0, 40, 8)] == [1] * 5
    assert len(set(places)) > 1


@pytest.mark.slow
def test_draws_belong_to_the_place_in_the_epoch_not_to_the_batch():
    section = dataclasses.replace(PLAIN, reflections=True, colour="deviations")
    alone = training_patches(pictures()[7:9], torch.tensor([7, 8]), statistics(), section, SEED, EPOCH, torch.float64)
    assert torch.equal(alone, drawn(section)[7:9])
    assert not torch.equal(drawn(section), drawn(section, epoch=EPOCH + 1))


@pytest.mark.slow
def test_the_mean_is_that_of_the_centre_or_that_at_the_patch():
    at_centre, at_patch = drawn(PLAIN), drawn(dataclasses.replace(PLAIN, mean="patch"))
    mean = statistics().mean_CHW.double()
    for number, picture in enumerate(pictures()):
        y, x, _ = place_of((at_centre[number] + mean[:, 16:240, 16:240]).round(), picture)
        cut = (slice(None), slice(y, y + 224), slice(x, x + 224))
        torch.testing.assert_close(at_patch[number], picture[cut].double() - mean[cut])


@pytest.mark.slow
def test_the_mean_at_the_patch_is_reflected_with_it_and_that_of_the_centre_is_not():
    # data_transformer.cpp of Caffe subtracts pixel by pixel and then mirrors; convdata.py of 2012 mirrors first
    section = dataclasses.replace(PLAIN, reflections=True)
    at_centre, at_patch = drawn(section), drawn(dataclasses.replace(section, mean="patch"))
    mean, seen = statistics().mean_CHW.double(), set()
    for number, picture in enumerate(pictures()):
        y, x, reflected = place_of((at_centre[number] + mean[:, 16:240, 16:240]).round(), picture)
        cut = (slice(None), slice(y, y + 224), slice(x, x + 224))
        expected = picture[cut].double() - mean[cut]
        torch.testing.assert_close(at_patch[number], expected.flip(-1) if reflected else expected)
        seen.add(reflected)
    assert seen == {False, True}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["eigenvalues", "deviations"])
def test_light_is_one_colour_per_picture_along_the_components(kind):
    section = dataclasses.replace(PLAIN, colour=kind)
    before, after = drawn(PLAIN), drawn(section)
    shrunk = 1.1 if kind == "deviations" else 1.0
    light = after * shrunk - before
    assert light.std(dim=(2, 3)).max() < 1e-9
    # back to α: by the formula for one picture at a time
    alphas = []
    for rgb in light[:, :, 0, 0].numpy():
        along = statistics().eigenvectors_CC.double().numpy().T @ rgb
        values = statistics().eigenvalues_C.double().numpy()
        # printed: α λ of pixels in 0–1, on 0–255 again: λ / 255² · 255; run in 2012: α √λ
        alphas.append(along / (values / 255 if kind == "eigenvalues" else np.sqrt(values)))
    assert np.std(alphas) == pytest.approx(0.1, rel=0.25)
    assert abs(np.mean(alphas)) < 0.04
    assert len(np.unique(np.round(alphas, 9))) == 3 * 40


def test_colour_ends_after_its_epochs():
    section = dataclasses.replace(PLAIN, colour="deviations", colour_epochs=2)
    assert not torch.equal(drawn(section, epoch=1), drawn(PLAIN, epoch=1))
    assert torch.equal(drawn(section, epoch=2), drawn(PLAIN, epoch=2))


def test_ten_views_of_a_mirrored_picture_are_the_same_ten_in_another_order():
    mean = torch.full((3, 256, 256), 120.0)
    views, mirrored = ten_views(pictures(2), mean), ten_views(pictures(2).flip(-1), mean)
    order = [6, 5, 7, 9, 8, 1, 0, 2, 4, 3]
    assert torch.equal(mirrored, views[:, order])
    assert len({view.numpy().tobytes() for view in views[0]}) == 10


def test_the_views_are_the_corners_and_the_centre():
    mean = statistics().mean_CHW
    views = ten_views(pictures(1), mean)[0] + mean[:, 16:240, 16:240]
    picture = pictures(1)[0].float()
    for number, (y, x) in enumerate([(0, 0), (0, 32), (16, 16), (32, 0), (32, 32)]):
        torch.testing.assert_close(views[number], picture[:, y : y + 224, x : x + 224])
        torch.testing.assert_close(views[number + 5], picture[:, y : y + 224, x : x + 224].flip(-1))


def test_the_views_less_the_mean_at_their_place_are_those_of_training():
    mean = statistics().mean_CHW
    views, picture = ten_views(pictures(1), mean, kind="patch")[0], pictures(1)[0].float() - mean
    for number, (y, x) in enumerate([(0, 0), (0, 32), (16, 16), (32, 0), (32, 32)]):
        torch.testing.assert_close(views[number], picture[:, y : y + 224, x : x + 224])
        torch.testing.assert_close(views[number + 5], picture[:, y : y + 224, x : x + 224].flip(-1))


@pytest.mark.parametrize("kind", ["centre", "patch"])
def test_the_centre_view_is_one_of_the_ten(kind):
    mean = statistics().mean_CHW
    assert torch.equal(centre_view(pictures(2), mean), ten_views(pictures(2), mean, kind=kind)[:, CENTRE])


def test_a_network_of_227_pixels_has_patches_and_views_of_227():
    statistics_ = statistics()
    patches = training_patches(pictures(4), torch.arange(4), statistics_, PLAIN, SEED, EPOCH, side=227)
    assert patches.shape == (4, 3, 227, 227)
    views = ten_views(pictures(1), statistics_.mean_CHW, 227)[0] + statistics_.mean_CHW[:, 14:241, 14:241]
    for number, (y, x) in enumerate([(0, 0), (0, 29), (14, 14), (29, 0), (29, 29)]):
        torch.testing.assert_close(views[number], pictures(1)[0, :, y : y + 227, x : x + 227].float())


def test_one_number_for_each_colour_can_be_subtracted():
    mean = mean_to_subtract(statistics().mean_CHW, dataclasses.replace(PLAIN, mean="channels"))
    assert mean.shape == (3, 256, 256)
    for channel in range(3):
        assert mean[channel].unique().tolist() == pytest.approx([statistics().mean_CHW[channel].mean().item()])
    assert torch.equal(mean_to_subtract(statistics().mean_CHW, PLAIN), statistics().mean_CHW)


@pytest.mark.slow
def test_resized_patches_are_spread_as_torchvision_s():
    # a picture whose red is the row and whose green is the column: a patch tells where it was cut
    ramp, count = torch.arange(256, dtype=torch.uint8), 300
    picture = torch.stack([ramp[:, None].expand(256, 256), ramp.expand(256, 256), ramp.expand(256, 256)])
    section = dataclasses.replace(PLAIN, patches="resized")
    none = Statistics(torch.zeros(3, 256, 256), statistics().eigenvalues_C, statistics().eigenvectors_CC)
    patches = training_patches(picture.expand(count, -1, -1, -1), torch.arange(count), none, section, SEED, EPOCH)
    found = []
    for patch in patches:
        # between two inner places the ramp rises by the part's length over 224
        lines = patch[0, :, 112], patch[1, 112, :]
        high, wide = ((line[180] - line[40]).item() / 140 * 224 for line in lines)
        y, x = (line[112].item() - length / 2 for line, length in zip(lines, (high, wide), strict=True))
        found.append((high * wide, wide / high, y, x))
    torch.manual_seed(0)
    theirs = [RandomResizedCrop.get_params(picture, [*AREAS], [*RATIOS]) for _ in range(2000)]
    expected = [(high * wide, wide / high, y, x) for y, x, high, wide in theirs]
    for ours, other in zip(zip(*found, strict=True), zip(*expected, strict=True), strict=True):
        assert ks_2samp(ours, other).pvalue > 0.001


def test_a_resized_patch_has_no_place_in_the_mean():
    with pytest.raises(ValueError, match="mean cannot be 'patch' where patches is 'resized'"):
        dataclasses.replace(PLAIN, patches="resized", mean="patch")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mean", ["centre", "patch", "channels"])
@pytest.mark.parametrize("patches", ["random", "centre", "resized"])
def test_patches_made_one_by_one_on_threads_are_those_of_the_whole_batch_to_the_bit(patches, mean, dtype):
    """On a CPU each is made by the thread that decoded it; a GPU makes all at once. The memory of a decoded JPEG is H×W×3."""
    if (patches, mean) == ("resized", "patch"):
        return
    images, places, given = pictures(6), torch.arange(6) + 100, statistics()
    decoded = [image.permute(1, 2, 0).contiguous().permute(2, 0, 1) for image in images]
    for colour in ("none", "eigenvalues", "deviations"):
        section = dataclasses.replace(PLAIN, patches=patches, reflections=True, mean=mean, colour=colour)
        these = draw(places, 256, given, section, SEED, EPOCH)
        assert these.reflected_B.any()
        assert not these.reflected_B.all()
        made = Patches(these, given, section, dtype)
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(made.make, reversed(range(6)), reversed(decoded)))
        whole = augmentation._together(images, given.mean_CHW.to(dtype), section, these, dtype, 224)
        assert torch.equal(made.patches_BCHW, whole)
        assert torch.equal(training_patches(images, places, given, section, SEED, EPOCH, dtype), whole)
