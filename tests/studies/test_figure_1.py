"""Figure 1: the count of epochs, the choice of the rate, the pictures' check, and a run that a kill does not change."""

from __future__ import annotations

import csv
import itertools
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.runtime import params
from pipeline.sources.cifar10 import Cifar10
from studies.figure_1 import program
from studies.figure_1.four_layers import (
    Activation,
    Epoch,
    Run,
    Setting,
    Start,
    Training,
    epochs_to,
    epochs_to_target,
    epochs_to_target_running,
    network,
)
from studies.figure_1.pictures import Cifar, read
from studies.figure_1.program import Curves, Search
from tests.pipeline import layouts

HERE = Path(program.__file__).parent
TRAINING = Training(kernels=(4, 4, 4), batch_size=16, momentum=0.9, precision="float32", target=0.25, measured=30)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny(pictures: int = 40) -> Cifar:
    """Pictures whose class is their grey level, with noise."""
    generator = np.random.default_rng(0)
    labels = np.arange(pictures) % 10
    levels = 20 + 22 * labels[:, None, None, None] + generator.integers(-9, 10, (pictures, 32, 32, 3))
    return Cifar.of(torch.from_numpy(levels.clip(0, 255).astype(np.uint8)), torch.from_numpy(labels))


def setting(activation: Activation = "relu", rate: float = 0.02, start: Start = "scaled") -> Setting:
    return Setting(start=start, activation=activation, rate=rate, seed=3)


def begun(work: Path, of: Setting | None = None, training: Training = TRAINING) -> Run:
    return Run(training, of or setting(), tiny(), work)


def test_the_crossing_is_that_of_a_plain_walk_along_the_lines() -> None:
    chance = random.Random(0)
    for _ in range(300):
        count = chance.randint(1, 8)
        xs = [float(x) for x in range(count)]
        errors = [chance.choice([0.1, 0.2, 0.25, 0.3, chance.random()]) for _ in range(count)]
        expected = math.inf
        for place, error in enumerate(errors):
            if error <= 0.25:
                expected = xs[place]
                if place:
                    for part in range(100_001):  # from the point before, in small steps down the line
                        share = part / 100_000
                        if errors[place - 1] + share * (error - errors[place - 1]) <= 0.25 + 1e-12:
                            expected = place - 1 + share
                            break
                break
        assert epochs_to(0.25, xs, errors) == pytest.approx(expected, abs=2e-5)


def test_a_gap_or_a_divergence_is_no_crossing() -> None:
    assert epochs_to(0.25, [0.0, 1.0], [0.9, math.nan]) == math.inf
    assert epochs_to(0.25, [], []) == math.inf


def test_the_running_error_stands_for_the_middle_of_its_epoch() -> None:
    history = [Epoch(0, math.nan, 0.9), Epoch(1, 0.5, 0.4), Epoch(2, 0.3, 0.2), Epoch(3, 0.2, 0.1)]
    assert epochs_to_target(0.25, history) == pytest.approx(1.75)
    assert epochs_to_target_running(0.25, history) == pytest.approx(2.0)


def test_first_weights_keep_the_spread_in_either_activation_and_share_their_draws() -> None:
    wide = Training(**{**{name: getattr(TRAINING, name) for name in TRAINING.__slots__}, "kernels": (64, 64, 64)})
    relu, tanh, original = (
        [layer.weight for layer in network(wide, of) if hasattr(layer, "weight")]
        for of in (setting("relu"), setting("tanh"), setting(start="original"))
    )
    for place, (weight, other) in enumerate(zip(relu, tanh, strict=True)):
        torch.testing.assert_close(weight / weight.std(), other / other.std())
        spread = 1 / math.sqrt(weight[0].numel())
        assert weight.std().item() == pytest.approx(spread * (math.sqrt(2) if place < 3 else 1), rel=0.1)
        assert other.std().item() == pytest.approx(spread * (5 / 3 if place < 3 else 1), rel=0.1)
    assert [weight.std().item() for weight in original] == pytest.approx([0.0001, 0.01, 0.04, 0.01], rel=0.1)


def test_mean_and_spread_are_those_of_numpy() -> None:
    cifar = tiny(17)
    pictures = cifar.pictures_NHWC.numpy().astype(np.float64)
    np.testing.assert_allclose(cifar.mean_HWC.numpy(), pictures.mean(0), rtol=1e-6)
    assert cifar.spread == pytest.approx((pictures - pictures.mean(0)).std(), rel=1e-9)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_seed_gives_the_same_curve_and_another_gives_another(tmp_path: Path, precision: str) -> None:
    training = params.check(
        {**{name: getattr(TRAINING, name) for name in TRAINING.__slots__}, "precision": precision}, Training, Path("-")
    )
    first, second = (begun(tmp_path / name, training=training).advance(2) for name in "ab")
    assert repr(first) == repr(second)
    other = Setting(start="scaled", activation="relu", rate=0.02, seed=4)
    assert repr(begun(tmp_path / "c", other, training).advance(2)) != repr(first)


