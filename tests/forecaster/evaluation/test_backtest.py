"""Rolling origins: nobody is shown the future, everyone is asked the same, and scores are what a hand comes to."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from forecaster.errors import ForecasterError, HistoryTooShort
from forecaster.evaluation.backtest import Backtest, backtest
from forecaster.evaluation.baselines import ForecastFunction, seasonal_naive
from forecaster.evaluation.plots import (
    plot_best_and_worst,
    plot_calibration,
    plot_error_by_step,
    plot_forecast,
    plot_origins,
)
from forecaster.prediction.predictor import Predictor
from forecaster.series import Forecast, Panel, Series
from tests.factories import START, make_forecaster, make_panel, make_series, make_spec, make_wave


def constant_forecast(value: float) -> ForecastFunction:
    def ask(series: Sequence[Series], horizon: int) -> list[Forecast | ForecasterError]:
        return [Forecast(one.id, one.future_timestamps(horizon), np.full(horizon, value)) for one in series]

    return ask


class RecordingPredictor:
    """Remembers what it was shown, and fails on the ids it is told to."""

    def __init__(self, *failing_ids: tuple[str, int]) -> None:
        self.fails = failing_ids
        self.shown: list[tuple[str, list[float]]] = []

    def __call__(self, series: Sequence[Series], horizon: int) -> list[Forecast | ForecasterError]:
        self.shown += [(one.id, one.y.tolist()) for one in series]
        good = constant_forecast(0.0)(series, horizon)
        return [
            HistoryTooShort("No.") if (one.id, len(one)) in self.fails else answer
            for one, answer in zip(series, good, strict=True)
        ]


def test_every_predictor_sees_only_the_history_before_the_cutoff() -> None:
    first, second = make_wave(20), make_wave(13, seed=1)
    spies = {"one": RecordingPredictor(), "other": RecordingPredictor()}
    result = backtest(make_panel(first, second, make_wave(8)), spies, horizon=3, windows=3, season=2, min_history=2)
    expected = [
        (f"series_{number}", y[: len(y) - left].tolist())
        for number, y in ((0, first), (1, second))
        for left in (9, 6, 3)
    ]
    assert spies["one"].shown == spies["other"].shown == expected
    assert list(result.excluded_ids) == ["series_2"]
    assert [list(stamps) for stamps in result.cutoffs] == [
        [one.timestamps[len(one) - left - 1] for left in (9, 6, 3)] for one in result.series
    ]
    assert result.actual[0].ravel().tolist() == first[-9:].tolist()
    assert result.actual[1].ravel().tolist() == second[-9:].tolist()


@pytest.mark.parametrize("stride", [1, 2, 7])
def test_origins_with_a_stride_are_cut_like_any_other(stride: int) -> None:
    y, spy = make_wave(40), RecordingPredictor()
    result = backtest(
        make_panel(y, make_wave(20)), {"one": spy}, horizon=3, windows=4, season=2, min_history=5, stride=stride
    )
    lefts = [3 + place * stride for place in (3, 2, 1, 0)]
    assert list(result.origin_offsets) == lefts
    assert list(result.excluded_ids) == ([] if lefts[0] + 5 <= 20 else ["series_1"])
    assert [shown for name, shown in spy.shown if name == "series_0"] == [y[: 40 - left].tolist() for left in lefts]
    for left, actual, cutoff in zip(lefts, result.actual[0], result.cutoffs[0], strict=True):
        assert actual.tolist() == y[40 - left : 43 - left].tolist()
        assert cutoff == result.series[0].timestamps[39 - left]
    known = y[: 40 - lefts[0]]
    assert result.scale[0] == pytest.approx(np.abs(known[2:] - known[:-2]).mean())
    frame = result.to_frame()
    assert frame.query("unique_id == 'series_0'")["y"].tolist() == result.actual[0].ravel().tolist()


@pytest.mark.parametrize("reads", ["window", "history"])
@pytest.mark.parametrize("stride", [None, 2])
def test_predicting_all_origins_at_once_equals_predicting_each_origin(reads: str, stride: int | None) -> None:
    predictor = Predictor(make_forecaster(make_spec(cell="lstm", reads=reads)))
    gappy, late = make_wave(60), make_wave(44, seed=1)
    gappy[[20, 21, 50]] = np.nan
    late[:20] = np.nan
    asks = {"at once": predictor, "each": predictor.forecast_batch}
    result = backtest(
        make_panel(gappy, late, make_wave(30)), asks, horizon=5, windows=4, season=4, min_history=4, stride=stride
    )
    assert np.isfinite(result.forecasts["each"]).all()
    np.testing.assert_allclose(result.forecasts["at once"], result.forecasts["each"], rtol=1e-5, atol=1e-6)


def tiny_backtest() -> Backtest:
    """Two series, two windows of two steps; everything is small enough to reckon by hand."""
    first = np.array([1.0, 3.0, 2.0, 6.0, 4.0, 4.0, 0.0, 2.0])  # known: 1 3 2 6, differences 2 1 4
    second = np.array([5.0, 5.0, 7.0, 7.0, 9.0, np.nan, 1.0, 1.0])  # known: 5 5 7 7, differences 0 2 0
    return backtest(make_panel(first, second), {"two": constant_forecast(2.0)}, horizon=2, windows=2, season=1)


def test_scores_equal_those_computed_by_hand() -> None:
    result = tiny_backtest()
    assert result.scale.tolist() == pytest.approx([7 / 3, 2 / 3])
    assert result.square_scale.tolist() == pytest.approx([7.0, 4 / 3])
    scores = result.scores("two")
    # First series: errors 2 2 2 0; second: 7, nothing, 1 1.
    assert scores["mae"] == pytest.approx((1.5 + 3) / 2)
    assert scores["mase"] == pytest.approx((1.5 / (7 / 3) + 3 / (2 / 3)) / 2)
    assert scores["rmsse"] == pytest.approx((np.sqrt(3 / 7) + np.sqrt(17 / (4 / 3))) / 2)
    first = 200 * (2 / 6 + 2 / 6 + 2 / 2 + 0) / 4
    second = 200 * (7 / 11 + 1 / 3 + 1 / 3) / 3
    assert scores["smape"] == pytest.approx((first + second) / 2)


def test_mase_by_step_averages_over_windows_then_series() -> None:
    first = np.array([(2 + 2) / 2, (2 + 0) / 2]) / (7 / 3)
    second = np.array([(7 + 1) / 2, 1]) / (2 / 3)
    assert tiny_backtest().mase_by_step("two").tolist() == pytest.approx(((first + second) / 2).tolist())


def test_a_window_missing_from_one_predictor_is_scored_for_none() -> None:
    panel = make_panel(make_wave(12), make_wave(12, seed=1))
    both = {"all": constant_forecast(1.0), "some": RecordingPredictor(("series_0", 10))}
    result = backtest(panel, both, horizon=2, windows=2, season=1)
    assert result.comparable_mask().tolist() == [[True, False], [True, True]]
    assert np.isnan(result.forecasts["some"][0, 1]).all()
    assert np.isfinite(result.forecasts["all"]).all()
    assert np.isnan(result.scaled_errors("all")[0, 1]).all()
    errors = np.abs(result.actual - 1.0)
    expected = (errors[0, 0].mean() / result.scale[0] + errors[1].mean() / result.scale[1]) / 2
    assert result.scores("all")["mase"] == pytest.approx(expected)


def test_series_without_a_scale_are_excluded_from_scaled_scores() -> None:
    flat = np.append(np.ones(8), [3.0, 4.0])
    alone = backtest(make_panel(make_wave(10)), {"one": constant_forecast(1.0)}, horizon=2, windows=1, season=1)
    result = backtest(make_panel(make_wave(10), flat), {"one": constant_forecast(1.0)}, horizon=2, windows=1, season=1)
    assert np.isnan(result.scale[1])
    for name in ("mase", "rmsse"):
        assert result.scores("one")[name] == pytest.approx(alone.scores("one")[name])
    assert result.scores("one")["mae"] == pytest.approx((alone.scores("one")["mae"] + 2.5) / 2)


def test_the_backtest_frame_has_one_row_per_step() -> None:
    result = tiny_backtest()
    frame = result.to_frame()
    assert list(frame.columns) == ["unique_id", "cutoff", "ds", "step", "y", "two"]
    assert len(frame) == 8
    for row in frame.itertuples():
        one = result.series[int(row.unique_id[-1])]
        place = one.timestamps.get_loc(row.ds)
        assert place == one.timestamps.get_loc(row.cutoff) + row.step
        np.testing.assert_equal(row.y, one.y[place])
        assert row.two == 2.0


def test_the_error_reports_when_no_series_is_long_enough() -> None:
    with pytest.raises(HistoryTooShort, match="Holding out 6 steps and keeping 3"):
        backtest(
            make_panel(make_wave(8)), {"one": constant_forecast(1.0)}, horizon=3, windows=2, season=1, min_history=3
        )


def to_png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=40)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def result() -> Backtest:
    predictor = Predictor(make_forecaster(make_spec()))
    gappy = make_wave(60)
    gappy[50:53] = np.nan
    asks = {"net": predictor.forecast_batch, "seasonal_naive": seasonal_naive(24)}
    return backtest(make_panel(gappy, make_wave(40, seed=1)), asks, horizon=5, windows=3, season=4)


def test_plots_return_figures_and_leave_no_global_state(result: Backtest) -> None:
    predictor, history = Predictor(make_forecaster(make_spec())), make_series(make_wave(30))
    forecast = predictor.forecast(history, 8)
    figures = [
        plot_forecast(history, forecast, title="one"),
        plot_forecast(history, forecast, actual=make_wave(8), title="one"),
        plot_origins(result, "net", series=1),
        plot_error_by_step(result),
    ]
    pictures = [to_png(figure) for figure in figures]
    assert len(set(pictures)) == len(pictures)
    blank = to_png(Figure(figsize=(10, 4)))
    for picture in pictures:
        assert picture.startswith(b"\x89PNG")
        assert len(picture) > 2 * len(blank)
    assert mpl._pylab_helpers.Gcf.get_num_fig_managers() == 0


def text_boxes(figure: Figure) -> dict[str, Bbox]:
    """Where the texts about the axes of a drawn figure are, and its legend."""
    [axes] = figure.axes
    low, high = axes.get_ylim()
    ticks = [label for label in axes.get_yticklabels() if low <= label.get_position()[1] <= high]
    texts = {"title": axes._left_title, "x": axes.xaxis.label, "y": axes.yaxis.label} | {
        "offset": axes.yaxis.get_offset_text(),
        **{f"tick {number}": label for number, label in enumerate(ticks)},
    }
    found = {name: text.get_window_extent() for name, text in texts.items() if text.get_text()}
    return found | {f"legend {number}": one.get_window_extent() for number, one in enumerate(figure.legends)}


def test_no_plot_text_is_cut_off_or_overlaps(result: Backtest) -> None:
    quantiles = {"net": np.repeat(result.forecasts["net"][..., None], 3, axis=-1)}
    told = replace(result, levels=[0.1, 0.5, 0.9], quantiles=quantiles)
    figures = [plot_error_by_step(result), plot_origins(result, "net"), plot_calibration(told)]
    history = make_series(make_wave(30))
    for values in (1e9 * history.y, 12345 + 1e-4 * history.y, -1e-7 * history.y):
        forecast = Forecast("one", history.future_timestamps(3), values[:3])
        figures.append(plot_forecast(replace(history, y=values), forecast, title="one"))
    offsets = 0
    for figure in figures:
        figure.savefig(BytesIO(), format="png")
        found = text_boxes(figure)
        offsets += "offset" in found
        whole = Bbox.union([figure.bbox, *found.values()])
        np.testing.assert_allclose(whole.extents, figure.bbox.extents)
        for (one, box), (other, another) in itertools.combinations(found.items(), 2):
            assert not box.overlaps(another), (one, other)
    assert offsets == 3


def test_a_plot_shows_the_given_numbers(result: Backtest) -> None:
    [axes] = plot_error_by_step(result).axes
    drawn = {line.get_label(): np.asarray(line.get_ydata()) for line in axes.lines}
    np.testing.assert_array_equal(drawn["net"], result.mase_by_step("net"))
    np.testing.assert_array_equal(drawn["seasonal naive"], result.mase_by_step("seasonal_naive"))

    history = make_series(make_wave(30))
    forecast = Predictor(make_forecaster(make_spec())).forecast(history, 8)
    [axes] = plot_forecast(history, forecast, actual=make_wave(8), title="one", history_steps=10).axes
    drawn = {line.get_label(): np.asarray(line.get_ydata()) for line in axes.lines}
    np.testing.assert_array_equal(drawn["history"], history.y[-10:])
    np.testing.assert_array_equal(drawn["forecast"], np.append(history.y[-1], forecast.mean))
    np.testing.assert_array_equal(drawn["actuals"], np.append(history.y[-1], make_wave(8)))


def test_forecasts_from_every_cutoff_are_drawn_at_their_timestamps(result: Backtest) -> None:
    [axes] = plot_origins(result, "net", series=1).axes
    lines = [np.asarray(line.get_ydata()) for line in axes.lines]
    for window in range(3):
        assert any(np.array_equal(line, result.forecasts["net"][1, window]) for line in lines)


def test_the_calibration_plot_shows_the_share_of_actuals_at_or_below_each_quantile(result: Backtest) -> None:
    levels = (0.1, 0.5, 0.9)
    bounds = result.forecasts["net"][..., None] + np.array([-0.2, 0.0, 0.3])
    [axes] = plot_calibration(replace(result, levels=levels, quantiles={"net": bounds})).axes
    drawn = {line.get_label(): line for line in axes.lines}
    seen = np.isfinite(result.actual)
    expected = [float((result.actual <= bounds[..., place])[seen].mean()) for place in range(3)]
    np.testing.assert_array_equal(drawn["net"].get_xdata(), levels)
    np.testing.assert_allclose(drawn["net"].get_ydata(), expected)


@pytest.mark.parametrize(("series", "freq"), [(7, "h"), (2, "h"), (1, "h"), (3, "1")])
def test_the_best_and_worst_series_are_drawn_with_their_actuals(series: int, freq: str) -> None:
    start = 0 if freq == "1" else START
    panel = Panel([Series(f"s{n}", start, freq, (1 + n) + make_wave(40, seed=n)) for n in range(series)], freq)
    result = backtest(panel, {"net": constant_forecast(2.0)}, horizon=4, windows=2, season=5)
    bounds = result.forecasts["net"][..., None] + np.array([-0.2, 0.3])
    result = replace(result, levels=(0.1, 0.9), quantiles={"net": bounds})
    figure = plot_best_and_worst(result, "net")
    drawn = [axes for axes in figure.axes if axes.lines]
    assert len(drawn) == {7: 6, 3: 2, 2: 2, 1: 1}[series]
    order = np.argsort(result.scaled_errors("net").mean(axis=(1, 2)))
    for axes, which, place in ((drawn[0], "best", order[0]), (drawn[-1 if series < 4 else 3], "worst", order[-1])):
        if series == 1 and which == "worst":
            continue
        assert axes.get_title(loc="left").startswith(f"{which}: s{place}, MASE")
        lines = {line.get_label(): np.asarray(line.get_ydata()) for line in axes.lines}
        np.testing.assert_array_equal(lines["actuals"][1:], result.actual[place, -1])
        np.testing.assert_array_equal(lines["forecast"], result.forecasts["net"][place, -1])
        np.testing.assert_array_equal(lines["history"][-1], panel.series[place].y[-5])
        assert [one.get_label() for one in axes.collections] == ["80 % interval"]
    assert to_png(figure).startswith(b"\x89PNG")


def test_series_without_a_scale_give_a_figure_without_windows() -> None:
    result = backtest(make_panel(np.ones(10)), {"net": constant_forecast(2.0)}, horizon=2, windows=1, season=1)
    assert to_png(plot_best_and_worst(result, "net")).startswith(b"\x89PNG")
