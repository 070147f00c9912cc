"""Effect of known-future covariates, of a past-only channel, and of shuffled ones, on day-ahead demand forecasts.

    python benchmarks/covariates.py             about four minutes on a free core
    python benchmarks/covariates.py --choose    how the configuration was selected: the candidates on the days before the test

Reads vic_elec.parquet from `shared/data` beside (or in) the checkout, and exits with a message if it is missing. Writes
benchmarks/results/covariates.md.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from forecaster.data.frames.panel import to_panel
from forecaster.data.split import hold_out
from forecaster.evaluation.backtest import backtest
from forecaster.evaluation.baselines import ForecastFunction, seasonal_naive
from forecaster.prediction.predictor import Predictor
from forecaster.series import Panel, Series
from forecaster.spec import Spec
from forecaster.training.fit import fit

ROOT = Path(__file__).parent.parent
ZONE = "Australia/Melbourne"
STEPS_PER_DAY, STEPS_PER_WEEK = 48, 336
TEST_DAYS, VALIDATION_DAYS = 14, 28  # the last days are the test; the days before them select the epoch
CALENDAR = ("hour", "weekday", "yearday")
WEATHER_COLUMNS, MEASURED_COLUMNS = ("temperature", "holiday"), ("temperature",)
SHUFFLE_SEED = 2024  # seed of the shuffled order of days

CANDIDATES: dict[str, dict[str, Any]] = {
    f"segment {segment}, season {season}": {"segment": segment, "season": season}
    for segment in (12, STEPS_PER_DAY)
    for season in (STEPS_PER_DAY, STEPS_PER_WEEK)
}
CHOSEN_CANDIDATE = "segment 12, season 48"


class Variant(NamedTuple):
    """The inputs of a network besides the demand itself."""

    calendar: tuple[str, ...] = ()
    covariates: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    shuffled: bool = False


VARIANTS = {
    "no covariates": Variant(),
    "calendar": Variant(CALENDAR),
    "temperature and holiday": Variant((), WEATHER_COLUMNS),
    "temperature and holiday, days shuffled": Variant((), WEATHER_COLUMNS, shuffled=True),
    "calendar, temperature and holiday": Variant(CALENDAR, WEATHER_COLUMNS),
    "temperature as a channel": Variant(channels=MEASURED_COLUMNS),
    "temperature as a channel, days shuffled": Variant(channels=MEASURED_COLUMNS, shuffled=True),
}


def main() -> None:
    """Runs all variants, prints the report and writes it to the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="number of networks per variant")
    parser.add_argument("--choose", action="store_true", help="only compare the candidates on the validation days")
    options = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)  # a small network gains nothing from two threads, and loses much on shared cores
    panel = read_vic_elec()
    if panel is None:
        sys.exit(
            "Expected vic_elec.parquet (`unique_id, ds, y, temperature, holiday`) in shared/data in or beside the checkout; "
            "found none. Put the file there."
        )
    if options.choose:
        for line in choose_candidate(panel):
            print(line, flush=True)
        return
    lines = []
    for line in report_lines(panel, range(options.seeds)):
        print(line, flush=True)
        lines.append(line)
    (ROOT / "benchmarks" / "results" / "covariates.md").write_text("\n".join([*lines, ""]))


def report_lines(panel: Panel, seeds: range) -> Iterator[str]:
    """Yields the lines of the report as soon as they are computed."""
    series = panel.series[0]
    first = series.timestamps[-TEST_DAYS * STEPS_PER_DAY]
    yield "# Known-future covariates, and a channel"
    yield (
        f"\n`python benchmarks/covariates.py`, torch {torch.__version__}, CPU, one thread; seeds {seeds[0]} to {seeds[-1]}, days "
        f"shuffled with seed {SHUFFLE_SEED}.\n"
    )
    yield (
        f"Half-hourly electricity demand of Victoria, {series.start:%Y-%m-%d} to {series.end:%Y-%m-%d}, in local time of {ZONE}. "
        f"Every model predicts {STEPS_PER_DAY} steps from the same {TEST_DAYS} midnights, {first:%Y-%m-%d} to "
        f"{series.end:%Y-%m-%d}, and was trained without the demand of these days; the {VALIDATION_DAYS} days "
        "before them selected the epoch and the "
        f"configuration ({CHOSEN_CANDIDATE}: the lowest mean over the variants, `--choose`). MASE with a season of "
        f"{STEPS_PER_DAY}. *Shuffled*: the same numbers with whole days in another order, in training and in the test. "
        "Temperatures are the measured ones, so these forecasts assume a perfect weather forecast; *as a channel*, they assume "
        "none, and only the temperatures up to the midnight are observed.\n"
    )
    yield f"| model | {' | '.join(f'MASE, seed {seed}' for seed in seeds)} | mean | on the validation days | CPU seconds |"
    yield "|---|" + "---|" * (len(seeds) + 3)
    for name, season in {"seasonal naive, a day": STEPS_PER_DAY, "seasonal naive, a week": STEPS_PER_WEEK}.items():
        test, valid = (
            mase_by_day(data, seasonal_naive(season), days).mean() for data, days in test_and_validation(panel)
        )
        yield f"| {name} | {'| ' * len(seeds)}{test:.3f} | {valid:.3f} | |"
    scores_by_variant = {}
    for name, variant in VARIANTS.items():
        variant_panel = shuffle_days(panel) if variant.shuffled else panel
        started = time.process_time()
        predictors = [
            train_network(variant_panel, make_spec(CANDIDATES[CHOSEN_CANDIDATE], variant, seed=seed)) for seed in seeds
        ]
        seconds = time.process_time() - started
        test, valid = (
            np.stack([mase_by_day(data, predict, days) for predict in predictors])
            for data, days in test_and_validation(variant_panel)
        )
        scores_by_variant[name] = test
        cells = " | ".join(f"{score:.3f}" for score in test.mean(axis=1))
        yield f"| {name} | {cells} | {test.mean():.3f} | {valid.mean():.3f} | {seconds:.0f} |"
    yield "\nDifference to the network without covariates, day by day, mean of the seeds:\n"
    baseline = scores_by_variant.pop("no covariates").mean(axis=0)
    for name, test in scores_by_variant.items():
        change = test.mean(axis=0) - baseline
        yield (
            f"- {name}: MASE {change.mean():+.3f} ({100 * change.mean() / baseline.mean():+.0f} %), better on "
            f"{(change < 0).sum()} of {TEST_DAYS} days; standard error over days {change.std(ddof=1) / np.sqrt(TEST_DAYS):.3f}."
        )


