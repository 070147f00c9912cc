"""Over HTTP: a small request that is alone is answered where it came in; those that come together are rolled together."""

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
    """Notes the thread in which it is asked, and of how many series."""

    def forecast_batch(
        self, series: Sequence[Series], horizon: int, *, levels: Sequence[float] = ()
    ) -> list[Forecast | ForecasterError]:
        RECORDED_CALLS.append((threading.get_ident(), len(series)))
        return super().forecast_batch(series, horizon, levels=levels)


RECORDED_CALLS: list[tuple[int, int]] = []


def test_a_single_request_runs_inline_and_concurrent_ones_are_batched(slot_folder: Path) -> None:
    publish_stub(slot_folder)
    served = app.build_application(Settings(slot=slot_folder), load=lambda _: ThreadRecorder())
    served.slot.reload_if_changed()
    RECORDED_CALLS.clear()

    async def story() -> None:
        transport = httpx.ASGITransport(app=served.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://forecaster") as client:

            async def ask(name: str) -> httpx.Response:
                return await client.post("/v1/forecast", json={"series": [series_payload(id=name)], "horizon": 2})

            alone = [await ask("a") for _ in range(20)]
            assert {one.status_code for one in alone} == {200}
            assert len({one.text for one in alone}) == 1
            here = [thread == threading.get_ident() for thread, _ in RECORDED_CALLS]
            assert not here[0], "what it takes is not known yet"
            assert any(here[1:])
            assert all("total;dur=" in one.headers["server-timing"] for one in alone)

            RECORDED_CALLS.clear()
            names = [f"series {number}" for number in range(12)]
            answers = await asyncio.gather(*map(ask, names))
            assert [one.json()["forecasts"][0]["id"] for one in answers] == names
            assert threading.get_ident() not in {thread for thread, _ in RECORDED_CALLS}
            assert sum(count for _, count in RECORDED_CALLS) == len(names)
            assert len(RECORDED_CALLS) < len(names)

            page = (await client.get("/metrics")).text
            assert 'forecaster_series_total{outcome="forecast"} 32.0' in page
            assert 'forecaster_requests_total{route="/v1/forecast",status="200"} 32.0' in page

    asyncio.run(story())
