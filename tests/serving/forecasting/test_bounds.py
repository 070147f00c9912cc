"""Forecasts over HTTP stay within the bounds of the model, in all formats and from states; the model says which it has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from forecaster.intervals.conformal import calibrate
from forecaster.prediction.bounds import NON_NEGATIVE_FACT, without_bounds
from forecaster.prediction.fitted_model import FittedModel
from forecaster.prediction.predictor import Predictor
from tests.factories import make_fitted_model, make_spec, make_wave
from tests.serving.conftest import AppClient, application_clients, publish_stub

HORIZON, LEVELS = 8, [0.05, 0.95]
START = {"id": "a", "start": "2026-01-01T00:00:00Z", "freq": "h"}
COUNTS = np.maximum(np.round(8 * make_wave(40) - 3 - 0.2 * np.arange(40)), 0.0)


def make_model() -> FittedModel:
    model = make_fitted_model(make_spec(head={"kind": "gaussian"}, horizon=HORIZON))
    errors = np.random.default_rng(0).normal(size=(30, 4, HORIZON))
    return replace(model, facts={NON_NEGATIVE_FACT: True}, calibration=calibrate(errors, np.ones(30)))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppClient]:
    slot, predictor = tmp_path_factory.mktemp("bounded") / "slot", Predictor(make_model())
    publish_stub(slot)
    with application_clients(slot) as make:
        yield make(load=lambda folder: predictor)


def forecast(client: AppClient, y: np.ndarray, *, start: dict[str, Any] = START, **options: Any) -> dict[str, Any]:
    request = {"series": [{**start, "y": y.tolist()}], "horizon": HORIZON, "levels": LEVELS, **options}
    response = client.post("/v1/forecast", json=request)
    assert response.status_code == 200, response.text
    outcome: dict[str, Any] = response.json()["forecasts"][0]
    return outcome


def find_lowest(outcome: dict[str, Any]) -> float:
    return float(min(np.min(values) for values in (outcome["mean"], *outcome["quantiles"].values())))


def test_means_quantiles_and_samples_are_not_negative(client: AppClient) -> None:
    outcome = forecast(client, COUNTS, samples=50)
    assert find_lowest(outcome) == np.min(outcome["samples"]) == 0
    unbounded = forecast(client, COUNTS - 1, samples=50)
    assert find_lowest(unbounded) < -1
    assert np.min(unbounded["samples"]) < -1
    assert sum("not bounded at zero" in warning for warning in unbounded["warnings"]) == 1


def test_the_format_of_deepar_is_bounded_too(client: AppClient) -> None:
    instances = [{"start": "2026-01-01 00:00:00", "target": COUNTS.tolist()}]
    configuration = {"num_samples": 50, "output_types": ["mean", "quantiles", "samples"], "quantiles": ["0.05"]}
    response = client.post("/invocations", json={"instances": instances, "configuration": configuration})
    [prediction] = response.json()["predictions"]
    assert (
        min(np.min(prediction["mean"]), np.min(prediction["quantiles"]["0.05"])) >= 0 == np.min(prediction["samples"])
    )


@pytest.mark.parametrize("first_value", [0.0, -1.0])
def test_a_state_continues_with_the_bounds_of_the_whole_history(client: AppClient, first_value: float) -> None:
    y = COUNTS.copy()
    y[0] = first_value
    state = forecast(client, y[:30], return_state=True)["state"]
    continued = forecast(client, y[30:], start={"id": "a", "state": state})
    expected = forecast(client, y)
    np.testing.assert_allclose(continued["mean"], expected["mean"], rtol=1e-6)
    np.testing.assert_allclose(continued["quantiles"]["0.05"], expected["quantiles"]["0.05"], rtol=1e-6)
    assert continued["warnings"] == expected["warnings"]
    assert (find_lowest(continued) < 0) == (first_value < 0)


def test_the_model_says_which_bounds_it_has(client: AppClient) -> None:
    assert client.get("/v1/model").json()["bounds"] == {"lower": 0, "upper": None, "zero": "training_data"}


def test_the_model_of_an_earlier_version_has_no_bounds(tmp_path_factory: pytest.TempPathFactory) -> None:
    slot, predictor = tmp_path_factory.mktemp("earlier") / "slot", Predictor(without_bounds(make_model()))
    publish_stub(slot)
    with application_clients(slot) as make:
        response = make(load=lambda folder: predictor).get("/v1/model").json()
    assert response["bounds"] == {"lower": None, "upper": None, "zero": "never"}
