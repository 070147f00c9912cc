"""The blocking client of the service."""

from __future__ import annotations

import time
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


class Client:
    """A blocking client; threads may share it."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout: float = 30.0,
        retry_policy: RetryPolicy = DEFAULT_RETRY_POLICY,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Opens no connection yet.

        Args:
            url: Of the service: http://127.0.0.1:3000.
            key: Key of the service, if it needs one; defaults to the environment variable FORECASTER_KEY. It is sent to the
                service alone, and never shown.
            timeout: Seconds to wait for a response; the service gives up after the same time.
            retry_policy: When lost requests are retried.
            transport: An httpx transport; defaults to httpx's own.
        Raises:
            InputError: the URL is invalid.
            MissingPackage: httpx is not installed.
        """
        self._url, self._timeout, self._retry_policy = validate_url(url), timeout, retry_policy
        self._http = import_httpx().Client(
            base_url=self._url, headers=build_headers(key), timeout=timeout, transport=transport, follow_redirects=False
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

    def forecast(
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
        """Forecasts a long frame `unique_id, ds, y`, as `unique_id, ds, mean` and a column for each level ("0.1").

        A model of symbols reads a column `y` of texts, and forecasts `unique_id, ds, symbol`.

        Covariates (their known future as rows without `y`), static columns and channels are sent along where the deployed model
        reads columns of their names. Large frames are sent in batches.

        Args:
            frame: As for `to_panel`, which validates it here.
            horizon: Steps ahead; defaults to the model's own, and for the pretrained network to the usual one of the frequency.
            levels: Levels of calibrated quantiles.
            freq: By default it is inferred, if unambiguous; otherwise it is the model's, and absent rows are missing values. The
                pretrained network has none.
            columns: The names of the columns, if not `unique_id, ds, y`.
            zone: The time zone of timestamps that have none.
            season: Steps of a season, for the pretrained network; by default the usual one of the frequency.
            joint: Whether the quantiles bound whole paths rather than single steps.
        Raises:
            InputError (subclasses): the frame is invalid.
            SeriesRefused: a series has no forecast; it holds the error of each such series.
            ServiceError (subclasses): the service rejected the whole request, with its code, message, location and request id, or
                is unreachable.
        """
        result = self.forecast_partial(
            frame, horizon, levels, freq=freq, columns=columns, zone=zone, season=season, joint=joint
        )
        return raise_for_errors(result).table

    def forecast_partial(
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
        """Forecasts a frame as `forecast` does, and returns the errors of single series beside the forecasts of the others."""
        query = FrameQuery(horizon, tuple(levels), freq, columns, zone, self._timeout, season, joint)
        return self._drive(forecast_frame(frame, query, self._retry_policy))

    def forecast_batch(
        self,
        series: Sequence[Series],
        horizon: int,
        *,
        levels: Sequence[float] = (),
        joint: bool = False,
        vocabulary: Sequence[str] = (),
    ) -> ServiceOutcomes:
        """Returns one outcome for each series of one frequency, in order, as `Predictor.forecast_batch`, and the model.

        The values of symbols are codes of `vocabulary`, that of the deployed model (`get_model()["spec"]["head"]`).
        """
        return self._drive(
            forecast_batch(
                series,
                ForecastQuery(horizon, tuple(levels), self._timeout, joint=joint, vocabulary=tuple(vocabulary)),
                self._retry_policy,
            )
        )

    def explain(
        self, series: Series, horizon: int | None = None, *, steps: int = 256, faithfulness: bool = False
    ) -> dict[str, Any]:
        """Returns the explanation of the forecast of one series: the fields of `POST /v1/explain`, which docs/http.md describes.

        Args:
            series: The history.
            horizon: Steps ahead whose mean is explained; defaults to the model's own.
            steps: The most steps to explain, the latest ones.
            faithfulness: Whether to measure how faithful the attributions are.
        Raises:
            ServiceError (subclasses): the series cannot be forecast, or the service has no torch.
        """
        return self._drive(
            explain_series(series, ExplanationQuery(horizon, steps, faithfulness, self._timeout), self._retry_policy)
        )

    def get_model(self) -> dict[str, Any]:
        """Returns the deployed model: name, specification, scores, model card, age."""
        model: dict[str, Any] = self._drive(request_json(MODEL_REQUEST, self._retry_policy))
        return model

    def is_ready(self) -> bool:
        """Returns whether the service is reachable and has a model; without retries."""
        try:
            self._drive(request_json(READY_REQUEST, NO_RETRY))
        except (ServiceNotReady, Unreachable):
            return False
        return True

    def _drive(self, exchange: Exchange[T]) -> T:
        response: HttpResponse | NoResponse | None = None
        while True:
            try:
                step = exchange.send(response)
            except StopIteration as done:
                result: T = done.value
                return result
            response = None
            if isinstance(step, Delay):
                time.sleep(step.seconds)
            else:
                response = self._send(step)

    def _send(self, request: HttpRequest) -> HttpResponse | NoResponse:
        httpx = import_httpx()
        try:
            http_response = self._http.request(
                request.method, request.path, content=request.body, headers=build_content_type(request)
            )
        except httpx.TransportError as error:
            return describe_lost_request(error)
        return to_response(http_response)
