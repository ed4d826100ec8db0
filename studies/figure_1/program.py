"""Figure 1: the number of epochs to 25 % training error with relu and with tanh, each at its best learning rate (§3.1).

Run:    make study NAME=figure_1   (python -m studies figure_1)
Reads:  CIFAR-10 in the data store; a missing archive is fetched
Writes: work/studies/figure_1/: curves.csv, figure-1.json, figure-1.png, and the runs' checkpoints
Takes:  studies/figure_1/params.yaml: source, training, search, curves
Expect: 243 epochs of 10 seconds on one idle core; after a kill it resumes with the last epoch
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from alexnet import figures
from pipeline.runtime import documents, files, machines, params, stage
from pipeline.sources.cifar10 import Cifar10
from studies.figure_1 import pictures
from studies.figure_1.four_layers import (
    ACTIVATIONS,
    STARTS,
    Activation,
    Epoch,
    Run,
    Setting,
    Start,
    Training,
    epochs_to_target,
    epochs_to_target_running,
)

PARAMS = Path("studies/figure_1/params.yaml")
OUT = stage.WORK / "studies/figure_1"

Rates = dict[Start, dict[Activation, dict[str, Any]]]
"""Start → activation → the best `rate`, and whether it is `at_edge`, the smallest or largest of its grid."""

Histories = dict[Start, dict[Activation, dict[int, list[Epoch]]]]
"""Start → activation → seed → history."""

Row = dict[str, Any]

TITLES: dict[Start, str] = {
    "scaled": "first weights scaled for each",
    "original": "first weights and pixels as in 2012",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """params.yaml, `search:` — the search for the best learning rates."""

    seed: int
    """Seed of the runs of the search; it has to differ from the seeds of the reported runs."""
    epochs: tuple[int, int]
    """Number of epochs for all rates, and for the `kept` best of them."""
    kept: int
    """Number of rates that are trained for longer."""
    rates: dict[Start, tuple[float, ...]]
    """Start → ascending learning rates to try with both activations."""

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
    """Seeds; each activation is trained with each seed."""
    most_epochs: int
    """The most epochs of a run; a run above the target then counts as one that never reaches it."""

    def __post_init__(self) -> None:
        if len(self.seeds) < 2 or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds has to be two or more that differ, is {list(self.seeds)}")
        if self.most_epochs < 1:
            raise ValueError(f"most_epochs has to be at least 1, is {self.most_epochs}")


def main() -> None:
    """Searches for the rates, trains the reported runs, draws the figure, and prints by what factor relu is faster."""
    training, wanted = params.read("training", Training, PARAMS), params.read("search", Search, PARAMS)
    reported = params.read("curves", Curves, PARAMS)
    if wanted.seed in reported.seeds:
        raise ValueError(
            f"{PARAMS}: curves.seeds: {wanted.seed} is the seed that the rates are chosen with. Take others"
        )
    with stage.alone("figure_1"):
        make = _runs(training)
        rates, tried = search(training, wanted, make)
        rows = curves(rates, reported, make)
        numbers, figure = draw(training.target, rates, histories(rows))
        with files.atomic(OUT / "curves.csv") as made:
            _write(made, [*({"part": "search", **row} for row in tried), *({"part": "curves", **row} for row in rows)])
        with files.atomic(OUT / "figure-1.json") as made:
            made.write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n")
        with files.atomic(OUT / "figure-1.png") as made:
            made.write_bytes(figure)
    for start, of_start in numbers.items():
        print(f"{start}: {of_start['factor']['training_error']['said']}")
    print(f"figure_1: {OUT / 'figure-1.png'}")


def search(training: Training, wanted: Search, make: Callable[[Setting], Run]) -> tuple[Rates, list[Row]]:
    """Trains with each rate of the grid; returns the best rate for each start and activation, and the rows of all runs."""
    chosen: Rates = {}
    rows: list[Row] = []
    for start, rates in wanted.rates.items():
        for activation in ACTIVATIONS:
            settings = [Setting(start=start, activation=activation, rate=rate, seed=wanted.seed) for rate in rates]
            runs = {setting.rate: make(setting) for setting in settings}
            rate = best_rate(training.target, wanted, runs)
            print(f"{start} {activation}: the best rate is {rate:g}", flush=True)
            chosen.setdefault(start, {})[activation] = {"rate": rate, "at_edge": rate in (rates[0], rates[-1])}
            for run in runs.values():
                rows += _rows(run.setting, run.history)
    return chosen, rows


def best_rate(target: float, wanted: Search, runs: dict[float, Run]) -> float:
    """The rate with the fewest epochs to the target, or, if none reaches the target, with the lowest error at the end.

    All rates are trained for the first number of epochs, and the `kept` best of them for the second.
    """
    trying = list(runs)
    for epochs, kept in zip(wanted.epochs, (wanted.kept, 1), strict=True):
        merits = {rate: _merit(target, runs[rate].advance(epochs)[: epochs + 1]) for rate in trying}
        trying = sorted(trying, key=lambda rate: merits[rate])[:kept]
    return trying[0]


def _merit(target: float, history: list[Epoch]) -> tuple[float, float]:
    """Epochs to the target, then the last error; lower is better."""
    error = history[-1].training_error
    return epochs_to_target(target, history), math.inf if math.isnan(error) else error


def curves(rates: Rates, reported: Curves, make: Callable[[Setting], Run]) -> list[Row]:
    """Trains each activation at its rate with every seed; returns the rows of all runs."""
    rows: list[Row] = []
    for start, of_start in rates.items():
        for seed in reported.seeds:
            for activation in ACTIVATIONS:
                setting = Setting(start=start, activation=activation, rate=of_start[activation]["rate"], seed=seed)
                rows += _rows(setting, make(setting).advance(reported.most_epochs)[: reported.most_epochs + 1])
    return rows


def histories(rows: Iterable[Mapping[str, Any]]) -> Histories:
    """The histories in rows that `curves` returned, or that were read from a CSV file."""
    histories: Histories = {}
    for row in rows:
        of_start = histories.setdefault(row["start"], {name: {} for name in ACTIVATIONS})
        history = of_start[row["activation"]].setdefault(int(row["seed"]), [])
        history.append(Epoch(int(row["epoch"]), float(row["running_error"]), float(row["training_error"])))
    return histories


def draw(target: float, rates: Rates, histories: Histories) -> tuple[dict[Start, dict[str, Any]], bytes]:
    """The numbers for figure-1.json, and the figure as PNG."""
    numbers = {start: summary(target, histories[start]) | {"rates": rates[start]} for start in histories}
    panels = {
        TITLES[start]: {
            f"{activation}, rate {rates[start][activation]['rate']:g}": [
                [row.training_error for row in history] for history in histories[start][activation].values()
            ]
            for activation in ACTIVATIONS
        }
        for start in histories
    }
    return numbers, figures.relu_and_tanh(panels, target)


def summary(target: float, histories: dict[Activation, dict[int, list[Epoch]]]) -> dict[str, Any]:
    """Epochs to the target for each activation and seed, and the ratio tanh / relu; None where the target was not reached."""
    numbers: dict[str, Any] = {"epochs": {}, "factor": {}}
    for name, count in (("training_error", epochs_to_target), ("running_error", epochs_to_target_running)):
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
        numbers["epochs"][name] = {
            activation: {str(seed): _finite(value) for seed, value in of_seeds.items()}
            for activation, of_seeds in epochs.items()
        }
        numbers["factor"][name] = {
            "of_seeds": [_finite(factor) for factor in factors],
            "mean": _finite(statistics.fmean(known)) if known else None,
            "std": _finite(statistics.stdev(known)) if len(known) > 1 else None,
            "said": said,
        }
    return numbers


def _spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f} (mean ± standard deviation, n = {len(values)})"


def _finite(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def _runs(training: Training) -> Callable[[Setting], Run]:
    """Reads the pictures, and returns a function that makes the run of a setting."""
    source = params.read("source", Cifar10, PARAMS)
    cifar = pictures.read(source, machines.store(machines.read()))
    if training.measured > len(cifar.labels_N):
        raise ValueError(f"training.measured: {training.measured}, but there are {len(cifar.labels_N)} pictures")
    torch.set_num_threads(1)  # with one thread the same seed gives the same bits
    return lambda setting: Run(training, setting, cifar, OUT / "runs")


def _rows(setting: Setting, history: Iterable[Epoch]) -> list[Row]:
    return [asdict(setting) | {key: round(value, 6) for key, value in asdict(row).items()} for row in history]


def _write(file: Path, rows: list[Row]) -> None:
    documents.write_records(file, list(rows[0]), rows)
