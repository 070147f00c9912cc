"""`Forecaster.pretrained`: forecasts of any frame without a fit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forecaster import Forecaster
from forecaster.api import DataWarning, ForecastWarning
from forecaster.bundle.pretrained.base import specialize_to_panel
from forecaster.data.frames.panel import to_panel
from forecaster.errors import (
    BadSpec,
    BadStamp,
    ForecasterError,
    FrequencyUnknown,
    HistoryTooShort,
    HorizonOutOfRange,
    InputError,
    LevelOutOfRange,
)
from forecaster.prediction.predictor import Predictor
from tests.forecaster.api.conftest import make_frame


def test_the_forecast_is_that_of_the_shipped_network(frame: pd.DataFrame) -> None:
    forecast = Forecaster.pretrained().predict(frame, horizon=4)
    assert list(forecast.columns) == ["unique_id", "ds", "forecaster"]
    panel = to_panel(frame)
    outcomes = Predictor(specialize_to_panel(panel)).forecast_batch(panel.series, 4)
    expected = np.concatenate([outcome.mean for outcome in outcomes])  # type: ignore[union-attr]
    np.testing.assert_allclose(forecast["forecaster"], expected)
    assert list(forecast["unique_id"].unique()) == [1, 2, 3]


SHAPES: dict[str, Callable[[pd.DataFrame], Any]] = {
    "long": lambda frame: frame,
    "one series": lambda frame: frame.loc[frame["unique_id"] == 1, ["ds", "y"]],
    "a Series": lambda frame: frame[frame["unique_id"] == 1].set_index("ds")["y"],
    "wide": lambda frame: frame.pivot(index="ds", columns="unique_id", values="y"),
    "text": lambda frame: frame.assign(ds=frame["ds"].dt.strftime("%Y-%m-%d")),
    "polars": lambda frame: pytest.importorskip("polars").from_pandas(frame),
    "pyarrow": lambda frame: pytest.importorskip("pyarrow").Table.from_pandas(frame, preserve_index=False),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_frames_of_every_shape_and_library_give_the_same_forecast(frame: pd.DataFrame, shape: str) -> None:
    data = SHAPES[shape](frame)
    forecast = Forecaster.pretrained().predict(data, horizon=3)
    expected = Forecaster.pretrained().predict(frame, horizon=3)["forecaster"]
    np.testing.assert_allclose(np.asarray(forecast["forecaster"])[:3], expected[:3])
    library = "pandas" if isinstance(data, pd.Series) else type(data).__module__.split(".")[0]
    assert type(forecast).__module__.split(".")[0] == library


def test_frequency_season_and_horizon_are_inferred_or_given(frame: pd.DataFrame) -> None:
    assert len(Forecaster.pretrained().predict(frame)) == 3 * 18  # that of monthly data
    assert len(Forecaster.pretrained(horizon=5).predict(frame)) == 3 * 5
    by_year = Forecaster.pretrained().predict(frame, horizon=12)["forecaster"]
    without = Forecaster.pretrained(season=1).predict(frame, horizon=12)["forecaster"]
    assert not np.allclose(by_year, without)
    declared = Forecaster.pretrained(freq="MS", season=12)
    np.testing.assert_allclose(declared.predict(frame, horizon=12)["forecaster"], by_year)
    assert (declared.model.freq, declared.model.season) == ("MS", 12)
    with pytest.raises(BadStamp, match="whole number"):
        Forecaster.pretrained(freq="D").predict(frame[frame["unique_id"] == 1].assign(ds=range(60)), horizon=3)


@pytest.mark.filterwarnings("ignore:.*unlike all series:forecaster.api.ForecastWarning")
def test_one_forecaster_serves_data_of_several_frequencies() -> None:
    model = Forecaster.pretrained()
    for freq in ("D", "h", "QS"):
        series = pd.Series(np.arange(40.0) % 5, index=pd.date_range("2020-01-01", periods=40, freq=freq), name="a")
        forecast = model.predict(series, horizon=2)
        assert list(forecast["ds"]) == list(pd.date_range(series.index[-1], periods=3, freq=freq)[1:])


def test_other_columns_give_one_warning_and_change_nothing(frame: pd.DataFrame) -> None:
    model, text = Forecaster.pretrained(), frame["unique_id"].map({1: "north", 2: "south", 3: None})
    wider = frame.assign(region=text, promo=np.arange(len(frame)), note=[object()] * len(frame))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        forecast = model.predict(wider, horizon=3)
    assert [item.category for item in caught] == [DataWarning]
    assert "The columns region, promo, note of 3 series were ignored" in str(caught[0].message)
    assert list(model.warnings["unique_id"]) == [1, 2, 3]
    pd.testing.assert_frame_equal(forecast, model.predict(frame, horizon=3))


@pytest.mark.filterwarnings("ignore::forecaster.api.DataWarning")
def test_rows_of_known_covariates_are_not_read_as_missing_values(frame: pd.DataFrame) -> None:
    model = Forecaster.pretrained()
    expected = model.predict(frame, horizon=3)
    later = frame.groupby("unique_id")["ds"].max().rename("ds").reset_index()
    future = pd.concat([later.assign(ds=later["ds"] + pd.DateOffset(months=step)) for step in (1, 2, 3)])
    both = pd.concat([frame.assign(promo=range(len(frame))), future.assign(promo=range(len(future)))])
    pd.testing.assert_frame_equal(model.predict(both, horizon=3), expected)
    with pytest.warns(DataWarning, match="The column promo of 3 series was ignored"):
        forecast = model.predict(frame, horizon=3, X_df=future.assign(promo=1))
    pd.testing.assert_frame_equal(forecast, expected)


def test_intervals_contain_the_forecast_and_widen_with_the_level(frame: pd.DataFrame) -> None:
    forecast = Forecaster.pretrained().predict(frame, horizon=60, level=[50, 80])
    lower, inner = forecast["forecaster-lo-80"], forecast["forecaster-lo-50"]
    assert ((lower <= inner) & (inner <= forecast["forecaster-hi-50"])).all()
    assert (forecast["forecaster-hi-50"] <= forecast["forecaster-hi-80"]).all()


def test_cross_validation_and_scores_need_no_fit(frame: pd.DataFrame) -> None:
    model = Forecaster.pretrained(horizon=6)
    table = model.cross_validation(frame, n_windows=2, progress=False)
    assert len(table) == 3 * 2 * 6
    assert np.isfinite(table[["y", "forecaster"]]).all(axis=None)
    scores = model.evaluate(frame).set_index("forecaster")
    assert list(scores.index) == ["forecaster", "seasonal_naive", "last_value"]
    assert not scores["in_sample"].any()
    assert (scores["windows"] == 3 * 4).all()
    assert len(Forecaster.pretrained(horizon=6).evaluate(frame.groupby("unique_id").head(13))) == 3


def test_cross_validation_has_the_quantiles_of_predict(frame: pd.DataFrame) -> None:
    model = Forecaster.pretrained(horizon=6)
    table = model.cross_validation(frame, n_windows=1, level=80, progress=False)
    history = frame.groupby("unique_id").head(54)
    forecast = model.predict(history, level=80)
    for column in ("forecaster", "forecaster-lo-80", "forecaster-hi-80"):
        np.testing.assert_allclose(table[column], forecast[column], rtol=1e-5)
    assert "coverage_80" in model.evaluate(frame)


def test_zoned_and_integer_data_are_scored(frame: pd.DataFrame) -> None:
    model = Forecaster.pretrained(horizon=3)
    integers = pd.DataFrame({"unique_id": "a", "ds": range(30), "y": np.arange(30.0) % 4})
    zoned = integers.assign(ds=pd.date_range("2020-01-01", periods=30, freq="h", tz="Asia/Tokyo"))
    for data in (integers, zoned):
        assert (model.evaluate(data)["windows"] == 4).all()


def test_a_forecast_is_plotted_and_explained(frame: pd.DataFrame) -> None:
    model = Forecaster.pretrained(horizon=6)
    assert len(model.plot(frame, max_ids=2).axes) == 2
    explanation = model.explain(frame, unique_id=2, steps=24)
    assert len(explanation.to_frame()) == 24


def test_a_bundle_is_written_for_one_frequency(frame: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Forecaster.pretrained\(freq='MS'\)"):
        Forecaster.pretrained().save(tmp_path / "model")
    model = Forecaster.pretrained("MS", horizon=6)
    loaded = Forecaster.load(model.save(tmp_path / "model"))
    pd.testing.assert_frame_equal(loaded.predict(frame), model.predict(frame))
    assert not loaded.evaluate(frame, n_windows=2)["in_sample"].any()
    again = Forecaster.load(loaded.save(tmp_path / "again"))
    pd.testing.assert_frame_equal(again.predict(frame), model.predict(frame))


def test_the_representation_says_that_nothing_was_fitted() -> None:
    assert repr(Forecaster.pretrained("h", season=168)).startswith("Forecaster.pretrained(freq='h', season=168)")
    assert "not trained on these data" in repr(Forecaster.pretrained())
    assert Forecaster.pretrained().report.empty


INVALID: dict[str, tuple[Callable[[], Any], type[ForecasterError], str]] = {
    "no data": (lambda: Forecaster.pretrained().predict(horizon=3), InputError, "Expected `df`"),
    "no frequency": (
        lambda: Forecaster.pretrained().predict(make_frame(series=1, steps=1), horizon=3),
        FrequencyUnknown,
        "Declare it",
    ),
    "one value": (
        lambda: Forecaster.pretrained("MS").predict(make_frame(series=1, steps=1), horizon=3),
        HistoryTooShort,
        "at least 2",
    ),
    "unknown frequency": (lambda: Forecaster.pretrained("fortnight"), FrequencyUnknown, "not known"),
    "season of zero": (lambda: Forecaster.pretrained(season=0), InputError, "season"),
    "a season beyond the limit": (lambda: Forecaster.pretrained(season=100_000), BadSpec, "season"),
    "horizon of zero": (lambda: Forecaster.pretrained().predict(make_frame(), horizon=0), InputError, "horizon"),
    "a horizon beyond the limit": (
        lambda: Forecaster.pretrained().predict(make_frame(), horizon=10**6),
        HorizonOutOfRange,
        "at most",
    ),
    "a level as a share": (
        lambda: Forecaster.pretrained().predict(make_frame(), horizon=2, level=0.8),
        LevelOutOfRange,
        "percent",
    ),
    "no frame": (lambda: Forecaster.pretrained().predict({"y": [1, 2]}, horizon=2), InputError, "data frame"),
    "too many windows": (
        lambda: Forecaster.pretrained(horizon=12).cross_validation(make_frame(), n_windows=9, progress=False),
        HistoryTooShort,
        "fewer windows",
    ),
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_calls_are_refused_with_advice(name: str) -> None:
    call, error, message = INVALID[name]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.filterwarnings(
    "ignore::forecaster.api.DataWarning", "ignore:.*unlike all series:forecaster.api.ForecastWarning"
)
def test_short_constant_and_missing_histories_have_forecasts() -> None:
    dates = pd.date_range("2024-01-01", periods=30, freq="D")
    values = {
        "short": [1.0, 2.0],
        "constant": [7.0] * 30,
        "missing": [np.nan if step % 2 else float(step) for step in range(30)],
        "negative": list(-(np.arange(30.0) ** 2)),
        "huge": list(1e80 * np.arange(30.0)),
    }
    rows = [(name, date, value) for name, column in values.items() for date, value in zip(dates, column, strict=False)]
    model = Forecaster.pretrained()
    with pytest.warns(ForecastWarning, match="constant"):
        forecast = model.predict(pd.DataFrame(rows, columns=["unique_id", "ds", "y"]), horizon=400)
    assert forecast.groupby("unique_id", sort=False).size().to_dict() == dict.fromkeys(values, 400)
    assert np.isfinite(forecast["forecaster"]).all()
    assert (forecast.loc[forecast["unique_id"] == "constant", "forecaster"] == 7).all()
