"""Requests and responses as JSON columns: one list per field instead of one object per series."""

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
    """Histories of one frequency as columns; every list has one entry per series."""

    id: list[SeriesId] = Field(min_length=1)
    start: TimestampsField = Field(description="timestamp of each first value, on the grid of `freq`; or integers")
    freq: FreqField = Field(
        description="frequency of all series: pandas offset alias, or an integer if starts are integers"
    )
    y: list[ObservedValues] = Field(description="values of each series, oldest first")
    covariates: dict[Text, list[CovariateColumn]] = Field(
        default={}, max_length=64, description="by name, one list per series"
    )
    static: dict[Text, list[CategoryLabel]] = Field(
        default={}, max_length=64, description="by name, one text per series"
    )
    channels: dict[Text, list[ObservedValues]] = Field(
        default={}, max_length=64, description="by name, one list per series"
    )

    @model_validator(mode="after")
    def _validate_lengths(self) -> HistoryColumns:
        columns = {"start": self.start, "y": self.y, **self.covariates, **self.static, **self.channels}
        for name, values in columns.items():
            if len(values) != len(self.id):
                raise ValueError(f"Expected {len(self.id)} entries in {name!r}, one for each id; found {len(values)}")
        return self


class ColumnsRequest(ForecastOptions):
    """A forecast request with the histories as columns."""

    columns: HistoryColumns

    def to_series_inputs(self) -> list[SeriesInput]:
        """Returns the histories one by one; their fields have been validated."""
        columns = self.columns
        return [
            GridSeries.model_construct(
                id=columns.id[index],
                start=columns.start[index],
                freq=columns.freq,
                y=columns.y[index],
                covariates={name: values[index] for name, values in columns.covariates.items()},
                static={name: values[index] for name, values in columns.static.items()},
                channels={name: values[index] for name, values in columns.channels.items()},
            )
            for index in range(len(columns.id))
        ]


class ForecastColumns(StrictModel):
    """Forecasts as columns; every list has one entry per series of the request, in order, null if it has no forecast."""

    id: list[str]
    ds: list[list[str] | list[int] | None]
    mean: list[list[float] | None]
    quantiles: dict[str, list[list[float] | None]] = Field(
        default={}, description="present only if `levels` were requested"
    )
    samples: list[list[list[float | None]] | None] = Field(
        default=[], description="present only if `samples` were requested"
    )
    state: list[str | None] = Field(default=[], description="present only if `return_state` was set")
    warnings: list[list[str]]
    error: list[ErrorDetail | None] = Field(description="why the series has no forecast; null if it has one")


class ColumnsResponse(StrictModel):
    """The response to a ColumnsRequest."""

    model: ModelInfo
    columns: ForecastColumns


def encode_columns(model_info: dict[str, Any], outcomes: Sequence[SeriesOutcome], options: ForecastOptions) -> bytes:
    """Encodes the outcomes as a ColumnsResponse."""
    formatter = TimestampFormatter()
    results = [None if isinstance(outcome.result, ForecasterError) else outcome.result for outcome in outcomes]
    columns: dict[str, Any] = {
        "id": [outcome.id for outcome in outcomes],
        "ds": [result and formatter.format(result.forecast.ds, result.style) for result in results],
        "mean": [result and result.forecast.mean for result in results],
    }
    if options.levels:
        columns["quantiles"] = {
            repr(float(level)): [result and result.forecast.quantiles[level] for result in results]
            for level in sorted(options.levels)
        }
    if options.samples:
        columns["samples"] = [result and result.paths for result in results]
    if options.return_state:
        columns["state"] = [result and result.state_token for result in results]
    columns["warnings"] = [result.warnings if result else [] for result in results]
    columns["error"] = [
        _error_fields(outcome.result) if isinstance(outcome.result, ForecasterError) else None for outcome in outcomes
    ]
    return chunked_json.dumps({"model": model_info, "columns": columns})


def _error_fields(error: ForecasterError) -> dict[str, Any]:
    return {"code": error.code, "message": error.message, "where": error.where}
