"""The wire format: strict models of what is asked and answered, and their way to Series and back from Forecast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from forecaster.data.encoding import Encoding
from forecaster.errors import CovariateUnknown, ForecasterError, HistoryTooShort, NotANumber, ValueOutOfRange
from forecaster.frequency import at, offset
from forecaster.series import Forecast, Series
from forecaster.shapes import Float64
from serving import stamps
from serving.problem import Problem
from serving.stamps import AskedFreq, AskedStamp, AskedStamps, Numbers, Style

Value = Annotated[float | None, Field(description="null: not observed")]
Text = Annotated[str, Field(min_length=1, max_length=200)]
# Without control characters: ids go on into terminals, tables and logs.
Id = Annotated[Text, Field(pattern="^[^\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]*$")]
Label = Annotated[str, Field(max_length=200)]
MOST_COLUMNS, MOST_LEVELS = 64, 99
LARGEST_COVARIATE = 1e30  # in spreads of the training data; the network reads float32


def _kind_of_column(values: Any) -> str:
    return "texts" if isinstance(values, list) and values and isinstance(values[0], str) else "numbers"


Column = Annotated[
    Annotated[list[float], Tag("numbers")] | Annotated[list[Label], Field(min_length=1), Tag("texts")],
    Discriminator(_kind_of_column),
]
Covariates = Annotated[
    dict[Text, Column],
    Field(
        max_length=MOST_COLUMNS,
        description="what is known ahead, by name: all numbers or all text, one for each step of `y` and of the horizon "
        "or more; the same number in every column",
        examples=[{"promo": [0, 0, 1, 1, 0]}],
    ),
]
Channels = Annotated[
    dict[Text, list[Value]],
    Field(
        max_length=MOST_COLUMNS,
        description="of what the past alone is known, by name: one value for each step of `y`",
        examples=[{"temperature": [21.5, None, 20.0]}],
    ),
]
Static = Annotated[
    dict[Text, Label],
    Field(
        max_length=MOST_COLUMNS,
        description="what is true of the whole series, by name; a value that the model never saw is answered",
        examples=[{"region": "north"}],
    ),
]


def _no_twins(levels: list[float]) -> list[float]:
    if len(set(levels)) != len(levels):
        raise ValueError("Expected every level once; found one twice")
    return levels


Levels = Annotated[
    list[Annotated[float, Field(gt=0, lt=1)]],
    AfterValidator(_no_twins),
    Field(
        max_length=MOST_LEVELS,
        description="of the quantiles to give beside the mean: 0.1 and 0.9 bound an 80 % interval",
        examples=[[0.1, 0.5, 0.9]],
        json_schema_extra={"uniqueItems": True},
    ),
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class _AnySeries(_Strict):
    id: Id
    covariates: Covariates = {}
    static: Static = {}
    channels: Channels = {}


class GridSeries(_AnySeries):
    """A history as the stamp of its first value and its frequency."""

    start: AskedStamp = Field(
        description="ISO 8601 stamp of the first value, which must be on the grid of `freq`; or a whole number"
    )
    freq: AskedFreq = Field(description="pandas offset alias; or a whole number, also as text, where `start` is one")
    y: list[Value] = Field(description="values, oldest first")


class StampedSeries(_AnySeries):
    """A history with a stamp for every value; the frequency is inferred if it is certain."""

    ds: AskedStamps = Field(description="ISO 8601 stamps, or whole numbers; oldest first, regular")
    y: list[Value] = Field(description="values, one a stamp")
    freq: AskedFreq | None = Field(
        default=None, description="pandas offset alias, or a whole number; the stamps are checked against it"
    )

    @model_validator(mode="after")
    def _one_value_a_stamp(self) -> StampedSeries:
        if len(self.ds) != len(self.y):
            raise ValueError(f"Expected one value a stamp; found {len(self.ds)} stamps and {len(self.y)} values")
        return self


def _kind(item: Any) -> str:
    return (
        "stamped" if (item.get("ds") if isinstance(item, dict) else getattr(item, "ds", None)) is not None else "grid"
    )


AskedSeries = Annotated[
    Annotated[GridSeries, Tag("grid")] | Annotated[StampedSeries, Tag("stamped")], Discriminator(_kind)
]


class ForecastRequest(_Strict):
    """What is asked: some histories, how many steps ahead, and which quantiles."""

    series: list[AskedSeries] = Field(min_length=1, description="answered one by one, in order")
    horizon: int = Field(ge=1, description="steps ahead")
    levels: Levels = []
    deadline_ms: int | None = Field(
        default=None, ge=1, description="milliseconds that the answer is waited for; a later one is given up with 504"
    )


class ModelName(_Strict):
    """Which model answered."""

    name: str
    version: str
    digest: str = Field(description="sha256 of the bundle's manifest")


class ErrorDetail(_Strict):
    """What went wrong, for machines (`code`) and people (`message`)."""

    code: str
    message: str
    where: str | None = Field(description="place in the request, or id of the series")


class ErrorAnswer(_Strict):
    """The one shape of every failure."""

    error: ErrorDetail


class SeriesForecast(_Strict):
    """The forecast of one series."""

    id: str
    ds: list[str] | list[int] = Field(
        description="stamps ahead, in the zone and style of the request; numbers where those were numbers"
    )
    mean: list[float] = Field(description="point forecasts, in the units of the series")
    quantiles: dict[str, list[float]] = Field(
        default={},
        description="by level as text, such as 0.1: calibrated quantiles; only where `levels` were asked for",
    )
    warnings: list[str] = Field(description="what a reader should know of it")


class SeriesError(_Strict):
    """Why one series got no forecast."""

    id: str
    error: ErrorDetail


class ForecastAnswer(_Strict):
    """One outcome for each series, in the order of the request."""

    model: ModelName
    forecasts: list[SeriesForecast | SeriesError]


class ModelAnswer(_Strict):
    """The model in use."""

    model: ModelName
    spec: dict[str, Any] = Field(description="the whole specification")
    freq: str = Field(description="pandas offset alias, or a whole number as text: the steps are numbered")
    season: int
    cutoff: str = Field(description="last stamp of the data the model was fitted to; digits where steps are numbered")
    facts: dict[str, Any] = Field(description="what the bundle's manifest says of its making: scores, versions, data")
    card: str = Field(description="markdown: what it was trained on, scores against baselines, limits")
    age_s: float = Field(description="seconds since this worker took it into use")


class LiveAnswer(_Strict):
    """The process answers."""

    live: Literal[True]


class ReadyAnswer(_Strict):
    """A model is in use."""

    ready: Literal[True]
    model: ModelName
    age_s: float


class ReadSeries(NamedTuple):
    """A history from a request, and how its stamps are to be written back."""

    series: Series
    style: Style | Numbers


def read_request(body: bytes) -> ForecastRequest:
    """Parses and validates a body; raises Problem (400 or 422) with the place of the first fault."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Problem(
            "malformed_json", f"Expected JSON; {error.msg} at character {error.pos}. Correct the body."
        ) from error
    try:
        request = ForecastRequest.model_validate(fields)
    except ValidationError as error:
        raise _invalid(error) from error
    return request


