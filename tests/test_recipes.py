"""The recipes: they are complete and valid, each difference from the paper has a reason, and their first weights can learn."""

import dataclasses
import itertools
import math
import re
from pathlib import Path

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from torchvision.models import alexnet as torchvision_alexnet

from alexnet.augmentation import Augmentation, Statistics, training_patches
from alexnet.build import build
from alexnet.learning import Learning, Momentum, step
from alexnet.network import Dropout, Model
from alexnet.peers import from_torchvision, to_torchvision
from pipeline.download import SOURCES
from pipeline.resize import Resize
from pipeline.runtime import added, params
from pipeline.workflow import recipe

ROOT = Path(__file__).parents[1]

DIFFERENCES = {
    "original-2012": {
        "resize.filter", "model.normalization", "model.first_std", "augmentation.chunk", "augmentation.colour",
        "augmentation.colour_epochs", "learning.epochs", "learning.bias_rate", "learning.plateau_epochs",
        "learning.rate_changes", "learning.bias_decay", "learning.order",
    },
    "caffe": {
        "resize.fit", "model.border", "model.normalization", "model.dropout_scale", "model.first_std", "model.first_bias",
        "augmentation.mean", "augmentation.colour", "learning.batch_size", "learning.bias_rate", "learning.rate_falls",
        "learning.plateau_epochs", "learning.bias_decay", "learning.order",
    },
    "one-weird-trick": {
        "resize.filter", "model.columns", "model.kernels", "model.normalization", "model.first_std", "model.first_bias",
        "augmentation.colour", "learning.bias_rate", "learning.plateau_epochs", "learning.rate_changes",
        "learning.bias_decay", "learning.order",
    },
    "torchvision": {
        "model.columns", "model.kernels", "model.border", "model.deviation", "model.normalization", "model.dropout_layers",
        "model.dropout_scale", "model.first_weights", "augmentation.patches", "augmentation.mean", "augmentation.colour",
        "learning.batch_size", "learning.rate_falls", "learning.plateau_epochs", "learning.velocity", "learning.decay",
        "learning.bias_decay",
    },
    "vgg-16": {
        "model.network", "model.deviation", "model.dropout_scale", "augmentation.patches", "augmentation.mean",
        "augmentation.colour", "learning.batch_size", "learning.rate_falls", "learning.plateau_epochs",
        "learning.velocity", "learning.decay", "learning.bias_decay",
    },
    "resnet-50": {
        "model.network", "model.deviation", "augmentation.patches", "augmentation.mean", "augmentation.colour",
        "learning.batch_size", "learning.rate", "learning.rate_falls", "learning.plateau_epochs", "learning.velocity",
        "learning.decay", "learning.bias_decay",
    },
}  # fmt: skip

RECIPES = ["paper", *DIFFERENCES]


def file(name):
    return ROOT / "recipes" / f"{name}.yaml"


def section(name, key, kind):
    return params.read(key, kind, file(name))


def sections(name):
    return [section(name, *each) for each in (("model", Model), ("augmentation", Augmentation), ("learning", Learning))]


def pictures(count, seed=0):
    """Smooth pictures with the contrast of photographs, B×3×256×256, uint8, and their mean."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 24, 24, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, 256, mode="bicubic").sub(0.5).mul(1.4).add(0.5).clamp(0, 1)
    return (255 * fine).to(torch.uint8)


def started(name, seed, **changes):
    """A recipe's network at full width with its first weights, and patches of some pictures."""
    model, augmentation, _ = sections(name)
    model = dataclasses.replace(model, **changes)
    network = build(model, 1000).eval()
    network.draw_first_weights(seed)
    images = pictures(32)
    statistics = Statistics(images.float().mean(0), torch.tensor([14830.0, 1376.0, 389.0]), torch.eye(3))
    plain = dataclasses.replace(augmentation, colour="none", patches="centre", reflections=False)
    return network, training_patches(images, torch.arange(32), statistics, plain, 0, 0, side=model.patch)


