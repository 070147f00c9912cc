"""Networks with a running scale, seasonal features and a mixture of simple forecasts, trained on one panel from random weights.

    python benchmarks/running_scale.py               three seeds of each row, about a minute on a free core
    python benchmarks/running_scale.py --selection   the same on the windows before the last; no file is written

Reads hospital (which ships with the project) and m3_monthly from `shared/data` beside (or in) the checkout. Each network is
trained once on all data before the test window, for a fixed number of steps, and then forecasts that window twice: from the last
`context` steps, and from the whole history with the state and the scale carried. Writes benchmarks/results/running_scale.md.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parent))
from carrying import with_reads

from forecaster.data.datasets import load_hospital
from forecaster.data.frames.panel import to_panel
from forecaster.data.split import hold_out
from forecaster.evaluation.backtest import backtest
from forecaster.evaluation.baselines import ForecastFunction, seasonal_naive
from forecaster.prediction.predictor import Predictor
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.training.fit import fit

ROOT = Path(__file__).parent.parent
SEASON, SEEDS = 12, (0, 1, 2)
TRAINING = {
    "steps": 300,
    "epoch_steps": 100,
    "batch": 32,
    "learning_rate": 2e-3,
    "schedule": "cosine",
    "average": 0.98,
    "origins": 10,
    "valid_windows": 0,
}
RUNNING: dict[str, Any] = {
    "context": 96,
    "segment": 3,
    "min_history": 6,
    "decoder": "direct",
    "scaling": "running",
    "features": "seasonal",
    "base": "mixture",
    "head": {"kind": "quantile"},
    "network": {"cell": "lstm", "layers": 2, "hidden": 48, "residual": True},
    "training": TRAINING,
}
# By label: what is left out. All rows have the same network, windows and optimiser steps.
VARIANTS: dict[str, dict[str, Any]] = {
    "running scale, seasonal features, mixture": {},
    "untrained (one step)": {"training": TRAINING | {"steps": 1}},
    "values of segments and lag 12 instead of seasonal features": {"features": "values", "lags": (12,)},
}


class RunningResult(NamedTuple):
    """MASE on one window by how the history is read, and CPU seconds of the training."""

    window: float
    history: float
    naive: float
    seconds: float


def measure_variant(panel: Panel, fields: dict[str, Any], *, horizon: int, seed: int) -> RunningResult:
    """Trains on all but the last window of a panel, and scores the forecasts of that window."""
    train = hold_out(panel, horizon, min_history=2).history
    spec_fields = {"name": "running", "horizon": horizon, **RUNNING, **fields}
    spec_fields["training"] = {**spec_fields["training"], "seed": seed}
    started = time.process_time()
    model = fit(train, Spec.parse(spec_fields, where="running_scale.py"), accelerator="cpu").model
    seconds = time.process_time() - started
    forecasters: dict[str, ForecastFunction | Predictor] = {
        "window": Predictor(model),
        "history": Predictor(with_reads(model, "history")),
        "naive": seasonal_naive(SEASON),
    }
    result = backtest(panel, forecasters, horizon=horizon, windows=1, season=SEASON, min_history=2)
    return RunningResult(*(result.scores(name)["mase"] for name in forecasters), seconds)


def report_lines(panels: dict[str, tuple[Panel, int]]) -> Iterator[str]:
    """Yields the lines of the report as soon as they are computed."""
    yield "# Running scale, seasonal features and a mixture of simple forecasts"
    yield f"\n`python benchmarks/running_scale.py`, torch {torch.__version__}, CPU, one thread; seeds 0 to {SEEDS[-1]}.\n"
    yield (
        "MASE on the last window, mean over seeds (range). *Window*: read from the last 96 steps; *carried*: the same weights, "
        "read from the start of the history. CPU seconds are those of the training."
    )
    yield "\n| data | network | seasonal naive | window | carried | CPU s |\n|---|---|---|---|---|---|"
    for name, (panel, horizon) in panels.items():
        for label, fields in VARIANTS.items():
            results = [measure_variant(panel, fields, horizon=horizon, seed=seed) for seed in SEEDS]
            window, history, naive, seconds = (np.array(values) for values in zip(*results, strict=True))
            cells = [f"{values.mean():.3f} ({values.min():.3f} to {values.max():.3f})" for values in (window, history)]
            yield f"| {name} | {label} | {naive[0]:.3f} | {' | '.join(cells)} | {seconds.mean():.1f} |"


def main() -> None:
    """Measures all rows, prints the report and writes it to the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--selection", action="store_true", help="score the windows before the last")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    panels = {"hospital": (to_panel(load_hospital()), 12)}
    folder = next((path for path in (ROOT / "shared" / "data", ROOT.parent / "shared" / "data") if path.is_dir()), None)
    if folder is None:
        print("shared/data is missing: m3_monthly is skipped", file=sys.stderr)
    else:
        panels["m3_monthly"] = to_panel(pd.read_parquet(folder / "m3_monthly.parquet"), freq="MS"), 18
    if options.selection:
        panels = {
            name: (hold_out(panel, horizon, min_history=2).history, horizon)
            for name, (panel, horizon) in panels.items()
        }
    lines = []
    for line in report_lines(panels):
        print(line, flush=True)
        lines.append(line)
    if not options.selection:
        (ROOT / "benchmarks" / "results" / "running_scale.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