def to_series(asked: GridSeries | StampedSeries, *, served: str, encoding: Encoding, horizon: int) -> ReadSeries:
    """One history of a request as a Series; raises the InputError that stands in its way.

    Args:
        asked: The history.
        served: The frequency of the model in use; other frequencies are left to the Predictor to refuse.
        encoding: That of the model in use: which covariates are numbers, and which are text.
        horizon: Steps ahead, which must stay on the calendar.
    """
    if not asked.y:
        raise HistoryTooShort(f"Series {asked.id!r} has no values. Send a history.", where=asked.id)
    y = np.array(asked.y, dtype=np.float64)  # None becomes NaN
    if isinstance(asked, GridSeries):
        read, style = stamps.read([asked.start], where=asked.id)
        freq = stamps.declared_frequency(asked.freq, at(read, 0), where=asked.id)
    else:
        read, style = stamps.read(asked.ds, where=asked.id)
        freq = stamps.frequency(read, declared=asked.freq, served=served, where=asked.id)
    start, step = at(read, 0), offset(freq, where=asked.id)
    if step == offset(served):
        stamps.check_room(start, step, len(y) + horizon, where=asked.id)
    columns = _columns(asked.covariates, steps=len(y), encoding=encoding, where=asked.id)
    channels = _channels(asked.channels, steps=len(y), where=asked.id)
    return ReadSeries(Series(asked.id, start, freq, y, columns, asked.static, channels), style)