def test_a_run_learns_and_stops_when_both_errors_are_there(tmp_path: Path) -> None:
    history = begun(tmp_path).advance(200)
    assert math.isfinite(epochs_to_target(0.25, history))
    assert math.isfinite(epochs_to_target_running(0.25, history))
    assert not math.isfinite(max(epochs_to_target(0.25, history[:-1]), epochs_to_target_running(0.25, history[:-1])))
    assert repr(begun(tmp_path).advance(200)) == repr(history)


def test_a_run_killed_within_an_epoch_ends_as_one_undisturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = begun(tmp_path / "undisturbed").advance(4)
    killed = begun(tmp_path / "killed")
    real, steps = killed._logits, []

    def power_cut(rows_B: torch.Tensor) -> torch.Tensor:
        steps.append(rows_B)
        if len(steps) == 11:  # an epoch is 3 steps and a measurement, after the measurement before all of them
            raise KeyboardInterrupt
        return real(rows_B)

    monkeypatch.setattr(killed, "_logits", power_cut)
    with pytest.raises(KeyboardInterrupt):
        killed.advance(4)
    assert 1 < len(killed.history) < len(expected)
    (tmp_path / "killed" / "half.part").write_bytes(b"what a kill may leave")
    assert repr(begun(tmp_path / "killed").advance(4)) == repr(expected)


def test_a_run_that_diverges_is_over_and_is_kept(tmp_path: Path) -> None:
    history = begun(tmp_path, setting(rate=1e30)).advance(5)
    assert math.isnan(history[-1].training_error)
    assert len(history) < 6
    assert epochs_to_target(0.25, history) == math.inf
    assert repr(begun(tmp_path, setting(rate=1e30)).advance(5)) == repr(history)


CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PART = Cifar10(name="cifar10", classes="all", complete=False)


