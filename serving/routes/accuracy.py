"""`GET /v1/accuracy`: the accuracy of the served forecasts whose actuals are known."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import Field

from forecaster.errors import BadStamp, LedgerError
from forecaster.frequency.timestamps import timestamp_at
from serving.deadline import Deadline
from serving.deployment.slot import DeployedModel
from serving.errors import ApiError
from serving.formats import timestamps
from serving.formats.schema import ModelInfo, StrictModel
from serving.ledger_writer import LedgerWriter, ledger_unavailable_error

if TYPE_CHECKING:
    from forecaster.ledger.accuracy import AccuracyScore
    from forecaster.ledger.records import ForecastFilter

QUERY_PARAMETERS = {
    "version": "Version of the model; by default the one in use. `all` selects all versions.",
    "since": "ISO 8601 timestamp, in UTC if it has no offset. Forecasts made before it are excluded.",
}
_MAX_PARAMETER_LENGTH = 200  # characters


class AccuracyMetrics(StrictModel):
    """Accuracy of forecasts; null if there are no actuals. A nominal coverage is absent if no such interval was recorded."""

    n: int = Field(description="number of pairs of a forecast step and its actual")
    mae: float | None = Field(description="mean absolute error, in units of the data")
    bias: float | None = Field(description="mean of forecast minus actual: positive if forecasts are too high")
    mase: float | None = Field(
        description="mean of the absolute errors, each divided by that of seasonal naive on the history of the request"
    )
    coverage: dict[str, float] = Field(description="share of actuals inside the interval, by nominal coverage")
    width: dict[str, float] = Field(description="mean width of the interval, by nominal coverage")
    wql_recorded: float | None = Field(
        default=None,
        description="weighted quantile loss of the forecasts with all recorded levels (0.025, 0.1, 0.5, 0.9, 0.975), the mean "
        "over these levels; not the `wql` of a backtest, whose nine deciles are not recorded",
    )
    msis_95: float | None = Field(
        default=None,
        description="mean interval score of the 95 % intervals, each divided by the error of seasonal naive on the history of "
        "the request (MSIS of M4)",
    )


class StepAccuracyMetrics(AccuracyMetrics):
    """Accuracy at one step of the horizon."""

    step: int = Field(description="step of the horizon, from 1")


class AccuracyResponse(StrictModel):
    """Accuracy of the served forecasts whose actuals are known."""

    model: ModelInfo | None = Field(description="model of the forecasts; null for all versions, or an unknown one")
    since: str | None = Field(description="start of the selected period, or time of the first forecast")
    until: str | None = Field(description="time of the last forecast")
    forecasts: int = Field(description="number of served forecasts in the ledger")
    scored: int = Field(description="number of forecasts with an actual for at least one step")
    overall: AccuracyMetrics
    by_horizon: list[StepAccuracyMetrics] = Field(description="accuracy at each step ahead")


def report_accuracy(
    query: Mapping[str, str], model: DeployedModel | None, ledger_writer: LedgerWriter, deadline: Deadline
) -> bytes:
    """Returns an AccuracyResponse. Raises ApiError for invalid parameters, and as `LedgerWriter.get_ledger` does."""
    from forecaster.ledger.accuracy import compute_accuracy

    deadline.check()
    since = _parse_since(query)
    ledger = ledger_writer.get_ledger()
    forecast_filter, model_info = _select_forecasts(query.get("version"), since, model)
    try:
        span = ledger.span(forecast_filter)
        if model_info is None and forecast_filter.version is not None:
            model_info = next((record._asdict() for record in ledger.models(forecast_filter)), None)
        accuracy = compute_accuracy(ledger, forecast_filter, check_deadline=deadline.check)
    except LedgerError as error:
        raise ledger_unavailable_error() from error
    first = since if since is not None else span.first
    return orjson.dumps(
        {
            "model": model_info,
            "since": _format_time(first),
            "until": _format_time(span.last),
            "forecasts": span.forecasts,
            "scored": accuracy.scored,
            "overall": _metric_fields(accuracy.overall),
            "by_horizon": [{"step": step, **_metric_fields(score)} for step, score in sorted(accuracy.by_step.items())],
        }
    )


def _parse_since(query: Mapping[str, str]) -> float | None:
    """Returns the parameter `since` in seconds since 1970; raises ApiError (422) if a parameter is unknown or invalid."""
    invalid = [name for name in query if name not in QUERY_PARAMETERS] or [
        name for name, value in query.items() if not 0 < len(value) <= _MAX_PARAMETER_LENGTH
    ]
    if invalid:
        raise ApiError(
            "invalid_request",
            f"Expected the query parameters {', '.join(QUERY_PARAMETERS)}, of 1 to {_MAX_PARAMETER_LENGTH} characters; found an "
            "unknown name, or a value of another length. Correct the URL.",
            where=invalid[0][:_MAX_PARAMETER_LENGTH],
        )
    if "since" not in query:
        return None
    try:
        timestamp: Any = timestamp_at(timestamps.parse_timestamps([query["since"]], where="since").timestamps, 0)
    except BadStamp as error:
        raise ApiError(
            "invalid_request",
            "Expected an ISO 8601 timestamp such as 2026-01-31T00:00:00Z; found something else. Correct the URL.",
            where="since",
        ) from error
    return float((timestamp if timestamp.tz is not None else timestamp.tz_localize("UTC")).timestamp())


def _select_forecasts(
    version: str | None, since: float | None, model: DeployedModel | None
) -> tuple[ForecastFilter, dict[str, Any] | None]:
    """Returns the filter of the selected forecasts, and the model in use if they are its forecasts."""
    from forecaster.ledger.records import ForecastFilter

    name = None if model is None else model.release.name
    if version == "all" or (version is None and model is None):
        return ForecastFilter(name=name, since=since), None
    if model is not None and version in (None, model.release.version):
        return ForecastFilter(digest=model.release.digest, since=since), model.info
    return ForecastFilter(name=name, version=version, since=since), None


def _metric_fields(score: AccuracyScore) -> dict[str, Any]:
    fields = score._asdict()
    return fields | {
        name: {str(nominal): value for nominal, value in fields[name].items()} for name in ("coverage", "width")
    }


def _format_time(epoch_s: float | None) -> str | None:
    return None if epoch_s is None else datetime.fromtimestamp(epoch_s, UTC).isoformat(timespec="milliseconds")
