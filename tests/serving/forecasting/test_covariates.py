"""POST /v1/forecast with levels, covariates and static features: responses equal the library's, invalid input is rejected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forecaster.data.encoding import Encoding
from forecaster.intervals.calibration import Calibration
from forecaster.intervals.conformal import calibrate
from forecaster.model import regressor
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.series import Forecast, Series
from forecaster.spec import NetworkSpec, Spec
from tests.serving.conftest import AppClient, LastValuePredictor, MakeClient, publish_stub, series_payload

SEASON, STEPS, HORIZON = 4, 12, 5
LEVELS = [0.9, 0.1, 0.5]
ENCODING = Encoding(
    calendar=("hour",),
    numeric={"promo": (0.0, 1.0)},
    categories={"weather": ("rain", "sun")},
    static={"region": ("north", "south")},
)


def make_calibration() -> Calibration:
    rng = np.random.default_rng(0)
    return calibrate(rng.normal(size=(20, 4, 8)), np.ones(20))


def make_model(*, calibration: Calibration | None) -> FittedModel:
    spec = Spec(
        name="columns",
        context=8,
        horizon=4,
        covariates=("promo", "weather"),
        static=("region",),
        network=NetworkSpec(hidden=8),
    )
    network = regressor.build_network(
        spec,
        seed=0,
        season=SEASON,
        num_covariates=ENCODING.num_covariates,
        static_cardinalities=ENCODING.static_cardinalities,
    )
    return FittedModel(spec, "h", SEASON, pd.Timestamp("2026-01-01"), ENCODING, network, calibration)


@pytest.fixture
def post_forecast(slot_folder: Path, make_client: MakeClient) -> Callable[..., Any]:
    """Posts series to a network with random weights; without `calibrated` it does not support quantiles."""
    publish_stub(slot_folder)

    def post(*items: dict[str, Any], calibrated: bool = True, horizon: int = HORIZON, **fields: Any) -> Any:
        predictor = Predictor(make_model(calibration=make_calibration() if calibrated else None))
        client = make_client(load=lambda folder: predictor)
        return client.post("/v1/forecast", json={"series": list(items), "horizon": horizon, **fields})

    return post


def make_history() -> list[float]:
    return [float(value) for value in 10 + np.sin(np.arange(STEPS)) + np.arange(STEPS) / 3]


def make_covariates(steps: int = STEPS + HORIZON) -> dict[str, list[Any]]:
    return {
        "promo": [index % 3 for index in range(steps)],
        "weather": [("sun", "rain", "snow")[index % 3] for index in range(steps)],
    }


def make_series_payload(**fields: Any) -> dict[str, Any]:
    return series_payload(
        **{"y": make_history(), "covariates": make_covariates(), "static": {"region": "south"}, **fields}
    )


def forecast_by_library(payload: dict[str, Any]) -> Forecast:
    promo, weather = payload["covariates"]["promo"], payload["covariates"]["weather"]
    covariates = {"promo": np.array(promo, dtype=np.float64), "weather": np.array(weather, dtype=object)}
    series = Series(
        "a",
        pd.Timestamp("2026-01-01T00:00:00Z"),
        "h",
        np.array(payload["y"], dtype=float),
        covariates,
        payload["static"],
    )
    return Predictor(make_model(calibration=make_calibration())).forecast(series, HORIZON, levels=LEVELS)


@pytest.mark.parametrize("static", [{"region": "south"}, {"region": "nowhere"}, {}])
def test_the_response_equals_the_library(post_forecast: Callable[..., Any], static: dict[str, str]) -> None:
    payload = make_series_payload(static=static)
    [forecast] = post_forecast(payload, levels=LEVELS).json()["forecasts"]
    expected = forecast_by_library(payload)
    np.testing.assert_allclose(forecast["mean"], expected.mean, rtol=1e-6)
    assert list(forecast["quantiles"]) == ["0.1", "0.5", "0.9"]
    for level in LEVELS:
        np.testing.assert_allclose(forecast["quantiles"][repr(level)], expected.quantiles[level], rtol=1e-6)


def test_the_response_warns_of_a_last_value_that_has_fallen_as_never_before(
    post_forecast: Callable[..., Any],
) -> None:
    payload = make_series_payload(y=[*make_history()[:-1], 2.0])
    complete, partial = post_forecast(make_series_payload(id="b"), payload, horizon=4).json()["forecasts"]
    [warning] = set(partial["warnings"]) - set(complete["warnings"])
    assert "may be of an incomplete period" in warning
    assert "missing (null)" in warning


def test_covariates_and_static_features_reach_the_network(post_forecast: Callable[..., Any]) -> None:
    promoted = {**make_covariates(), "promo": [2.5] * (STEPS + HORIZON)}
    sunny = {**make_covariates(), "weather": ["sun"] * (STEPS + HORIZON)}
    items = (
        make_series_payload(),
        make_series_payload(static={"region": "north"}),
        make_series_payload(covariates=promoted),
        make_series_payload(covariates=sunny),
    )
    means = [tuple(forecast["mean"]) for forecast in post_forecast(*items).json()["forecasts"]]
    assert len(set(means)) == len(items)


@pytest.mark.parametrize(
    ("columns", "known", "unknown"),
    [
        ({"covariates": {**make_covariates(), "colour": ["red"] * (STEPS + HORIZON)}}, "promo, weather", "'colour'"),
        ({"static": {"region": "south", "colour": "red"}}, "(region)", "'colour'"),
        ({"channels": {"heat": [1.0] * STEPS, "rain": [None] * STEPS}}, "(none)", "'heat', 'rain'"),
    ],
)
def test_columns_unknown_to_the_model_are_rejected_alone(
    post_forecast: Callable[..., Any], columns: dict[str, Any], known: str, unknown: str
) -> None:
    bad, plain = post_forecast(make_series_payload(id="bad", **columns), make_series_payload()).json()["forecasts"]
    assert (bad["error"]["code"], bad["error"]["where"]) == ("covariate_unknown", "bad")
    assert known in bad["error"]["message"]
    assert unknown in bad["error"]["message"]
    assert len(plain["mean"]) == HORIZON
    alone = post_forecast(make_series_payload(**columns))
    assert (alone.status_code, alone.json()["error"]["code"]) == (422, "covariate_unknown")


def test_unseen_categories_are_warnings_of_their_series(post_forecast: Callable[..., Any]) -> None:
    sunny = {**make_covariates(), "weather": ["sun"] * (STEPS + HORIZON)}
    plain, snowy, elsewhere = post_forecast(
        make_series_payload(covariates=sunny),
        make_series_payload(id="b"),
        make_series_payload(id="c", covariates=sunny, static={"region": "nowhere"}),
    ).json()["forecasts"]
    counts = [sum("training data" in warning for warning in item["warnings"]) for item in (plain, snowy, elsewhere)]
    assert counts == [0, 1, 1]
    assert any("'snow'" in warning for warning in snowy["warnings"])


def test_covariates_beyond_the_horizon_are_ignored(post_forecast: Callable[..., Any]) -> None:
    plain, longer = post_forecast(
        make_series_payload(), make_series_payload(covariates=make_covariates(STEPS + HORIZON + 7))
    ).json()["forecasts"]
    np.testing.assert_allclose(plain["mean"], longer["mean"], rtol=1e-6)


@pytest.mark.parametrize(
    ("columns", "code"),
    [
        ({}, "covariate_unknown"),
        ({"promo": make_covariates()["promo"]}, "covariate_unknown"),
        (make_covariates(STEPS + HORIZON - 1), "covariate_unknown"),
        (make_covariates(STEPS), "covariate_unknown"),
        (make_covariates(STEPS - 1), "covariate_unknown"),
        ({"promo": [], "weather": []}, "covariate_unknown"),
        ({**make_covariates(), "promo": [0] * (STEPS + HORIZON + 1)}, "covariate_unknown"),
        ({**make_covariates(), "other": [0] * (STEPS + HORIZON + 1)}, "covariate_unknown"),
        ({**make_covariates(), "weather": [0] * (STEPS + HORIZON)}, "covariate_unknown"),
        ({**make_covariates(), "promo": ["0"] * (STEPS + HORIZON)}, "not_a_number"),
        ({**make_covariates(), "promo": [1e31] * (STEPS + HORIZON)}, "value_out_of_range"),
    ],
)
def test_a_series_with_invalid_covariates_is_rejected_alone(
    post_forecast: Callable[..., Any], columns: Any, code: str
) -> None:
    before, bad, after = post_forecast(
        make_series_payload(id="before"), make_series_payload(covariates=columns), make_series_payload(id="after")
    ).json()["forecasts"]
    assert (bad["error"]["code"], bad["error"]["where"]) == (code, "a")
    np.testing.assert_allclose(before["mean"], after["mean"], rtol=1e-6)
    alone = post_forecast(make_series_payload(covariates=columns))
    assert (alone.status_code, alone.json()["error"]["code"]) == (422, code)


@pytest.mark.parametrize("size", [1e30, -1e30, 1e9])
def test_huge_covariates_give_a_finite_forecast_and_do_not_affect_others(
    post_forecast: Callable[..., Any], size: float
) -> None:
    huge = make_series_payload(covariates={**make_covariates(), "promo": [size] * (STEPS + HORIZON)})
    plain, forecast = post_forecast(make_series_payload(), huge, levels=LEVELS).json()["forecasts"]
    assert np.isfinite([forecast["mean"], *forecast["quantiles"].values()]).all()
    np.testing.assert_allclose(
        plain["mean"], post_forecast(make_series_payload()).json()["forecasts"][0]["mean"], rtol=1e-6
    )


@pytest.mark.parametrize("levels", [[5e-324, 1e-300, 1e-05], [1 - 2**-53], [place / 100 for place in range(1, 100)]])
def test_quantiles_of_any_level_are_finite_and_increasing(
    post_forecast: Callable[..., Any], levels: list[float]
) -> None:
    [forecast] = post_forecast(make_series_payload(), levels=levels).json()["forecasts"]
    assert list(forecast["quantiles"]) == [repr(level) for level in levels]
    values = np.array([*forecast["quantiles"].values()], dtype=np.float64)
    assert np.isfinite(values).all()
    assert (np.diff(values, axis=0) >= 0).all()


@pytest.mark.parametrize(
    "items",
    [
        [make_series_payload()],
        [make_series_payload(), make_series_payload()],
        [make_series_payload(y=[]), make_series_payload(y=[])],
    ],
)
def test_levels_without_a_calibration_reject_the_whole_request(post_forecast: Callable[..., Any], items: Any) -> None:
    response = post_forecast(*items, calibrated=False, levels=[0.5])
    assert (response.status_code, response.json()["error"]["code"]) == (422, "level_out_of_range")
    assert response.json()["error"]["where"] == "levels"


@pytest.mark.parametrize("fields", [{}, {"levels": []}])
def test_without_levels_there_are_no_quantiles(post_forecast: Callable[..., Any], fields: Any) -> None:
    [forecast] = post_forecast(make_series_payload(), calibrated=False, **fields).json()["forecasts"]
    assert set(forecast) == {"id", "ds", "mean", "warnings"}


def test_forecast_warnings_follow_request_warnings(slot_folder: Path, make_client: MakeClient) -> None:
    class WarningPredictor(LastValuePredictor):
        def _forecast_series(self, series: Any, horizon: int) -> Any:
            forecast = super()._forecast_series(series, horizon)
            return Forecast(forecast.id, forecast.ds, forecast.mean, ("Mind the gap.",))

    publish_stub(slot_folder)
    client = make_client(load=lambda folder: WarningPredictor())
    response = client.post("/v1/forecast", json={"series": [series_payload()], "horizon": 25}).json()
    first, second = response["forecasts"][0]["warnings"]
    assert "24" in first
    assert second == "Mind the gap."


@pytest.mark.parametrize(
    ("fields", "location"),
    [
        ({"covariates": {"a": [1, 2, "x"]}}, "series.0.covariates.a.2"),
        ({"covariates": {"a": ["x", "x", 3]}}, "series.0.covariates.a.2"),
        ({"covariates": {"numbers": [1, None]}}, "series.0.covariates.numbers.1"),
        ({"static": {"texts": 1}}, "series.0.static.texts"),
    ],
)
def test_an_error_location_uses_the_names_of_the_request(client: AppClient, fields: Any, location: str) -> None:
    response = client.post("/v1/forecast", json={"series": [series_payload(**fields)], "horizon": 2})
    assert (response.status_code, response.json()["error"]["where"]) == (422, location)
