"""Coverage of calibrated intervals on a simulated process and on the last window of two real panels.

    python benchmarks/intervals.py        a few minutes on two cores

Writes benchmarks/results/coverage.md. The panel m3_monthly is read from `shared/data` beside (or in) the checkout, and skipped if
it is missing. All choices were made on windows before the last: see docs/decisions/0007-calibrated-intervals.md.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from forecaster.data.datasets import load_hospital
from forecaster.data.frames.panel import to_panel
from forecaster.data.split import hold_out, rolling_origins
from forecaster.evaluation.backtest import Backtest, backtest
from forecaster.evaluation.baselines import ForecastFunction, seasonal_naive
from forecaster.intervals.calibration import Calibration
from forecaster.intervals.conformal import calibrate
from forecaster.prediction.predictor import Predictor
from forecaster.series import Panel
from forecaster.series.history_summary import history_scale
from forecaster.spec import Spec
from forecaster.training.fit import fit
from pipelines.sources import read_spec

ROOT = Path(__file__).parent.parent
SEASON = 12
BOUNDS_BY_LEVEL = {0.8: (0.1, 0.9), 0.95: (0.025, 0.975)}
SEASONAL_NAIVE = "seasonal naive"
# Sizes of the simulation; with 199 calibration series, 200 times any bound is a whole rank.
CASE_COUNT, CALIBRATION_SERIES, HISTORY_LENGTH, SIMULATION_HORIZON = 1000, 199, 60, 12

# The best of contexts 15, 24 and 36 and of the scalings mean_abs and standard on the window before the last: MASE 1.037, where
# the seasonal naive forecast has 1.144.
M3_MONTHLY = {
    "name": "m3_monthly",
    "context": 24,
    "horizon": 18,
    "season": SEASON,
    "min_history": 12,
    "scaling": "standard",
    "network": {"cell": "gru", "hidden": 40},
    "training": {"steps": 2000, "epoch_steps": 100, "batch": 128, "learning_rate": 0.001, "patience": 8},
}


class IntervalStudy(NamedTuple):
    """A panel, the specification to fit, and the number of calibration windows before the last."""

    panel: Panel
    spec: Spec
    windows: int


class IntervalScore(NamedTuple):
    """Scores of an interval: share of actuals inside, and width in scales of the history (mean over series and steps)."""

    coverage: float
    width: float
    above: float  # share of actuals above the interval
    by_third: tuple[float, ...]  # coverage of the first, second and last third of the horizon


def main() -> None:
    """Runs all studies, prints the report and writes it to the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2, help="number of networks per panel")
    seeds = range(parser.parse_args().seeds)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)  # a small network gains nothing from two threads, and loses much on shared cores
    lines = [
        "# Coverage of calibrated intervals",
        "",
        f"`python benchmarks/intervals.py`, torch {torch.__version__}, CPU. No choice was made on the windows "
        "that are evaluated.",
    ]
    for line in report_lines(seeds):
        print(line, flush=True)
        lines.append(line)
    (ROOT / "benchmarks" / "results" / "coverage.md").write_text("\n".join([*lines, ""]))


def report_lines(seeds: range) -> Iterator[str]:
    """Yields the lines of the report as soon as they are computed."""
    yield from simulate_coverage(seed=0)
    panel = to_panel(load_hospital())
    studies = {"hospital": IntervalStudy(panel, read_spec(ROOT / "configs" / "hospital_small.yaml"), windows=2)}
    m3_panel = read_m3_monthly()
    if m3_panel is not None:
        studies["m3_monthly"] = IntervalStudy(m3_panel, Spec.parse(M3_MONTHLY, where="intervals.py"), windows=1)
    yield from evaluate_real_panels(studies, seeds)
    if m3_panel is None:
        yield "\nm3_monthly was skipped: shared/data in or beside the checkout has no m3_monthly.parquet (`unique_id, ds, y`)."
    yield from evaluate_by_year(panel)


# A simulated process


def simulate_coverage(*, seed: int) -> Iterator[str]:
    """Simulates independent cases, each with its own calibration, so that the number of hits is binomial."""
    draw, hits = np.random.default_rng(seed), {level: np.zeros(SIMULATION_HORIZON) for level in BOUNDS_BY_LEVEL}
    for _ in range(CASE_COUNT):
        errors, scales = simulate_process(draw)
        calibration = calibrate(errors[:-1, None], scales[:-1])
        for level, bounds in BOUNDS_BY_LEVEL.items():
            lower, upper = calibration.compute_offsets(bounds, horizon=SIMULATION_HORIZON, scales=scales[-1:])[0].T
            hits[level] += (lower <= errors[-1]) & (errors[-1] <= upper)
    steps = (1, 2, 3, 6, 9, 12)
    yield "\n## A simulated process"
    yield (
        f"\nAR(1) of 0.7 plus a season of {SEASON}, log-normal sizes of series, best forecast, scale measured on "
        f"{HISTORY_LENGTH} values; {CASE_COUNT} independent cases, each calibrated on {CALIBRATION_SERIES} other series; "
        f"seed {seed}.\n"
    )
    yield f"| interval | 99.9 % band | {' | '.join(f'step {step}' for step in steps)} | within |"
    yield "|---|---|" + "---|" * (len(steps) + 1)
    for level, count in hits.items():
        share, margin = count / CASE_COUNT, 3.29 * math.sqrt(level * (1 - level) / CASE_COUNT)
        inside = bool((np.abs(share - level) <= margin).all())
        cells = " | ".join(format_percent(share[step - 1]) for step in steps)
        band = f"{format_percent(level - margin)} to {format_percent(level + margin)}"
        yield f"| {level:.0%} | {band} | {cells} | {'all 12' if inside else 'no'} |"


