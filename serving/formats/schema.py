"""The JSON wire format: strict pydantic models of requests and responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol, cast

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from forecaster.bundle.pretrained.specification import MAX_SEASON
from forecaster.errors import ForecasterError
from serving.deployment.status import BundleRejectionStatus, FollowerStatus, SlotCheckStatus
from serving.formats.timestamps import FreqField, TimestampField, TimestampsField

MIN_ARRAY_LENGTH = 1 << 10  # lists with at least so many values become arrays


def to_array(values: list[Any]) -> Sequence[Any]:
    """Converts a long list of numbers to an array, which is freed at once, with NaN for null; returns short lists unchanged.

    As a pydantic validator written in Python, it also gives other threads a chance to run between the lists of a request.
    """
    return values if len(values) < MIN_ARRAY_LENGTH else cast("Sequence[Any]", np.array(values, dtype=np.float64))


ObservedValue = Annotated[float | None, Field(description="null marks a missing value")]
ObservedValues = Annotated[list[ObservedValue], Field(fail_fast=True), AfterValidator(to_array)]
ObservedSymbol = Annotated[
    Annotated[str, Field(min_length=1, max_length=200)] | None, Field(description="null marks a missing symbol")
]
Text = Annotated[str, Field(min_length=1, max_length=200)]
# Control characters are not allowed, because ids appear in terminals, tables and logs.
SeriesId = Annotated[Text, Field(pattern="^[^\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]*$")]
CategoryLabel = Annotated[str, Field(max_length=200)]
MAX_COLUMNS, MAX_LEVELS = 64, 99
_MAX_UNKNOWN_FIELDS = 4  # that are reported one by one


def _column_kind(values: Any) -> str:
    return "texts" if isinstance(values, list) and values and isinstance(values[0], str) else "numbers"


CovariateColumn = Annotated[
    Annotated[list[float], Field(fail_fast=True), AfterValidator(to_array), Tag("numbers")]
    | Annotated[list[CategoryLabel], Field(fail_fast=True), Field(min_length=1), Tag("texts")],
    Discriminator(_column_kind),
]


def limit_columns(columns: Any) -> Any:
    """Raises ValueError for more names than `MAX_COLUMNS`, before their values are validated."""
    if isinstance(columns, dict) and len(columns) > MAX_COLUMNS:
        raise ValueError(f"Expected at most {MAX_COLUMNS} columns; found {len(columns)}")
    return columns


CovariatesField = Annotated[
    dict[Text, CovariateColumn],
    Field(
        max_length=MAX_COLUMNS,
        description="covariates whose future is known, by name: all numbers or all text, one value for each step of `y` and of "
        "the horizon, or more; all columns have the same length",
        examples=[{"promo": [0, 0, 1, 1, 0]}],
    ),
    BeforeValidator(limit_columns),
]
ChannelsField = Annotated[
    dict[Text, ObservedValues],
    Field(
        max_length=MAX_COLUMNS,
        description="channels, of which only the past is known, by name: one value for each step of `y`",
        examples=[{"temperature": [21.5, None, 20.0]}],
    ),
    BeforeValidator(limit_columns),
]
StaticField = Annotated[
    dict[Text, CategoryLabel],
    Field(
        max_length=MAX_COLUMNS,
        description="static features of the series, by name; values that were not in the training data are accepted "
        "with a warning, and other names than the model reads are rejected",
        examples=[{"region": "north"}],
    ),
    BeforeValidator(limit_columns),
]


SeasonField = Annotated[
    int | None,
    Field(
        ge=1,
        le=MAX_SEASON,
        description="steps of a season; by default the usual one of the frequency, such as 12 for months. A trained model "
        "accepts only its own",
        examples=[12],
    ),
]


SymbolsField = Annotated[
    Annotated[list[ObservedSymbol], Field(fail_fast=True)] | None,
    Field(
        description="symbols in place of `y`, oldest first, for a model of symbols; those outside of its vocabulary are unknown",
        examples=[["start", "load", None, "stop"]],
    ),
]


def _require_values_or_symbols(json_schema: dict[str, Any]) -> None:
    """Documents that a history has either `y` or `symbols`."""
    json_schema["required"] = [name for name in json_schema["required"] if name != "y"]
    with_symbols = {"properties": {"symbols": {"type": "array"}}, "required": ["symbols"]}
    json_schema["oneOf"] = [{"type": "object", **fields} for fields in ({"required": ["y"]}, with_symbols)]


def _validate_unique_levels(levels: list[float]) -> list[float]:
    if len(set(levels)) != len(levels):
        raise ValueError("Expected each level once; found a duplicate")
    return levels


LevelsField = Annotated[
    list[Annotated[float, Field(gt=0, lt=1)]],
    Field(fail_fast=True),
    AfterValidator(_validate_unique_levels),
    Field(
        max_length=MAX_LEVELS,
        description="levels of the quantiles to return in addition to the mean: 0.1 and 0.9 bound an 80 % interval",
        examples=[[0.1, 0.5, 0.9]],
        json_schema_extra={"uniqueItems": True},
    ),
]


class StrictModel(BaseModel):
    """Base class of the wire format: immutable, without type coercion, unknown fields and non-finite numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class RequestModel(StrictModel):
    """Base class of requests, whose validation stops early, because pydantic builds every error before the first one is shown.

    Lists stop at their first invalid item (`fail_fast`), and an object with many unknown fields is rejected with one of them.
    """

    @model_validator(mode="before")
    @classmethod
    def _limit_unknown_fields(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and len(fields) > len(cls.model_fields) + _MAX_UNKNOWN_FIELDS:
            unknown = next(name for name in fields if name not in cls.model_fields)
            raise ValueError(f"Expected fields of this object; found {len(fields)}, such as {unknown[:50]!r}")
        return fields


class BaseSeries(RequestModel):
    """What all forms of a history have."""

    model_config = ConfigDict(json_schema_extra=_require_values_or_symbols)

    id: SeriesId = Field(description="id of the series, which its outcome repeats")
    symbols: SymbolsField = None
    season: SeasonField = None
    covariates: CovariatesField = {}
    static: StaticField = {}
    channels: ChannelsField = {}

    @model_validator(mode="before")
    @classmethod
    def _add_values(cls, fields: Any) -> Any:
        """Adds `y` to a history of symbols, missing at every step, so that all limits count its steps."""
        if not isinstance(fields, dict) or fields.get("symbols") is None:
            return fields
        if fields.get("y") is not None:
            raise ValueError("Expected either `y` or `symbols`; found both. Send numbers or symbols")
        symbols = fields["symbols"]
        return {**fields, "y": [None] * len(symbols) if isinstance(symbols, list) else []}


class GridSeries(BaseSeries):
    """A history given by the timestamp of its first value and its frequency."""

    start: TimestampField = Field(
        description="ISO 8601 timestamp of the first value, which must be on the grid of `freq`; or an integer"
    )
    freq: FreqField = Field(
        description="pandas offset alias; or an integer, as a number or text, if `start` is an integer"
    )
    y: ObservedValues = Field(description="values, oldest first")


class TimestampedSeries(BaseSeries):
    """A history with a timestamp for every value; the frequency is inferred if it is unambiguous."""

    ds: TimestampsField = Field(description="ISO 8601 timestamps, or integers; oldest first, at regular intervals")
    y: ObservedValues = Field(description="values, one for each timestamp")
    freq: FreqField | None = Field(
        default=None, description="pandas offset alias, or an integer; the timestamps are validated against it"
    )

    @model_validator(mode="after")
    def _validate_lengths(self) -> TimestampedSeries:
        if len(self.ds) != len(self.y):
            raise ValueError(
                f"Expected one value for each timestamp; found {len(self.ds)} timestamps and {len(self.y)} values"
            )
        return self


class ContinuedSeries(BaseSeries):
    """New values of a series whose earlier history is represented by a state; that history is not sent again."""

    state: str = Field(description="the state that was returned for the series with this id after `return_state`")
    y: ObservedValues = Field(description="the new values, oldest first; may be empty")
    start: TimestampField | None = Field(
        default=None, description="timestamp of the first new value, which must follow the state"
    )
    ds: TimestampsField | None = Field(
        default=None, description="timestamps of all new values; an alternative to `start`"
    )
    freq: FreqField | None = Field(default=None, description="optional; must be the frequency of the state")


def _series_kind(item: Any) -> str:
    def has(name: str) -> bool:
        return (item.get(name) if isinstance(item, dict) else getattr(item, name, None)) is not None

    return "continued" if has("state") else "timestamped" if has("ds") else "grid"


HistoryField = Annotated[
    Annotated[GridSeries, Tag("grid")] | Annotated[TimestampedSeries, Tag("timestamped")],
    Discriminator(lambda item: "timestamped" if _series_kind(item) == "timestamped" else "grid"),
]
SeriesField = Annotated[
    Annotated[GridSeries, Tag("grid")]
    | Annotated[TimestampedSeries, Tag("timestamped")]
    | Annotated[ContinuedSeries, Tag("continued")],
    Discriminator(_series_kind),
]
"""A history, or the new values after a state."""


class ForecastOptions(RequestModel):
    """Options of a forecast, shared by all series of a request: horizon, quantile levels, samples."""

    horizon: int = Field(ge=1, description="number of steps to forecast")
    levels: LevelsField = []
    joint: bool = Field(
        default=False,
        description="whether the quantiles bound whole paths: all actuals together lie between those of 0.1 and 0.9 with a "
        "probability of 80 %; false: each actual by itself",
    )
    deadline_ms: int | None = Field(
        default=None,
        ge=1,
        description="milliseconds until the client needs the response; past it the request fails with 504",
    )
    samples: int = Field(
        default=0,
        ge=0,
        description="number of sample paths to draw for each series; needs a model with a distribution head",
    )
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**63,
        description="seed of the samples; those of a series depend only on the seed and its id",
    )
    temperature: float = Field(
        default=1.0,
        gt=0,
        description="of the samples of a model of symbols, whose logits are divided by it: near 0 they are the most probable "
        "symbols",
    )
    probabilities: bool = Field(
        default=False,
        description="whether to return the probability of every symbol at each step; needs a model of symbols",
    )
    return_state: bool = Field(
        default=False,
        description="whether to return a state with each forecast, from which the series continues without its history",
    )