def choose_candidate(panel: Panel) -> Iterator[str]:
    """Yields the MASE of every candidate on the days before the test, seed 0."""
    variants = [name for name, variant in VARIANTS.items() if not variant.shuffled and not variant.channels]
    yield f"| candidate | {' | '.join(variants)} | mean | CPU seconds |"
    yield "|---|" + "---|" * (len(variants) + 2)
    data, days = list(test_and_validation(panel))[1]
    for candidate, fields in CANDIDATES.items():
        started = time.process_time()
        scores = [
            mase_by_day(data, train_network(panel, make_spec(fields, VARIANTS[name], seed=0)), days).mean()
            for name in variants
        ]
        cells = " | ".join(f"{score:.3f}" for score in scores)
        yield f"| {candidate} | {cells} | {np.mean(scores):.3f} | {time.process_time() - started:.0f} |"


def make_spec(fields: dict[str, Any], variant: Variant, *, seed: int) -> Spec:
    """Returns the specification of a candidate with the inputs of a variant."""
    defaults = {
        "name": "vic_elec",
        "context": STEPS_PER_WEEK,
        "horizon": STEPS_PER_DAY,
        "decoder": "direct",
        "base": "seasonal_naive",
        "scaling": "standard",
        "head": {"kind": "point", "loss": "mae"},
        "calendar": variant.calendar,
        "covariates": variant.covariates,
        "channels": variant.channels,
        "network": {"cell": "gru", "hidden": 64},
        "training": {
            "steps": 800,
            "epoch_steps": 50,
            "batch": 64,
            "learning_rate": 0.003,
            "valid_windows": VALIDATION_DAYS,
            "seed": seed,
        },
    }
    return Spec.parse(defaults | fields, where="covariates.py")


def train_network(panel: Panel, spec: Spec) -> ForecastFunction:
    """Trains a network on all data before the test."""
    return Predictor(
        fit(hold_out(panel, TEST_DAYS * STEPS_PER_DAY).history, spec, accelerator="cpu").model
    ).forecast_batch


def test_and_validation(panel: Panel) -> Iterator[tuple[Panel, int]]:
    """Yields the panel and the number of evaluated days at its end: first the test, then the validation days."""
    yield panel, TEST_DAYS
    yield hold_out(panel, TEST_DAYS * STEPS_PER_DAY).history, VALIDATION_DAYS


def mase_by_day(panel: Panel, predict: ForecastFunction, days: int) -> np.ndarray:
    """Returns the MASE of each of the last days of a panel, each forecast from its midnight."""
    result = backtest(panel, {"model": predict}, horizon=STEPS_PER_DAY, windows=days, season=STEPS_PER_DAY)
    errors: np.ndarray = result.scaled_errors("model")[0].mean(axis=1)
    return errors


def shuffle_days(panel: Panel) -> Panel:
    """Returns the panel with the covariates of whole days (48 steps from the first midnight) in another order."""
    [series] = panel.series
    days = len(series) // STEPS_PER_DAY
    order = np.random.default_rng(SHUFFLE_SEED).permutation(days)
    steps = (order[:, None] * STEPS_PER_DAY + np.arange(STEPS_PER_DAY)).ravel()
    covariates = {
        name: np.append(values[steps], values[days * STEPS_PER_DAY :]) for name, values in series.covariates.items()
    }
    return replace(panel, series=[add_channels(replace(series, covariates=covariates))])


def add_channels(series: Series) -> Series:
    """Returns the series with its temperatures as a channel too."""
    return replace(series, channels={name: series.covariates[name][: len(series)] for name in MEASURED_COLUMNS})


def read_vic_elec() -> Panel | None:
    """Reads the panel; returns None if the file does not exist."""
    for folder in (ROOT, ROOT.parent):
        file = folder / "shared" / "data" / "vic_elec.parquet"
        if file.exists():
            frame = pd.read_parquet(file)
            frame["ds"] = frame["ds"].dt.tz_localize("UTC")
            panel = to_panel(frame, freq="30min", zone=ZONE, covariates=WEATHER_COLUMNS)
            return replace(panel, series=[add_channels(series) for series in panel.series])
    return None


if __name__ == "__main__":
    sys.exit(main())
