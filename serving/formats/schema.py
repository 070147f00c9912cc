"""The wire format: strict models of what is asked and answered, and their way to Series and back from Forecast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from forecaster.errors import ForecasterError
from serving.deployment.status import BundleRejectionStatus, FollowerStatus
from serving.formats.chunked_json import to_array
from serving.formats.timestamps import FreqField, TimestampField, TimestampsField

ObservedValue = Annotated[float | None, Field(description="null: not observed")]
ObservedValues = Annotated[list[ObservedValue], AfterValidator(to_array)]
Text = Annotated[str, Field(min_length=1, max_length=200)]
# Without control characters: ids go on into terminals, tables and logs.
SeriesId = Annotated[Text, Field(pattern="^[^\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]*$")]
CategoryLabel = Annotated[str, Field(max_length=200)]
MAX_COLUMNS, MAX_LEVELS = 64, 99


def _column_kind(values: Any) -> str:
    return "texts" if isinstance(values, list) and values and isinstance(values[0], str) else "numbers"


CovariateColumn = Annotated[
    Annotated[list[float], AfterValidator(to_array), Tag("numbers")]
    | Annotated[list[CategoryLabel], Field(min_length=1), Tag("texts")],
    Discriminator(_column_kind),
]
CovariatesField = Annotated[
    dict[Text, CovariateColumn],
    Field(
        max_length=MAX_COLUMNS,
        description="what is known ahead, by name: all numbers or all text, one for each step of `y` and of the horizon "
        "or more; the same number in every column",
        examples=[{"promo": [0, 0, 1, 1, 0]}],
    ),
]
ChannelsField = Annotated[
    dict[Text, ObservedValues],
    Field(
        max_length=MAX_COLUMNS,
        description="of what the past alone is known, by name: one value for each step of `y`",
        examples=[{"temperature": [21.5, None, 20.0]}],
    ),
]
StaticField = Annotated[
    dict[Text, CategoryLabel],
    Field(
        max_length=MAX_COLUMNS,
        description="what is true of the whole series, by name; a value that the model never saw is answered",
        examples=[{"region": "north"}],
    ),
]


def _validate_unique_levels(levels: list[float]) -> list[float]:
    if len(set(levels)) != len(levels):
        raise ValueError("Expected every level once; found one twice")
    return levels


LevelsField = Annotated[
    list[Annotated[float, Field(gt=0, lt=1)]],
    AfterValidator(_validate_unique_levels),
    Field(
        max_length=MAX_LEVELS,
        description="of the quantiles to give beside the mean: 0.1 and 0.9 bound an 80 % interval",
        examples=[[0.1, 0.5, 0.9]],
        json_schema_extra={"uniqueItems": True},
    ),
]


class StrictModel(BaseModel):
    """A part of the wire format: nothing is guessed, nothing let pass."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class _BaseSeries(StrictModel):
    id: SeriesId
    covariates: CovariatesField = {}
    static: StaticField = {}
    channels: ChannelsField = {}


class GridSeries(_BaseSeries):
    """A history as the stamp of its first value and its frequency."""

    start: TimestampField = Field(
        description="ISO 8601 stamp of the first value, which must be on the grid of `freq`; or a whole number"
    )
    freq: FreqField = Field(description="pandas offset alias; or a whole number, also as text, where `start` is one")
    y: ObservedValues = Field(description="values, oldest first")


class TimestampedSeries(_BaseSeries):
    """A history with a stamp for every value; the frequency is inferred if it is certain."""

    ds: TimestampsField = Field(description="ISO 8601 stamps, or whole numbers; oldest first, regular")
    y: ObservedValues = Field(description="values, one a stamp")
    freq: FreqField | None = Field(
        default=None, description="pandas offset alias, or a whole number; the stamps are checked against it"
    )

    @model_validator(mode="after")
    def _validate_lengths(self) -> TimestampedSeries:
        if len(self.ds) != len(self.y):
            raise ValueError(f"Expected one value a stamp; found {len(self.ds)} stamps and {len(self.y)} values")
        return self


class ContinuedSeries(_BaseSeries):
    """What came after a state that was returned with the forecast of a series: the history need not be sent again."""

    state: str = Field(description="as an answer to `return_state` gave it, with the same id")
    y: ObservedValues = Field(description="the new values, oldest first; there may be none")
    start: TimestampField | None = Field(
        default=None, description="stamp of the first new value; it must follow the state"
    )
    ds: TimestampsField | None = Field(default=None, description="or the stamps of all of them")
    freq: FreqField | None = Field(default=None, description="that of the state; it need not be said")


def _series_kind(item: Any) -> str:
    def has(name: str) -> bool:
        return (item.get(name) if isinstance(item, dict) else getattr(item, name, None)) is not None

    return "carried" if has("state") else "stamped" if has("ds") else "grid"


