"""Rolling-origin backtests: no forecaster sees the future, all predict the same windows, and scores equal hand computations."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.transforms import Bbox

from forecaster.errors import ForecasterError, HistoryTooShort
from forecaster.evaluation.backtest import Backtest, backtest, explain_missing_forecasts
from forecaster.evaluation.baselines import ForecastFunction, seasonal_naive
from forecaster.evaluation.plots import (
    ACTUAL_COLOR,
    FORECAST_COLOR,
    FORECASTER_COLORS,
    plot_best_and_worst,
    plot_calibration,
    plot_error_by_step,
    plot_forecast,
    plot_origins,
)
from forecaster.prediction.predictor import Predictor
from forecaster.series import Forecast, Panel, Series
from tests.factories import START, make_fitted_model, make_panel, make_series, make_spec, make_wave


def constant_forecast(value: float) -> ForecastFunction:
    def forecast(series: Sequence[Series], horizon: int) -> list[Forecast | ForecasterError]:
        return [Forecast(item.id, item.future_timestamps(horizon), np.full(horizon, value)) for item in series]

    return forecast


class RecordingPredictor:
    """Records the histories it gets, and fails on the given ids and lengths."""

    def __init__(self, *failing_ids: tuple[str, int]) -> None:
        self.failing_ids = failing_ids
        self.histories: list[tuple[str, list[float]]] = []

    def __call__(self, series: Sequence[Series], horizon: int) -> list[Forecast | ForecasterError]:
        self.histories += [(item.id, item.y.tolist()) for item in series]
        forecasts = constant_forecast(0.0)(series, horizon)
        return [
            HistoryTooShort("No.") if (item.id, len(item)) in self.failing_ids else forecast
            for item, forecast in zip(series, forecasts, strict=True)
        ]


def test_every_predictor_sees_only_the_history_before_the_cutoff() -> None:
    first, second = make_wave(20), make_wave(13, seed=1)
    recorders = {"one": RecordingPredictor(), "other": RecordingPredictor()}
    result = backtest(make_panel(first, second, make_wave(8)), recorders, horizon=3, windows=3, season=2, min_history=2)
    expected = [
        (f"series_{index}", y[: len(y) - offset].tolist())
        for index, y in ((0, first), (1, second))
        for offset in (9, 6, 3)
    ]
    assert recorders["one"].histories == recorders["other"].histories == expected
    assert list(result.excluded_ids) == ["series_2"]
    assert [list(timestamps) for timestamps in result.cutoffs] == [
        [item.timestamps[len(item) - offset - 1] for offset in (9, 6, 3)] for item in result.series
    ]
    assert result.actual[0].ravel().tolist() == first[-9:].tolist()
    assert result.actual[1].ravel().tolist() == second[-9:].tolist()


@pytest.mark.parametrize("stride", [1, 2, 7])
def test_origins_with_a_stride_are_cut_like_any_other(stride: int) -> None:
    y, recorder = make_wave(40), RecordingPredictor()
    result = backtest(
        make_panel(y, make_wave(20)), {"one": recorder}, horizon=3, windows=4, season=2, min_history=5, stride=stride
    )
    offsets = [3 + index * stride for index in (3, 2, 1, 0)]
    assert list(result.origin_offsets) == offsets
    assert list(result.excluded_ids) == ([] if offsets[0] + 5 <= 20 else ["series_1"])
    assert [history for name, history in recorder.histories if name == "series_0"] == [
        y[: 40 - offset].tolist() for offset in offsets
    ]
    for offset, actual, cutoff in zip(offsets, result.actual[0], result.cutoffs[0], strict=True):
        assert actual.tolist() == y[40 - offset : 43 - offset].tolist()
        assert cutoff == result.series[0].timestamps[39 - offset]
    first_history = y[: 40 - offsets[0]]
    assert result.scale[0] == pytest.approx(np.abs(first_history[2:] - first_history[:-2]).mean())
    frame = result.to_frame()
    assert frame.query("unique_id == 'series_0'")["y"].tolist() == result.actual[0].ravel().tolist()


@pytest.mark.parametrize("reads", ["window", "history"])
@pytest.mark.parametrize("stride", [None, 2])
def test_predicting_all_origins_at_once_equals_predicting_each_origin(reads: str, stride: int | None) -> None:
    predictor = Predictor(make_fitted_model(make_spec(cell="lstm", reads=reads)))
    gappy, late = make_wave(60), make_wave(44, seed=1)
    gappy[[20, 21, 50]] = np.nan
    late[:20] = np.nan
    forecasters = {"at once": predictor, "each": predictor.forecast_batch}
    result = backtest(
        make_panel(gappy, late, make_wave(30)),
        forecasters,
        horizon=5,
        windows=4,
        season=4,
        min_history=4,
        stride=stride,
    )
    assert np.isfinite(result.forecasts["each"]).all()
    np.testing.assert_allclose(result.forecasts["at once"], result.forecasts["each"], rtol=1e-5, atol=1e-6)


def tiny_backtest() -> Backtest:
    """Two series with two windows of two steps, small enough to score by hand."""
    first = np.array([1.0, 3.0, 2.0, 6.0, 4.0, 4.0, 0.0, 2.0])  # history: 1 3 2 6, differences 2 1 4
    second = np.array([5.0, 5.0, 7.0, 7.0, 9.0, np.nan, 1.0, 1.0])  # history: 5 5 7 7, differences 0 2 0
    return backtest(make_panel(first, second), {"two": constant_forecast(2.0)}, horizon=2, windows=2, season=1)


def test_scores_equal_those_computed_by_hand() -> None:
    result = tiny_backtest()
    assert result.scale.tolist() == pytest.approx([7 / 3, 2 / 3])
    assert result.square_scale.tolist() == pytest.approx([7.0, 4 / 3])
    scores = result.scores("two")
    # First series: errors 2 2 2 0; second series: 7, unobserved, 1 1.
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
    forecasters = {"all": constant_forecast(1.0), "some": RecordingPredictor(("series_0", 10))}
    result = backtest(panel, forecasters, horizon=2, windows=2, season=1)
    assert result.comparable_mask().tolist() == [[True, False], [True, True]]
    assert np.isnan(result.forecasts["some"][0, 1]).all()
    assert np.isfinite(result.forecasts["all"]).all()
    assert np.isnan(result.scaled_errors("all")[0, 1]).all()
    errors = np.abs(result.actual - 1.0)
    expected = (errors[0, 0].mean() / result.scale[0] + errors[1].mean() / result.scale[1]) / 2
    assert result.scores("all")["mase"] == pytest.approx(expected)


def test_series_without_a_scale_are_excluded_from_scaled_scores() -> None:
    flat = np.append(np.ones(8), [3.0, 4.0])
    single = backtest(make_panel(make_wave(10)), {"one": constant_forecast(1.0)}, horizon=2, windows=1, season=1)
    result = backtest(make_panel(make_wave(10), flat), {"one": constant_forecast(1.0)}, horizon=2, windows=1, season=1)
    assert np.isnan(result.scale[1])
    for name in ("mase", "rmsse"):
        assert result.scores("one")[name] == pytest.approx(single.scores("one")[name])
    assert result.scores("one")["mae"] == pytest.approx((single.scores("one")["mae"] + 2.5) / 2)


def test_the_backtest_frame_has_one_row_per_step() -> None:
    result = tiny_backtest()
    frame = result.to_frame()
    assert list(frame.columns) == ["unique_id", "cutoff", "ds", "step", "y", "two"]
    assert len(frame) == 8
    for row in frame.itertuples():
        series = result.series[int(row.unique_id[-1])]
        index = series.timestamps.get_loc(row.ds)
        assert index == series.timestamps.get_loc(row.cutoff) + row.step
        np.testing.assert_equal(row.y, series.y[index])
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
    predictor = Predictor(make_fitted_model(make_spec()))
    gappy = make_wave(60)
    gappy[50:53] = np.nan
    forecasters = {"net": predictor.forecast_batch, "seasonal_naive": seasonal_naive(24)}
    return backtest(make_panel(gappy, make_wave(40, seed=1)), forecasters, horizon=5, windows=3, season=4)


def test_plots_return_figures_and_leave_no_global_state(result: Backtest) -> None:
    predictor, history = Predictor(make_fitted_model(make_spec())), make_series(make_wave(30))
    forecast = predictor.forecast(history, 8)
    figures = [
        plot_forecast(history, forecast, title="one"),
        plot_forecast(history, forecast, actual=make_wave(8), title="one"),
        plot_origins(result, "net", series=1),
        plot_error_by_step(result),
    ]
    images = [to_png(figure) for figure in figures]
    assert len(set(images)) == len(images)
    blank = to_png(Figure(figsize=(10, 4)))
    for image in images:
        assert image.startswith(b"\x89PNG")
        assert len(image) > 2 * len(blank)
    assert mpl._pylab_helpers.Gcf.get_num_fig_managers() == 0


def text_boxes(figure: Figure) -> dict[str, Bbox]:
    """Returns the extents of the texts around the axes of a drawn figure, and of its legend."""
    [axes] = figure.axes
    low, high = axes.get_ylim()
    ticks = [label for label in axes.get_yticklabels() if low <= label.get_position()[1] <= high]
    texts = {"title": axes._left_title, "x": axes.xaxis.label, "y": axes.yaxis.label} | {
        "offset": axes.yaxis.get_offset_text(),
        **{f"tick {index}": label for index, label in enumerate(ticks)},
    }
    boxes = {name: text.get_window_extent() for name, text in texts.items() if text.get_text()}
    return boxes | {f"legend {index}": legend.get_window_extent() for index, legend in enumerate(figure.legends)}


def test_no_plot_text_is_cut_off_or_overlaps(result: Backtest) -> None:
    quantiles = {"net": np.repeat(result.forecasts["net"][..., None], 3, axis=-1)}
    with_quantiles = replace(result, levels=[0.1, 0.5, 0.9], quantiles=quantiles)
    figures = [plot_error_by_step(result), plot_origins(result, "net"), plot_calibration(with_quantiles)]
    history = make_series(make_wave(30))
    for values in (1e9 * history.y, 12345 + 1e-4 * history.y, -1e-7 * history.y):
        forecast = Forecast("one", history.future_timestamps(3), values[:3])
        figures.append(plot_forecast(replace(history, y=values), forecast, title="one"))
    offsets = 0
    for figure in figures:
        figure.savefig(BytesIO(), format="png")
        boxes = text_boxes(figure)
        offsets += "offset" in boxes
        union = Bbox.union([figure.bbox, *boxes.values()])
        np.testing.assert_allclose(union.extents, figure.bbox.extents)
        for (first_name, first_box), (second_name, second_box) in itertools.combinations(boxes.items(), 2):
            assert not first_box.overlaps(second_box), (first_name, second_name)
    assert offsets == 3


def test_a_plot_shows_the_given_numbers(result: Backtest) -> None:
    [axes] = plot_error_by_step(result).axes
    lines = {line.get_label(): np.asarray(line.get_ydata()) for line in axes.lines}
    np.testing.assert_array_equal(lines["net"], result.mase_by_step("net"))
    np.testing.assert_array_equal(lines["seasonal naive"], result.mase_by_step("seasonal_naive"))

    history = make_series(make_wave(30))
    forecast = Predictor(make_fitted_model(make_spec())).forecast(history, 8)
    [axes] = plot_forecast(history, forecast, actual=make_wave(8), title="one", history_steps=10).axes
    lines = {line.get_label(): np.asarray(line.get_ydata()) for line in axes.lines}
    np.testing.assert_array_equal(lines["history"], history.y[-10:])
    np.testing.assert_array_equal(lines["forecast"], np.append(history.y[-1], forecast.mean))
    np.testing.assert_array_equal(lines["actuals"], np.append(history.y[-1], make_wave(8)))


def test_a_legend_shows_intervals_as_dark_as_they_are_drawn() -> None:
    history = make_series(make_wave(30))
    quantiles = {level: np.full(2, 10 * level) for level in (0.025, 0.1, 0.9, 0.975)}
    forecast = Forecast(history.id, history.future_timestamps(2), np.full(2, 5.0), quantiles=quantiles)
    figure = plot_forecast(history, forecast, title="one")
    to_png(figure)  # places the legend
    [axes] = figure.axes
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["history", "95 % interval", "80 % interval", "forecast"]
    swatches = [patch for patch in legend.findobj(Patch) if patch is not legend.get_frame()]
    layers = Counter(round(patch.get_window_extent().x0) for patch in swatches)
    assert [layers[x] for x in sorted(layers)] == [1, 2]  # the 80 % interval is drawn over the 95 % interval


def test_axes_have_titles_and_a_color_has_one_meaning(result: Backtest) -> None:
    history = make_series(make_wave(30))
    forecast = Predictor(make_fitted_model(make_spec())).forecast(history, 8)
    integer_history = Series("numbers", 0, "1", make_wave(30))
    integer_forecast = Forecast("numbers", integer_history.future_timestamps(3), np.ones(3))
    figures = [
        plot_forecast(history, forecast, actual=make_wave(8), title="one"),
        plot_forecast(integer_history, integer_forecast, title="numbers"),
        plot_origins(result, "net"),
        plot_error_by_step(result),
    ]
    labels_by_color: dict[str, set[str]] = {}
    for figure in figures:
        [axes] = figure.axes
        assert axes.get_xlabel()
        assert axes.get_ylabel()
        for line in axes.lines:
            label = str(line.get_label())
            if not label.startswith("_"):
                labels_by_color.setdefault(str(line.get_color()), set()).add(label)
    assert labels_by_color.pop(FORECAST_COLOR) == {"forecast", "net"}
    assert all(len(labels) == 1 for labels in labels_by_color.values()), labels_by_color
    assert ACTUAL_COLOR not in FORECASTER_COLORS
    assert all(tick == round(tick) for tick in figures[1].axes[0].get_xticks()), "whole steps have whole ticks"


def test_forecasts_from_every_cutoff_are_drawn_at_their_timestamps(result: Backtest) -> None:
    [axes] = plot_origins(result, "net", series=1).axes
    lines = [np.asarray(line.get_ydata()) for line in axes.lines]
    for window in range(3):
        assert any(np.array_equal(line, result.forecasts["net"][1, window]) for line in lines)


def test_the_calibration_plot_shows_the_share_of_actuals_at_or_below_each_quantile(result: Backtest) -> None:
    levels = (0.1, 0.5, 0.9)
    bounds = result.forecasts["net"][..., None] + np.array([-0.2, 0.0, 0.3])
    [axes] = plot_calibration(replace(result, levels=levels, quantiles={"net": bounds})).axes
    lines = {line.get_label(): line for line in axes.lines}
    observed = np.isfinite(result.actual)
    expected = [float((result.actual <= bounds[..., index])[observed].mean()) for index in range(3)]
    np.testing.assert_array_equal(lines["net"].get_xdata(), levels)
    np.testing.assert_allclose(lines["net"].get_ydata(), expected)


@pytest.mark.parametrize(("series", "freq"), [(7, "h"), (2, "h"), (1, "h"), (3, "1")])
def test_the_best_and_worst_series_are_drawn_with_their_actuals(series: int, freq: str) -> None:
    start = 0 if freq == "1" else START
    panel = Panel([Series(f"s{n}", start, freq, (1 + n) + make_wave(40, seed=n)) for n in range(series)], freq)
    result = backtest(panel, {"net": constant_forecast(2.0)}, horizon=4, windows=2, season=5)
    bounds = result.forecasts["net"][..., None] + np.array([-0.2, 0.3])
    result = replace(result, levels=(0.1, 0.9), quantiles={"net": bounds})
    figure = plot_best_and_worst(result, "net")
    drawn_axes = [axes for axes in figure.axes if axes.lines]
    assert len(drawn_axes) == {7: 6, 3: 2, 2: 2, 1: 1}[series]
    order = np.argsort(result.scaled_errors("net").mean(axis=(1, 2)))
    for axes, label, index in (
        (drawn_axes[0], "best", order[0]),
        (drawn_axes[-1 if series < 4 else 3], "worst", order[-1]),
    ):
        if series == 1 and label == "worst":
            continue
        assert axes.get_title(loc="left").startswith(f"{label}: s{index}, MASE")
        lines = {line.get_label(): np.asarray(line.get_ydata()) for line in axes.lines}
        np.testing.assert_array_equal(lines["actuals"][1:], result.actual[index, -1])
        np.testing.assert_array_equal(lines["forecast"], result.forecasts["net"][index, -1])
        np.testing.assert_array_equal(lines["history"][-1], panel.series[index].y[-5])
        assert [band.get_label() for band in axes.collections] == ["80 % interval"]
    assert to_png(figure).startswith(b"\x89PNG")


def test_series_without_a_scale_give_a_figure_without_windows() -> None:
    result = backtest(make_panel(np.ones(10)), {"net": constant_forecast(2.0)}, horizon=2, windows=1, season=1)
    assert to_png(plot_best_and_worst(result, "net")).startswith(b"\x89PNG")


def test_the_reason_of_every_missing_forecast_is_given() -> None:
    good, infinite = make_wave(20), make_wave(20)
    infinite[3] = np.inf
    panel = Panel([Series("good", START, "h", good), Series("short", START, "h", good[:7]),
                   Series("infinite", START, "h", infinite)], "h")  # fmt: skip
    model = make_fitted_model(make_spec(min_history=6))
    result = backtest(panel, {"model": Predictor(model)}, horizon=2, windows=2, season=2)
    history_reason, value_reason = sorted(explain_missing_forecasts(result, "model", model))
    assert history_reason.startswith("a history has fewer than the 6 steps that it needs")
    assert value_reason == "a history holds invalid values (not_a_number) (1 of 3 series)"
    for fields, spec_fields, reason in (
        ({"freq": "D"}, {}, "the data have the frequency 'h', the model 'D' (3 of 3 series)"),
        ({}, {"channels": ["heat"], "decoder": "direct"}, "the data lack its channel 'heat' (2 of 3 series)"),
    ):
        other = replace(make_fitted_model(make_spec(**spec_fields)), **fields)
        other_result = backtest(panel, {"other": Predictor(other)}, horizon=2, windows=2, season=2)
        assert explain_missing_forecasts(other_result, "other", other)[0] == reason
    sound = backtest(Panel([panel.series[0]], "h"), {"model": Predictor(model)}, horizon=2, windows=2, season=2)
    diverged = replace(sound, forecasts={"model": np.full_like(sound.actual, np.nan)})
    assert explain_missing_forecasts(diverged, "model", model) == ["its forecast is not finite (1 of 1 series)"]
    assert explain_missing_forecasts(sound, "model", model) == []
