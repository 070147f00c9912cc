"""`GET /v1/compute_accuracy`: how good the forecasts that were served have proved."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import Field

from forecaster.errors import BadStamp, LedgerError
from forecaster.frequency import timestamp_at
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
    "version": "Of the model; the one in use, if not given. `all`: all versions.",
    "since": "ISO 8601 stamp; without an offset it is in UTC. Forecasts made before it are left out.",
}
_MAX_PARAMETER_LENGTH = 200  # of a parameter


class AccuracyMetrics(StrictModel):
    """How good forecasts were; null where nothing is known, and a share is missing where no interval was kept."""

    n: int = Field(description="pairs of a forecast step and what came")
    mae: float | None = Field(description="mean absolute error, in units of the data")
    bias: float | None = Field(description="mean of forecast less actual: above 0 where forecasts are too high")
    mase: float | None = Field(
        description="mean of absolute errors, each over seasonal naive's on the history that was sent"
    )
    coverage: dict[str, float] = Field(description="by nominal share: the share of actuals within the interval")
    width: dict[str, float] = Field(description="by nominal share: the mean width of the interval")


class StepAccuracyMetrics(AccuracyMetrics):
    """The same of one step ahead."""

    step: int


class AccuracyResponse(StrictModel):
    """What served forecasts came to, as far as actuals are known."""

    model: ModelInfo | None = Field(description="whose forecasts; null: of all versions, or none is known")
    since: str | None = Field(description="from when on forecasts are meant, or when the first was made")
    until: str | None = Field(description="when the last of them was made")
    forecasts: int = Field(description="that were served and kept")
    scored: int = Field(description="of which one step at least is known")
    overall: AccuracyMetrics
    by_horizon: list[StepAccuracyMetrics]


def report_accuracy(
    query: Mapping[str, str], model: DeployedModel | None, ledger_writer: LedgerWriter, deadline: Deadline
) -> bytes:
    """An AccuracyAnswer. Raises Problem for parameters that are none, and as `LedgerWriter.ledger`."""
    from forecaster.ledger.accuracy import compute_accuracy

    deadline.check()
    since = _parse_since(query)
    ledger = ledger_writer.get_ledger()
    which, name = _select_forecasts(query.get("version"), since, model)
    try:
        span = ledger.span(which)
        if name is None and which.version is not None:
            name = next((one._asdict() for one in ledger.models(which)), None)
        found = compute_accuracy(ledger, which, check_deadline=deadline.check)
    except LedgerError as error:
        raise ledger_unavailable_error() from error
    first = since if since is not None else span.first
    return orjson.dumps(
        {
            "model": name,
            "since": _format_time(first),
            "until": _format_time(span.last),
            "forecasts": span.forecasts,
            "scored": found.scored,
            "overall": _metric_fields(found.overall),
            "by_horizon": [{"step": step, **_metric_fields(one)} for step, one in sorted(found.by_step.items())],
        }
    )


def _parse_since(query: Mapping[str, str]) -> float | None:
    """The parameter `since`, in seconds since 1970; raises Problem (422) for it and for others that are none of ours."""
    odd = [name for name in query if name not in QUERY_PARAMETERS] or [
        name for name, value in query.items() if not 0 < len(value) <= _MAX_PARAMETER_LENGTH
    ]
    if odd:
        raise ApiError(
            "invalid_request",
            f"Expected the parameters {', '.join(QUERY_PARAMETERS)}, of 1 to {_MAX_PARAMETER_LENGTH} characters; found another. Correct the address.",
            where=odd[0][:_MAX_PARAMETER_LENGTH],
        )
    if "since" not in query:
        return None
    try:
        moment: Any = timestamp_at(timestamps.parse_timestamps([query["since"]], where="since").timestamps, 0)
    except BadStamp as error:
        raise ApiError(
            "invalid_request", "Expected an ISO 8601 stamp such as 2026-01-31T00:00:00Z. Correct it.", where="since"
        ) from error
    return float((moment if moment.tz is not None else moment.tz_localize("UTC")).timestamp())


def _select_forecasts(
    version: str | None, since: float | None, model: DeployedModel | None
) -> tuple[ForecastFilter, dict[str, Any] | None]:
    """The forecasts that are meant, and the model in use where they are its own."""
    from forecaster.ledger.records import ForecastFilter

    name = None if model is None else model.release.name
    if version == "all" or (version is None and model is None):
        return ForecastFilter(name=name, since=since), None
    if model is not None and version in (None, model.release.version):
        return ForecastFilter(digest=model.release.digest, since=since), model.info
    return ForecastFilter(name=name, version=version, since=since), None


def _metric_fields(score: AccuracyScore) -> dict[str, Any]:
    told = score._asdict()
    return told | {name: {str(share): value for share, value in told[name].items()} for name in ("coverage", "width")}


def _format_time(epoch_s: float | None) -> str | None:
    return None if epoch_s is None else datetime.fromtimestamp(epoch_s, UTC).isoformat(timespec="milliseconds")
