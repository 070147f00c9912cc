"""The score table against hand computations, loops and another library: overall, by step and by group."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from utilsforecast import losses

from forecaster.errors import CovariateUnknown
from forecaster.evaluation.backtest import Backtest, backtest
from forecaster.evaluation.baselines import seasonal_naive, statistical_baseline
from forecaster.evaluation.calibration import add_quantiles, backtest_quantiles, calibrate_model, interval_coverage
from forecaster.evaluation.scores import SCORED_LEVELS, overall_scores, score_table, scores_by_step
from forecaster.metrics import DECILES, interval_width, weighted_quantile_loss
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.series import Panel, Series
from tests.factories import START, make_fitted_model, make_panel, make_spec, make_wave
from tests.forecaster.evaluation.test_backtest import RecordingPredictor, constant_forecast

SEASON, HORIZON, WINDOWS = 4, 5, 3


@pytest.fixture(scope="module")
def panel() -> Panel:
    """Ten series of two kinds and of different sizes, some with gaps."""
    series = []
    for index in range(10):
        y = (1 + index) * make_wave(60 + index, seed=index)
        if index % 3 == 0:
            y[[30, 51, 55, -2]] = np.nan
        series.append(Series(f"s{index}", START, "h", y, static={"kind": "odd" if index % 2 else "even"}))
    return Panel(series, "h")


@pytest.fixture(scope="module")
def calibrated_model(panel: Panel) -> FittedModel:
    history = Panel([series.take_first(len(series) - WINDOWS * HORIZON) for series in panel.series], "h")
    return calibrate_model(make_fitted_model(make_spec(horizon=HORIZON)), history, windows=2)


@pytest.fixture(scope="module")
def result(panel: Panel, calibrated_model: FittedModel) -> Backtest:
    forecasters = {
        "net": Predictor(calibrated_model),
        "seasonal_naive": seasonal_naive(SEASON),
        "naive2": statistical_baseline("naive2", season=SEASON),
    }
    result = backtest(panel, forecasters, horizon=HORIZON, windows=WINDOWS, season=SEASON, min_history=8)
    return add_quantiles(result, {"net": calibrated_model}, levels=SCORED_LEVELS)


@pytest.fixture(scope="module")
def table(result: Backtest) -> pd.DataFrame:
    return score_table(result, by="kind")


def select_score(
    table: pd.DataFrame, name: str, metric: str, *, group: str | None = None, step: int | None = None
) -> float:
    rows = table[(table["forecaster"] == name) & (table["metric"] == metric)]
    rows = rows[rows["group"].isna() if group is None else rows["group"] == group]
    rows = rows[rows["step"].isna() if step is None else rows["step"] == step]
    [value] = rows["value"]
    return float(value)


def select_series(result: Backtest, indices: list[int]) -> Backtest:
    """Returns the backtest of some of its series."""
    return replace(
        result,
        series=[result.series[row] for row in indices],
        cutoffs=[result.cutoffs[row] for row in indices],
        actual=result.actual[indices],
        forecasts={name: values[indices] for name, values in result.forecasts.items()},
        quantiles={name: values[indices] for name, values in result.quantiles.items()},
        scale=result.scale[indices],
        square_scale=result.square_scale[indices],
    )


def test_overall_scores_equal_those_of_the_backtest(result: Backtest, table: pd.DataFrame) -> None:
    for name in result.forecasts:
        for metric, expected in result.scores(name).items():
            assert select_score(table, name, metric) == pytest.approx(expected, rel=1e-12), (name, metric)


def test_scores_by_step_equal_those_of_the_backtest_and_of_each_step_alone(
    result: Backtest, table: pd.DataFrame
) -> None:
    np.testing.assert_allclose(scores_by_step(table, "net", "mase"), result.mase_by_step("net"), rtol=1e-12)
    for step in range(1, HORIZON + 1):
        single = replace(
            result,
            actual=result.actual[..., step - 1 : step],
            forecasts={name: values[..., step - 1 : step] for name, values in result.forecasts.items()},
            quantiles={name: values[..., step - 1 : step, :] for name, values in result.quantiles.items()},
        )
        scores = overall_scores(score_table(single))
        for metric in (
            "rmsse",
            "smape",
            "mae",
            "mse",
            "owa",
            "owa_naive2",
            "wql",
            "msis_95",
            "coverage_80",
            "width_95",
        ):
            assert select_score(table, "net", metric, step=step) == pytest.approx(scores["net"][metric], rel=1e-12), (
                metric
            )


def test_group_scores_equal_those_of_a_backtest_of_the_group(result: Backtest, table: pd.DataFrame) -> None:
    for group, first in (("even", 0), ("odd", 1)):
        single = score_table(select_series(result, list(range(first, 10, 2))))
        rows = table[table["group"] == group].reset_index(drop=True)
        expected = single[single["metric"] != "stand_ins"].reset_index(drop=True)
        assert rows["metric"].tolist() == expected["metric"].tolist()
        assert rows["step"].tolist() == expected["step"].tolist()
        np.testing.assert_allclose(rows["value"], expected["value"], rtol=1e-12)


def test_errors_equal_utilsforecast(result: Backtest) -> None:
    """With one window and no missing values, utilsforecast computes the same mean of means."""
    last_window = select_series(result, [1, 2, 4, 5])
    last_window = replace(
        last_window,
        actual=last_window.actual[:, -1:],
        forecasts={name: values[:, -1:] for name, values in last_window.forecasts.items()},
        quantiles={name: values[:, -1:] for name, values in last_window.quantiles.items()},
        cutoffs=[cutoffs[-1:] for cutoffs in last_window.cutoffs],
    )
    scores = overall_scores(score_table(last_window))["net"]
    frame = last_window.to_frame(levels=SCORED_LEVELS).drop(columns=["cutoff", "step"])
    history = pd.concat(
        [
            pd.DataFrame({"unique_id": series.id, "ds": series.timestamps, "y": series.y})[: -WINDOWS * HORIZON]
            for series in last_window.series
        ]
    )
    names = {f"net-{level:g}": f"net-{side}-{share}" for share, side, level in _interval_bounds()}
    frame = frame.rename(columns=names)
    for metric, reference in (
        ("mase", losses.mase(frame, ["net"], seasonality=SEASON, train_df=history)),
        ("rmsse", losses.rmsse(frame, ["net"], seasonality=SEASON, train_df=history)),
        ("mae", losses.mae(frame, ["net"])),
        ("mse", losses.mse(frame, ["net"])),
        ("coverage_80", losses.coverage(frame, ["net"], level=80)),
        ("coverage_95", losses.coverage(frame, ["net"], level=95)),
    ):
        assert scores[metric] == pytest.approx(reference["net"].mean(), rel=1e-9), metric
    assert scores["smape"] == pytest.approx(200 * losses.smape(frame, ["net"])["net"].mean(), rel=1e-9)


def _interval_bounds() -> list[tuple[int, str, float]]:
    return [(80, "lo", 0.1), (80, "hi", 0.9), (95, "lo", 0.025), (95, "hi", 0.975)]


def test_interval_scores_equal_their_metrics(
    result: Backtest, table: pd.DataFrame, calibrated_model: FittedModel
) -> None:
    assert result.comparable_mask().all()
    indices = [list(result.levels).index(level) for level in DECILES]
    quantile_losses = weighted_quantile_loss(result.actual, result.quantiles["net"][..., indices], np.array(DECILES))
    assert select_score(table, "net", "wql") == pytest.approx(float(quantile_losses.mean()), rel=1e-12)
    for share, coverage in interval_coverage(calibrated_model, result, "net", intervals=(0.8, 0.95)).items():
        assert select_score(table, "net", f"coverage_{round(100 * share)}") == pytest.approx(coverage, rel=1e-12)
    low, high = (result.quantiles["net"][..., list(result.levels).index(level)] for level in (0.1, 0.9))
    observed = np.isfinite(result.actual)
    widths = interval_width(
        np.where(observed, low, np.nan).reshape(10, -1), np.where(observed, high, np.nan).reshape(10, -1)
    )
    assert select_score(table, "net", "width_80") == pytest.approx(widths.mean(), rel=1e-12)
    assert {"wql", "msis_95"}.isdisjoint(overall_scores(table)["seasonal_naive"])


def test_msis_is_the_mean_over_series_of_scaled_interval_scores(result: Backtest, table: pd.DataFrame) -> None:
    low, high = (result.quantiles["net"][..., list(result.levels).index(level)] for level in (0.025, 0.975))
    by_series = []
    for row in range(len(result.series)):
        scores = []
        for window, step in np.ndindex(WINDOWS, HORIZON):
            y, lower, upper = (values[row, window, step] for values in (result.actual, low, high))
            if np.isfinite(y):
                scores.append(upper - lower + 2 / 0.05 * (max(lower - y, 0) + max(y - upper, 0)))
        by_series.append(np.mean(scores) / result.scale[row])
    assert select_score(table, "net", "msis_95") == pytest.approx(np.mean(by_series), rel=1e-12)
    assert select_score(table, "net", "msis_95", group="odd") == pytest.approx(np.mean(by_series[1::2]), rel=1e-12)


def test_msis_ignores_series_without_a_scale(result: Backtest) -> None:
    without_scale = replace(result, scale=np.where(np.arange(10) < 4, np.nan, result.scale))
    expected = overall_scores(score_table(select_series(result, list(range(4, 10)))))["net"]["msis_95"]
    assert overall_scores(score_table(without_scale))["net"]["msis_95"] == pytest.approx(expected, rel=1e-12)


def test_a_backtest_contains_the_predictor_quantiles_at_each_origin(
    result: Backtest, calibrated_model: FittedModel
) -> None:
    predictor, levels = Predictor(calibrated_model), (0.1, 0.5, 0.975)
    quantiles = backtest_quantiles(calibrated_model, result, "net", levels=levels)
    for row in (0, 1, 7):
        series = result.series[row]
        for window, offset in enumerate(result.origin_offsets):
            forecast_quantiles = predictor.forecast(
                series.take_first(len(series) - offset), HORIZON, levels=levels
            ).quantiles
            expected = np.stack([forecast_quantiles[level] for level in levels], axis=-1)
            np.testing.assert_allclose(quantiles[row, window], expected, rtol=1e-5, atol=1e-6)


def test_relative_scores_are_ratios_of_means() -> None:
    result = backtest(
        make_panel(make_wave(40), 3 * make_wave(40, seed=1)),
        {"one": constant_forecast(1.5), "seasonal_naive": seasonal_naive(24), "naive2": constant_forecast(2.0)},
        horizon=3,
        windows=2,
        season=24,
    )
    scores = overall_scores(score_table(result))
    model, seasonal, naive2 = scores["one"], scores["seasonal_naive"], scores["naive2"]
    assert model["skill_vs_snaive"] == pytest.approx(1 - model["mase"] / seasonal["mase"])
    assert model["owa"] == pytest.approx((model["mase"] / seasonal["mase"] + model["smape"] / seasonal["smape"]) / 2)
    assert model["owa_naive2"] == pytest.approx((model["mase"] / naive2["mase"] + model["smape"] / naive2["smape"]) / 2)
    assert (seasonal["owa"], seasonal["skill_vs_snaive"], naive2["owa_naive2"]) == (1.0, 0.0, 1.0)


def test_a_perfect_naive_forecast_gives_nan_relative_scores() -> None:
    panel = make_panel(np.resize([1.0, 2.0], 20))
    forecasters = {"one": constant_forecast(1.0), "seasonal_naive": seasonal_naive(2)}
    scores = overall_scores(score_table(backtest(panel, forecasters, horizon=2, windows=1, season=1)))["one"]
    assert np.isnan(scores["skill_vs_snaive"])
    assert np.isnan(scores["owa"])
    assert scores["mae"] == 0.5


def test_only_windows_forecast_by_all_predictors_are_scored_and_fallbacks_are_counted() -> None:
    panel = make_panel(make_wave(12), make_wave(12, seed=1))
    recorder = RecordingPredictor(("series_0", 10))
    result = backtest(panel, {"all": constant_forecast(1.0), "some": recorder}, horizon=2, windows=2, season=1)
    scores = overall_scores(score_table(result))
    assert scores["all"]["mae"] == pytest.approx(result.scores("all")["mae"])
    assert scores["all"]["stand_ins"] == 0
    assert scores["some"]["stand_ins"] == 1
    assert list(result.warnings["some"]) == ["No."]


def test_scores_round_trip_through_a_file(table: pd.DataFrame, tmp_path: Path) -> None:
    table.to_parquet(tmp_path / "scores.parquet", index=False)
    loaded = pd.read_parquet(tmp_path / "scores.parquet")
    assert list(loaded.columns) == ["forecaster", "metric", "group", "step", "value"]
    assert overall_scores(loaded)["net"] == overall_scores(table)["net"]
    table.to_csv(tmp_path / "scores.csv", index=False)
    from_csv = pd.read_csv(tmp_path / "scores.csv")
    assert from_csv["group"].isna().sum() == table["group"].isna().sum()
    assert from_csv["step"].dropna().astype(int).tolist() == table["step"].dropna().tolist()


def test_grouping_by_a_missing_column_is_rejected(result: Backtest) -> None:
    with pytest.raises(CovariateUnknown, match=r"'colour'.*series 's0' has none"):
        score_table(result, by="colour")


def test_the_frame_has_the_requested_quantiles_next_to_their_predictor(result: Backtest) -> None:
    frame = result.to_frame(levels=(0.1, 0.975))
    expected = ["unique_id", "cutoff", "ds", "step", "y", "net", "net-0.1", "net-0.975", "seasonal_naive", "naive2"]
    assert list(frame.columns) == expected
    index = list(result.levels).index(0.975)
    np.testing.assert_array_equal(frame["net-0.975"], result.quantiles["net"][..., index].ravel())
