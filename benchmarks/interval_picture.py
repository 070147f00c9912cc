"""Draws 80 % bands of m3_monthly before and after they fit each series: the best, a median and the worst series.

    python benchmarks/interval_picture.py     writes docs/pictures/intervals_before_after.png

Both rows have the point forecasts of the pretrained network for the last window. Before: residuals of three earlier windows in
units of the mean seasonal change, as in version 0.1. After: what `fit` does, the recalibrated quantiles of the network.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd

mpl.use("Agg")
import matplotlib.pyplot as plt

from forecaster.bundle.pretrained.base import specialize_base
from forecaster.data.frames.panel import to_panel
from forecaster.data.split import hold_out
from forecaster.evaluation.backtest import backtest
from forecaster.evaluation.calibration import backtest_quantiles, calibrate_model, choose_untrained_windows
from forecaster.intervals.conformal import calibrate
from forecaster.prediction.predictor import Predictor
from forecaster.series.history_summary import history_scale

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "pictures" / "intervals_before_after.png"
HORIZON, SEASON, WINDOWS, SHOWN_STEPS = 18, 12, 3, 48
LEVELS = (0.1, 0.9)


def main() -> None:
    """Draws the picture, and prints the loss and the coverage of both."""
    folder = next((path for path in (ROOT / "shared" / "data", ROOT.parent / "shared" / "data") if path.is_dir()), None)
    if folder is None:
        sys.exit("Expected the folder shared/data in or beside the checkout; found none. Put the data sets there.")
    panel = to_panel(pd.read_parquet(folder / "m3_monthly.parquet"), freq="MS")
    history = hold_out(panel, HORIZON, min_history=(WINDOWS + 2) * HORIZON).history
    panel = hold_out(panel, HORIZON, min_history=(WINDOWS + 2) * HORIZON).full
    model = specialize_base("MS", horizon=HORIZON, season=SEASON).to_fitted_model()
    earlier, result = (
        backtest(item, {"base": Predictor(model)}, horizon=HORIZON, windows=windows, season=SEASON)
        for item, windows in ((history, WINDOWS), (panel, 1))
    )
    scales = [
        [history_scale(item.y[: len(item) - offset], SEASON) for offset in earlier.origin_offsets]
        for item in earlier.series
    ]
    before = calibrate(earlier.actual - earlier.forecasts["base"], np.array(scales))
    units = np.array([history_scale(item.y, SEASON) for item in history.series])
    offsets = before.compute_offsets(LEVELS, horizon=HORIZON, scales=units)[:, None]
    windows, stride = choose_untrained_windows(history, horizon=HORIZON)
    calibrated = calibrate_model(model, history, windows=windows, stride=stride)
    bands = {
        "before: one scale for each history": result.forecasts["base"][..., None] + offsets,
        "after: the quantiles of each series and moment": backtest_quantiles(calibrated, result, "base", levels=LEVELS),
    }
    mase = np.nanmean(np.abs(result.actual - result.forecasts["base"]), axis=(1, 2)) / result.scale
    order = np.argsort(mase)
    chosen = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    figure, axes = plt.subplots(2, 3, figsize=(13, 6.5), sharex="col", sharey="col", layout="constrained")
    for row, (title, band) in zip(axes, bands.items(), strict=True):
        inside = (band[..., 0] <= result.actual) & (result.actual <= band[..., 1])
        widths = (band[..., 1] - band[..., 0]).mean(axis=(1, 2)) / result.scale
        print(f"{title}: coverage {100 * inside.mean():.1f} %, mean width {widths.mean():.2f} scales")
        for axis, (name, index) in zip(row, chosen.items(), strict=True):
            y, steps = result.series[index].y, np.arange(HORIZON)
            past = y[:-HORIZON][-SHOWN_STEPS:]
            axis.plot(np.arange(-len(past), 0), past, color="0.4", linewidth=1)
            axis.plot(steps, y[-HORIZON:], color="black", linewidth=1.4, label="actuals")
            axis.plot(steps, result.forecasts["base"][index, 0], color="tab:blue", label="forecast")
            axis.fill_between(steps, *band[index, 0].T, color="tab:blue", alpha=0.25, label="80 % interval")
            axis.set_title(f"{name}: {result.series[index].id}, MASE {mase[index]:.2f}", fontsize=10)
        row[0].set_ylabel(title, fontsize=9)
    axes[0, 0].legend(fontsize=8, loc="upper left")
    figure.savefig(PICTURE, dpi=90)
    print(f"wrote {PICTURE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
