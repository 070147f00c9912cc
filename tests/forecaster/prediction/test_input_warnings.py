"""Warnings about input that the model reads, but did not learn from."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from forecaster.data.encoding import Encoding
from forecaster.errors import CovariateUnknown, NotANumber
from forecaster.intervals.conformal import calibrate
from forecaster.model.regressor import build_network
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.series import Forecast, Series
from tests.factories import START, make_spec, make_wave

ENCODING = Encoding(numeric={"price": (0.0, 1.0)}, categories={"promo": ("10", "none")}, static={"region": ("1", "2")})
STEPS, HORIZON = 20, 3


def make_model() -> FittedModel:
    spec = make_spec(covariates=("price", "promo"), static=("region",), group="region")
    network = build_network(
        spec, seed=1, num_covariates=ENCODING.num_covariates, static_cardinalities=ENCODING.static_cardinalities
    )
    return FittedModel(spec, "h", 4, START, ENCODING, network)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(make_model())


def make_history(*, name: str = "a", region: str = "1", promo: list[str] | np.ndarray | None = None) -> Series:
    labels = np.array(["10", "none"] * 12, dtype=object)[: STEPS + HORIZON] if promo is None else np.asarray(promo)
    return Series(
        name, START, "h", make_wave(STEPS), {"price": np.zeros(STEPS + HORIZON), "promo": labels}, {"region": region}
    )


def with_labels(*labels: str, first: int) -> np.ndarray:
    promo = make_history().covariates["promo"].copy()
    promo[first : first + len(labels)] = labels
    return promo


def test_an_unseen_category_is_a_warning_of_its_series_only(predictor: Predictor) -> None:
    plain, covariate, static = predictor.forecast_batch(
        [
            make_history(),
            make_history(name="b", promo=with_labels("10x", "10x", "20x", "30x", "40x", first=STEPS - 2)),
            make_history(name="c", region="9"),
        ],
        HORIZON,
    )
    assert isinstance(plain, Forecast)
    assert isinstance(covariate, Forecast)
    assert isinstance(static, Forecast)
    assert plain.warnings == ()
    [warning] = covariate.warnings
    assert "'promo' has 4 categories" in warning
    assert "'10x', '20x', '30x' and more" in warning
    [warning] = static.warnings
    assert "'region' has a category that was not in the training data: '9'" in warning
    assert {covariate.has_fallback, static.has_fallback} == {False}


def test_a_category_before_the_steps_that_the_network_reads_is_no_warning(predictor: Predictor) -> None:
    assert predictor.layout.window_length(STEPS) < STEPS - 1
    assert predictor.forecast(make_history(promo=with_labels("10x", first=0)), HORIZON).warnings == ()


def test_the_same_category_in_another_text_gives_the_same_forecast_without_a_warning(predictor: Predictor) -> None:
    promo = np.array([label.replace("10", "10.0") for label in make_history().covariates["promo"]], dtype=object)
    forecasts = [
        predictor.forecast(series, HORIZON) for series in (make_history(), make_history(region="1.0", promo=promo))
    ]
    np.testing.assert_array_equal(forecasts[0].mean, forecasts[1].mean)
    assert forecasts[1].warnings == ()


def test_scenarios_have_the_warnings_of_their_own_covariates(predictor: Predictor) -> None:
    scenarios = [make_history(), make_history(promo=with_labels("10x", first=STEPS))]
    plain, unseen = predictor.forecast_scenarios(scenarios, HORIZON)
    assert isinstance(plain, Forecast)
    assert isinstance(unseen, Forecast)
    assert (len(plain.warnings), len(unseen.warnings)) == (0, 1)


@pytest.mark.parametrize("count", [1, 5])  # 5 are validated at once
def test_a_covariate_of_another_type_than_in_training_is_refused(predictor: Predictor, count: int) -> None:
    numbers = make_history(promo=np.full(STEPS + HORIZON, 10.0))
    text = replace(
        numbers, covariates={"price": make_history().covariates["promo"], "promo": numbers.covariates["price"]}
    )
    text = replace(text, covariates={**text.covariates, "promo": make_history().covariates["promo"]})
    assert {type(error) for error in predictor.forecast_batch([numbers] * count, HORIZON)} == {CovariateUnknown}
    assert {type(error) for error in predictor.forecast_batch([text] * count, HORIZON)} == {NotANumber}


def test_the_intervals_of_a_group_are_found_in_another_text_too() -> None:
    errors = np.random.default_rng(0).normal(size=(60, 4, 5)) * np.repeat([1.0, 9.0], 30)[:, None, None]
    calibration = calibrate(errors, np.ones(60), groups=["1"] * 30 + ["2"] * 30)
    predictor = Predictor(replace(make_model(), calibration=calibration))
    assert set(calibration.groups) == {"1", "2"}
    assert predictor.interval_group(make_history(region="2.0")) == "2"
    assert predictor.interval_group(make_history(region="9")) == "9"


# Incomplete last periods


def test_the_fall_of_a_last_value_is_a_warning_of_its_series_only(predictor: Predictor) -> None:
    fallen = replace(make_history(name="b"), y=np.append(make_history().y[:-1], 0.1))
    plain, warned = predictor.forecast_batch([make_history(), fallen], HORIZON)
    assert isinstance(plain, Forecast)
    assert isinstance(warned, Forecast)
    assert plain.warnings == ()
    assert "incomplete period" in " ".join(warned.warnings)
    assert not warned.has_fallback


def test_a_running_period_is_a_warning_only_with_a_clock(predictor: Predictor) -> None:
    history = make_history()
    history = replace(history, y=np.linspace(2.0, 1.0, STEPS))
    now = datetime(2026, 1, 1, STEPS - 1, 30, tzinfo=UTC)
    (without,) = predictor.forecast_batch([history], HORIZON)
    (running,) = Predictor(make_model(), clock=lambda: now).forecast_batch([history], HORIZON)
    (ended,) = Predictor(make_model(), clock=lambda: now.replace(hour=STEPS)).forecast_batch([history], HORIZON)
    assert [len(outcome.warnings) for outcome in (without, running, ended) if isinstance(outcome, Forecast)] == [
        0,
        1,
        0,
    ]
    assert isinstance(running, Forecast)
    assert "contains the present" in running.warnings[0]
