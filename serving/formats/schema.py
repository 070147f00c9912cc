"""The wire format: strict models of what is asked and answered, and their way to Series and back from Forecast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from forecaster.errors import ForecasterError
from serving.deployment.status import FollowerAnswer, RefusalAnswer
from serving.formats.chunked_json import packed
from serving.formats.timestamps import AskedFreq, AskedStamp, AskedStamps

Value = Annotated[float | None, Field(description="null: not observed")]
Values = Annotated[list[Value], AfterValidator(packed)]
Text = Annotated[str, Field(min_length=1, max_length=200)]
# Without control characters: ids go on into terminals, tables and logs.
Id = Annotated[Text, Field(pattern="^[^\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]*$")]
Label = Annotated[str, Field(max_length=200)]
MOST_COLUMNS, MOST_LEVELS = 64, 99


def _kind_of_column(values: Any) -> str:
    return "texts" if isinstance(values, list) and values and isinstance(values[0], str) else "numbers"


Column = Annotated[
    Annotated[list[float], AfterValidator(packed), Tag("numbers")]
    | Annotated[list[Label], Field(min_length=1), Tag("texts")],
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
    dict[Text, Values],
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


class Strict(BaseModel):
    """A part of the wire format: nothing is guessed, nothing let pass."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class _AnySeries(Strict):
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
    y: Values = Field(description="values, oldest first")


class StampedSeries(_AnySeries):
    """A history with a stamp for every value; the frequency is inferred if it is certain."""

    ds: AskedStamps = Field(description="ISO 8601 stamps, or whole numbers; oldest first, regular")
    y: Values = Field(description="values, one a stamp")
    freq: AskedFreq | None = Field(
        default=None, description="pandas offset alias, or a whole number; the stamps are checked against it"
    )

    @model_validator(mode="after")
    def _one_value_a_stamp(self) -> StampedSeries:
        if len(self.ds) != len(self.y):
            raise ValueError(f"Expected one value a stamp; found {len(self.ds)} stamps and {len(self.y)} values")
        return self


class CarriedSeries(_AnySeries):
    """What came after a state that was returned with the forecast of a series: the history need not be sent again."""

    state: str = Field(description="as an answer to `return_state` gave it, with the same id")
    y: Values = Field(description="the new values, oldest first; there may be none")
    start: AskedStamp | None = Field(default=None, description="stamp of the first new value; it must follow the state")
    ds: AskedStamps | None = Field(default=None, description="or the stamps of all of them")
    freq: AskedFreq | None = Field(default=None, description="that of the state; it need not be said")


def _kind(item: Any) -> str:
    def has(name: str) -> bool:
        return (item.get(name) if isinstance(item, dict) else getattr(item, name, None)) is not None

    return "carried" if has("state") else "stamped" if has("ds") else "grid"


AskedSeries = Annotated[
    Annotated[GridSeries, Tag("grid")] | Annotated[StampedSeries, Tag("stamped")],
    Discriminator(lambda item: "stamped" if _kind(item) == "stamped" else "grid"),
]
Continued = Annotated[
    Annotated[GridSeries, Tag("grid")]
    | Annotated[StampedSeries, Tag("stamped")]
    | Annotated[CarriedSeries, Tag("carried")],
    Discriminator(_kind),
]
"""A history, or what came after a state of one."""


class Ask(Strict):
    """What is asked of every series: how many steps ahead, which quantiles, how many samples."""

    horizon: int = Field(ge=1, description="steps ahead")
    levels: Levels = []
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


class ForecastRequest(Ask):
    """Some histories, and what is asked of them."""

    series: list[Continued] = Field(min_length=1, description="answered one by one, in order")


class ModelName(Strict):
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


class ErrorDetail(Strict):
    """What went wrong, for machines (`code`) and people (`message`)."""

    code: str
    message: str
    where: str | None = Field(description="place in the request, or id of the series")


class ErrorAnswer(Strict):
    """The one shape of every failure."""

    error: ErrorDetail


class SeriesForecast(Strict):
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


class SeriesError(Strict):
    """Why one series got no forecast."""

    id: str
    error: ErrorDetail


class ForecastAnswer(Strict):
    """One outcome for each series, in the order of the request."""

    model: ModelName
    forecasts: list[SeriesForecast | SeriesError]


class ModelAnswer(Strict):
    """The model in use."""

    model: ModelName
    spec: dict[str, Any] = Field(description="the whole specification")
    freq: str = Field(description="pandas offset alias, or a whole number as text: the steps are numbered")
    season: int
    cutoff: str = Field(description="last stamp of the data the model was fitted to; digits where steps are numbered")
    facts: dict[str, Any] = Field(description="what the bundle's manifest says of its making: scores, versions, data")
    card: str = Field(description="markdown: what it was trained on, scores against baselines, limits")
    age_s: float = Field(description="seconds since this worker took it into use")
    follower: FollowerAnswer | None = Field(default=None, description="only where a registry is followed")
    refused: RefusalAnswer | None = Field(
        default=None, description="only where this worker refused what is in the slot"
    )


class LiveAnswer(Strict):
    """The process answers."""

    live: Literal[True]


class ReadyAnswer(Strict):
    """A model is in use."""

    ready: Literal[True]
    model: ModelName
    age_s: float
    follower: FollowerAnswer | None = Field(default=None, description="as of /v1/model")
    refused: RefusalAnswer | None = Field(
        default=None, description="likewise; ready nevertheless, with the model before"
    )


class AskedHistory(Protocol):
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


def from_error(name: str, error: ForecasterError) -> dict[str, Any]:
    """A refused series as the fields of a SeriesError."""
    return {"id": name, "error": {"code": error.code, "message": error.message, "where": error.where}}
