"""Figures of intervals: what they draw are the numbers of their tables and the values of the backtest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.collections import FillBetweenPolyCollection
from scipy import stats

from forecaster.evaluation.backtest import Backtest, backtest
from forecaster.evaluation.interval_plots import plot_interval_bands, plot_reliability
from forecaster.evaluation.interval_reliability import central_shares, coverage_by_share
from forecaster.evaluation.scores import SCORED_LEVELS
from forecaster.metrics import winkler_score
from forecaster.series import Panel, Series
from tests.factories import START, make_wave
from tests.forecaster.evaluation.test_backtest import constant_forecast, to_png
from tests.forecaster.evaluation.test_interval_reliability import simulate_backtest

HORIZON = 4


def make_result(*, series: int, freq: str = "h") -> Backtest:
    """Returns a backtest of two windows with Gaussian quantiles around a constant forecast."""
    start = 0 if freq == "1" else START
    panel = Panel([Series(f"s{n}", start, freq, (1 + n) + make_wave(40, seed=n)) for n in range(series)], freq)
    result = backtest(panel, {"net": constant_forecast(2.0)}, horizon=HORIZON, windows=2, season=5)
    quantiles = result.forecasts["net"][..., None] + stats.norm.ppf(SCORED_LEVELS)
    return replace(result, levels=SCORED_LEVELS, quantiles={"net": quantiles})


def test_the_coverage_by_share_is_that_of_each_interval_and_widths_are_means_over_series() -> None:
    result = make_result(series=5)
    actual = result.actual.copy()
    actual[0, 0, 1:] = np.nan
    result = replace(result, actual=actual)
    table = coverage_by_share(result, "net").set_index("share")
    assert table.index.tolist() == central_shares(SCORED_LEVELS) == [0.2, 0.4, 0.6, 0.8, 0.95]
    for share in (0.2, 0.95):
        half = stats.norm.ppf((1 + share) / 2)
        inside = np.abs(actual - 2.0)[np.isfinite(actual)] <= half
        assert table.loc[share, "coverage"] == pytest.approx(inside.mean())
        assert table.loc[share, "n"] == np.isfinite(actual).sum()
        assert table.loc[share, "width"] == pytest.approx(np.mean(2 * half / result.scale))
        assert table.loc[share, "coverage_lo"] <= table.loc[share, "coverage"] <= table.loc[share, "coverage_hi"]
    assert central_shares([0.1, 0.5]) == []


def test_calibrated_intervals_are_on_the_diagonal_and_wide_ones_above_it() -> None:
    result = simulate_backtest(calibrated=True)
    wide = replace(result, quantiles={"net": 10 + 2 * (result.quantiles["net"] - 10)})
    for share, coverage in coverage_by_share(result, "net")[["share", "coverage"]].to_numpy():
        assert coverage == pytest.approx(share, abs=0.02)
    assert (coverage_by_share(wide, "net").eval("coverage_lo - share") > 0).all()


def test_the_reliability_diagram_draws_coverage_and_width_of_every_forecaster() -> None:
    result = make_result(series=5)
    result = replace(result, quantiles={"net": result.quantiles["net"], "wide": 2 * result.quantiles["net"] - 2})
    left, right = plot_reliability(result).axes
    for name in ("net", "wide"):
        table = coverage_by_share(result, name)
        [container] = [item for item in left.containers if item.get_label() == name]
        np.testing.assert_allclose(container[0].get_ydata(), table["coverage"])
        [line] = [line for line in right.lines if line.get_label() == name]
        np.testing.assert_allclose(line.get_xdata(), table["share"])
        np.testing.assert_allclose(line.get_ydata(), table["width"])
    diagonal = next(line for line in left.lines if line.get_label() == "reliable")
    np.testing.assert_array_equal(diagonal.get_xdata(), diagonal.get_ydata())


@pytest.mark.parametrize(("series", "freq", "labels"), [(6, "h", 3), (3, "1", 3), (2, "h", 2), (1, "h", 1)])
def test_best_median_and_worst_bands_are_drawn_with_their_actuals(series: int, freq: str, labels: int) -> None:
    result = make_result(series=series, freq=freq)
    low, high = (np.asarray(result.quantiles["net"])[:, -1, :, SCORED_LEVELS.index(level)] for level in (0.025, 0.975))
    scores = winkler_score(result.actual[:, -1], low, high, level=0.95).mean(axis=1) / result.scale
    order = np.argsort(scores)
    figure = plot_interval_bands(result, "net")
    assert len(figure.axes) == labels
    best, worst = order[0], order[-1]
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    if series > 1:
        assert titles[0] == f"best: s{best}, MSIS {scores[best]:.3g}"
        assert titles[-1] == f"worst: s{worst}, MSIS {scores[worst]:.3g}"
    else:
        assert titles == [f"s0, MSIS {scores[0]:.3g}"]
    if series > 2:
        median = order[(series - 1) // 2]
        assert titles[1] == f"median: s{median}, MSIS {scores[median]:.3g}"
    lines = {line.get_label(): np.asarray(line.get_ydata()) for line in figure.axes[-1].lines}
    np.testing.assert_array_equal(lines["actuals"][1:], result.actual[worst, -1])
    np.testing.assert_array_equal(lines["forecast"], result.forecasts["net"][worst, -1])
    bands = [item for item in figure.axes[-1].collections if isinstance(item, FillBetweenPolyCollection)]
    assert [band.get_label() for band in bands] == ["95 % interval", "80 % interval"]
    heights = [np.ptp(band.get_paths()[0].vertices[:, 1]) for band in bands]
    np.testing.assert_allclose(heights, [2 * stats.norm.ppf(0.975), 2 * stats.norm.ppf(0.9)])
    assert to_png(figure).startswith(b"\x89PNG")


def test_figures_without_a_scale_or_an_actual_are_drawn_all_the_same() -> None:
    result = make_result(series=3)
    unscaled = replace(result, scale=np.full(3, np.nan))
    assert "interval score" in plot_interval_bands(unscaled, "net").axes[0].get_title(loc="left")
    unobserved = replace(result, actual=np.full_like(result.actual, np.nan))
    assert plot_interval_bands(unobserved, "net").axes[0].get_title(loc="left") == "without actuals: s0"
    for item in (unscaled, unobserved):
        assert to_png(plot_reliability(item)).startswith(b"\x89PNG")