@torch.inference_mode()
def spread(name, seed, **changes):
    """The standard deviation of the logits across pictures; near 0, the network has no gradient to learn from."""
    network, patches = started(name, seed, **changes)
    return network(patches).std(0).mean().item()


def test_every_recipe_is_listed_here():
    assert sorted(recipe_file.stem for recipe_file in (ROOT / "recipes").glob("*.yaml")) == sorted(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_complete_params_file(name):
    here, wanted = (params.flat(params.load(each)) for each in (ROOT / "params.yaml", file(name)))
    older = {key for key in added.ADDED if key not in wanted}
    assert [key for key in wanted if not key.startswith(recipe.OPEN)] == [
        key for key in here if not key.startswith(recipe.OPEN) and key not in older
    ]
    sections(name)
    section(name, "resize", Resize)
    section(name, "source", SOURCES)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_the_table_says_how_many_parameters_a_recipe_has(name):
    count = sum(weight.numel() for weight in build(section(name, "model", Model), 1000).parameters())
    assert re.search(rf"^\| `{name}` \|.*\| {count:,} \|$", (ROOT / "docs/changing.md").read_text(), re.M)


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_recipe_differs_from_the_paper_in_these_and_says_why(name):
    paper, other = (params.flat(params.load(file(each))) for each in ("paper", name))
    assert {key for key in paper if paper[key] != other[key]} == DIFFERENCES[name]
    text = file(name).read_text()
    for key in DIFFERENCES[name]:
        above, _, last = key.partition(".")
        block = re.search(rf"^{above}:\n((?:  .*\n)+)", text, re.M).group(1)
        line = re.search(rf"^  {last}:.*$", block, re.M).group()
        assert re.search(r"#\s*\S.{3,}", line), f"{key}: {line}"
        # a reason of its own, not the paper's comment that stayed behind
        assert line.partition("#")[2] not in file("paper").read_text(), f"{key}: {line}"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_s_values_reach_dvc_as_they_are(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    command = recipe.command(file(name), params.load(file(name)), name)
    given = [word for flag, word in itertools.pairwise(command) if flag == "-S"]
    wanted, here = (params.flat(params.load(each)) for each in (file(name), ROOT / "params.yaml"))
    parsed = {override.key_or_group: override.value() for override in OverridesParser.create().parse_overrides(given)}
    assert parsed == {key: value for key, value in wanted.items() if value != here[key]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_another_source_s_keys_take_the_place_of_those_that_are_there(tmp_path):
    from dvc.utils.hydra import apply_overrides

    here, wanted = (params.load(ROOT / "params.yaml") for _ in range(2))
    # words that DVC's grammar would take for a choice, a mapping, a number or a truth
    wanted["source"] = {
        "name": "imagefolder", "folder": "a, b: {c}=[d]", "classes": ["n01440764", "true", "3"], "val_share": 0.1, "seed": 7,
    }  # fmt: skip
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    changes = recipe.differences(params.flat(here), params.flat(wanted), tmp_path / "other.yaml")
    apply_overrides(tmp_path / "params.yaml", changes)
    assert params.load(tmp_path / "params.yaml") == wanted
    assert params.read("source", SOURCES, tmp_path / "params.yaml").classes == ("n01440764", "true", "3")
    wanted["model"]["widht"] = wanted["model"].pop("width")
    with pytest.raises(
        ValueError, match=r"other\.yaml: has to have the keys of params\.yaml; .* model\.widht, model\.width"
    ):
        recipe.differences(params.flat(here), params.flat(wanted), tmp_path / "other.yaml")


@pytest.mark.parametrize("name", sorted(each.stem for each in (ROOT / "recipes/sources").glob("*.yaml")))
def test_a_recipe_takes_other_pictures(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    changes = params.load(ROOT / f"recipes/sources/{name}.yaml")
    wanted = recipe.with_source(params.load(file("paper")), ROOT / f"recipes/sources/{name}.yaml")
    assert wanted["source"] == changes["source"], "whole, with none of the sample's keys"
    params.check(wanted["source"], SOURCES, file(name))
    here, there = params.flat(params.load(file("paper"))), params.flat(wanted)
    asked = {key for key in params.flat(changes) if not key.startswith("source.")}
    assert {key for key in here if not key.startswith("source.") and here[key] != there[key]} == asked
    given = [word for flag, word in itertools.pairwise(recipe.command(file("paper"), wanted, name)) if flag == "-S"]
    parsed = {each.key_or_group: each.value() for each in OverridesParser.create().parse_overrides(given)}
    assert {key: parsed[key] for key in asked} == {key: there[key] for key in asked}
    assert f'+source.classes="{changes["source"]["classes"]}"' in given
    assert "~source.train_images" in given
    assert parsed["model.width"] == 1
    # the page shows the same line to whoever writes it in params.yaml, and names the file
    text = (ROOT / "docs/sources.md").read_text()
    line = next(
        row for row in (ROOT / f"recipes/sources/{name}.yaml").read_text().splitlines() if row.startswith("source:")
    )
    assert line in text
    assert f"`{name}`" in text


def test_params_yaml_takes_other_pictures_and_no_others_than_there_are(monkeypatch):
    monkeypatch.chdir(ROOT)
    command = recipe.command(*recipe.contents(None, "cifar10"), "cifar10")
    assert "--name cifar10" in " ".join(command)
    assert not any(word.startswith("model.") for word in command)
    with pytest.raises(ValueError, match=r"recipes/sources/mnist\.yaml: not there; there are cifar10, ilsvrc2010, "):
        recipe.contents("paper", "mnist")


def test_the_rates_of_2012_are_those_of_its_log():
    learning = section("original-2012", "learning", Learning)
    # the log below layer-params-145-2010.cfg, whose first epoch is 1: from an epoch on, conv1's weights and biases, and
    # those of the others; the zeros are also what the file was left with
    log = {
        1: (1e-2, 2e-2, 1e-2, 2e-2), 23: (1e-3, 2e-3, 1e-3, 2e-3), 51: (1e-4, 2e-3, 1e-4, 2e-3),
        68: (1e-5, 2e-3, 1e-4, 2e-3), 72: (0, 0, 1e-4, 2e-3), 78: (0, 0, 1e-5, 2e-3),
    }  # fmt: skip
    assert learning.epochs == 93 - 1, "it was killed in epoch 93"
    for epoch in range(1, 93):
        rates = learning.rates(epoch - 1)
        found = [rates.of(name) for name in ("conv1.weight", "conv1.bias", "fc7.weight", "fc7.bias")]
        assert found == pytest.approx(log[max(begin for begin in log if begin <= epoch)]), epoch
        assert rates.last == rates.of("fc8.weight") == found[2], "which is what the curves show"
    assert section("original-2012", "augmentation", Augmentation).colour_epochs == 68 - 1


def test_the_rates_of_one_weird_trick_fall_as_dexp_does():
    learning = section("one-weird-trick", "learning", Learning)
    for epoch in range(learning.epochs):
        if (epoch / 22.5) % 1 >= 0.95:
            continue  # a fall within this epoch is rounded to its end
        quarter, half = int(epoch / 22.5), int(epoch / 45)
        assert learning.rates(epoch).of("conv1.weight") == pytest.approx(0.01 / 250 ** (quarter / 3), rel=1e-4)
        assert learning.rates(epoch).of("fc8.bias") == pytest.approx(0.02 / 10**half, rel=1e-4)


@pytest.mark.slow
def test_torchvision_s_own_class_takes_the_weights_and_says_the_same():
    model = section("torchvision", "model", Model)
    network = build(model, 1000).eval()
    network.draw_first_weights(3)
    theirs = torchvision_alexnet(num_classes=1000).eval()
    theirs.load_state_dict(to_torchvision(network), strict=True)
    patches = 60 * torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    scaled = patches / torch.tensor(model.deviation)[:, None, None]
    torch.testing.assert_close(network(patches), theirs(scaled), rtol=1e-4, atol=1e-6)
    assert sum(weight.numel() for weight in network.parameters()) == 61_100_840
    again = from_torchvision(theirs.state_dict())
    assert all(torch.equal(again[name], tensor) for name, tensor in network.state_dict().items())
    for other in ({"width": 0.5}, {"pooling": "disjoint"}, {"dropout_scale": "test"}):
        network.model = dataclasses.replace(model, **other)
        with pytest.raises(ValueError, match="torchvision's alexnet has another architecture"):
            to_torchvision(network)


@pytest.mark.slow
def test_first_weights_of_torchvision_are_uniform_within_its_bounds():
    network = build(section("torchvision", "model", Model), 1000)
    network.draw_first_weights(0)
    theirs = torchvision_alexnet(num_classes=1000)
    for ours, other in zip(network.parameters(), theirs.parameters(), strict=True):
        # both are samples of one uniform distribution, biases too: mean 0, the same spread, the same bound
        count = ours.numel()
        assert abs(ours.mean()) < 6 * ours.std() / math.sqrt(count)
        assert ours.std().item() == pytest.approx(other.std().item(), rel=6 / math.sqrt(count))
        assert ours.abs().max().item() == pytest.approx(other.abs().max().item(), rel=12 / count + 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_makes_two_steps_at_full_width(name):
    model, augmentation, learning = sections(name)
    network = build(model, 1000)
    network.draw_first_weights(learning.seed)
    rule = Momentum(network, learning)
    images = pictures(4)
    statistics = Statistics(images.float().mean(0), torch.tensor([14830.0, 1376.0, 389.0]), torch.eye(3))
    before = {key: value.detach().clone() for key, value in network.named_parameters()}
    for number in range(2):
        places = torch.arange(4) + 4 * number
        patches = training_patches(images, places, statistics, augmentation, learning.seed, 0, side=model.patch)
        assert patches.shape == (4, 3, model.patch, model.patch)
        dropout = Dropout(learning.seed, number, places)
        rates = learning.rates(0)
        loss = step(network, rule, patches, torch.arange(4), rates=rates, dropout=dropout, count=4).loss_sum / 4
        # nothing is known at first
        assert loss == pytest.approx(math.log(1000), rel=0.15) if number == 0 else math.isfinite(loss)
    assert all(not torch.equal(before[key], value) for key, value in network.named_parameters())


@pytest.mark.slow
def test_what_the_text_left_out_is_a_factor_of_15_in_what_there_is_to_learn_from():
    """The loss stays at ln 1000 = 6.9 if the logits are equal for all pictures."""
    ratios = [spread("original-2012", seed) / spread("paper", seed) for seed in range(3)]
    assert all(15 / 2 < ratio < 15 * 2 for ratio in ratios), ratios


@pytest.mark.slow
def test_raw_pixels_are_a_factor_of_45():
    unit = (60.0, 60.0, 60.0)
    ratios = [spread("paper", seed) / spread("paper", seed, deviation=unit) for seed in range(3)]
    assert all(45 / 2 < ratio < 45 * 2 for ratio in ratios), ratios


@pytest.mark.slow
def test_the_three_deviations_are_what_makes_that_factor():
    std = (0.01, 0.01, 0.03, 0.03, 0.03, 0.03, 0.01, 0.01, 0.01, 0.01)
    ratios = [spread("paper", seed, first_std=std) / spread("paper", seed) for seed in range(3)]
    assert all(15 / 2 < ratio < 15 * 2 for ratio in ratios), ratios
