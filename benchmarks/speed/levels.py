"""What two quantile levels add to the time of a forecast.

    python benchmarks/speed/levels.py     some seconds; writes benchmarks/results/levels.md

The same histories are forecast without levels and with the levels 0.1 and 0.9, in turn, on one thread; the ratio is that of the
smallest times. Series have 120 steps and a season of 24; the horizon is 12.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from forecaster.bundle.pretrained.base import specialize_base
from forecaster.data.encoding import EMPTY_ENCODING
from forecaster.evaluation.calibration import calibrate_model
from forecaster.model.regressor import build_network
from forecaster.prediction.fitted_model import FittedModel
from forecaster.prediction.predictor import Predictor
from forecaster.series import Panel, Series
from forecaster.spec import Spec

RESULT = Path(__file__).parents[1] / "results" / "levels.md"
STEPS, SEASON, HORIZON, SERIES, CALIBRATION_SERIES = 120, 24, 12, 1000, 100
LEVELS = (0.1, 0.9)
ROUNDS, REPEATS = 40, {1: 20, SERIES: 1}


def main() -> None:
    """Measures, and writes the table."""
    torch.set_num_threads(1)
    RESULT.write_text("\n".join(report_lines()) + "\n")
    print(RESULT.read_text())


def report_lines() -> Iterator[str]:
    """Yields the lines of the report."""
    yield "# The cost of two quantile levels"
    yield ""
    yield "`python benchmarks/speed/levels.py`: smallest CPU times of one thread, in milliseconds."
    yield ""
    yield "| model | series | without levels | with 0.1 and 0.9 | ratio |"
    yield "|---|---|---|---|---|"
    panel = make_panel()
    for name, model in build_models(panel).items():
        predictor = Predictor(model)
        for count in (1, SERIES):
            plain, with_levels = measure(predictor, panel.series[:count])
            yield f"| {name} | {count} | {1e3 * plain:.3f} | {1e3 * with_levels:.3f} | {with_levels / plain:.2f} |"


def make_panel() -> Panel:
    """Returns random walks."""
    rng = np.random.default_rng(0)
    start = pd.Timestamp("2026-01-01")
    return Panel(
        [Series(str(row), start, "h", 50 + np.cumsum(rng.standard_normal(STEPS))) for row in range(SERIES)], "h"
    )


def build_models(panel: Panel) -> dict[str, FittedModel]:
    """Returns the pretrained network, as it is and recalibrated, and a calibrated network of a preset's size."""
    base = specialize_base("h", horizon=HORIZON, season=SEASON).to_fitted_model()
    spec = Spec(
        name="levels", context=48, horizon=HORIZON, segment=3, decoder="direct", scaling="level_season", min_history=12
    )
    network = build_network(spec, seed=0, season=SEASON).eval()
    trained = FittedModel(spec, "h", SEASON, panel.series[0].end, EMPTY_ENCODING, network)
    few = Panel(panel.series[:CALIBRATION_SERIES], "h")
    return {
        "pretrained network": base,
        "pretrained network, recalibrated": calibrate_model(base, few, windows=3),
        "GRU of 64, direct": calibrate_model(trained, few, windows=3),
    }


def measure(predictor: Predictor, series: Sequence[Series]) -> tuple[float, float]:
    """Returns the smallest times of a forecast without levels and with two."""
    times: dict[tuple[float, ...], list[float]] = {(): [], LEVELS: []}
    repeats = REPEATS[len(series)]
    for _ in range(ROUNDS):
        for levels, measured in times.items():
            started = time.process_time()
            for _ in range(repeats):
                predictor.forecast_batch(series, HORIZON, levels=levels)
            measured.append((time.process_time() - started) / repeats)
    return min(times[()]), min(times[LEVELS])


if __name__ == "__main__":
    main()
