"""Tests of models with integer timestamps, from the frame to the forecast: only the timestamps differ from those with dates."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

from forecaster.bundle import artifact
from forecaster.data.frames.panel import to_frame, to_panel
from forecaster.data.summary import summarize_panel
from forecaster.errors import BadSpec, BadStamp, FrequencyMismatch
from forecaster.evaluation.backtest import backtest
from forecaster.evaluation.baselines import seasonal_naive
from forecaster.evaluation.calibration import calibrate_model
from forecaster.evaluation.plots import plot_forecast, plot_origins
from forecaster.frequency.timestamps import MAX_INTEGER_TIMESTAMP
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.series import Forecast, Panel, Series
from forecaster.training.fit import fit
from tests.factories import make_spec, make_wave

SPEC = make_spec(training={"steps": 4, "epoch_steps": 2, "batch": 8, "valid_windows": 2})
FIRST, STEP, STEPS = 100, 10, 60


def make_frame(*, dated: bool) -> pd.DataFrame:
    hours = pd.date_range("2026-01-01", periods=STEPS, freq="h")
    integers = FIRST + STEP * np.arange(STEPS)
    return pd.concat(
        pd.DataFrame({"unique_id": name, "ds": hours if dated else integers, "y": make_wave(STEPS, seed=seed)})
        for seed, name in enumerate("abc")
    )


class PanelAndModel(NamedTuple):
    panel: Panel
    model: FittedModel


def fit_small_model(*, dated: bool) -> PanelAndModel:
    panel = to_panel(make_frame(dated=dated))
    fitted_model = fit(panel, SPEC, accelerator="cpu").model
    return PanelAndModel(panel, calibrate_model(fitted_model, panel, windows=2))


@pytest.fixture(scope="module")
def integer_case() -> PanelAndModel:
    return fit_small_model(dated=False)


@pytest.fixture(scope="module")
def dated_case() -> PanelAndModel:
    return fit_small_model(dated=True)


def test_integer_steps_give_the_same_forecasts_as_dates_with_integer_timestamps(
    integer_case: PanelAndModel, dated_case: PanelAndModel
) -> None:
    assert (integer_case.panel.freq, dated_case.panel.freq) == ("10", "h")
    assert integer_case.model.cutoff == integer_case.panel.cutoff == FIRST + STEP * (STEPS - 1)
    outcomes, expected_outcomes = (
        Predictor(case.model).forecast_batch(case.panel.series, 7, levels=[0.1, 0.9])
        for case in (integer_case, dated_case)
    )
    for forecast, expected in zip(outcomes, expected_outcomes, strict=True):
        assert isinstance(forecast, Forecast)
        assert isinstance(expected, Forecast)
        np.testing.assert_array_equal(forecast.mean, expected.mean)
        np.testing.assert_array_equal(forecast.quantiles[0.9], expected.quantiles[0.9])
        assert list(forecast.ds) == [FIRST + STEP * (STEPS + step) for step in range(7)]
        assert forecast.ds.dtype == np.int64


def test_a_bundle_with_integer_steps_is_saved_verified_and_loaded(integer_case: PanelAndModel, tmp_path: Path) -> None:
    digest = artifact.save_bundle(integer_case.model, tmp_path / "bundle", card="# numbered\n")
    manifest = artifact.read_manifest(tmp_path / "bundle")
    assert (manifest.freq, manifest.cutoff) == ("10", "690")
    loaded = artifact.load_bundle(tmp_path / "bundle")
    assert (loaded.freq, loaded.cutoff, type(loaded.cutoff)) == ("10", 690, int)
    series = integer_case.panel.series[0]
    forecast, expected = Predictor(loaded).forecast(series, 5), Predictor(integer_case.model).forecast(series, 5)
    np.testing.assert_array_equal(forecast.mean, expected.mean)
    assert forecast.ds.equals(expected.ds)
    assert artifact.save_bundle(loaded, tmp_path / "copy", card="# numbered\n") == digest


@pytest.mark.parametrize(
    ("start", "freq"), [(pd.Timestamp("2026-01-01"), "h"), (0, "1"), (0, "20"), (pd.Timestamp("2026-01-01"), "10min")]
)
def test_a_series_of_another_frequency_is_rejected_without_affecting_others(
    integer_case: PanelAndModel, start: pd.Timestamp | int, freq: str
) -> None:
    good = integer_case.panel.series[0]
    error, forecast = Predictor(integer_case.model).forecast_batch([Series("other", start, freq, good.y), good], 3)
    assert isinstance(error, FrequencyMismatch)
    assert "needs '10'" in error.message
    assert isinstance(forecast, Forecast)


def test_integer_timestamps_are_rejected_by_a_model_of_dates(
    integer_case: PanelAndModel, dated_case: PanelAndModel
) -> None:
    [outcome] = Predictor(dated_case.model).forecast_batch(integer_case.panel.series[:1], 3)
    assert isinstance(outcome, FrequencyMismatch)


@pytest.mark.parametrize("dated", [False, True])
def test_a_forecast_beyond_the_last_timestamp_is_rejected_without_affecting_others(
    integer_case: PanelAndModel, dated_case: PanelAndModel, dated: bool
) -> None:
    case = dated_case if dated else integer_case
    good = case.panel.series[0].take_first(8)
    start = pd.Timestamp("9999-12-31T16:00") if dated else MAX_INTEGER_TIMESTAMP - 10 * 8
    last = Series("last", start, good.freq, good.y)
    forecast, error = Predictor(case.model).forecast_batch([good, last], 3, levels=[0.9])
    assert isinstance(forecast, Forecast)
    assert isinstance(error, BadStamp)
    with pytest.raises(BadStamp):
        Predictor(case.model).forecast(last, 3)


def test_a_backtest_with_integer_steps_has_integer_timestamps(integer_case: PanelAndModel) -> None:
    forecasters = {"model": Predictor(integer_case.model).forecast_batch, "naive": seasonal_naive(4)}
    result = backtest(integer_case.panel, forecasters, horizon=5, windows=2, season=4)
    assert [list(cutoffs) for cutoffs in result.cutoffs] == [[590, 640]] * 3
    table = result.to_frame()
    assert (table["ds"].dtype, table["cutoff"].dtype) == (np.int64, np.int64)
    assert table["ds"].tolist() == list(range(600, 700, 10)) * 3
    values = to_frame(integer_case.panel).set_index(["unique_id", "ds"])["y"]
    np.testing.assert_array_equal(values.loc[list(zip(table["unique_id"], table["ds"], strict=True))], table["y"])
    figure = plot_origins(result, "model")
    assert [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_linestyle() == ":"] == [590.0, 640.0]
    figure.savefig(BytesIO())


def test_a_forecast_with_integer_steps_is_plotted_at_its_timestamps(integer_case: PanelAndModel) -> None:
    series = integer_case.panel.series[0]
    forecast = Predictor(integer_case.model).forecast(series, 4, levels=[0.1, 0.9])
    figure = plot_forecast(series, forecast, actual=np.ones(4), title="numbers", history_steps=20)
    [forecast_line] = [line for line in figure.axes[0].lines if line.get_label() == "forecast"]
    assert list(forecast_line.get_xdata()) == [690, 700, 710, 720, 730]
    figure.savefig(BytesIO())


def test_an_integer_panel_round_trips_through_a_frame_and_is_summarised(integer_case: PanelAndModel) -> None:
    copy = to_panel(to_frame(integer_case.panel))
    assert copy.digest == integer_case.panel.digest
    summary = summarize_panel(integer_case.panel)
    assert (summary.freq, summary.zone, summary.start, summary.end) == ("10", None, 100, 690)
    assert (summary.suggested_season, summary.suggested_horizon) == (1, 6)


def test_covariates_with_integer_steps_extend_into_the_future() -> None:
    y = np.append(np.arange(10.0), [np.nan] * 3)
    frame = pd.DataFrame({"unique_id": "a", "ds": np.arange(13), "y": y, "heat": np.arange(13.0)})
    panel = to_panel(frame, covariates=("heat",))
    assert (len(panel.series[0]), panel.series[0].covariate_horizon, panel.cutoff) == (10, 3, 9)
    assert to_frame(panel)["ds"].tolist() == list(range(13))


def test_the_season_of_integer_steps_defaults_to_one() -> None:
    panel = to_panel(make_frame(dated=False))
    spec = make_spec(season=None, training={"steps": 1, "epoch_steps": 1, "batch": 2})
    assert fit(panel, spec, accelerator="cpu").model.season == 1
    assert fit(panel, make_spec(training={"steps": 1, "batch": 2}), accelerator="cpu").model.season == 4


@pytest.mark.parametrize("calendar", [("hour",), ("weekday", "holiday:US")])
def test_a_spec_with_calendar_features_is_rejected_before_training(calendar: tuple[str, ...]) -> None:
    with pytest.raises(
        BadSpec, match=f"calendar features {', '.join(calendar)}; the timestamps of these data are integers"
    ):
        fit(to_panel(make_frame(dated=False)), make_spec(calendar=calendar), accelerator="cpu")


def test_an_invalid_channel_value_is_reported_with_its_integer_timestamp() -> None:
    counts = make_frame(dated=False).assign(y=2.0, heat=np.r_[np.arange(3.0), 0.5, np.arange(3 * STEPS - 4)])
    spec = make_spec(channels=("heat",), head={"kind": "neg_binomial"}, scaling="none")
    with pytest.raises(BadSpec, match=r"series 'a' has 0\.5 at 130\."):
        fit(to_panel(counts, channels=("heat",)), spec, accelerator="cpu")


def test_channels_with_integer_steps_are_predicted_like_those_with_dates() -> None:
    spec = make_spec(channels=("heat",), training={"steps": 2, "epoch_steps": 2, "batch": 4, "valid_windows": 1})
    means = []
    for dated in (False, True):
        panel = to_panel(make_frame(dated=dated).assign(heat=make_wave(3 * STEPS, seed=5)), channels=("heat",))
        fitted_model = fit(panel, spec, accelerator="cpu").model
        means.append(np.stack([forecast.mean for forecast in Predictor(fitted_model).forecast_batch(panel.series, 5)]))
    np.testing.assert_array_equal(*means)
