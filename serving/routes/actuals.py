"""`POST /v1/actuals`: what came, scored against the forecasts that were served; one outcome a series, each value once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
import orjson
from pydantic import Discriminator, Field, Tag, model_validator

from forecaster.errors import ForecasterError, HistoryTooShort, LedgerError, ValueOutOfRange
from forecaster.frequency import at, offset, regular
from forecaster.series import LARGEST_VALUE
from serving.asgi.bodies import Body
from serving.deadline import Deadline
from serving.errors import Problem
from serving.formats import parsing
from serving.formats import timestamps as stamps
from serving.formats.schema import ErrorDetail, Id, Strict, Values, from_error
from serving.formats.timestamps import AskedFreq, AskedStamp, AskedStamps
from serving.ledger_writer import Scribe, unavailable
from serving.settings import Settings


class GridActuals(Strict):
    """What came, as the stamp of the first value and the frequency."""

    id: Id
    start: AskedStamp = Field(description="ISO 8601 stamp of the first value, on the grid of `freq`; or a whole number")
    freq: AskedFreq = Field(description="pandas offset alias; or a whole number, also as text, where `start` is one")
    y: Values = Field(description="values, oldest first; null says nothing")


class StampedActuals(Strict):
    """What came, with a stamp for every value; in any order."""

    id: Id
    ds: AskedStamps = Field(description="ISO 8601 stamps, or whole numbers")
    y: Values = Field(description="values, one a stamp; null says nothing")

    @model_validator(mode="after")
    def _one_value_a_stamp(self) -> StampedActuals:
        if len(self.ds) != len(self.y):
            raise ValueError(f"Expected one value a stamp; found {len(self.ds)} stamps and {len(self.y)} values")
        return self


def _kind(item: Any) -> str:
    told = item.get("ds") if isinstance(item, dict) else getattr(item, "ds", None)
    return "stamped" if told is not None else "grid"


AskedActuals = Annotated[
    Annotated[GridActuals, Tag("grid")] | Annotated[StampedActuals, Tag("stamped")], Discriminator(_kind)
]


class ActualsRequest(Strict):
    """What came of some series."""

    series: list[AskedActuals] = Field(min_length=1, description="taken one by one, in order")


class SeriesActuals(Strict):
    """What became of the values of one series."""

    id: str
    stored: int = Field(description="values that were new")
    corrected: int = Field(description="values that replaced others")
    scored: int = Field(
        description="served forecasts of which one of the values is the truth, whether it was known before or not"
    )
    by_horizon: dict[str, int] = Field(description="the same by step ahead")


class ActualsError(Strict):
    """Why the values of one series were not taken."""

    id: str
    error: ErrorDetail


class ActualsAnswer(Strict):
    """One outcome for each series, in the order of the request."""

    outcomes: list[SeriesActuals | ActualsError]


class _Read(NamedTuple):
    """Values that were told, with the ledger's stamps."""

    key: str
    stamps: Sequence[int]
    values: Sequence[float]


def answer(body: Body, scribe: Scribe, settings: Settings, deadline: Deadline) -> bytes:
    """An ActualsAnswer. Raises Problem: for the whole request, where there is no ledger, or its database does not answer."""
    deadline.check()
    ledger = scribe.ledger()
    asked = parsing.validated(ActualsRequest, parsing.parse(body)).series
    _check_size(asked, settings)
    read: list[_Read | ForecasterError] = []
    for one in asked:
        deadline.check()
        try:
            read.append(_read(one, ledger.salt))
        except ForecasterError as error:
            read.append(error)
    from forecaster.ledger.records import Observed

    good = [Observed(*one) for one in read if isinstance(one, _Read)]
    try:
        credited = iter(ledger.observe(good, at=scribe.clock(), pulse=deadline.check) if good else ())
    except LedgerError as error:
        raise unavailable() from error
    scribe.learn()
    told: list[dict[str, Any]] = []
    for one, outcome in zip(asked, read, strict=True):
        if isinstance(outcome, ForecasterError):
            told.append(from_error(one.id, outcome))
            continue
        found = next(credited)
        by_horizon = {str(step): count for step, count in found.by_step.items()}
        counts = {"stored": found.stored, "corrected": found.corrected, "scored": found.scored}
        told.append({"id": one.id, **counts, "by_horizon": by_horizon})
    return orjson.dumps({"outcomes": told})


def _check_size(asked: Sequence[GridActuals | StampedActuals], settings: Settings) -> None:
    if len(asked) > settings.max_series:
        raise Problem(
            "too_many_series",
            f"Expected at most {settings.max_series} series; found {len(asked)}. Send several requests.",
            where="series",
        )
    total = sum(len(one.y) for one in asked)
    if total > settings.max_values:
        raise Problem(
            "request_too_large",
            f"Expected at most {settings.max_values} values in all series; found {total}. Send several requests.",
            where="series",
        )
    for place, one in enumerate(asked):
        if len(one.y) > settings.max_history:
            raise Problem(
                "history_too_long",
                f"Expected at most {settings.max_history} values; series {one.id!r} has {len(one.y)}. Send several requests.",
                where=f"series.{place}.y",
            )


def _read(one: GridActuals | StampedActuals, salt: bytes) -> _Read:
    from forecaster.ledger.records import key_of, ticks

    if len(one.y) == 0:
        raise HistoryTooShort(f"Series {one.id!r} has no values. Send what came.", where=one.id)
    y = np.array(one.y, dtype=np.float64)  # None becomes NaN
    known = ~np.isnan(y)
    if (np.abs(y[known]) > LARGEST_VALUE).any():
        raise ValueOutOfRange(
            f"Expected values of at most {LARGEST_VALUE:g} in size; series {one.id!r} has a larger one. Correct it.",
            where=one.id,
        )
    if isinstance(one, GridActuals):
        start = at(stamps.read([one.start], where=one.id).stamps, 0)
        freq = stamps.declared_frequency(one.freq, start, where=one.id)
        stamps.check_room(start, offset(freq, where=one.id), len(y), where=one.id)
        told = regular(start, freq=freq, steps=len(y))
    else:
        told = stamps.read(one.ds, where=one.id).stamps
    found = [stamp for stamp, there in zip(ticks(told), known.tolist(), strict=True) if there]
    return _Read(key_of(salt, one.id, at(told, 0)), found, y[known].tolist())
