"""Time of a backtest at every cutoff: from windows, from one pass over the history, and from cut histories.

    python benchmarks/speed/origins.py      half a minute; on a quiet machine

One series of 2000 points, 500 cutoffs one step apart, 24 steps ahead, networks with random weights. Rounds are interleaved, so
that other load on the machine affects all variants alike. Writes benchmarks/results/origins.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from forecaster.data.encoding import EMPTY_ENCODING
from forecaster.evaluation.backtest import backtest
from forecaster.evaluation.rolling_origins import forecast_all_origins
from forecaster.model.regressor import build_network
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.series import Panel, Series
from forecaster.spec import Spec

RESULTS = Path(__file__).parent.parent / "results" / "origins.md"
STEPS, HORIZON, CONTEXT, SEASON = 2000, 24, 96, 24
NETWORKS = {"LSTM 64 x 1": {"cell": "lstm", "hidden": 64}, "GRU 64 x 1": {"cell": "gru", "hidden": 64}}


def main() -> None:
    """Measures, prints and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--origins", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines = [
        "# Every cutoff of a series",
        "",
        f"`python benchmarks/speed/origins.py`, torch {torch.__version__}, CPU, {options.threads} thread(s). One series of "
        f"{STEPS} points, {options.origins} cutoffs one step apart, {HORIZON} steps ahead, context {CONTEXT}; the best of "
        f"{options.rounds} interleaved rounds (median), milliseconds for all cutoffs together. *Carried* reads the history "
        "once; *windows* reads a window for each cutoff, all of them as rows of one batch; *cut* passes every history to "
        "`Predictor.forecast_batch`, as a caller of the library would. The last column is the largest difference between "
        "*windows* and *cut*, divided by the range of the series.",
        "",
        "| network | carried | windows | cut | windows vs cut |",
        "|---|---|---|---|---|",
    ]
    for name, network in NETWORKS.items():
        lines.append(table_row(name, network, origins=options.origins, rounds=options.rounds))
    for line in lines:
        print(line)
    RESULTS.write_text("\n".join([*lines, ""]))


def table_row(name: str, network: dict[str, object], *, origins: int, rounds: int) -> str:
    """Measures one network and formats its row."""
    series = make_series()
    carried, windowed = (make_predictor(network, reads=reads) for reads in ("history", "window"))
    variants: dict[str, Callable[[], np.ndarray]] = {
        "carried": lambda: forecast_all_origins(carried, [series], horizon=HORIZON, windows=origins, stride=1),
        "windows": lambda: forecast_all_origins(windowed, [series], horizon=HORIZON, windows=origins, stride=1),
        "cut": lambda: backtest_cut_histories(windowed, series, origins),
    }
    forecasts = {variant: forecast() for variant, forecast in variants.items()}  # also the warm-up
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    for _ in range(rounds):
        for variant, forecast in variants.items():
            started = time.perf_counter()
            forecast()
            seconds[variant].append(time.perf_counter() - started)
    cells = [f"{1000 * min(times):.1f} ({1000 * np.median(times):.1f})" for times in seconds.values()]
    difference = np.abs(forecasts["windows"] - forecasts["cut"]).max() / np.ptp(series.y)
    return f"| {name} | {' | '.join(cells)} | {difference:.1e} |"


def backtest_cut_histories(windowed: Predictor, series: Series, origins: int) -> np.ndarray:
    """Forecasts from every history separately."""
    panel = Panel([series], "h")
    predictors = {"model": windowed.forecast_batch}
    return backtest(panel, predictors, horizon=HORIZON, windows=origins, season=SEASON, stride=1).forecasts["model"]


def make_series() -> Series:
    """Returns a daily cycle with noise."""
    clock = np.arange(STEPS)
    y = np.sin(2 * np.pi * clock / SEASON) + 0.1 * np.random.default_rng(0).normal(size=STEPS)
    return Series("a", pd.Timestamp("2026-01-01"), "h", y)


def make_predictor(network: dict[str, object], *, reads: str) -> Predictor:
    """Returns a predictor of a network with random weights."""
    fields = {
        "name": "speed",
        "context": CONTEXT,
        "horizon": HORIZON,
        "season": SEASON,
        "reads": reads,
        "network": network,
    }
    spec = Spec.parse(fields, where="origins.py")
    return Predictor(
        FittedModel(spec, "h", SEASON, pd.Timestamp("2026-01-01"), EMPTY_ENCODING, build_network(spec, seed=0))
    )


if __name__ == "__main__":
    sys.exit(main())
