"""The classical exercise: one-step error after 200 iterations, and 40 steps past the end of training.

    python benchmarks/sine.py            five seeds of each cell, about a minute on two cores

Reads configs/sine.yaml, changes only cell and seed, and writes benchmarks/results/sine.md and sine.png.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from forecaster.data.datasets import sine_trend, sine_trend_at
from forecaster.data.frames import to_panel
from forecaster.data.windows import Tape
from forecaster.evaluation.plots import forecast_plot
from forecaster.predict import Forecaster, Predictor
from forecaster.series import Forecast, Panel
from forecaster.spec import Spec
from forecaster.training.fit import fit
from forecaster.training.module import shifted_mse
from pipelines.sources import read_spec

HERE = Path(__file__).parent
PUBLISHED = 0.0446  # one-step mean squared error of a published plain RNN on this series at iteration 200


class Result(NamedTuple):
    """One fit: errors in the units of the series."""

    one_step_mse: float  # over every window of [0, 30) and all its steps
    last_step_mse: float  # the same at the last step of the windows, where the whole context is known
    rollout_rmse: float
    forecast: Forecast


def main() -> None:
    """Runs the cells, prints the table, and draws the rollout of the median seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    spec, panel = read_spec(HERE.parent / "configs" / "sine.yaml"), to_panel(sine_trend())
    rows = [
        "| cell | one-step MSE at iteration 200: median (min to max) | at the last step of the window | "
        f"RMSE of {spec.horizon} steps past the end: median (min to max) |",
        "|---|---|---|---|",
    ]
    for cell in ("gru", "lstm", "elman"):
        results = [run(panel, with_cell(spec, cell, seed)) for seed in seeds]
        mse = [result.one_step_mse for result in results]
        rmse = [result.rollout_rmse for result in results]
        last = np.median([result.last_step_mse for result in results])
        rows.append(f"| {cell} | {spread(mse, 4)} | {last:.4f} | {spread(rmse, 2)} |")
        print(rows[-1], flush=True)
        if cell == "gru":
            draw(panel, sorted(results, key=lambda result: result.rollout_rmse)[len(results) // 2], spec)
    truth = future(panel, spec.horizon)
    text = "\n".join(
        [
            "# Sine with a trend",
            "",
            f"`python benchmarks/sine.py`: {len(seeds)} seeds of configs/sine.yaml ({spec.training.steps} iterations, "
            f"windows of {spec.context} steps, batch {spec.training.batch}, Adam {spec.training.learning_rate}, hidden "
            f"{spec.network.hidden}), torch {torch.__version__}, CPU. The published plain RNN has {PUBLISHED} at iteration "
            f"200; the truth past the end has a standard deviation of {truth.std():.2f}.",
            "",
            *rows,
            "",
            "![Rollout of the GRU with the median error](sine.png)",
            "",
        ]
    )
    (HERE / "results" / "sine.md").write_text(text)
    print(text)


def with_cell(spec: Spec, cell: str, seed: int) -> Spec:
    """The same specification with another cell and seed."""
    fields = spec.model_dump()
    fields["network"]["cell"], fields["training"]["seed"] = cell, seed
    return Spec.parse(fields, where="configs/sine.yaml")


def run(panel: Panel, spec: Spec) -> Result:
    """Fits, then scores every window and the rollout."""
    forecaster = fit(panel, spec).forecaster
    forecast = Predictor(forecaster).forecast(panel.series[0], spec.horizon)
    error = forecast.mean - future(panel, spec.horizon)
    whole, last = one_step(forecaster, panel)
    return Result(whole, last, float(np.sqrt(np.mean(error**2))), forecast)


def one_step(forecaster: Forecaster, panel: Panel) -> tuple[float, float]:
    """Mean squared one-step error over all windows: of all their steps, and of their last step."""
    spec, series = forecaster.spec, panel.series[0]
    assert spec.scaling == "none", "else the training loss is not in the units of the series"
    tape = Tape.record([series], lead=spec.context)
    windows = tape.cut(tape.first[0] + torch.arange(spec.context, len(series)), context=spec.context, horizon=1)
    with torch.inference_mode():
        whole = float(shifted_mse(forecaster.network, windows))
    histories = [series.until(cut) for cut in range(spec.context, len(series))]
    ahead = [outcome.mean[0] for outcome in Predictor(forecaster).forecast_each(histories, 1)]  # type: ignore[union-attr]
    return whole, float(np.mean((np.array(ahead) - series.y[spec.context :]) ** 2))


def future(panel: Panel, horizon: int) -> np.ndarray:
    """What the formula says past the end."""
    return sine_trend_at(0.1 * np.arange(len(panel.series[0]), len(panel.series[0]) + horizon))


def spread(values: list[float], digits: int) -> str:
    """Median and range."""
    return f"{np.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def draw(panel: Panel, result: Result, spec: Spec) -> None:
    """The rollout beside the truth."""
    title = f"GRU, {spec.horizon} steps past the end of training: RMSE {result.rollout_rmse:.2f}"
    figure = forecast_plot(panel.series[0], result.forecast, actual=future(panel, spec.horizon), title=title)
    figure.savefig(HERE / "results" / "sine.png")


if __name__ == "__main__":
    sys.exit(main())
