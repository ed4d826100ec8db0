"""Figure 1: how many epochs a network needs to 25 % training error with relu and with tanh, each at its best rate (§3.1).

Run:    dvc repro, in experiments/figure-1
Reads:  $ALEXNET_CIFAR10/train/, a folder of JPEGs for each class
Writes: search/{search.csv,rates.json}, curves.csv, figure-1.{json,png}; work in progress in work/runs/
Takes:  pictures, training, search, curves
Expect: 243 epochs of 10 seconds on one idle core; after a kill it goes on with the last epoch
"""

from __future__ import annotations

if __name__ == "__main__":  # before all that takes long to import
    from pipeline.runtime import commands, guard

    guard.hold()
    parser = commands.parser_at(__file__, "python -m figure_1")
    parser.add_argument("stage", choices=("search", "curves", "figure"))
    guard.over(parser.parse_args().stage)

import csv
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import cifar
from alexnet import figures
from cifar import Cifar, Expected
from four_layers import ACTIVATIONS, STARTS, Activation, Epoch, Run, Setting, Start, Training, reached, reached_running
from pipeline.runtime import files, params, stage

SEARCH = Path("search")
CURVES = Path("curves.csv")
FIGURE = Path("figure-1.png")
NUMBERS = Path("figure-1.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """params.yaml, `search:` — how the rates are chosen."""

    seed: int
    """None of those that are reported."""
    epochs: tuple[int, int]
    """For all rates, and then for the best of them."""
    kept: int
    """Rates that are tried for longer."""
    rates: dict[Start, tuple[float, ...]]
    """For each start that is measured, the rates tried with both activations."""

    def __post_init__(self) -> None:
        if not 1 <= self.epochs[0] <= self.epochs[1]:
            raise ValueError(f"epochs has to be two numbers of at least 1 that do not fall, is {list(self.epochs)}")
        if not self.rates:
            raise ValueError(f"rates has to have a grid for at least one of {', '.join(STARTS)}")
        for start, rates in self.rates.items():
            if not 1 <= self.kept <= len(rates):
                raise ValueError(
                    f"kept has to be from 1 to the number of rates of {start}, {len(rates)}; is {self.kept}"
                )
            if min(rates) <= 0 or list(rates) != sorted(set(rates)):
                raise ValueError(f"rates of {start} has to be above 0 and to rise, is {list(rates)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Curves:
    """params.yaml, `curves:` — the runs that are reported."""

    seeds: tuple[int, ...]
    """One run of each activation for each."""
    most_epochs: int
    """A run that has not come down to the target by then is counted as one that never does."""

    def __post_init__(self) -> None:
        if len(self.seeds) < 2 or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds has to be two or more that differ, is {list(self.seeds)}")
        if self.most_epochs < 1:
            raise ValueError(f"most_epochs has to be at least 1, is {self.most_epochs}")


def search() -> None:
    """Tries each rate of the grid, and writes the best of each start and activation."""
    training, wanted = params.read("training", Training), params.read("search", Search)
    make = _runs(training)
    chosen: dict[str, dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    for start, rates in wanted.rates.items():
        for activation in ACTIVATIONS:
            settings = [Setting(start=start, activation=activation, rate=rate, seed=wanted.seed) for rate in rates]
            runs = {setting.rate: make(setting) for setting in settings}
            rate = best_rate(training.target, wanted, runs)
            print(f"{start} {activation}: the best rate is {rate:g}", flush=True)
            chosen.setdefault(start, {})[activation] = {"rate": rate, "at_edge": rate in (rates[0], rates[-1])}
            for run in runs.values():
                rows += _rows(run.setting, run.history)
    with files.atomic(SEARCH) as made:
        made.mkdir()
        _write(made / "search.csv", rows)
        (made / "rates.json").write_text(json.dumps(chosen, indent=1) + "\n")


def best_rate(target: float, wanted: Search, runs: dict[float, Run]) -> float:
    """The rate of the fewest epochs to the target; of those that do not reach it in time, the lowest error at the end.

    All rates are tried for the first number of epochs, the best of them for the second.
    """
    trying = list(runs)
    for epochs, kept in zip(wanted.epochs, (wanted.kept, 1), strict=True):
        merits = {rate: _merit(target, runs[rate].advance(epochs)[: epochs + 1]) for rate in trying}
        trying = sorted(trying, key=lambda rate: merits[rate])[:kept]
    return trying[0]


def _merit(target: float, history: list[Epoch]) -> tuple[float, float]:
    """Less is better."""
    error = history[-1].training_error
    return reached(target, history), math.inf if math.isnan(error) else error


def curves() -> None:
    """Lets each activation learn at its rate with every seed."""
    training, wanted = params.read("training", Training), params.read("curves", Curves)
    searched = params.read("search", Search)
    if searched.seed in wanted.seeds:
        raise ValueError(f"curves.seeds: {searched.seed} is the seed that the rates were chosen with. Take others")
    rates = json.loads((SEARCH / "rates.json").read_text())
    make = _runs(training)
    rows: list[dict[str, Any]] = []
    for start in searched.rates:
        for seed in wanted.seeds:
            for activation in ACTIVATIONS:
                rate = rates[start][activation]["rate"]
                setting = Setting(start=start, activation=activation, rate=rate, seed=seed)
                rows += _rows(setting, make(setting).advance(wanted.most_epochs)[: wanted.most_epochs + 1])
    with files.atomic(CURVES) as made:
        _write(made, rows)


def figure() -> None:
    """Draws the curves, and says by what factor relu is faster."""
    training = params.read("training", Training)
    histories = read_curves(CURVES)
    rates = json.loads((SEARCH / "rates.json").read_text())
    numbers = {start: summary(training.target, histories[start]) | {"rates": rates[start]} for start in histories}
    with files.atomic(NUMBERS) as made:
        made.write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n")
    titles: dict[Start, str] = {
        "scaled": "first weights scaled for each",
        "original": "first weights and pixels as in 2012",
    }
    panels = {
        titles[start]: {
            f"{activation}, rate {rates[start][activation]['rate']:g}": [
                [row.training_error for row in history] for history in histories[start][activation].values()
            ]
            for activation in ACTIVATIONS
        }
        for start in histories
    }
    with files.atomic(FIGURE) as made:
        made.write_bytes(figures.relu_and_tanh(panels, training.target))
    for start, found in numbers.items():
        print(f"{start}: {found['factor']['training_error']['said']}")


def summary(target: float, histories: dict[Activation, dict[int, list[Epoch]]]) -> dict[str, Any]:
    """Epochs to the target for each activation and seed, and tanh's over relu's; null where the target was not reached."""
    found: dict[str, Any] = {"epochs": {}, "factor": {}}
    for name, count in (("training_error", reached), ("running_error", reached_running)):
        epochs = {
            activation: {seed: count(target, history) for seed, history in histories[activation].items()}
            for activation in ACTIVATIONS
        }
        pairs = [(epochs["relu"][seed], epochs["tanh"][seed]) for seed in epochs["relu"]]
        factors = [tanh / relu if math.isfinite(max(relu, tanh)) else math.inf for relu, tanh in pairs]
        known = [factor for factor in factors if math.isfinite(factor)]
        said = (
            f"tanh needs {_spread(known)} times relu's epochs" if len(known) > 1 else "too few came down for a factor"
        )
        if len(known) < len(factors):
            said += f"; {len(factors) - len(known)} of {len(factors)} pairs have a run that did not reach it"
        found["epochs"][name] = {
            activation: {str(seed): _finite(value) for seed, value in of_seeds.items()}
            for activation, of_seeds in epochs.items()
        }
        found["factor"][name] = {
            "of_seeds": [_finite(factor) for factor in factors],
            "mean": _finite(statistics.fmean(known)) if known else None,
            "std": _finite(statistics.stdev(known)) if len(known) > 1 else None,
            "said": said,
        }
    return found


def _spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f} (mean ± standard deviation, n = {len(values)})"


def _finite(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def _runs(training: Training) -> Callable[[Setting], Run]:
    """Reads the pictures, and gives what makes a run of a setting."""
    expected = params.read("pictures", Expected)
    pictures: Cifar = cifar.read(cifar.folder(), expected)
    if training.measured > len(pictures.labels_N):
        raise ValueError(f"training.measured: {training.measured} of {len(pictures.labels_N)} pictures cannot be had")
    torch.set_num_threads(1)  # then the same seed gives the same bits
    return lambda setting: Run(training, setting, pictures, expected.sha256, stage.WORK / "runs")


def _rows(setting: Setting, history: Iterable[Epoch]) -> list[dict[str, Any]]:
    return [asdict(setting) | {key: _rounded(value) for key, value in asdict(row).items()} for row in history]


def _rounded(value: float) -> float:
    return round(value, 6)


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    with file.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_curves(file: Path) -> dict[Start, dict[Activation, dict[int, list[Epoch]]]]:
    """The histories in a csv of `curves`, by start, activation and seed."""
    histories: dict[Any, dict[Any, dict[int, list[Epoch]]]] = {}
    with file.open(newline="") as handle:
        for row in csv.DictReader(handle):
            of_start = histories.setdefault(row["start"], {name: {} for name in ACTIVATIONS})
            history = of_start[row["activation"]].setdefault(int(row["seed"]), [])
            history.append(Epoch(int(row["epoch"]), float(row["running_error"]), float(row["training_error"])))
    return histories


STAGES = {"search": search, "curves": curves, "figure": figure}

if __name__ == "__main__":
    stage.main(sys.argv[1], STAGES[sys.argv[1]])
