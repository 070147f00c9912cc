"""POST /v1/forecast with channels, of which the past alone is known: what the library says, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forecaster.bundle import artifact
from forecaster.data.encoding import PLAIN
from forecaster.model import regressor
from forecaster.prediction.predictor import Forecaster, Predictor
from forecaster.series import Series
from forecaster.spec import NetworkSpec, Spec
from serving.deployment.slot import Release, Slot, publish, staging
from tests.serving.conftest import Client, MakeClient, publish_stub, series

STEPS, HORIZON = 12, 5


def learned() -> Forecaster:
    spec = Spec(name="channels", context=8, horizon=4, channels=("heat", "rain"), network=NetworkSpec(hidden=8))
    network = regressor.build(spec, seed=0, season=4)
    return Forecaster(spec, "h", 4, pd.Timestamp("2026-01-01"), PLAIN, network)


@pytest.fixture
def ask(slot_folder: Path, make_client: MakeClient) -> Callable[..., Any]:
    """Asks a network of random weights."""
    publish_stub(slot_folder)
    client = make_client(load=lambda folder: Predictor(learned()))

    def post(*items: dict[str, Any]) -> Any:
        return client.post("/v1/forecast", json={"series": list(items), "horizon": HORIZON})

    return post


def history() -> list[float]:
    return [float(value) for value in 10 + np.sin(np.arange(STEPS)) + np.arange(STEPS) / 3]


def channels(steps: int = STEPS) -> dict[str, list[float | None]]:
    return {"heat": [20 + place % 5 for place in range(steps)], "rain": [None, 0, 2.5, *[0.5] * (steps - 3)]}


def item(**fields: Any) -> dict[str, Any]:
    return series(**{"y": history(), "channels": channels(), **fields})


def test_the_answer_is_that_of_the_library(ask: Callable[..., Any]) -> None:
    [found] = ask(item()).json()["forecasts"]
    columns = {name: np.array(values, dtype=np.float64) for name, values in channels().items()}
    one = Series("a", pd.Timestamp("2026-01-01T00:00:00Z"), "h", np.array(history()), channels=columns)
    np.testing.assert_allclose(found["mean"], Predictor(learned()).forecast(one, HORIZON).mean, rtol=1e-6)


def test_stamped_series_have_channels_too(ask: Callable[..., Any]) -> None:
    ds = [f"2026-01-01T{hour:02}:00:00Z" for hour in range(STEPS)]
    stamped = {"id": "a", "ds": ds, "y": history(), "channels": channels()}
    one, other = ask(item(), stamped).json()["forecasts"]
    np.testing.assert_allclose(one["mean"], other["mean"], rtol=1e-6)


def test_every_channel_reaches_the_network_and_others_change_nothing(ask: Callable[..., Any]) -> None:
    warm = {**channels(), "heat": [35 - place for place in range(STEPS)]}
    dry = {**channels(), "rain": [None] * STEPS}
    more = {**channels(), "other": [1e300] * STEPS}
    plain, wide, *others = ask(item(), item(channels=more), item(channels=warm), item(channels=dry)).json()["forecasts"]
    np.testing.assert_allclose(plain["mean"], wide["mean"], rtol=1e-6)
    assert len({tuple(one["mean"]) for one in (plain, *others)}) == 3


@pytest.mark.parametrize(
    ("columns", "code"),
    [
        ({}, "covariate_unknown"),
        ({"heat": channels()["heat"]}, "covariate_unknown"),
        ({**channels(), "heat": []}, "covariate_unknown"),
        ({**channels(), "heat": [1] * (STEPS - 1)}, "covariate_unknown"),
        (channels(STEPS + HORIZON), "covariate_unknown"),
        ({**channels(), "other": [1] * (STEPS + 1)}, "covariate_unknown"),
        ({**channels(), "heat": [1e200] * STEPS}, "value_out_of_range"),
    ],
)
def test_a_series_with_bad_channels_is_refused_alone(ask: Callable[..., Any], columns: Any, code: str) -> None:
    before, bad, after = ask(item(id="before"), item(channels=columns), item(id="after")).json()["forecasts"]
    assert (bad["error"]["code"], bad["error"]["where"]) == (code, "a")
    np.testing.assert_allclose(before["mean"], after["mean"], rtol=1e-6)
    alone = ask(item(channels=columns))
    assert (alone.status_code, alone.json()["error"]["code"]) == (422, code)


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"channels": {"a": [1, 2, "x"]}}, "series.0.channels.a.2"),
        ({"channels": {"a": [1, True, 3]}}, "series.0.channels.a.1"),
        ({"channels": {"numbers": 1}}, "series.0.channels.numbers"),
        ({"channels": [[1, 2, 3]]}, "series.0.channels"),
    ],
)
def test_the_place_of_a_fault_is_told_in_the_words_of_the_request(client: Client, fields: Any, where: str) -> None:
    answer = client.post("/v1/forecast", json={"series": [series(**fields)], "horizon": 2})
    assert (answer.status_code, answer.json()["error"]["where"]) == (422, where)


def test_a_bundle_with_channels_is_warmed_up_and_taken_into_use(tmp_path: Path) -> None:
    with staging(tmp_path / "slot") as draft:
        artifact.save(learned(), draft / "bundle", card="")
        digest = artifact.digest(draft / "bundle")
        publish(tmp_path / "slot", draft / "bundle", Release(name="channels", version="1", digest=digest))
    slot = Slot(tmp_path / "slot")
    slot.check()
    assert slot.current is not None
    assert slot.current.predictor.forecaster.spec.channels == ("heat", "rain")