class ForecastRequest(ForecastOptions):
    """Histories to forecast, and the options of the forecasts."""

    series: Annotated[list[SeriesField], Field(fail_fast=True)] = Field(
        min_length=1, description="each is forecast independently; outcomes keep the order"
    )


class ModelInfo(StrictModel):
    """The model that produced a response."""

    name: str = Field(description="name of the model in the registry; base: the pretrained network")
    version: str = Field(description="version of the model in the registry")
    digest: str = Field(description="sha256 of the bundle's manifest")
    blend: dict[str, float] = Field(
        default={},
        description="present only for a blend: the weights of the network and of the statistical models whose forecasts are "
        "averaged with the network's; they sum to 1. A forecast in which the network replaces a statistical model has a warning",
        examples=[{"network": 0.62, "dynamic_optimized_theta": 0.38}],
    )
    reliable_horizon: int | None = Field(
        default=None,
        description="last step up to which the model was at least as good as seasonal naive in its backtest; 0: it was not at "
        "the first step; null or absent: it was not tested",
    )


class ErrorDetail(StrictModel):
    """An error, for programs (`code`) and for people (`message`)."""

    code: str = Field(description="error code")
    message: str = Field(description="what was expected, what was found, and what to do")
    where: str | None = Field(description="location in the request, or id of the series")