HistoryField = Annotated[
    Annotated[GridSeries, Tag("grid")] | Annotated[TimestampedSeries, Tag("stamped")],
    Discriminator(lambda item: "stamped" if _series_kind(item) == "stamped" else "grid"),
]
SeriesField = Annotated[
    Annotated[GridSeries, Tag("grid")]
    | Annotated[TimestampedSeries, Tag("stamped")]
    | Annotated[ContinuedSeries, Tag("carried")],
    Discriminator(_series_kind),
]
"""A history, or what came after a state of one."""


class ForecastOptions(StrictModel):
    """What is asked of every series: how many steps ahead, which quantiles, how many samples."""

    horizon: int = Field(ge=1, description="steps ahead")
    levels: LevelsField = []
    deadline_ms: int | None = Field(
        default=None, ge=1, description="milliseconds that the answer is waited for; a later one is given up with 504"
    )
    samples: int = Field(
        default=0, ge=0, description="futures to draw of each series; for models whose head is a distribution"
    )
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="of the samples: those of a series depend on it and on the id alone"
    )
    return_state: bool = Field(
        default=False, description="whether to give a state with each forecast, to go on from without the history"
    )


class ForecastRequest(ForecastOptions):
    """Some histories, and what is asked of them."""

    series: list[SeriesField] = Field(min_length=1, description="answered one by one, in order")


class ModelInfo(StrictModel):
    """Which model answered."""

    name: str
    version: str
    digest: str = Field(description="sha256 of the bundle's manifest")
    blend: dict[str, float] = Field(
        default={},
        description="only of a blend: the weights of its network and of the statistical models whose forecasts are added to "
        "the network's; they add to 1. A forecast in which the network stands in for one of them says so in its warnings",
        examples=[{"network": 0.62, "dynamic_optimized_theta": 0.38}],
    )
    reliable_horizon: int | None = Field(
        default=None,
        description="the last step up to which the model was at least as good as seasonal naive in its backtest; 0: not at the "
        "first; null, or absent: it was not tested",
    )


class ErrorDetail(StrictModel):
    """What went wrong, for machines (`code`) and people (`message`)."""

    code: str
    message: str
    where: str | None = Field(description="place in the request, or id of the series")


class ErrorResponse(StrictModel):
    """The one shape of every failure."""

    error: ErrorDetail


class SeriesForecast(StrictModel):
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
    samples: list[list[float | None]] = Field(
        default=[],
        description="futures, one list each; null after one has left the finite numbers; only where `samples` were asked for",
    )
    samples_used: int | None = Field(
        default=None, description="only where the deadline left time for fewer samples than were asked for: how many"
    )
    state: str | None = Field(default=None, description="only where `return_state` was asked: signed, not encrypted")
    warnings: list[str] = Field(description="what a reader should know of it")


class SeriesError(StrictModel):
    """Why one series got no forecast."""

    id: str
    error: ErrorDetail


class ForecastResponse(StrictModel):
    """One outcome for each series, in the order of the request."""

    model: ModelInfo
    forecasts: list[SeriesForecast | SeriesError]


class ModelResponse(StrictModel):
    """The model in use."""

    model: ModelInfo
    spec: dict[str, Any] = Field(description="the whole specification")
    freq: str = Field(description="pandas offset alias, or a whole number as text: the steps are numbered")
    season: int
    cutoff: str = Field(description="last stamp of the data the model was fitted to; digits where steps are numbered")
    facts: dict[str, Any] = Field(description="what the bundle's manifest says of its making: scores, versions, data")
    card: str = Field(description="markdown: what it was trained on, scores against baselines, limits")
    age_s: float = Field(description="seconds since this worker took it into use")
    follower: FollowerStatus | None = Field(default=None, description="only where a registry is followed")
    refused: BundleRejectionStatus | None = Field(
        default=None, description="only where this worker refused what is in the slot"
    )


class LivenessResponse(StrictModel):
    """The process answers."""

    live: Literal[True]


class ReadinessResponse(StrictModel):
    """A model is in use."""

    ready: Literal[True]
    model: ModelInfo
    age_s: float
    follower: FollowerStatus | None = Field(default=None, description="as of /v1/model")
    refused: BundleRejectionStatus | None = Field(
        default=None, description="likewise; ready nevertheless, with the model before"
    )


class SeriesInput(Protocol):
    """What every form of a request says of one history; a GridSeries or a StampedSeries, whose values may be an array."""

    @property
    def id(self) -> str:
        """The name that comes back."""

    @property
    def y(self) -> Sequence[float | None]:
        """Values, oldest first."""

    @property
    def covariates(self) -> Mapping[str, Sequence[float] | Sequence[str]]:
        """What is known ahead."""

    @property
    def static(self) -> Mapping[str, str]:
        """What is true of the whole series."""

    @property
    def channels(self) -> Mapping[str, Sequence[float | None]]:
        """Of what the past alone is known."""


def error_fields(series_id: str, error: ForecasterError) -> dict[str, Any]:
    """A refused series as the fields of a SeriesError."""
    return {"id": series_id, "error": {"code": error.code, "message": error.message, "where": error.where}}
