"""POST /v1/forecast with past-only channels: responses equal the library's, and invalid channels are rejected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forecaster.bundle import artifact
from forecaster.data.encoding import EMPTY_ENCODING
from forecaster.model import regressor
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.series import Series
from forecaster.spec import NetworkSpec, Spec
from serving.deployment.releases import Release, publish, staging
from serving.deployment.slot import Slot
from tests.serving.conftest import AppClient, MakeClient, publish_stub, series_payload

STEPS, HORIZON = 12, 5


def make_model() -> FittedModel:
    spec = Spec(name="channels", context=8, horizon=4, channels=("heat", "rain"), network=NetworkSpec(hidden=8))
    network = regressor.build_network(spec, seed=0, season=4)
    return FittedModel(spec, "h", 4, pd.Timestamp("2026-01-01"), EMPTY_ENCODING, network)


@pytest.fixture
def post_forecast(slot_folder: Path, make_client: MakeClient) -> Callable[..., Any]:
    """Posts series to a network with random weights."""
    publish_stub(slot_folder)
    client = make_client(load=lambda folder: Predictor(make_model()))

    def post(*items: dict[str, Any]) -> Any:
        return client.post("/v1/forecast", json={"series": list(items), "horizon": HORIZON})

    return post


def make_history() -> list[float]:
    return [float(value) for value in 10 + np.sin(np.arange(STEPS)) + np.arange(STEPS) / 3]


def make_channels(steps: int = STEPS) -> dict[str, list[float | None]]:
    return {"heat": [20 + index % 5 for index in range(steps)], "rain": [None, 0, 2.5, *[0.5] * (steps - 3)]}


def make_series_payload(**fields: Any) -> dict[str, Any]:
    return series_payload(**{"y": make_history(), "channels": make_channels(), **fields})


def test_the_response_equals_the_library(post_forecast: Callable[..., Any]) -> None:
    [forecast] = post_forecast(make_series_payload()).json()["forecasts"]
    channels = {name: np.array(values, dtype=np.float64) for name, values in make_channels().items()}
    series = Series("a", pd.Timestamp("2026-01-01T00:00:00Z"), "h", np.array(make_history()), channels=channels)
    np.testing.assert_allclose(forecast["mean"], Predictor(make_model()).forecast(series, HORIZON).mean, rtol=1e-6)


def test_series_with_timestamps_can_have_channels(post_forecast: Callable[..., Any]) -> None:
    ds = [f"2026-01-01T{hour:02}:00:00Z" for hour in range(STEPS)]
    timestamped = {"id": "a", "ds": ds, "y": make_history(), "channels": make_channels()}
    grid_forecast, timestamped_forecast = post_forecast(make_series_payload(), timestamped).json()["forecasts"]
    np.testing.assert_allclose(grid_forecast["mean"], timestamped_forecast["mean"], rtol=1e-6)


def test_every_channel_reaches_the_network(post_forecast: Callable[..., Any]) -> None:
    warm_channels = {**make_channels(), "heat": [35 - index for index in range(STEPS)]}
    dry_channels = {**make_channels(), "rain": [None] * STEPS}
    plain, *others = post_forecast(
        make_series_payload(),
        make_series_payload(channels=warm_channels),
        make_series_payload(channels=dry_channels),
    ).json()["forecasts"]
    assert len({tuple(forecast["mean"]) for forecast in (plain, *others)}) == 3


@pytest.mark.parametrize(
    ("columns", "code"),
    [
        ({}, "covariate_unknown"),
        ({"heat": make_channels()["heat"]}, "covariate_unknown"),
        ({**make_channels(), "heat": []}, "covariate_unknown"),
        ({**make_channels(), "heat": [1] * (STEPS - 1)}, "covariate_unknown"),
        (make_channels(STEPS + HORIZON), "covariate_unknown"),
        ({**make_channels(), "other": [1] * (STEPS + 1)}, "covariate_unknown"),
        ({**make_channels(), "heat": [1e200] * STEPS}, "value_out_of_range"),
    ],
)
def test_a_series_with_invalid_channels_is_rejected_alone(
    post_forecast: Callable[..., Any], columns: Any, code: str
) -> None:
    before, bad, after = post_forecast(
        make_series_payload(id="before"), make_series_payload(channels=columns), make_series_payload(id="after")
    ).json()["forecasts"]
    assert (bad["error"]["code"], bad["error"]["where"]) == (code, "a")
    np.testing.assert_allclose(before["mean"], after["mean"], rtol=1e-6)
    alone = post_forecast(make_series_payload(channels=columns))
    assert (alone.status_code, alone.json()["error"]["code"]) == (422, code)


@pytest.mark.parametrize(
    ("fields", "location"),
    [
        ({"channels": {"a": [1, 2, "x"]}}, "series.0.channels.a.2"),
        ({"channels": {"a": [1, True, 3]}}, "series.0.channels.a.1"),
        ({"channels": {"numbers": 1}}, "series.0.channels.numbers"),
        ({"channels": [[1, 2, 3]]}, "series.0.channels"),
    ],
)
def test_an_error_location_uses_the_names_of_the_request(client: AppClient, fields: Any, location: str) -> None:
    response = client.post("/v1/forecast", json={"series": [series_payload(**fields)], "horizon": 2})
    assert (response.status_code, response.json()["error"]["where"]) == (422, location)


def test_a_bundle_with_channels_is_warmed_up_and_deployed(tmp_path: Path) -> None:
    with staging(tmp_path / "slot") as draft:
        artifact.save_bundle(make_model(), draft / "bundle", card="")
        digest = artifact.compute_bundle_digest(draft / "bundle")
        publish(tmp_path / "slot", draft / "bundle", Release(name="channels", version="1", digest=digest))
    slot = Slot(tmp_path / "slot")
    slot.reload_if_changed()
    assert slot.current is not None
    assert slot.current.predictor.fitted_model.spec.channels == ("heat", "rain")
