"""Small requests that wait together share one rollout, and each gets the same response as alone."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from forecaster.bundle import artifact
from forecaster.errors import ForecasterError
from forecaster.series import Forecast, Series
from serving.deadline import Deadline
from serving.deployment.releases import Release
from serving.deployment.slot import DeployedModel, load_bundle
from serving.errors import ApiError
from serving.forecasting.endpoint import ComputeJob, EncodedResponse
from serving.forecasting.forecast import FORECAST, DecodedForecast, compute_group, decode_forecast
from serving.routes import app
from serving.settings import Settings
from tests.factories import make_fitted_model, make_spec
from tests.serving.conftest import LastValuePredictor, StubModel, publish_stub, series_payload

SETTINGS = Settings()
RELEASE = Release(name="stub", version="1", digest="0" * 64)
ForecastJob = ComputeJob[DecodedForecast]


class CallCounter(LastValuePredictor):
    """Records the size of every batch; raises an unexpected exception if a value is 13."""

    def forecast_batch(
        self, series: Sequence[Series], horizon: int, *, levels: Sequence[float] = ()
    ) -> list[Forecast | ForecasterError]:
        CALL_SIZES.append(len(series))
        if any((each.y == 13).any() for each in series):
            raise RuntimeError("thirteen")
        return super().forecast_batch(series, horizon, levels=levels)


CALL_SIZES: list[int] = []
MODEL = DeployedModel(RELEASE, CallCounter(), "")


@pytest.fixture(autouse=True)
def _reset_calls() -> None:
    CALL_SIZES.clear()


def make_job(
    *payloads: dict[str, Any], model: DeployedModel = MODEL, seconds: float = 60, **fields: Any
) -> ForecastJob:
    body = json.dumps({"series": list(payloads) or [series_payload()], "horizon": 2, **fields}).encode()
    request = decode_forecast(body, "application/json", SETTINGS)
    return ComputeJob(request, model, Deadline.after(seconds).capped(request.deadline_ms), SETTINGS)


def describe_outcome(outcome: EncodedResponse | Exception) -> Any:
    if isinstance(outcome, EncodedResponse):
        return json.loads(outcome.body)
    return (outcome.status, outcome.code, outcome.where) if isinstance(outcome, ApiError) else repr(outcome)


def forecast_alone(job: ForecastJob) -> Any:
    [outcome] = compute_group([job])
    return describe_outcome(outcome)


def test_equal_requests_share_a_rollout_and_each_gets_its_own_response() -> None:
    jobs = [make_job(series_payload(id=str(number), y=[1.0, 2.0, float(number)])) for number in range(5)]
    outcomes = compute_group(jobs)
    assert CALL_SIZES == [5]
    assert [describe_outcome(item) for item in outcomes] == [forecast_alone(item) for item in jobs]


def test_horizons_levels_and_models_are_not_mixed() -> None:
    other_model = DeployedModel(Release(name="stub", version="2", digest="1" * 64), CallCounter(shift=5.0), "")
    jobs = [
        make_job(),
        make_job(horizon=3),
        make_job(levels=[0.1, 0.9]),
        make_job(model=other_model),
        make_job(),
        make_job(series_payload(id="b"), model=other_model),
        make_job(samples=2),
    ]
    outcomes = compute_group(jobs)
    assert sorted(CALL_SIZES) == [1, 1, 1, 2, 2]
    assert [describe_outcome(item) for item in outcomes] == [forecast_alone(item) for item in jobs]
    assert [describe_outcome(item)["model"]["version"] for item in outcomes] == ["1", "1", "1", "2", "1", "2", "1"]


@pytest.mark.parametrize(
    "invalid",
    [
        lambda: make_job(series_payload(y=[])),
        lambda: make_job(series_payload(y=[1.0])),
        lambda: make_job(series_payload(freq="D")),
        lambda: make_job(series_payload(), series_payload(y=[1.0], id="short")),
        lambda: make_job(series_payload(y=[1.0, 2.0, 13.0])),
        lambda: make_job(seconds=0),
        lambda: make_job(deadline_ms=1, seconds=-1),
    ],
)
def test_a_bad_series_gets_its_own_error_and_affects_no_other(invalid: Callable[[], ForecastJob]) -> None:
    valid = [make_job(series_payload(id=name)) for name in ("a", "b", "c")]
    jobs = [valid[0], invalid(), *valid[1:]]
    outcomes = compute_group(jobs)
    assert [describe_outcome(item) for item in outcomes] == [forecast_alone(item) for item in jobs]
    assert [isinstance(item, EncodedResponse) for item in (outcomes[0], *outcomes[2:])] == [True] * 3


@pytest.mark.parametrize("fields", [{}, {"decoder": "direct"}])
def test_a_grouped_request_gets_the_same_response_as_alone(tmp_path: Path, fields: dict[str, Any]) -> None:
    artifact.save_bundle(make_fitted_model(make_spec(**fields)), tmp_path / "bundle", card="")
    model, rng = DeployedModel(RELEASE, load_bundle(tmp_path / "bundle"), ""), np.random.default_rng(0)
    jobs = [make_job(series_payload(y=rng.normal(size=6 + 5 * number).tolist()), model=model) for number in range(4)]
    for job, outcome in zip(jobs, compute_group(jobs), strict=True):
        grouped, alone = describe_outcome(outcome), forecast_alone(job)
        np.testing.assert_allclose(grouped["forecasts"][0]["mean"], alone["forecasts"][0]["mean"], rtol=1e-5)


def test_a_large_request_has_a_rollout_of_its_own() -> None:
    large = make_job(series_payload(y=[1.0] * 20_000), series_payload(id="b"))
    outcomes = compute_group([large, make_job(), make_job()])
    assert CALL_SIZES == [2, 2]
    assert all(isinstance(outcome, EncodedResponse) for outcome in outcomes)


def test_the_steps_of_a_request_are_those_of_histories_forecasts_quantiles_and_samples() -> None:
    blended = DeployedModel(RELEASE, CallCounter(StubModel(blend_weights={"network": 0.5, "theta": 0.5})), "")
    job = make_job(
        series_payload(y=[1.0] * 10), series_payload(id="b", y=[1.0] * 5), horizon=4, levels=[0.1], samples=3
    )
    assert FORECAST.estimate_work(job.request, MODEL) == 15 + 2 * 4 * (1 + 1 + 3)
    assert FORECAST.estimate_work(job.request, blended) == 64 * (15 + 2 * 4 * (1 + 1 + 3)), "a blend fits models"


class ThreadRecorder(LastValuePredictor):
    """Records the size of every batch; the first waits until it is released."""

    def forecast_batch(
        self, series: Sequence[Series], horizon: int, *, levels: Sequence[float] = ()
    ) -> list[Forecast | ForecasterError]:
        CALL_SIZES.append(len(series))
        RELEASED.wait(10)
        return super().forecast_batch(series, horizon, levels=levels)


RELEASED = threading.Event()


def test_over_http_requests_that_wait_together_are_computed_together(slot_folder: Path) -> None:
    publish_stub(slot_folder)
    application = app.build_application(Settings(slot=slot_folder), load=lambda _: ThreadRecorder())
    RELEASED.set()
    application.slot.reload_if_changed()  # forecasts once
    CALL_SIZES.clear()
    RELEASED.clear()

    async def scenario() -> None:
        transport = httpx.ASGITransport(app=application.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:

            async def send(name: str, **fields: Any) -> httpx.Response:
                payload = {"series": [series_payload(id=name)], "horizon": 2, **fields}
                return await client.post("/v1/forecast", json=payload)

            first = asyncio.create_task(send("first"))
            while not CALL_SIZES:
                await asyncio.sleep(0.005)
            names = [f"series {number}" for number in range(12)]
            tasks = [asyncio.create_task(send(name)) for name in names]
            late = await send("late", deadline_ms=20)
            assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_passed")
            RELEASED.set()
            responses = await asyncio.gather(first, *tasks)
            assert [response.json()["forecasts"][0]["id"] for response in responses] == ["first", *names]
            assert CALL_SIZES == [1, 12], "the request past its deadline is not computed"
            assert all("total;dur=" in response.headers["server-timing"] for response in responses)
            metrics = (await client.get("/metrics")).text
            assert 'forecaster_series_total{outcome="forecast"} 13.0' in metrics
            assert 'forecaster_requests_total{route="/v1/forecast",status="200"} 13.0' in metrics

    asyncio.run(scenario())
