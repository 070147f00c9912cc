"""`POST /v1/actuals`: records actuals in the ledger and scores the served forecasts against them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
import orjson
from pydantic import Discriminator, Field, Tag, model_validator

from forecaster.errors import ForecasterError, HistoryTooShort, LedgerError, ValueOutOfRange
from forecaster.frequency.timestamps import build_timestamps, parse_frequency, timestamp_at
from forecaster.series import MAX_ABS_VALUE
from serving.asgi.bodies import Body
from serving.deadline import Deadline
from serving.errors import ApiError
from serving.formats import parsing
from serving.formats.schema import ErrorDetail, ObservedValues, RequestModel, SeriesId, StrictModel, error_fields
from serving.formats.timestamps import (
    FreqField,
    TimestampField,
    TimestampsField,
    normalize_frequency,
    parse_timestamps,
    validate_range,
)
from serving.ledger_writer import LedgerWriter, ledger_unavailable_error
from serving.settings import Settings


class GridActuals(RequestModel):
    """Actuals given by the timestamp of the first value and the frequency."""

    id: SeriesId = Field(description="id of the series")
    start: TimestampField = Field(
        description="ISO 8601 timestamp of the first value, on the grid of `freq`; or an integer"
    )
    freq: FreqField = Field(
        description="pandas offset alias; or an integer, as a number or text, if `start` is an integer"
    )
    y: ObservedValues = Field(description="values, oldest first; null values are ignored")


class TimestampedActuals(RequestModel):
    """Actuals with a timestamp for every value, in any order."""

    id: SeriesId = Field(description="id of the series")
    ds: TimestampsField = Field(description="ISO 8601 timestamps, or integers")
    y: ObservedValues = Field(description="values, one for each timestamp; null values are ignored")

    @model_validator(mode="after")
    def _validate_lengths(self) -> TimestampedActuals:
        if len(self.ds) != len(self.y):
            raise ValueError(
                f"Expected one value for each timestamp; found {len(self.ds)} timestamps and {len(self.y)} values"
            )
        return self


def _actuals_kind(item: Any) -> str:
    ds = item.get("ds") if isinstance(item, dict) else getattr(item, "ds", None)
    return "timestamped" if ds is not None else "grid"


ActualsField = Annotated[
    Annotated[GridActuals, Tag("grid")] | Annotated[TimestampedActuals, Tag("timestamped")],
    Discriminator(_actuals_kind),
]


class ActualsRequest(RequestModel):
    """Actuals of one or more series."""

    series: Annotated[list[ActualsField], Field(fail_fast=True)] = Field(
        min_length=1, description="each is recorded independently; outcomes keep the order"
    )


class ActualsResult(StrictModel):
    """Counts of the recorded actuals of one series."""

    id: str = Field(description="id of the series")
    stored: int = Field(description="number of new values")
    corrected: int = Field(description="number of values that replaced an earlier one")
    scored: int = Field(
        description="number of served forecasts with one of these values as their actual, including values recorded before"
    )
    by_horizon: dict[str, int] = Field(description="`scored` by step of the horizon")


class ActualsError(StrictModel):
    """The error because of which the values of one series were not recorded."""

    id: str = Field(description="id of the series")
    error: ErrorDetail


class ActualsResponse(StrictModel):
    """One outcome for each series, in the order of the request."""

    outcomes: list[ActualsResult | ActualsError] = Field(description="counts or error of each series")


class _ParsedActuals(NamedTuple):
    """The observed values of one series."""

    key: str  # salted hash of the id
    timestamps: Sequence[int]  # in the encoding of the ledger
    values: Sequence[float]


def record_actuals(body: Body, ledger_writer: LedgerWriter, settings: Settings, deadline: Deadline) -> bytes:
    """Returns an ActualsResponse. Raises ApiError if the request is invalid, or the ledger is off or unavailable."""
    deadline.check()
    ledger = ledger_writer.get_ledger()
    all_actuals = parsing.validate_fields(ActualsRequest, parsing.parse_json(body)).series
    _validate_actuals_size(all_actuals, settings)
    parsed: list[_ParsedActuals | ForecasterError] = []
    for actuals in all_actuals:
        deadline.check()
        try:
            parsed.append(_parse_actuals(actuals, ledger.salt))
        except ForecasterError as error:
            parsed.append(error)
    from forecaster.ledger.records import ObservedSeries

    observed = [ObservedSeries(*outcome) for outcome in parsed if isinstance(outcome, _ParsedActuals)]
    try:
        counts = iter(
            ledger.observe(observed, now=ledger_writer.clock(), check_deadline=deadline.check) if observed else ()
        )
    except LedgerError as error:
        raise ledger_unavailable_error() from error
    ledger_writer.request_adaptation()
    outcomes: list[dict[str, Any]] = []
    for actuals, outcome in zip(all_actuals, parsed, strict=True):
        if isinstance(outcome, ForecasterError):
            outcomes.append(error_fields(actuals.id, outcome))
            continue
        count = next(counts)
        outcomes.append(
            {
                "id": actuals.id,
                "stored": count.stored,
                "corrected": count.corrected,
                "scored": count.scored,
                "by_horizon": {str(step): scored for step, scored in count.by_step.items()},
            }
        )
    return orjson.dumps({"outcomes": outcomes})


def _validate_actuals_size(all_actuals: Sequence[GridActuals | TimestampedActuals], settings: Settings) -> None:
    if len(all_actuals) > settings.max_series:
        raise ApiError(
            "too_many_series",
            f"Expected at most {settings.max_series} series; found {len(all_actuals)}. Send several requests.",
            where="series",
        )
    total = sum(len(actuals.y) for actuals in all_actuals)
    if total > settings.max_values:
        raise ApiError(
            "request_too_large",
            f"Expected at most {settings.max_values} values in all series; found {total}. Send several requests.",
            where="series",
        )
    for index, actuals in enumerate(all_actuals):
        if len(actuals.y) > settings.max_history:
            raise ApiError(
                "history_too_long",
                f"Expected at most {settings.max_history} values; series {actuals.id!r} has {len(actuals.y)}. "
                "Send several requests.",
                where=f"series.{index}.y",
            )


def _parse_actuals(actuals: GridActuals | TimestampedActuals, salt: bytes) -> _ParsedActuals:
    from forecaster.ledger.records import encode_timestamps, series_key

    if len(actuals.y) == 0:
        raise HistoryTooShort(
            f"Expected at least one value; series {actuals.id!r} has none. Send its actuals.", where=actuals.id
        )
    y = np.array(actuals.y, dtype=np.float64)  # None becomes NaN
    observed = ~np.isnan(y)
    if (np.abs(y[observed]) > MAX_ABS_VALUE).any():
        raise ValueOutOfRange(
            f"Expected values with a magnitude of at most {MAX_ABS_VALUE:g}; series {actuals.id!r} has a larger one. Correct it.",
            where=actuals.id,
        )
    if isinstance(actuals, GridActuals):
        start = timestamp_at(parse_timestamps([actuals.start], where=actuals.id).timestamps, 0)
        freq = normalize_frequency(actuals.freq, start, where=actuals.id)
        validate_range(start, parse_frequency(freq, where=actuals.id), len(y), where=actuals.id)
        index = build_timestamps(start, freq=freq, steps=len(y))
    else:
        index = parse_timestamps(actuals.ds, where=actuals.id).timestamps
    timestamps = [
        timestamp
        for timestamp, is_observed in zip(encode_timestamps(index), observed.tolist(), strict=True)
        if is_observed
    ]
    return _ParsedActuals(series_key(salt, actuals.id, timestamp_at(index, 0)), timestamps, y[observed].tolist())
