"""Intervals that adapt to late actuals while the server runs, if enabled; and live coverage without requested levels."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forecaster.bundle import artifact
from forecaster.intervals.conformal import calibrate
from serving import ledger_writer as ledgers
from serving.deployment.releases import Release, publish, staging
from serving.deployment.slot import load_bundle
from tests.factories import make_fitted_model, make_spec
from tests.serving.conftest import AppClient, MakeClient

STEPS, HORIZON = 60, 4


@pytest.fixture
def slot_folder(tmp_path: Path) -> Path:
    """A slot with a calibrated network whose errors are about a tenth of a change."""
    slot = tmp_path / "slot"
    rng = np.random.default_rng(0)
    calibration = calibrate(0.1 * rng.normal(size=(200, 1, HORIZON)), np.ones(200))
    fitted_model = replace(make_fitted_model(make_spec(horizon=HORIZON)), calibration=calibration)
    with staging(slot) as draft:
        digest = artifact.save_bundle(fitted_model, draft / "bundle", card="# Small\n")
        publish(slot, draft / "bundle", Release(name="small", version="1", digest=digest))
    return slot


@pytest.fixture(autouse=True)
def _fast_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "_ADAPT_INTERVAL_S", 0.05)


def make_history(start: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    y = 10 + rng.normal(size=STEPS)
    return {"id": "a", "start": f"2026-01-0{1 + start}T00:00:00Z", "freq": "h", "y": y.tolist()}


def upper_quantile(client: AppClient, start: int = 0, **fields: Any) -> list[float]:
    request = {"series": [make_history(start)], "horizon": HORIZON, "levels": [0.1, 0.9], **fields}
    response = client.post("/v1/forecast", json=request)
    assert response.status_code == 200, response.text
    quantiles: list[float] = response.json()["forecasts"][0]["quantiles"]["0.9"]
    return quantiles


def send_actuals(client: AppClient, start: int = 0, *, offset: float) -> None:
    """Waits until the forecast is recorded, and sends actuals that are `offset` above the history."""
    _wait_until(lambda: client.get("/v1/accuracy").json()["forecasts"] > start)
    actuals = {"id": "a", "start": f"2026-01-0{3 + start}T12:00:00Z", "freq": "h", "y": [10 + offset] * HORIZON}
    response = client.post("/v1/actuals", json={"series": [actuals]}).json()
    assert response["outcomes"][0]["by_horizon"] == {str(step): 1 for step in range(1, HORIZON + 1)}


def _wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_request_for_whole_paths_gets_wider_quantiles_which_are_not_recorded(
    slot_folder: Path, make_client: MakeClient
) -> None:
    client = make_client(load=load_bundle, ledger="on")
    single = upper_quantile(client)
    joint = upper_quantile(client, start=1, joint=True)
    assert all(wide > narrow for wide, narrow in zip(joint, single, strict=True))
    batch = {"series": [make_history(start=2)], "horizon": HORIZON, "levels": [0.3], "joint": True}
    assert list(client.post("/v1/forecast", json=batch).json()["forecasts"][0]["quantiles"]) == ["0.3"]
    _wait_until(lambda: client.get("/v1/accuracy").json()["forecasts"] == 3)
    with closing(sqlite3.connect(slot_folder / "ledger.db")) as database:
        tables = [name for (name,) in database.execute("select name from sqlite_master where type = 'table'")]
        content = "".join(str(row) for name in tables for row in database.execute(f"select * from {name}"))
    assert '"0.975"' in content
    assert '"0.3"' not in content


def test_late_actuals_adapt_the_intervals_of_every_worker(slot_folder: Path, make_client: MakeClient) -> None:
    clients = [make_client(load=load_bundle, ledger="on", adaptive=True) for _ in range(2)]
    before = [upper_quantile(client) for client in clients]
    assert before[0] == before[1]
    assert clients[0].get("/v1/model").json()["calibration"] == {"basis": "ranks", "windows": 200}
    send_actuals(clients[0], offset=5.0)
    for client in clients:
        _wait_until(lambda client=client: all(np.array(upper_quantile(client)) > np.array(before[0])))
    assert upper_quantile(clients[0]) == upper_quantile(clients[1])
    request = {"series": [make_history()], "horizon": HORIZON}
    assert clients[0].post("/v1/forecast", json=request).json()["forecasts"][0].get("quantiles") is None


def test_intervals_are_fixed_unless_adaptive_is_enabled(slot_folder: Path, make_client: MakeClient) -> None:
    client = make_client(load=load_bundle, ledger="on")
    before = upper_quantile(client)
    send_actuals(client, offset=5.0)
    time.sleep(0.3)
    assert upper_quantile(client) == before


def test_live_coverage_is_measured_without_requested_levels(slot_folder: Path, make_client: MakeClient) -> None:
    client = make_client(load=load_bundle, ledger="on")
    request = {"series": [make_history()], "horizon": HORIZON}
    forecast = client.post("/v1/forecast", json=request).json()["forecasts"][0]
    assert "quantiles" not in forecast
    send_actuals(client, offset=50.0)
    accuracy = client.get("/v1/accuracy").json()["overall"]
    assert accuracy["coverage"] == {"0.8": 0.0, "0.95": 0.0}
    assert 0 < accuracy["width"]["0.8"] < accuracy["width"]["0.95"]
    assert accuracy["mase"] > 1
    assert accuracy["bias"] == pytest.approx(np.mean(forecast["mean"]) - 60)
