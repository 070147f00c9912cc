"""From the bytes of a request to the bytes of its answer: plain, synchronous, and the same for the same model."""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from forecaster.errors import ForecasterError, LevelOutOfRange
from forecaster.series import Forecast, Series
from serving import limits, schema
from serving.deadline import Deadline
from serving.problem import Problem
from serving.settings import Settings
from serving.slot import InUse

_AT_ONCE = 1 << 17  # steps, known and foretold, that are rolled between two looks at the deadline: tens of milliseconds


class Answered(NamedTuple):
    """An answer and what it took."""

    body: bytes
    forecast: int
    refused: int


def answer(body: bytes, model: InUse | None, settings: Settings, deadline: Deadline) -> Answered:
    """Answers `POST /v1/forecast`.

    Raises Problem if the request as a whole cannot be used (levels that the model cannot give are such), if no model is
    in use, if the deadline passes, or if the request's only series is refused: so a client that sends one series and looks
    at the status alone learns of it.
    """
    deadline.check()  # it may have waited for a thread
    request = schema.read_request(body)
    limits.check(request, settings)
    deadline = deadline.within(request.deadline_ms)
    if model is None:
        raise Problem(
            "not_ready", "No model is in use yet. Try again later, or see /readyz.", headers={"retry-after": "1"}
        )
    try:
        outcomes = _outcomes(request, model, deadline)
    except LevelOutOfRange as error:
        raise Problem.of(error) from error
    refused = [outcome for outcome in outcomes if isinstance(outcome, ForecasterError)]
    if len(outcomes) == 1 and refused:
        raise Problem.of(refused[0])
    fields = [
        schema.from_error(asked.id, outcome) if isinstance(outcome, ForecasterError) else outcome
        for asked, outcome in zip(request.series, outcomes, strict=True)
    ]
    whole = orjson.dumps({"model": model.release.model_dump(), "forecasts": fields})
    return Answered(whole, forecast=len(outcomes) - len(refused), refused=len(refused))


def _outcomes(
    request: schema.ForecastRequest, model: InUse, deadline: Deadline
) -> list[dict[str, Any] | ForecasterError]:
    horizon, learned = request.horizon, model.predictor.forecaster
    read: list[schema.ReadSeries | ForecasterError] = []
    for asked in request.series:
        deadline.check()
        try:
            read.append(schema.to_series(asked, served=learned.freq, encoding=learned.encoding, horizon=horizon))
        except ForecasterError as error:
            read.append(error)
    good = [one.series for one in read if isinstance(one, schema.ReadSeries)]
    forecasts = iter(_forecasts(good, request, model, deadline))
    warnings = _warnings(horizon, scored=learned.spec.horizon)
    outcomes: list[dict[str, Any] | ForecasterError] = []
    for one in read:
        found = one if isinstance(one, ForecasterError) else next(forecasts)
        if isinstance(found, Forecast):
            assert isinstance(one, schema.ReadSeries), "only what was read is forecast"
            outcomes.append(schema.from_forecast(found, one.style, warnings))
        else:
            outcomes.append(found)
    return outcomes


def _forecasts(
    series: list[Series], request: schema.ForecastRequest, model: InUse, deadline: Deadline
) -> list[Forecast | ForecasterError]:
    """Some series at a time; asked even if none is left, for the levels are judged whatever becomes of the series."""
    longest = max((len(one) for one in series), default=0)
    rows = max(1, _AT_ONCE // (longest + request.horizon))
    found: list[Forecast | ForecasterError] = []
    for first in range(0, max(1, len(series)), rows):
        deadline.check()
        some = series[first : first + rows]
        found += model.predictor.forecast_each(some, request.horizon, levels=request.levels)
    return found


def _warnings(horizon: int, *, scored: int) -> list[str]:
    if horizon <= scored:
        return []
    return [f"The horizon of {horizon} steps goes beyond the {scored} that this model was scored on."]
