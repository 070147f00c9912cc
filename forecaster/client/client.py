"""The two clients of the service: `Client`, which blocks, and `AsyncClient`."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

from forecaster.client.batches import (
    MODEL,
    READY,
    Errors,
    Forecasts,
    Told,
    Wanted,
    forecast_each,
    forecast_frame,
    raised,
)
from forecaster.client.transport import Call, Patience, Pause, Reply, Silence, Talk, ask
from forecaster.errors import InputError, MissingPackage, ServiceNotReady, Unreachable

if TYPE_CHECKING:
    import httpx
    import pandas as pd

    from forecaster.data.frames.panel import Columns
    from forecaster.series import Series

KEY_VARIABLE = "FORECASTER_KEY"
_PATIENCE, _ONCE = Patience(), Patience(retries=0)
T = TypeVar("T")


class Client:
    """Asks, and waits for the answer. May be shared by threads."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout: float = 30.0,
        patience: Patience = _PATIENCE,
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
        self._url, self._timeout, self._patience = _checked(url), timeout, patience
        self._http = _httpx().Client(
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
        columns: Columns | None = None,
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
        columns: Columns | None = None,
        zone: str | None = None,
        errors: Literal["return"],
    ) -> Forecasts: ...

    def forecast(
        self,
        frame: pd.DataFrame,
        horizon: int | None = None,
        levels: Sequence[float] = (),
        *,
        freq: str | int | None = None,
        columns: Columns | None = None,
        zone: str | None = None,
        errors: Errors = "raise",
    ) -> pd.DataFrame | Forecasts:
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
        found = self._run(
            forecast_frame(
                frame,
                horizon=horizon,
                levels=levels,
                freq=freq,
                columns=columns,
                zone=zone,
                timeout_s=self._timeout,
                patience=self._patience,
            )
        )
        return found if errors == "return" else raised(found).table

    def forecast_each(self, series: Sequence[Series], horizon: int, *, levels: Sequence[float] = ()) -> Told:
        """One outcome for each series of one frequency, in order, as `Predictor.forecast_each`; and the model."""
        return self._run(forecast_each(series, Wanted(horizon, tuple(levels), self._timeout), self._patience))

    def model(self) -> dict[str, Any]:
        """The model in use: name, specification, scores, card, age."""
        told: dict[str, Any] = self._run(ask(MODEL, self._patience))
        return told

    def ready(self) -> bool:
        """Whether the service is there and has a model; asked once."""
        try:
            self._run(ask(READY, _ONCE))
        except (ServiceNotReady, Unreachable):
            return False
        return True

    def _run(self, talk: Talk[T]) -> T:
        said: Reply | Silence | None = None
        while True:
            try:
                wanted = talk.send(said)
            except StopIteration as done:
                answer: T = done.value
                return answer
            said = None
            if isinstance(wanted, Pause):
                time.sleep(wanted.seconds)
            else:
                said = self._call(wanted)

    def _call(self, call: Call) -> Reply | Silence:
        httpx = _httpx()
        try:
            reply = self._http.request(call.method, call.path, content=call.body, headers=_type_of(call))
        except httpx.TransportError as error:
            return _silence(error)
        return Reply(reply.status_code, _small(reply.headers), reply.content)


class AsyncClient:
    """The same for asynchronous programs; may be shared by the tasks of one loop."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout: float = 30.0,
        patience: Patience = _PATIENCE,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """As `Client`."""
        self._url, self._timeout, self._patience = _checked(url), timeout, patience
        self._http = _httpx().AsyncClient(
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
        columns: Columns | None = None,
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
        columns: Columns | None = None,
        zone: str | None = None,
        errors: Literal["return"],
    ) -> Forecasts: ...

    async def forecast(
        self,
        frame: pd.DataFrame,
        horizon: int | None = None,
        levels: Sequence[float] = (),
        *,
        freq: str | int | None = None,
        columns: Columns | None = None,
        zone: str | None = None,
        errors: Errors = "raise",
    ) -> pd.DataFrame | Forecasts:
        """As `Client.forecast`."""
        found = await self._run(
            forecast_frame(
                frame,
                horizon=horizon,
                levels=levels,
                freq=freq,
                columns=columns,
                zone=zone,
                timeout_s=self._timeout,
                patience=self._patience,
            )
        )
        return found if errors == "return" else raised(found).table

    async def forecast_each(self, series: Sequence[Series], horizon: int, *, levels: Sequence[float] = ()) -> Told:
        """As `Client.forecast_each`."""
        return await self._run(forecast_each(series, Wanted(horizon, tuple(levels), self._timeout), self._patience))

    async def model(self) -> dict[str, Any]:
        """As `Client.model`."""
        told: dict[str, Any] = await self._run(ask(MODEL, self._patience))
        return told

    async def ready(self) -> bool:
        """As `Client.ready`."""
        try:
            await self._run(ask(READY, _ONCE))
        except (ServiceNotReady, Unreachable):
            return False
        return True

    async def _run(self, talk: Talk[T]) -> T:
        said: Reply | Silence | None = None
        while True:
            try:
                wanted = talk.send(said)
            except StopIteration as done:
                answer: T = done.value
                return answer
            said = None
            if isinstance(wanted, Pause):
                await asyncio.sleep(wanted.seconds)
            else:
                said = await self._call(wanted)

    async def _call(self, call: Call) -> Reply | Silence:
        httpx = _httpx()
        try:
            reply = await self._http.request(call.method, call.path, content=call.body, headers=_type_of(call))
        except httpx.TransportError as error:
            return _silence(error)
        return Reply(reply.status_code, _small(reply.headers), reply.content)


def _httpx() -> Any:
    try:
        import httpx
    except ImportError as error:
        raise MissingPackage(
            "Expected the package 'httpx', which asks over HTTP; it is not installed. Install forecaster[client]."
        ) from error
    return httpx


def _checked(url: str) -> str:
    scheme, _, rest = url.partition("://")
    if scheme not in ("http", "https") or not rest.strip("/") or "@" in rest.partition("/")[0]:
        raise InputError(
            "Expected the address of a service, http://HOST:PORT or https://..., without a name and a password in it; found "
            f"{'one with' if '@' in url else repr(url)}. Correct it; a key has an argument of its own.",
            where="url",
        )
    return url.rstrip("/")


def _headers(key: str | None) -> dict[str, str]:
    key = os.environ.get(KEY_VARIABLE) if key is None else key
    if not key:
        return {}
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(
            "Expected a key of printable characters without spaces; found another. Copy it anew.", where="key"
        )
    return {"authorization": f"Bearer {key}"}


def _type_of(call: Call) -> dict[str, str]:
    return {} if call.body is None else {"content-type": "application/json"}


def _small(headers: httpx.Headers) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _silence(error: httpx.TransportError) -> Silence:
    """No reply; one that only a slow service can be blamed for is not asked for again."""
    late = isinstance(error, (_httpx().ReadTimeout, _httpx().WriteTimeout))
    return Silence(str(error) or type(error).__name__, late)
