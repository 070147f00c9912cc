"""The two clients of the service: `AppClient`, which blocks, and `AsyncClient`."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

from forecaster.client.batches import (
    MODEL_REQUEST,
    READY_REQUEST,
    ErrorMode,
    ForecastQuery,
    FrameForecast,
    ServiceOutcomes,
    forecast_batch,
    forecast_frame,
    raise_for_errors,
)
from forecaster.client.transport import (
    Delay,
    Exchange,
    HttpRequest,
    HttpResponse,
    NoResponse,
    RetryPolicy,
    request_json,
)
from forecaster.errors import InputError, MissingPackage, ServiceNotReady, Unreachable

if TYPE_CHECKING:
    import httpx
    import pandas as pd

    from forecaster.data.frames.panel import ColumnNames
    from forecaster.series import Series

KEY_ENV_VARIABLE = "FORECASTER_KEY"
_DEFAULT_RETRY_POLICY, _NO_RETRY = RetryPolicy(), RetryPolicy(retries=0)
T = TypeVar("T")


class Client:
    """Asks, and waits for the answer. May be shared by threads."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout: float = 30.0,
        retry_policy: RetryPolicy = _DEFAULT_RETRY_POLICY,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Opens no connection yet.

        Args:
            url: Of the service: http://127.0.0.1:3000.
            key: Where the service has keys; FORECASTER_KEY of the environment, if not given. It is sent to the service alone,
                and shown by nothing here.
            timeout: Seconds that an answer is waited for; the service gives up after as long.
            patience: How often what was lost is asked again.
            transport: How requests travel, if not by httpx's own means.
        Raises:
            InputError: the address is none.
            MissingPackage: httpx is not installed.
        """
        self._url, self._timeout, self._retry_policy = _validate_url(url), timeout, retry_policy
        self._http = _import_httpx().Client(
            base_url=self._url, headers=_headers(key), timeout=timeout, transport=transport, follow_redirects=False
        )

    def __repr__(self) -> str:
        return f"Client({self._url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    @overload
    def forecast(
        self,
        frame: pd.DataFrame,
        horizon: int | None = None,
        levels: Sequence[float] = (),
        *,
        freq: str | int | None = None,
        columns: ColumnNames | None = None,
        zone: str | None = None,
        errors: Literal["raise"] = "raise",
    ) -> pd.DataFrame: ...

    @overload
    def forecast(
        self,
        frame: pd.DataFrame,
        horizon: int | None = None,
        levels: Sequence[float] = (),
        *,
        freq: str | int | None = None,
        columns: ColumnNames | None = None,
        zone: str | None = None,
        errors: Literal["return"],
    ) -> FrameForecast: ...

    def forecast(
        self,
        frame: pd.DataFrame,
        horizon: int | None = None,
        levels: Sequence[float] = (),
        *,
        freq: str | int | None = None,
        columns: ColumnNames | None = None,
        zone: str | None = None,
        errors: ErrorMode = "raise",
    ) -> pd.DataFrame | FrameForecast:
        """The forecasts of a long frame `unique_id, ds, y`, as `unique_id, ds, mean` and a column for each level ("0.1").

        Covariates (their known future as rows without `y`), static columns and channels travel along where the model in use
        reads columns of their names. Large frames are asked for in parts.

        Args:
            frame: As for `to_panel`, which checks it here.
            horizon: Steps ahead; the model's own, if not given.
            levels: Of calibrated quantiles.
            freq: If not given, it is inferred, if that is certain; else it is the model's, and absent rows were not observed.
            columns: The names of the columns, if not `unique_id, ds, y`.
            zone: The time zone of stamps that carry none.
            errors: "raise": SeriesRefused if any series has no forecast, with what stands in the way of each. "return": the
                table of the others in a Forecasts, beside the faults, the warnings and the model.
        Raises:
            InputError's kinds: the frame cannot be used.
            ServiceError's kinds: the service refuses it all, with its code, message, place and request id, or is not there.
        """
        found = self._drive(
            forecast_frame(
                frame,
                horizon=horizon,
                levels=levels,
                freq=freq,
                columns=columns,
                zone=zone,
                timeout_s=self._timeout,
                retry_policy=self._retry_policy,
            )
        )
        return found if errors == "return" else raise_for_errors(found).table

    def forecast_batch(
        self, series: Sequence[Series], horizon: int, *, levels: Sequence[float] = ()
    ) -> ServiceOutcomes:
        """One outcome for each series of one frequency, in order, as `Predictor.forecast_batch`; and the model."""
        return self._drive(
            forecast_batch(series, ForecastQuery(horizon, tuple(levels), self._timeout), self._retry_policy)
        )

    def get_model(self) -> dict[str, Any]:
        """The model in use: name, specification, scores, card, age."""
        told: dict[str, Any] = self._drive(request_json(MODEL_REQUEST, self._retry_policy))
        return told

    def is_ready(self) -> bool:
        """Whether the service is there and has a model; asked once."""
        try:
            self._drive(request_json(READY_REQUEST, _NO_RETRY))
        except (ServiceNotReady, Unreachable):
            return False
        return True

    def _drive(self, exchange: Exchange[T]) -> T:
        said: HttpResponse | NoResponse | None = None
        while True:
            try:
                wanted = exchange.send(said)
            except StopIteration as done:
                answer: T = done.value
                return answer
            said = None
            if isinstance(wanted, Delay):
                time.sleep(wanted.seconds)
            else:
                said = self._send(wanted)

    def _send(self, request: HttpRequest) -> HttpResponse | NoResponse:
        httpx = _import_httpx()
        try:
            reply = self._http.request(
                request.method, request.path, content=request.body, headers=_content_type(request)
            )
        except httpx.TransportError as error:
            return _no_response(error)
        return HttpResponse(reply.status_code, _lowercase_names(reply.headers), reply.content)


class AsyncClient:
    """The same for asynchronous programs; may be shared by the tasks of one loop."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout: float = 30.0,
        retry_policy: RetryPolicy = _DEFAULT_RETRY_POLICY,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """As `AppClient`."""
        self._url, self._timeout, self._retry_policy = _validate_url(url), timeout, retry_policy
        self._http = _import_httpx().AsyncClient(
            base_url=self._url, headers=_headers(key), timeout=timeout, transport=transport, follow_redirects=False
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

    @overload
    async def forecast(
        self,
        frame: pd.DataFrame,
        horizon: int | None = None,
        levels: Sequence[float] = (),
        *,
        freq: str | int | None = None,
        columns: ColumnNames | None = None,
        zone: str | None = None,
        errors: Literal["raise"] = "raise",
    ) -> pd.DataFrame: ...

    @overload
    async def forecast(
        self,
        frame: pd.DataFrame,
        horizon: int | None = None,
        levels: Sequence[float] = (),
        *,
        freq: str | int | None = None,
        columns: ColumnNames | None = None,
        zone: str | None = None,
        errors: Literal["return"],
    ) -> FrameForecast: ...

    async def forecast(
        self,
        frame: pd.DataFrame,
        horizon: int | None = None,
        levels: Sequence[float] = (),
        *,
        freq: str | int | None = None,
        columns: ColumnNames | None = None,
        zone: str | None = None,
        errors: ErrorMode = "raise",
    ) -> pd.DataFrame | FrameForecast:
        """As `AppClient.forecast`."""
        found = await self._drive(
            forecast_frame(
                frame,
                horizon=horizon,
                levels=levels,
                freq=freq,
                columns=columns,
                zone=zone,
                timeout_s=self._timeout,
                retry_policy=self._retry_policy,
            )
        )
        return found if errors == "return" else raise_for_errors(found).table

    async def forecast_batch(
        self, series: Sequence[Series], horizon: int, *, levels: Sequence[float] = ()
    ) -> ServiceOutcomes:
        """As `AppClient.forecast_batch`."""
        return await self._drive(
            forecast_batch(series, ForecastQuery(horizon, tuple(levels), self._timeout), self._retry_policy)
        )

    async def get_model(self) -> dict[str, Any]:
        """As `AppClient.get_model`."""
        told: dict[str, Any] = await self._drive(request_json(MODEL_REQUEST, self._retry_policy))
        return told

    async def is_ready(self) -> bool:
        """As `AppClient.is_ready`."""
        try:
            await self._drive(request_json(READY_REQUEST, _NO_RETRY))
        except (ServiceNotReady, Unreachable):
            return False
        return True

    async def _drive(self, exchange: Exchange[T]) -> T:
        said: HttpResponse | NoResponse | None = None
        while True:
            try:
                wanted = exchange.send(said)
            except StopIteration as done:
                answer: T = done.value
                return answer
            said = None
            if isinstance(wanted, Delay):
                await asyncio.sleep(wanted.seconds)
            else:
                said = await self._send(wanted)

    async def _send(self, request: HttpRequest) -> HttpResponse | NoResponse:
        httpx = _import_httpx()
        try:
            reply = await self._http.request(
                request.method, request.path, content=request.body, headers=_content_type(request)
            )
        except httpx.TransportError as error:
            return _no_response(error)
        return HttpResponse(reply.status_code, _lowercase_names(reply.headers), reply.content)


def _import_httpx() -> Any:
    try:
        import httpx
    except ImportError as error:
        raise MissingPackage(
            "Expected the package 'httpx', which asks over HTTP; it is not installed. Install forecaster[client]."
        ) from error
    return httpx


def _validate_url(url: str) -> str:
    scheme, _, rest = url.partition("://")
    if scheme not in ("http", "https") or not rest.strip("/") or "@" in rest.partition("/")[0]:
        raise InputError(
            "Expected the address of a service, http://HOST:PORT or https://..., without a name and a password in it; found "
            f"{'one with' if '@' in url else repr(url)}. Correct it; a key has an argument of its own.",
            where="url",
        )
    return url.rstrip("/")


def _headers(key: str | None) -> dict[str, str]:
    key = os.environ.get(KEY_ENV_VARIABLE) if key is None else key
    if not key:
        return {}
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(
            "Expected a key of printable characters without spaces; found another. Copy it anew.", where="key"
        )
    return {"authorization": f"Bearer {key}"}


def _content_type(request: HttpRequest) -> dict[str, str]:
    return {} if request.body is None else {"content-type": "application/json"}


def _lowercase_names(headers: httpx.Headers) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _no_response(error: httpx.TransportError) -> NoResponse:
    """No reply; one that only a slow service can be blamed for is not asked for again."""
    late = isinstance(error, (_import_httpx().ReadTimeout, _import_httpx().WriteTimeout))
    return NoResponse(str(error) or type(error).__name__, late)
