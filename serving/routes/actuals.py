"""`POST /v1/actuals`: what came, scored against the forecasts that were served; one outcome a series, each value once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
import orjson
from pydantic import Discriminator, Field, Tag, model_validator

from forecaster.errors import ForecasterError, HistoryTooShort, LedgerError, ValueOutOfRange
from forecaster.frequency import build_timestamps, parse_frequency, timestamp_at
from forecaster.series import MAX_ABS_VALUE
from serving.asgi.bodies import Body
from serving.deadline import Deadline
from serving.errors import ApiError
from serving.formats import parsing
from serving.formats import timestamps as stamps
from serving.formats.schema import ErrorDetail, ObservedValues, SeriesId, StrictModel, error_fields
from serving.formats.timestamps import FreqField, TimestampField, TimestampsField
from serving.ledger_writer import LedgerWriter, ledger_unavailable_error
from serving.settings import Settings


class GridActuals(StrictModel):
    """What came, as the stamp of the first value and the frequency."""

    id: SeriesId
    start: TimestampField = Field(
        description="ISO 8601 stamp of the first value, on the grid of `freq`; or a whole number"
    )
    freq: FreqField = Field(description="pandas offset alias; or a whole number, also as text, where `start` is one")
    y: ObservedValues = Field(description="values, oldest first; null says nothing")


class TimestampedActuals(StrictModel):
    """What came, with a stamp for every value; in any order."""

    id: SeriesId
    ds: TimestampsField = Field(description="ISO 8601 stamps, or whole numbers")
    y: ObservedValues = Field(description="values, one a stamp; null says nothing")

    @model_validator(mode="after")
    def _validate_lengths(self) -> TimestampedActuals:
        if len(self.ds) != len(self.y):
            raise ValueError(f"Expected one value a stamp; found {len(self.ds)} stamps and {len(self.y)} values")
        return self


def _actuals_kind(item: Any) -> str:
    told = item.get("ds") if isinstance(item, dict) else getattr(item, "ds", None)
    return "stamped" if told is not None else "grid"


ActualsField = Annotated[
    Annotated[GridActuals, Tag("grid")] | Annotated[TimestampedActuals, Tag("stamped")], Discriminator(_actuals_kind)
]


class ActualsRequest(StrictModel):
    """What came of some series."""

    series: list[ActualsField] = Field(min_length=1, description="taken one by one, in order")


class ActualsResult(StrictModel):
    """What became of the values of one series."""

    id: str
    stored: int = Field(description="values that were new")
    corrected: int = Field(description="values that replaced others")
    scored: int = Field(
        description="served forecasts of which one of the values is the truth, whether it was known before or not"
    )
    by_horizon: dict[str, int] = Field(description="the same by step ahead")


class ActualsError(StrictModel):
    """Why the values of one series were not taken."""

    id: str
    error: ErrorDetail


class ActualsResponse(StrictModel):
    """One outcome for each series, in the order of the request."""

    outcomes: list[ActualsResult | ActualsError]


class _ParsedActuals(NamedTuple):
    """Values that were told, with the ledger's stamps."""

    key: str
    timestamps: Sequence[int]
    values: Sequence[float]


def record_actuals(body: Body, ledger_writer: LedgerWriter, settings: Settings, deadline: Deadline) -> bytes:
    """An ActualsAnswer. Raises Problem: for the whole request, where there is no ledger, or its database does not answer."""
    deadline.check()
    ledger = ledger_writer.get_ledger()
    asked = parsing.validate_fields(ActualsRequest, parsing.parse_json(body)).series
    _validate_actuals_size(asked, settings)
    read: list[_ParsedActuals | ForecasterError] = []
    for one in asked:
        deadline.check()
        try:
            read.append(_parse_actuals(one, ledger.salt))
        except ForecasterError as error:
            read.append(error)
    from forecaster.ledger.records import ObservedSeries

    good = [ObservedSeries(*one) for one in read if isinstance(one, _ParsedActuals)]
    try:
        credited = iter(ledger.observe(good, now=ledger_writer.clock(), check_deadline=deadline.check) if good else ())
    except LedgerError as error:
        raise ledger_unavailable_error() from error
    ledger_writer.request_adaptation()
    told: list[dict[str, Any]] = []
    for one, outcome in zip(asked, read, strict=True):
        if isinstance(outcome, ForecasterError):
            told.append(error_fields(one.id, outcome))
            continue
        found = next(credited)
        by_horizon = {str(step): count for step, count in found.by_step.items()}
        counts = {"stored": found.stored, "corrected": found.corrected, "scored": found.scored}
        told.append({"id": one.id, **counts, "by_horizon": by_horizon})
    return orjson.dumps({"outcomes": told})


def _validate_actuals_size(all_actuals: Sequence[GridActuals | TimestampedActuals], settings: Settings) -> None:
    if len(all_actuals) > settings.max_series:
        raise ApiError(
            "too_many_series",
            f"Expected at most {settings.max_series} series; found {len(all_actuals)}. Send several requests.",
            where="series",
        )
    total = sum(len(one.y) for one in all_actuals)
    if total > settings.max_values:
        raise ApiError(
            "request_too_large",
            f"Expected at most {settings.max_values} values in all series; found {total}. Send several requests.",
            where="series",
        )
    for place, one in enumerate(all_actuals):
        if len(one.y) > settings.max_history:
            raise ApiError(
                "history_too_long",
                f"Expected at most {settings.max_history} values; series {one.id!r} has {len(one.y)}. Send several requests.",
                where=f"series.{place}.y",
            )


def _parse_actuals(actuals: GridActuals | TimestampedActuals, salt: bytes) -> _ParsedActuals:
    from forecaster.ledger.records import encode_timestamps, series_key

    if len(actuals.y) == 0:
        raise HistoryTooShort(f"Series {actuals.id!r} has no values. Send what came.", where=actuals.id)
    y = np.array(actuals.y, dtype=np.float64)  # None becomes NaN
    known = ~np.isnan(y)
    if (np.abs(y[known]) > MAX_ABS_VALUE).any():
        raise ValueOutOfRange(
            f"Expected values of at most {MAX_ABS_VALUE:g} in size; series {actuals.id!r} has a larger one. Correct it.",
            where=actuals.id,
        )
    if isinstance(actuals, GridActuals):
        start = timestamp_at(stamps.parse_timestamps([actuals.start], where=actuals.id).timestamps, 0)
        freq = stamps.normalize_frequency(actuals.freq, start, where=actuals.id)
        stamps.validate_range(start, parse_frequency(freq, where=actuals.id), len(y), where=actuals.id)
        told = build_timestamps(start, freq=freq, steps=len(y))
    else:
        told = stamps.parse_timestamps(actuals.ds, where=actuals.id).timestamps
    found = [stamp for stamp, there in zip(encode_timestamps(told), known.tolist(), strict=True) if there]
    return _ParsedActuals(series_key(salt, actuals.id, timestamp_at(told, 0)), found, y[known].tolist())
