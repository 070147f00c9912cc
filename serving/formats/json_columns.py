"""The form of columns: one list for each field instead of one object for each series."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field, model_validator

from forecaster.errors import ForecasterError
from serving.formats import chunked_json
from serving.formats.json_rows import Stamper
from serving.formats.outcome import Outcome
from serving.formats.schema import (
    Ask,
    AskedHistory,
    Column,
    ErrorDetail,
    GridSeries,
    Id,
    Label,
    ModelName,
    Strict,
    Text,
    Values,
)
from serving.formats.timestamps import AskedFreq, AskedStamps


class Columns(Strict):
    """Histories of one frequency, a place in every list for each."""

    id: list[Id] = Field(min_length=1)
    start: AskedStamps = Field(description="stamp of each first value, on the grid of `freq`; or whole numbers")
    freq: AskedFreq = Field(description="of all: pandas offset alias; or a whole number where starts are numbers")
    y: list[Values] = Field(description="values, oldest first")
    covariates: dict[Text, list[Column]] = Field(default={}, max_length=64, description="by name, one list a series")
    static: dict[Text, list[Label]] = Field(default={}, max_length=64, description="by name, one text a series")
    channels: dict[Text, list[Values]] = Field(default={}, max_length=64, description="by name, one list a series")

    @model_validator(mode="after")
    def _of_one_length(self) -> Columns:
        named = {"start": self.start, "y": self.y, **self.covariates, **self.static, **self.channels}
        for name, values in named.items():
            if len(values) != len(self.id):
                raise ValueError(f"Expected {len(self.id)} entries in {name!r}, one for each id; found {len(values)}")
        return self


class ColumnsRequest(Ask):
    """Some histories as columns, and what is asked of them."""

    columns: Columns

    def series(self) -> list[AskedHistory]:
        """The histories one by one; what they are made of was validated."""
        told = self.columns
        return [
            GridSeries.model_construct(
                id=told.id[place],
                start=told.start[place],
                freq=told.freq,
                y=told.y[place],
                covariates={name: values[place] for name, values in told.covariates.items()},
                static={name: values[place] for name, values in told.static.items()},
                channels={name: values[place] for name, values in told.channels.items()},
            )
            for place in range(len(told.id))
        ]


class AnsweredColumns(Strict):
    """A place in every list for each series of the request, in order; null where it has no forecast."""

    id: list[str]
    ds: list[list[str] | list[int] | None]
    mean: list[list[float] | None]
    quantiles: dict[str, list[list[float] | None]] = Field(default={}, description="only where `levels` were asked for")
    samples: list[list[list[float | None]] | None] = Field(default=[], description="only where they were asked for")
    state: list[str | None] = Field(default=[], description="only where `return_state` was asked")
    warnings: list[list[str]]
    error: list[ErrorDetail | None] = Field(description="why there is no forecast")


class ColumnsAnswer(Strict):
    """The forecasts as columns."""

    model: ModelName
    columns: AnsweredColumns


def write(model: dict[str, Any], done: Sequence[Outcome], ask: Ask) -> bytes:
    """A ColumnsAnswer."""
    stamper = Stamper()
    good = [None if isinstance(one.found, ForecasterError) else one.found for one in done]
    columns: dict[str, Any] = {
        "id": [one.id for one in done],
        "ds": [one and stamper.write(one.forecast.ds, one.style) for one in good],
        "mean": [one and one.forecast.mean for one in good],
    }
    if ask.levels:
        columns["quantiles"] = {
            repr(float(level)): [one and one.forecast.quantiles[level] for one in good] for level in sorted(ask.levels)
        }
    if ask.samples:
        columns["samples"] = [one and one.paths for one in good]
    if ask.return_state:
        columns["state"] = [one and one.state for one in good]
    columns["warnings"] = [one.warnings if one else [] for one in good]
    columns["error"] = [_error(one.found) if isinstance(one.found, ForecasterError) else None for one in done]
    return chunked_json.dumps({"model": model, "columns": columns})


def _error(error: ForecasterError) -> dict[str, Any]:
    return {"code": error.code, "message": error.message, "where": error.where}