class ErrorResponse(StrictModel):
    """The body of every error response."""

    error: ErrorDetail


class SeriesForecast(StrictModel):
    """The forecast of one series."""

    id: str = Field(description="id of the series")
    ds: list[str] | list[int] = Field(
        description="timestamps of the forecast steps, in the time zone and style of the request; integers if the request has "
        "integers"
    )
    mean: list[float] = Field(
        default=[], description="point forecasts, in the units of the series; absent for a model of symbols"
    )
    symbols: list[str] = Field(
        default=[],
        description="the most probable symbols, each given those before it; present only for a model of symbols",
    )
    probabilities: dict[str, list[float]] = Field(
        default={},
        description="the probability of every symbol at each step, given the `symbols` before it; present only if "
        "`probabilities` were requested",
        examples=[{"start": [0.9], "stop": [0.1]}],
    )
    quantiles: dict[str, list[float]] = Field(
        default={},
        description="calibrated quantiles, by level as text, such as 0.1; present only if `levels` were requested",
    )
    samples: list[list[float | None]] | list[list[str]] = Field(
        default=[],
        description="sample paths, one list each, null from the step at which a path is no longer finite; of symbols for a model "
        "of symbols; present only if `samples` were requested",
    )
    samples_used: int | None = Field(
        default=None,
        description="number of samples; present only if the deadline left time for fewer than were requested",
    )
    state: str | None = Field(
        default=None,
        description="state to continue the series from, signed but not encrypted; present only if `return_state` was set",
    )
    warnings: list[str] = Field(description="warnings about this forecast")


class SeriesError(StrictModel):
    """The error that prevented the forecast of one series."""

    id: str = Field(description="id of the series")
    error: ErrorDetail


class ForecastResponse(StrictModel):
    """One outcome for each series, in the order of the request."""

    model: ModelInfo
    forecasts: list[SeriesForecast | SeriesError] = Field(description="forecast or error of each series")


class LivenessResponse(StrictModel):
    """The process is running and responds."""

    live: Literal[True] = Field(description="the process is running")


class ReadinessResponse(StrictModel):
    """A model is in use."""

    ready: Literal[True] = Field(description="a model is in use")
    model: ModelInfo
    age_s: float = Field(description="seconds since the model was loaded")
    slot: SlotCheckStatus | None = Field(default=None, description="as in /v1/model")
    follower: FollowerStatus | None = Field(default=None, description="as in /v1/model")
    refused: BundleRejectionStatus | None = Field(
        default=None, description="as in /v1/model; the worker is ready with its previous model"
    )


class SeriesInput(Protocol):
    """One history of a request in any format: a GridSeries, TimestampedSeries or ContinuedSeries; values may be arrays."""

    @property
    def id(self) -> str:
        """The id of the series, which the response repeats."""

    @property
    def season(self) -> int | None:
        """The steps of a season; None: the usual one of the frequency."""

    @property
    def y(self) -> Sequence[float | None]:
        """The values, oldest first."""

    @property
    def symbols(self) -> Sequence[str | None] | None:
        """The symbols, oldest first; None for a history of numbers."""

    @property
    def covariates(self) -> Mapping[str, Sequence[float] | Sequence[str]]:
        """The covariates whose future is known, by name."""

    @property
    def static(self) -> Mapping[str, str]:
        """The static features, by name."""

    @property
    def channels(self) -> Mapping[str, Sequence[float | None]]:
        """The channels, of which only the past is known, by name."""


def error_fields(series_id: str, error: ForecasterError) -> dict[str, Any]:
    """Returns a rejected series as the fields of a SeriesError."""
    return {"id": series_id, "error": {"code": error.code, "message": error.message, "where": error.where}}
