"""A shadow challenger: its forecasts are recorded next to the champion's, never returned, and its failures are harmless."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from forecaster.errors import ForecasterError
from forecaster.ledger.accuracy import forecast_actual_pairs
from forecaster.ledger.records import ForecastFilter
from forecaster.ledger.store import Ledger
from forecaster.series import Forecast, Series
from serving.settings import Settings
from tests.serving.conftest import AppClient, LastValuePredictor, MakeClient, load_stub, publish_stub, series_payload

pytestmark = pytest.mark.integration


def post_forecast(client: AppClient, *names: str) -> list[float]:
    response = client.post("/v1/forecast", json={"series": [series_payload(id=name) for name in names], "horizon": 2})
    assert response.status_code == 200
    assert response.json()["model"]["version"] == "1"
    return [forecast["mean"][0] for forecast in response.json()["forecasts"]]


def recorded_means(slot_folder: Path, *, version: str, count: int, within: float = 5.0) -> dict[str, list[float]]:
    """Returns the mean forecasts of a version by series key, once `count` of them are recorded."""
    ledger = Ledger(f"sqlite:///{slot_folder / 'ledger.db'}")
    deadline = time.monotonic() + within
    count_seen = -1
    while (
        time.monotonic() < deadline
        and not count <= count_seen == ledger.span(ForecastFilter(version=version)).forecasts
    ):
        count_seen = ledger.span(ForecastFilter(version=version)).forecasts
        time.sleep(0.2 if count_seen >= count else 0.02)  # more of the same request may follow
    means = {
        row.key: json.loads(row.body)["mean"]
        for row in ledger.latest_forecasts(ForecastFilter(version=version), limit=1000)
    }
    ledger.close()
    return means


def test_a_shadow_model_forecasts_the_same_histories_for_the_ledger_only(
    slot_folder: Path, make_client: MakeClient
) -> None:
    publish_stub(slot_folder)
    publish_stub(slot_folder / "shadow", version="2", shift=10.0)
    client = make_client(ledger="on", shadow="challenger", shadow_share=1.0)
    wait_for_shadow(client)
    assert post_forecast(client, "a", "b") == [2.5, 2.5], "clients receive the champion's forecasts"
    champion, shadow = (recorded_means(slot_folder, version=version, count=2) for version in "12")
    assert set(champion) == set(shadow)
    assert set(map(tuple, shadow.values())) == {(12.5, 12.5)}


def test_a_shadow_model_samples_a_fixed_share_of_recorded_forecasts(slot_folder: Path, make_client: MakeClient) -> None:
    publish_stub(slot_folder)
    publish_stub(slot_folder / "shadow", version="2", shift=10.0)
    client = make_client(ledger="on", shadow="challenger", shadow_share=0.3, ledger_share=0.5, max_series=400)
    wait_for_shadow(client)
    names = [f"s{number}" for number in range(400)]
    post_forecast(client, *names)
    champion, shadow = (
        recorded_means(slot_folder, version="1", count=150),
        recorded_means(slot_folder, version="2", count=30),
    )
    assert 150 < len(champion) < 250
    assert 30 < len(shadow) < 90
    assert set(shadow) < set(champion)


@pytest.mark.parametrize("shadow", ["challenger", ""])
def test_no_shadow_model_is_loaded_without_a_ledger_or_the_setting(shadow: str, tmp_path: Path) -> None:
    assert Settings(slot=tmp_path, shadow=shadow, ledger="off").shadow_slot is None
    assert Settings(slot=tmp_path, shadow="", ledger="on").shadow_slot is None
    assert Settings(slot=tmp_path, shadow="challenger", ledger="on").shadow_slot == tmp_path / "shadow"


class FailingPredictor(LastValuePredictor):
    """A model that raises an unexpected exception if it has a shift."""

    def forecast_batch(
        self, series: Sequence[Series], horizon: int, *, levels: Sequence[float] = (), **_: Any
    ) -> list[Forecast | ForecasterError]:
        if self.shift:
            raise RuntimeError("an unexpected failure")
        return super().forecast_batch(series, horizon, levels=levels)


def test_a_failing_shadow_model_is_harmless(
    slot_folder: Path, make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    def load(folder: Path) -> LastValuePredictor:
        predictor = load_stub(folder)
        return (FailsAfterSmokeTest if predictor.shift else FailingPredictor)(predictor.fitted_model, predictor.shift)

    class FailsAfterSmokeTest(FailingPredictor):
        def forecast_batch(self, series: Sequence[Series], horizon: int, **options: Any) -> Any:
            is_smoke_test = [each.id for each in series] == ["warm-up"]
            forecast_batch = LastValuePredictor.forecast_batch if is_smoke_test else FailingPredictor.forecast_batch
            return forecast_batch(self, series, horizon, **options)

    publish_stub(slot_folder)
    publish_stub(slot_folder / "shadow", version="2", shift=10.0)
    client = make_client(load=load, ledger="on", shadow="challenger", shadow_share=1.0)
    wait_for_shadow(client)
    assert post_forecast(client, "a") == [2.5]
    assert len(recorded_means(slot_folder, version="1", count=1)) == 1
    assert recorded_means(slot_folder, version="2", count=1, within=0.3) == {}
    assert "an unexpected failure" in caplog.text


def test_a_shadow_model_equal_to_the_champion_is_not_run(slot_folder: Path, make_client: MakeClient) -> None:
    publish_stub(slot_folder)
    publish_stub(slot_folder / "shadow", version="2")  # the same bytes under another number
    client = make_client(ledger="on", shadow="challenger", shadow_share=1.0)
    wait_for_shadow(client)
    post_forecast(client, "a")
    assert len(recorded_means(slot_folder, version="1", count=1)) == 1
    assert recorded_means(slot_folder, version="2", count=1, within=0.3) == {}


def test_champion_and_shadow_forecasts_are_scored_side_by_side(slot_folder: Path, make_client: MakeClient) -> None:
    publish_stub(slot_folder)
    publish_stub(slot_folder / "shadow", version="2", shift=10.0)
    client = make_client(ledger="on", shadow="challenger", shadow_share=1.0)
    wait_for_shadow(client)
    post_forecast(client, "a")
    recorded_means(slot_folder, version="2", count=1)
    actuals = {"id": "a", "start": "2026-01-01T03:00:00Z", "freq": "h", "y": [3.0, 4.0]}
    assert client.post("/v1/actuals", json={"series": [actuals]}).status_code == 200
    ledger = Ledger(f"sqlite:///{slot_folder / 'ledger.db'}")
    champion, shadow = (next(iter(forecast_actual_pairs(ledger, ForecastFilter(version=version)))) for version in "12")
    ledger.close()
    assert (champion["mean"] - champion["actual"]).tolist() == [-0.5, -1.5]
    assert (shadow["mean"] - shadow["actual"]).tolist() == [9.5, 8.5]


def wait_for_shadow(client: AppClient) -> None:
    """Waits until the shadow model is loaded."""
    deadline = time.monotonic() + 10
    while client.shadow_slot is None or client.shadow_slot.current is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