def simulate_process(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns the errors of the best forecast (series by step) and the scales of the histories."""
    y = np.empty((CALIBRATION_SERIES + 1, HISTORY_LENGTH + SIMULATION_HORIZON))
    shocks = rng.standard_normal(y.shape)
    y[:, 0] = shocks[:, 0] / math.sqrt(1 - 0.7**2)
    for step in range(1, y.shape[1]):
        y[:, step] = 0.7 * y[:, step - 1] + shocks[:, step]
    phase = np.arange(y.shape[1]) + rng.integers(SEASON, size=(len(y), 1))
    season, size = 3 * np.sin(2 * np.pi * phase / SEASON), np.exp(rng.standard_normal((len(y), 1)))
    best = season[:, HISTORY_LENGTH:] + y[:, HISTORY_LENGTH - 1 : HISTORY_LENGTH] * 0.7 ** np.arange(
        1, SIMULATION_HORIZON + 1
    )
    series = size * (y + season)
    return series[:, HISTORY_LENGTH:] - size * best, np.array(
        [history_scale(row[:HISTORY_LENGTH], SEASON) for row in series]
    )


# Real panels


def evaluate_real_panels(studies: dict[str, IntervalStudy], seeds: range) -> Iterator[str]:
    """Evaluates the network and the seasonal naive forecast on the last window of each panel."""
    yield "\n## The last window of real panels"
    yield (
        "\nThe network is trained on the data before the calibration windows, calibrated on these and tested on the last window. "
        "*refitted*: the same calibration around a network trained on all data before the last window, which is what is served. "
        "Width: mean over series and steps, in scales of the history. In brackets: coverage by thirds of the horizon.\n"
    )
    yield "| panel | forecast | seed | MASE | 80 %: coverage | above | width | 95 %: coverage | above | width | seconds |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for name, study in studies.items():
        calibrating = cut_steps(study.panel, study.spec.horizon)
        naive = {SEASONAL_NAIVE: seasonal_naive(SEASON)}
        calibration = calibrate_backtest(backtest_windows(calibrating, study, naive, study.windows), SEASONAL_NAIVE)
        yield table_row(
            name, "seasonal naive", "", backtest_windows(study.panel, study, naive, 1), SEASONAL_NAIVE, calibration
        )
        for seed in seeds:
            spec = with_seed(study.spec, seed)
            started = time.monotonic()
            network = {"network": train_network(cut_steps(study.panel, (1 + study.windows) * spec.horizon), spec)}
            seconds = time.monotonic() - started
            calibration = calibrate_backtest(backtest_windows(calibrating, study, network, study.windows), "network")
            test = backtest_windows(study.panel, study, network, 1)
            yield table_row(name, "network", f"{seed}", test, "network", calibration, seconds=seconds)
            refitted = {"network": train_network(calibrating, spec)}
            yield table_row(
                name, "refitted", f"{seed}", backtest_windows(study.panel, study, refitted, 1), "network", calibration
            )
            if not seed:
                first_test = test, calibration
        for last_steps in (3 * SEASON, 2 * SEASON):
            label = f"network, scale of the last {last_steps} values alone"
            yield table_row(name, label, "0", first_test[0], "network", first_test[1], last_steps=last_steps)


def train_network(panel: Panel, spec: Spec) -> ForecastFunction:
    """Trains a network on the whole panel."""
    return Predictor(fit(panel, spec).model).forecast_batch


def backtest_windows(
    panel: Panel, study: IntervalStudy, predictors: dict[str, ForecastFunction], windows: int
) -> Backtest:
    """Backtests the last windows of a panel."""
    spec = study.spec
    return backtest(panel, predictors, horizon=spec.horizon, windows=windows, season=SEASON, min_history=spec.min_steps)


def cut_steps(panel: Panel, steps: int) -> Panel:
    """Removes the given number of steps from the end of each series."""
    return hold_out(panel, steps).history


def history_scales(result: Backtest, *, last_steps: int | None = None) -> np.ndarray:
    """Returns the scale of each history, or of its last values alone: series by window."""
    cuts = rolling_origins(windows=result.actual.shape[1], horizon=result.horizon)
    histories = [[series.y[: len(series) - cut_length] for cut_length in cuts] for series in result.series]
    return np.array(
        [
            [history_scale(y if last_steps is None else y[-last_steps:], SEASON) for y in row_histories]
            for row_histories in histories
        ]
    )


def calibrate_backtest(result: Backtest, name: str) -> Calibration:
    """Calibrates on all windows of a backtest."""
    return calibrate(result.actual - result.forecasts[name], history_scales(result))


def table_row(
    panel: str,
    label: str,
    seed: str,
    test: Backtest,
    name: str,
    calibration: Calibration,
    *,
    last_steps: int | None = None,
    seconds: float | None = None,
) -> str:
    """Formats a row of the table."""
    errors = (test.actual - test.forecasts[name])[:, -1]
    scales, unit = history_scales(test, last_steps=last_steps)[:, -1], history_scales(test)[:, -1]
    cells = []
    for bounds in BOUNDS_BY_LEVEL.values():
        lower, upper = np.moveaxis(calibration.compute_offsets(bounds, horizon=test.horizon, scales=scales), 2, 0)
        score = score_interval(errors, lower, upper, unit)
        thirds = ", ".join(format_percent(third) for third in score.by_third)
        cells.append(f"{format_percent(score.coverage)} ({thirds}) | {format_percent(score.above)} | {score.width:.2f}")
    seconds_cell = "" if seconds is None else f"{seconds:.0f}"
    return f"| {panel} | {label} | {seed} | {test.scores(name)['mase']:.3f} | {' | '.join(cells)} | {seconds_cell} |"


def score_interval(errors: np.ndarray, lower: np.ndarray, upper: np.ndarray, unit: np.ndarray) -> IntervalScore:
    """Computes coverage and width where the actual is observed."""
    observed, varying = np.isfinite(errors), unit > 0
    inside = np.where(observed, (lower <= errors) & (errors <= upper), np.nan)
    thirds = tuple(float(np.nanmean(third)) for third in np.array_split(inside, 3, axis=1))
    width = float(np.mean((upper - lower)[varying] / unit[varying, None]))
    return IntervalScore(float(np.nanmean(inside)), width, float((errors > upper)[observed].mean()), thirds)


def with_seed(spec: Spec, seed: int) -> Spec:
    """Returns the same specification with another seed."""
    fields = spec.model_dump()
    fields["training"]["seed"] = seed
    return Spec.parse(fields, where=spec.name)


def read_m3_monthly() -> Panel | None:
    """Reads the monthly series of the M3 competition; returns None if the file does not exist."""
    for folder in (ROOT, ROOT.parent):
        file = folder / "shared" / "data" / "m3_monthly.parquet"
        if file.exists():
            return to_panel(pd.read_parquet(file), freq="MS")
    return None


# Why the coverage of one window may be off


def evaluate_by_year(panel: Panel) -> Iterator[str]:
    """Evaluates the seasonal naive forecast on hospital: calibrated on one year and tested on the next, for all years."""
    years = len(panel.series[0]) // SEASON
    yield "\n## Years are not exchangeable"
    yield (
        "\nhospital, seasonal naive, 80 % interval calibrated on the errors of one year (all series) and tested on the next; "
        "without network and seed. Scales need two years of history.\n"
    )
    yield f"| | {' | '.join(f'year {year + 1}' for year in range(3, years))} |"
    yield "|---|" + "---|" * (years - 3)
    naive = {SEASONAL_NAIVE: seasonal_naive(SEASON)}
    result = backtest(panel, naive, horizon=SEASON, windows=years - 2, season=SEASON, min_history=2 * SEASON)
    errors, scales = result.actual - result.forecasts[SEASONAL_NAIVE], history_scales(result)
    coverage, spread = [], []
    for window in range(1, years - 2):
        calibration = calibrate(errors[:, window - 1 : window], scales[:, window - 1 : window])
        lower, upper = np.moveaxis(
            calibration.compute_offsets((0.1, 0.9), horizon=SEASON, scales=scales[:, window]), 2, 0
        )
        coverage.append(score_interval(errors[:, window], lower, upper, scales[:, window]).coverage)
        varying = scales[:, window] > 0
        spread.append(float(np.mean(np.abs(errors[varying, window]) / scales[varying, window, None])))
    yield f"| coverage | {' | '.join(format_percent(value) for value in coverage)} |"
    yield f"| mean absolute residual | {' | '.join(f'{value:.2f}' for value in spread)} |"


def format_percent(share: float) -> str:
    """Formats a share in percent with one decimal."""
    return f"{100 * share:.1f}"


if __name__ == "__main__":
    sys.exit(main())