def written(store: Path, each: int = 1) -> None:
    """CIFAR-10 as class folders, as others have unpacked it, with made-up pictures."""
    generator = np.random.default_rng(1)
    for split, name in itertools.product(("train", "test"), CLASSES):
        folder = store / "cifar10" / split / name
        folder.mkdir(parents=True)
        for number in range(each):
            pixels = generator.integers(256, size=(32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:04}.png")


def test_pictures_are_those_of_the_source_by_class(tmp_path: Path) -> None:
    written(tmp_path, 2)
    cifar = read(PART, tmp_path)
    assert cifar.pictures_NHWC.shape == (20, 32, 32, 3)
    assert cifar.labels_N.tolist() == [k for k in range(10) for _ in range(2)]
    for picture_HWC, label, number in zip(
        cifar.pictures_NHWC, cifar.labels_N.tolist(), itertools.cycle((0, 1)), strict=False
    ):
        with Image.open(tmp_path / f"cifar10/train/{CLASSES[label]}/{number:04}.png") as image:
            assert np.array_equal(picture_HWC.numpy(), np.asarray(image))
    other = read(PART, tmp_path)
    assert other.sha256 == cifar.sha256
    Image.new("RGB", (32, 32)).save(tmp_path / "cifar10/train/frog/0001.png")
    assert read(PART, tmp_path).sha256 != cifar.sha256


def test_pictures_come_from_the_binary_archive_as_well(tmp_path: Path) -> None:
    layouts.cifar10(tmp_path)
    cifar = read(PART, tmp_path)
    assert len(cifar.labels_N) == len(cifar.pictures_NHWC) > 0
    assert sorted(set(cifar.labels_N.tolist())) == [*range(max(cifar.labels_N.tolist()) + 1)]


def test_a_picture_that_cannot_be_used_is_refused_with_its_name(tmp_path: Path) -> None:
    written(tmp_path, 2)
    broken = tmp_path / "cifar10/train/frog/0001.png"
    kept = broken.read_bytes()
    broken.write_bytes(kept[: len(kept) // 2])
    with pytest.raises(ValueError, match=r"0001.png: train/frog/0001: cannot be decoded"):
        read(PART, tmp_path)
    Image.new("RGB", (31, 32)).save(broken)
    with pytest.raises(ValueError, match=r"frog/0001: has to be 32×32 pixels, is 31×32"):
        read(PART, tmp_path)


SMALL = """
source: {name: cifar10, classes: all, complete: false}
training: {kernels: [4, 4, 4], batch_size: 8, momentum: 0.9, precision: float32, target: 0.8, measured: 40}
search:
  {seed: 9, epochs: [1, 4], kept: 2, rates: {scaled: [0.001, 0.01, 0.05], original: [0.00001, 0.0001, 0.001]}}
curves: {seeds: [0, 1], most_epochs: 8}
"""


@pytest.mark.slow
def test_the_program_chooses_the_best_rate_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    written(tmp_path / "data/store", 4)
    program.PARAMS.parent.mkdir(parents=True)
    program.PARAMS.write_text(SMALL)
    program.main()
    numbers = json.loads((program.OUT / "figure-1.json").read_text())
    with (program.OUT / "curves.csv").open(newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if row["part"] == "search"]
    for start in ("scaled", "original"):
        for activation in ("relu", "tanh"):
            curves: dict[float, dict[int, float]] = {}
            for row in rows:
                if row["start"] == start and row["activation"] == activation:
                    curves.setdefault(float(row["rate"]), {})[int(row["epoch"])] = float(row["training_error"])
            assert len(curves) == 3, "both activations are searched over the whole grid"
            trying = list(curves)
            for epochs, kept in ((1, 2), (4, 1)):
                ranked = []
                for rate in trying:
                    errors = [curves[rate][epoch] for epoch in sorted(curves[rate]) if epoch <= epochs]
                    when = epochs_to(0.8, [float(epoch) for epoch in range(len(errors))], errors)
                    ranked.append((when, errors[-1], rate))
                trying = [rate for *_, rate in sorted(ranked)][:kept]
            assert numbers[start]["rates"][activation]["rate"] == trying[0]
    assert (program.OUT / "figure-1.png").read_bytes().startswith(b"\x89PNG")
    assert len(numbers["scaled"]["factor"]["training_error"]["of_seeds"]) == 2
    outs = {file: file.read_bytes() for file in program.OUT.iterdir() if file.is_file()}
    began = {file: file.stat().st_mtime_ns for file in (program.OUT / "runs").iterdir()}
    program.main()
    assert {file: file.stat().st_mtime_ns for file in (program.OUT / "runs").iterdir()} == began, "a finished run again"
    assert {file: file.read_bytes() for file in program.OUT.iterdir() if file.is_file()} == outs


def test_the_best_rate_is_that_of_a_plain_loop_over_known_curves() -> None:
    class Known:
        def __init__(self, errors: list[float]) -> None:
            self.history = [Epoch(epoch, error, error) for epoch, error in enumerate([0.9, *errors])]

        def advance(self, epochs: int) -> list[Epoch]:
            return self.history

    search = Search(seed=9, epochs=(2, 4), kept=2, rates={"scaled": (0.1, 0.2, 0.3, 0.4)})
    known = {
        0.1: Known([0.8, 0.7, 0.1, 0.1]),  # the first at the target, but too slow in the first round
        0.2: Known([0.6, 0.5, 0.4, 0.3]),
        0.3: Known([0.7, 0.6, 0.3, 0.24]),
        0.4: Known([math.nan]),
    }
    assert program.best_rate(0.25, search, known) == 0.3  # type: ignore[arg-type]


def test_the_factor_is_tanh_over_relu_and_failures_are_counted() -> None:
    def falling(epochs: int, last: float = 0.2) -> list[Epoch]:
        return [Epoch(0, math.nan, 0.9), *(Epoch(k, 0.3, 0.3) for k in range(1, epochs)), Epoch(epochs, last, last)]

    found = program.summary(
        0.25,
        {
            "relu": {0: falling(2), 1: falling(3), 2: falling(2)},
            "tanh": {0: falling(5), 1: falling(9), 2: falling(9, 0.3)},
        },
    )
    epochs, factor = found["epochs"]["training_error"], found["factor"]["training_error"]
    assert epochs == {"relu": {"0": 1.5, "1": 2.5, "2": 1.5}, "tanh": {"0": 4.5, "1": 8.5, "2": None}}
    assert factor["of_seeds"] == [3.0, 3.4, None]
    assert factor["mean"] == pytest.approx(3.2)
    assert "1 of 3 pairs" in factor["said"]


def test_the_committed_params_are_complete_and_keep_the_seeds_apart() -> None:
    sections = {"source": Cifar10, "training": Training, "search": Search, "curves": Curves}
    assert set(params.load(HERE / "params.yaml")) == set(sections)
    search, curves = (params.read(name, sections[name], HERE / "params.yaml") for name in ("search", "curves"))
    assert search.seed not in curves.seeds  # type: ignore[attr-defined]
    assert len(curves.seeds) >= 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("measured", "file"), [("2026-11-21", "figure-1-2026-11-21.json"), ("2026-11-26", "figure-1.json")]
)
def test_the_recorded_numbers_are_those_of_the_recorded_curves(measured: str, file: str) -> None:
    with (HERE / "curves.csv").open(newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if (row["measured"], row["part"]) == (measured, "curves")]
    recorded = json.loads((HERE / file).read_text())
    target = params.load(HERE / f"params-{measured}.yaml")["training"]["target"]
    found = program.histories(rows)
    assert recorded.keys() == found.keys()
    for start, numbers in recorded.items():
        of_start = program.summary(target, found[start])
        assert {name: numbers[name] for name in of_start} == of_start
