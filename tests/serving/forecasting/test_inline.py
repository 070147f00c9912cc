"""Over HTTP: a single small request is computed in the event loop, and concurrent requests are batched."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import httpx

from forecaster.errors import ForecasterError
from forecaster.series import Forecast, Series
from serving.routes import app
from serving.settings import Settings
from tests.serving.conftest import LastValuePredictor, publish_stub, series_payload


class ThreadRecorder(LastValuePredictor):
    """Records the thread and the size of every batch."""

    def forecast_batch(
        self, series: Sequence[Series], horizon: int, *, levels: Sequence[float] = ()
    ) -> list[Forecast | ForecasterError]:
        RECORDED_CALLS.append((threading.get_ident(), len(series)))
        return super().forecast_batch(series, horizon, levels=levels)


RECORDED_CALLS: list[tuple[int, int]] = []


def test_a_single_request_runs_inline_and_concurrent_ones_are_batched(slot_folder: Path) -> None:
    publish_stub(slot_folder)
    application = app.build_application(Settings(slot=slot_folder), load=lambda _: ThreadRecorder())
    application.slot.reload_if_changed()
    RECORDED_CALLS.clear()

    async def scenario() -> None:
        transport = httpx.ASGITransport(app=application.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://forecaster") as client:

            async def send(name: str) -> httpx.Response:
                return await client.post("/v1/forecast", json={"series": [series_payload(id=name)], "horizon": 2})

            sequential = [await send("a") for _ in range(20)]
            assert {response.status_code for response in sequential} == {200}
            assert len({response.text for response in sequential}) == 1
            in_event_loop = [thread == threading.get_ident() for thread, _ in RECORDED_CALLS]
            assert not in_event_loop[0], "there is no latency estimate yet"
            assert any(in_event_loop[1:])
            assert all("total;dur=" in response.headers["server-timing"] for response in sequential)

            RECORDED_CALLS.clear()
            names = [f"series {number}" for number in range(12)]
            responses = await asyncio.gather(*map(send, names))
            assert [response.json()["forecasts"][0]["id"] for response in responses] == names
            assert threading.get_ident() not in {thread for thread, _ in RECORDED_CALLS}
            assert sum(count for _, count in RECORDED_CALLS) == len(names)
            assert len(RECORDED_CALLS) < len(names)

            metrics = (await client.get("/metrics")).text
            assert 'forecaster_series_total{outcome="forecast"} 32.0' in metrics
            assert 'forecaster_requests_total{route="/v1/forecast",status="200"} 32.0' in metrics

    asyncio.run(scenario())
