"""POST /v1/forecast with levels, covariates and static values: what the library says, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forecaster.data.encoding import Encoding
from forecaster.intervals.conformal import Calibration, calibrate
from forecaster.model import regressor
from forecaster.prediction.predictor import Forecaster, Predictor
from forecaster.series import Forecast, Series
from forecaster.spec import NetworkSpec, Spec
from tests.serving.conftest import Client, LastValue, MakeClient, publish_stub, series

SEASON, STEPS, HORIZON = 4, 12, 5
LEVELS = [0.9, 0.1, 0.5]
ENCODING = Encoding(
    calendar=("hour",),
    numeric={"promo": (0.0, 1.0)},
    categories={"weather": ("rain", "sun")},
    static={"region": ("north", "south")},
)


def measured() -> Calibration:
    draw = np.random.default_rng(0)
    return calibrate(draw.normal(size=(20, 4, 8)), np.ones(20))


def learned(*, calibration: Calibration | None) -> Forecaster:
    spec = Spec(
        name="columns",
        context=8,
        horizon=4,
        covariates=("promo", "weather"),
        static=("region",),
        network=NetworkSpec(hidden=8),
    )
    network = regressor.build(spec, seed=0, season=SEASON, covariates=ENCODING.width, groups=ENCODING.sizes)
    return Forecaster(spec, "h", SEASON, pd.Timestamp("2026-01-01"), ENCODING, network, calibration)


@pytest.fixture
def ask(slot_folder: Path, make_client: MakeClient) -> Callable[..., Any]:
    """Asks a network of random weights; `calibrated` says whether it can give quantiles."""
    publish_stub(slot_folder)

    def post(*items: dict[str, Any], calibrated: bool = True, horizon: int = HORIZON, **fields: Any) -> Any:
        predictor = Predictor(learned(calibration=measured() if calibrated else None))
        client = make_client(load=lambda folder: predictor)
        return client.post("/v1/forecast", json={"series": list(items), "horizon": horizon, **fields})

    return post


def history() -> list[float]:
    return [float(value) for value in 10 + np.sin(np.arange(STEPS)) + np.arange(STEPS) / 3]


def covariates(steps: int = STEPS + HORIZON) -> dict[str, list[Any]]:
    return {
        "promo": [place % 3 for place in range(steps)],
        "weather": [("sun", "rain", "snow")[place % 3] for place in range(steps)],
    }


def item(**fields: Any) -> dict[str, Any]:
    return series(**{"y": history(), "covariates": covariates(), "static": {"region": "south"}, **fields})


def by_library(asked: dict[str, Any]) -> Forecast:
    promo, weather = asked["covariates"]["promo"], asked["covariates"]["weather"]
    columns = {"promo": np.array(promo, dtype=np.float64), "weather": np.array(weather, dtype=object)}
    one = Series(
        "a", pd.Timestamp("2026-01-01T00:00:00Z"), "h", np.array(asked["y"], dtype=float), columns, asked["static"]
    )
    return Predictor(learned(calibration=measured())).forecast(one, HORIZON, levels=LEVELS)


@pytest.mark.parametrize("static", [{"region": "south"}, {"region": "nowhere"}, {}, {"colour": "red"}])
def test_the_answer_is_that_of_the_library(ask: Callable[..., Any], static: dict[str, str]) -> None:
    asked = item(static=static)
    [found] = ask(asked, levels=LEVELS).json()["forecasts"]
    wanted = by_library(asked)
    np.testing.assert_allclose(found["mean"], wanted.mean, rtol=1e-6)
    assert list(found["quantiles"]) == ["0.1", "0.5", "0.9"]
    for level in LEVELS:
        np.testing.assert_allclose(found["quantiles"][repr(level)], wanted.quantiles[level], rtol=1e-6)


def test_covariates_and_static_values_reach_the_network(ask: Callable[..., Any]) -> None:
    promoted = {**covariates(), "promo": [2.5] * (STEPS + HORIZON)}
    sunny = {**covariates(), "weather": ["sun"] * (STEPS + HORIZON)}
    items = item(), item(static={"region": "north"}), item(covariates=promoted), item(covariates=sunny)
    means = [tuple(one["mean"]) for one in ask(*items).json()["forecasts"]]
    assert len(set(means)) == len(items)


def test_columns_that_the_model_does_not_know_change_nothing(ask: Callable[..., Any]) -> None:
    more = {**covariates(), "other": [1.5] * (STEPS + HORIZON), "colour": ["red"] * (STEPS + HORIZON)}
    plain, wide = ask(item(), item(covariates=more)).json()["forecasts"]
    np.testing.assert_allclose(plain["mean"], wide["mean"], rtol=1e-6)


def test_covariates_beyond_the_horizon_change_nothing(ask: Callable[..., Any]) -> None:
    plain, longer = ask(item(), item(covariates=covariates(STEPS + HORIZON + 7))).json()["forecasts"]
    np.testing.assert_allclose(plain["mean"], longer["mean"], rtol=1e-6)


@pytest.mark.parametrize(
    ("columns", "code"),
    [
        ({}, "covariate_unknown"),
        ({"promo": covariates()["promo"]}, "covariate_unknown"),
        (covariates(STEPS + HORIZON - 1), "covariate_unknown"),
        (covariates(STEPS), "covariate_unknown"),
        (covariates(STEPS - 1), "covariate_unknown"),
        ({"promo": [], "weather": []}, "covariate_unknown"),
        ({**covariates(), "promo": [0] * (STEPS + HORIZON + 1)}, "covariate_unknown"),
        ({**covariates(), "other": [0] * (STEPS + HORIZON + 1)}, "covariate_unknown"),
        ({**covariates(), "weather": [0] * (STEPS + HORIZON)}, "covariate_unknown"),
        ({**covariates(), "promo": ["0"] * (STEPS + HORIZON)}, "not_a_number"),
        ({**covariates(), "promo": [1e31] * (STEPS + HORIZON)}, "value_out_of_range"),
    ],
)
def test_a_series_with_bad_covariates_is_refused_alone(ask: Callable[..., Any], columns: Any, code: str) -> None:
    before, bad, after = ask(item(id="before"), item(covariates=columns), item(id="after")).json()["forecasts"]
    assert (bad["error"]["code"], bad["error"]["where"]) == (code, "a")
    np.testing.assert_allclose(before["mean"], after["mean"], rtol=1e-6)
    alone = ask(item(covariates=columns))
    assert (alone.status_code, alone.json()["error"]["code"]) == (422, code)


@pytest.mark.parametrize("size", [1e30, -1e30, 1e9])
def test_huge_covariates_give_a_finite_forecast_and_spare_the_neighbours(ask: Callable[..., Any], size: float) -> None:
    huge = item(covariates={**covariates(), "promo": [size] * (STEPS + HORIZON)})
    plain, found = ask(item(), huge, levels=LEVELS).json()["forecasts"]
    assert np.isfinite([found["mean"], *found["quantiles"].values()]).all()
    np.testing.assert_allclose(plain["mean"], ask(item()).json()["forecasts"][0]["mean"], rtol=1e-6)


@pytest.mark.parametrize("asked", [[5e-324, 1e-300, 1e-05], [1 - 2**-53], [place / 100 for place in range(1, 100)]])
def test_quantiles_of_any_level_are_finite_and_rise(ask: Callable[..., Any], asked: list[float]) -> None:
    [found] = ask(item(), levels=asked).json()["forecasts"]
    assert list(found["quantiles"]) == [repr(level) for level in asked]
    values = np.array([*found["quantiles"].values()], dtype=np.float64)
    assert np.isfinite(values).all()
    assert (np.diff(values, axis=0) >= 0).all()


@pytest.mark.parametrize("items", [[item()], [item(), item()], [item(y=[]), item(y=[])]])
def test_levels_are_refused_as_a_whole_without_a_calibration(ask: Callable[..., Any], items: Any) -> None:
    answer = ask(*items, calibrated=False, levels=[0.5])
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "level_out_of_range")
    assert answer.json()["error"]["where"] == "levels"


@pytest.mark.parametrize("fields", [{}, {"levels": []}])
def test_without_levels_there_are_no_quantiles(ask: Callable[..., Any], fields: Any) -> None:
    [found] = ask(item(), calibrated=False, **fields).json()["forecasts"]
    assert set(found) == {"id", "ds", "mean", "warnings"}


def test_the_warnings_of_a_forecast_follow_those_of_the_request(slot_folder: Path, make_client: MakeClient) -> None:
    class Cautious(LastValue):
        def _one(self, one: Any, horizon: int) -> Any:
            found = super()._one(one, horizon)
            return Forecast(found.id, found.ds, found.mean, ("Mind the gap.",))

    publish_stub(slot_folder)
    client = make_client(load=lambda folder: Cautious())
    answer = client.post("/v1/forecast", json={"series": [series()], "horizon": 25}).json()
    first, second = answer["forecasts"][0]["warnings"]
    assert "24" in first
    assert second == "Mind the gap."


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"covariates": {"a": [1, 2, "x"]}}, "series.0.covariates.a.2"),
        ({"covariates": {"a": ["x", "x", 3]}}, "series.0.covariates.a.2"),
        ({"covariates": {"numbers": [1, None]}}, "series.0.covariates.numbers.1"),
        ({"static": {"texts": 1}}, "series.0.static.texts"),
    ],
)
def test_the_place_of_a_fault_is_told_in_the_words_of_the_request(client: Client, fields: Any, where: str) -> None:
    answer = client.post("/v1/forecast", json={"series": [series(**fields)], "horizon": 2})
    assert (answer.status_code, answer.json()["error"]["where"]) == (422, where)
