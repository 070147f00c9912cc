"""The form of columns: one list for each field instead of one object for each series."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field, model_validator

from forecaster.errors import ForecasterError
from serving.formats import chunked_json
from serving.formats.json_rows import TimestampFormatter
from serving.formats.outcome import SeriesOutcome
from serving.formats.schema import (
    CategoryLabel,
    CovariateColumn,
    ErrorDetail,
    ForecastOptions,
    GridSeries,
    ModelInfo,
    ObservedValues,
    SeriesId,
    SeriesInput,
    StrictModel,
    Text,
)
from serving.formats.timestamps import FreqField, TimestampsField


class HistoryColumns(StrictModel):
    """Histories of one frequency, a place in every list for each."""

    id: list[SeriesId] = Field(min_length=1)
    start: TimestampsField = Field(description="stamp of each first value, on the grid of `freq`; or whole numbers")
    freq: FreqField = Field(description="of all: pandas offset alias; or a whole number where starts are numbers")
    y: list[ObservedValues] = Field(description="values, oldest first")
    covariates: dict[Text, list[CovariateColumn]] = Field(
        default={}, max_length=64, description="by name, one list a series"
    )
    static: dict[Text, list[CategoryLabel]] = Field(default={}, max_length=64, description="by name, one text a series")
    channels: dict[Text, list[ObservedValues]] = Field(
        default={}, max_length=64, description="by name, one list a series"
    )

    @model_validator(mode="after")
    def _validate_lengths(self) -> HistoryColumns:
        named = {"start": self.start, "y": self.y, **self.covariates, **self.static, **self.channels}
        for name, values in named.items():
            if len(values) != len(self.id):
                raise ValueError(f"Expected {len(self.id)} entries in {name!r}, one for each id; found {len(values)}")
        return self


class ColumnsRequest(ForecastOptions):
    """Some histories as columns, and what is asked of them."""

    columns: HistoryColumns

    def to_series_inputs(self) -> list[SeriesInput]:
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


class ForecastColumns(StrictModel):
    """A place in every list for each series of the request, in order; null where it has no forecast."""

    id: list[str]
    ds: list[list[str] | list[int] | None]
    mean: list[list[float] | None]
    quantiles: dict[str, list[list[float] | None]] = Field(default={}, description="only where `levels` were asked for")
    samples: list[list[list[float | None]] | None] = Field(default=[], description="only where they were asked for")
    state: list[str | None] = Field(default=[], description="only where `return_state` was asked")
    warnings: list[list[str]]
    error: list[ErrorDetail | None] = Field(description="why there is no forecast")


class ColumnsResponse(StrictModel):
    """The forecasts as columns."""

    model: ModelInfo
    columns: ForecastColumns


def encode_columns(model_info: dict[str, Any], outcomes: Sequence[SeriesOutcome], options: ForecastOptions) -> bytes:
    """A ColumnsAnswer."""
    stamper = TimestampFormatter()
    good = [None if isinstance(one.result, ForecasterError) else one.result for one in outcomes]
    columns: dict[str, Any] = {
        "id": [one.id for one in outcomes],
        "ds": [one and stamper.format(one.forecast.ds, one.style) for one in good],
        "mean": [one and one.forecast.mean for one in good],
    }
    if options.levels:
        columns["quantiles"] = {
            repr(float(level)): [one and one.forecast.quantiles[level] for one in good]
            for level in sorted(options.levels)
        }
    if options.samples:
        columns["samples"] = [one and one.paths for one in good]
    if options.return_state:
        columns["state"] = [one and one.state_token for one in good]
    columns["warnings"] = [one.warnings if one else [] for one in good]
    columns["error"] = [
        _error_fields(one.result) if isinstance(one.result, ForecasterError) else None for one in outcomes
    ]
    return chunked_json.dumps({"model": model_info, "columns": columns})


def _error_fields(error: ForecasterError) -> dict[str, Any]:
    return {"code": error.code, "message": error.message, "where": error.where}
