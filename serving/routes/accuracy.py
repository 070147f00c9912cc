"""`GET /v1/accuracy`: how good the forecasts that were served have proved."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import Field

from forecaster.errors import BadStamp, LedgerError
from forecaster.frequency import at
from serving.deadline import Deadline
from serving.deployment.slot import InUse
from serving.errors import Problem
from serving.formats import timestamps
from serving.formats.schema import ModelName, Strict
from serving.ledger_writer import Scribe, unavailable

if TYPE_CHECKING:
    from forecaster.ledger.accuracy import Score
    from forecaster.ledger.records import Which

QUERY = {
    "version": "Of the model; the one in use, if not given. `all`: all versions.",
    "since": "ISO 8601 stamp; without an offset it is in UTC. Forecasts made before it are left out.",
}
_LONGEST = 200  # of a parameter


class Figures(Strict):
    """How good forecasts were; null where nothing is known, and a share is missing where no interval was kept."""

    n: int = Field(description="pairs of a forecast step and what came")
    mae: float | None = Field(description="mean absolute error, in units of the data")
    bias: float | None = Field(description="mean of forecast less actual: above 0 where forecasts are too high")
    mase: float | None = Field(
        description="mean of absolute errors, each over seasonal naive's on the history that was sent"
    )
    coverage: dict[str, float] = Field(description="by nominal share: the share of actuals within the interval")
    width: dict[str, float] = Field(description="by nominal share: the mean width of the interval")


class StepFigures(Figures):
    """The same of one step ahead."""

    step: int


class AccuracyAnswer(Strict):
    """What served forecasts came to, as far as actuals are known."""

    model: ModelName | None = Field(description="whose forecasts; null: of all versions, or none is known")
    since: str | None = Field(description="from when on forecasts are meant, or when the first was made")
    until: str | None = Field(description="when the last of them was made")
    forecasts: int = Field(description="that were served and kept")
    scored: int = Field(description="of which one step at least is known")
    overall: Figures
    by_horizon: list[StepFigures]


def answer(query: Mapping[str, str], model: InUse | None, scribe: Scribe, deadline: Deadline) -> bytes:
    """An AccuracyAnswer. Raises Problem for parameters that are none, and as `Scribe.ledger`."""
    from forecaster.ledger.accuracy import accuracy

    deadline.check()
    since = _asked(query)
    ledger = scribe.ledger()
    which, name = _which(query.get("version"), since, model)
    try:
        span = ledger.spans(which)
        if name is None and which.version is not None:
            name = next((one._asdict() for one in ledger.models(which)), None)
        found = accuracy(ledger, which, pulse=deadline.check)
    except LedgerError as error:
        raise unavailable() from error
    first = since if since is not None else span.first
    return orjson.dumps(
        {
            "model": name,
            "since": _written(first),
            "until": _written(span.last),
            "forecasts": span.forecasts,
            "scored": found.scored,
            "overall": _figures(found.overall),
            "by_horizon": [{"step": step, **_figures(one)} for step, one in sorted(found.by_step.items())],
        }
    )


def _asked(query: Mapping[str, str]) -> float | None:
    """The parameter `since`, in seconds since 1970; raises Problem (422) for it and for others that are none of ours."""
    odd = [name for name in query if name not in QUERY] or [
        name for name, value in query.items() if not 0 < len(value) <= _LONGEST
    ]
    if odd:
        raise Problem(
            "invalid_request",
            f"Expected the parameters {', '.join(QUERY)}, of 1 to {_LONGEST} characters; found another. Correct the address.",
            where=odd[0][:_LONGEST],
        )
    if "since" not in query:
        return None
    try:
        moment: Any = at(timestamps.read([query["since"]], where="since").stamps, 0)
    except BadStamp as error:
        raise Problem(
            "invalid_request", "Expected an ISO 8601 stamp such as 2026-01-31T00:00:00Z. Correct it.", where="since"
        ) from error
    return float((moment if moment.tz is not None else moment.tz_localize("UTC")).timestamp())


def _which(version: str | None, since: float | None, model: InUse | None) -> tuple[Which, dict[str, Any] | None]:
    """The forecasts that are meant, and the model in use where they are its own."""
    from forecaster.ledger.records import Which

    name = None if model is None else model.release.name
    if version == "all" or (version is None and model is None):
        return Which(name=name, since=since), None
    if model is not None and version in (None, model.release.version):
        return Which(digest=model.release.digest, since=since), model.name
    return Which(name=name, version=version, since=since), None


def _figures(one: Score) -> dict[str, Any]:
    told = one._asdict()
    return told | {name: {str(share): value for share, value in told[name].items()} for name in ("coverage", "width")}


def _written(moment: float | None) -> str | None:
    return None if moment is None else datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")