def from_forecast(forecast: Forecast, style: Style | Numbers, warnings: list[str]) -> dict[str, Any]:
    """A forecast as the fields of a SeriesForecast; `warnings` are those of the whole request."""
    fields = {"id": forecast.id, "ds": style.write(forecast.ds), "mean": forecast.mean.tolist()}
    if forecast.quantiles:
        fields["quantiles"] = {repr(float(level)): values.tolist() for level, values in forecast.quantiles.items()}
    return {**fields, "warnings": [*warnings, *forecast.warnings]}


def from_error(name: str, error: ForecasterError) -> dict[str, Any]:
    """A refused series as the fields of a SeriesError."""
    return {"id": name, "error": {"code": error.code, "message": error.message, "where": error.where}}


def _columns(
    asked: Mapping[str, Sequence[float] | Sequence[str]], *, steps: int, encoding: Encoding, where: str
) -> dict[str, np.ndarray]:
    """The covariates of a series as arrays; whether they reach over the horizon is left to the Predictor."""
    lengths = sorted({len(values) for values in asked.values()})
    if len(lengths) > 1 or min(lengths, default=steps) < steps:
        raise CovariateUnknown(
            f"Expected covariates of one length, {steps} or more; those of series {where!r} have "
            f"{', '.join(map(str, lengths[:5]))}. Send each for every step of the history and of the horizon.",
            where=where,
        )
    return {name: _column(name, values, encoding=encoding, where=where) for name, values in asked.items()}


def _channels(
    asked: Mapping[str, Sequence[float | None]], *, steps: int, where: str
) -> dict[str, Float64[np.ndarray, "step"]]:
    """The channels of a series as arrays; which of them the model needs is left to the Predictor."""
    for name, values in asked.items():
        if len(values) != steps:
            raise CovariateUnknown(
                f"Expected {steps} values in the channel {name!r}, as many as in `y`; series {where!r} has {len(values)}. "
                "Send one for each step, null where it was not observed.",
                where=where,
            )
    return {name: np.array(values, dtype=np.float64) for name, values in asked.items()}


def _column(name: str, values: Sequence[float] | Sequence[str], *, encoding: Encoding, where: str) -> np.ndarray:
    if isinstance(values[0], str):
        if name in encoding.numeric:
            raise NotANumber(
                f"Expected numbers in the covariate {name!r}; series {where!r} has text. Send numbers.", where=where
            )
        return np.array(values, dtype=object)
    if name in encoding.categories:
        raise CovariateUnknown(
            f"Expected text in the covariate {name!r}; series {where!r} has numbers. Send its categories.", where=where
        )
    column = np.array(values, dtype=np.float64)
    mean, spread = encoding.numeric.get(name, (0.0, 1.0))
    with np.errstate(over="ignore"):
        sizes = np.abs((column - mean) / spread)
    if (sizes > LARGEST_COVARIATE).any():
        raise ValueOutOfRange(
            f"Series {where!r} holds a value in the covariate {name!r} that is too large to be reckoned with: "
            f"{sizes.max():g} times its usual spread. Correct it.",
            where=where,
        )
    return column


def _invalid(error: ValidationError) -> Problem:
    """The faults in one message, the place of the first apart. Never the values, which may be long."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    told = "; ".join(f"{_place(fault['loc'])}: {fault['msg']}" for fault in faults[:5])
    more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
    return Problem("invalid_request", f"The request is not valid. {told}{more}.", where=_place(faults[0]["loc"]))


def _place(loc: tuple[int | str, ...]) -> str:
    tags = {2: ("grid", "stamped"), 5: ("numbers", "texts")}  # of our unions: no part of the request
    if loc[3:4] in (("start",), ("freq",), ("ds",)):
        tags[4] = ("number", "text")
    path = [str(part) for place, part in enumerate(loc) if part not in tags.get(place, ())]
    return ".".join(path)[:200] or "body"
