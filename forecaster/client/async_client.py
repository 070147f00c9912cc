"""The client of the service for asynchronous programs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from forecaster.client.batches import (
    MODEL_REQUEST,
    READY_REQUEST,
    ExplanationQuery,
    ForecastQuery,
    FrameForecast,
    FrameQuery,
    ServiceOutcomes,
    explain_series,
    forecast_batch,
    forecast_frame,
    raise_for_errors,
)
from forecaster.client.connection import (
    build_content_type,
    build_headers,
    describe_lost_request,
    import_httpx,
    to_response,
    validate_url,
)
from forecaster.client.transport import (
    DEFAULT_RETRY_POLICY,
    NO_RETRY,
    Delay,
    Exchange,
    HttpRequest,
    HttpResponse,
    NoResponse,
    RetryPolicy,
    request_json,
)
from forecaster.errors import ServiceNotReady, Unreachable

if TYPE_CHECKING:
    import httpx
    import pandas as pd

    from forecaster.data.frames.rows import ColumnNames
    from forecaster.series import Series

T = TypeVar("T")


class AsyncClient:
    """A client for asynchronous programs; the tasks of one event loop may share it."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout: float = 30.0,
        retry_policy: RetryPolicy = DEFAULT_RETRY_POLICY,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Opens no connection yet; the arguments are those of `Client`."""
        self._url, self._timeout, self._retry_policy = validate_url(url), timeout, retry_policy
        self._http = import_httpx().AsyncClient(
            base_url=self._url, headers=build_headers(key), timeout=timeout, transport=transport, follow_redirects=False
        )

    def __repr__(self) -> str:
        return f"AsyncClient({self._url!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def forecast(
        self,
        frame: pd.DataFrame,
        horizon: int | None = None,
        levels: Sequence[float] = (),
        *,
        freq: str | int | None = None,
        columns: ColumnNames | None = None,
        zone: str | None = None,
        season: int | None = None,
        joint: bool = False,
    ) -> pd.DataFrame:
        """See `Client.forecast`."""
        result = await self.forecast_partial(
            frame, horizon, levels, freq=freq, columns=columns, zone=zone, season=season, joint=joint
        )
        return raise_for_errors(result).table

    async def forecast_partial(
        self,
        frame: pd.DataFrame,
        horizon: int | None = None,
        levels: Sequence[float] = (),
        *,
        freq: str | int | None = None,
        columns: ColumnNames | None = None,
        zone: str | None = None,
        season: int | None = None,
        joint: bool = False,
    ) -> FrameForecast:
        """See `Client.forecast_partial`."""
        query = FrameQuery(horizon, tuple(levels), freq, columns, zone, self._timeout, season, joint)
        return await self._drive(forecast_frame(frame, query, self._retry_policy))

    async def forecast_batch(
        self,
        series: Sequence[Series],
        horizon: int,
        *,
        levels: Sequence[float] = (),
        joint: bool = False,
        vocabulary: Sequence[str] = (),
    ) -> ServiceOutcomes:
        """See `Client.forecast_batch`."""
        return await self._drive(
            forecast_batch(
                series,
                ForecastQuery(horizon, tuple(levels), self._timeout, joint=joint, vocabulary=tuple(vocabulary)),
                self._retry_policy,
            )
        )

    async def explain(
        self, series: Series, horizon: int | None = None, *, steps: int = 256, faithfulness: bool = False
    ) -> dict[str, Any]:
        """See `Client.explain`."""
        return await self._drive(
            explain_series(series, ExplanationQuery(horizon, steps, faithfulness, self._timeout), self._retry_policy)
        )

    async def get_model(self) -> dict[str, Any]:
        """See `Client.get_model`."""
        model: dict[str, Any] = await self._drive(request_json(MODEL_REQUEST, self._retry_policy))
        return model

    async def is_ready(self) -> bool:
        """See `Client.is_ready`."""
        try:
            await self._drive(request_json(READY_REQUEST, NO_RETRY))
        except (ServiceNotReady, Unreachable):
            return False
        return True

    async def _drive(self, exchange: Exchange[T]) -> T:
        response: HttpResponse | NoResponse | None = None
        while True:
            try:
                step = exchange.send(response)
            except StopIteration as done:
                result: T = done.value
                return result
            response = None
            if isinstance(step, Delay):
                await asyncio.sleep(step.seconds)
            else:
                response = await self._send(step)

    async def _send(self, request: HttpRequest) -> HttpResponse | NoResponse:
        httpx = import_httpx()
        try:
            http_response = await self._http.request(
                request.method, request.path, content=request.body, headers=build_content_type(request)
            )
        except httpx.TransportError as error:
            return describe_lost_request(error)
        return to_response(http_response)
