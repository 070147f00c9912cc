"""What a forecaster is: one whole specification, saved with it."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from forecaster.errors import BadSpec

CellKind = Literal["gru", "lstm", "elman"]
Scaling = Literal["none", "mean_abs", "standard", "last", "level_season"]
Transform = Literal["none", "log"]
HeadKind = Literal["point", "quantile", "gaussian", "student_t", "neg_binomial", "categorical"]
PointLoss = Literal["mse", "mae", "huber"]
BaselineKind = Literal["zero", "last", "seasonal_naive", "linear"]
DecoderKind = Literal["rollout", "direct"]
LearningRateSchedule = Literal["constant", "cosine"]
LossWeighting = Literal["none", "seasonal_error"]
InputMode = Literal["window", "history"]
StatisticalModel = Literal["dynamic_optimized_theta", "auto_ets", "auto_arima"]
SpecName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
StepCount = Annotated[int, Field(ge=1, le=100_000)]
DIVERGENCE_FACTOR = 1e4  # times the largest scaled value of the history: a forecast that goes there has exploded


class _FrozenModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NetworkSpec(_FrozenModel):
    """The recurrence. With `segment` points a step, a layer of dilation d links every step to the one d steps before."""

    cell: CellKind = "gru"
    layers: int = Field(default=1, ge=1, le=16)
    hidden: int = Field(default=64, ge=1, le=4096)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0, description="between layers, while training")
    residual: bool = Field(default=False, description="whether every layer above the first adds to its input")
    dilations: tuple[Annotated[int, Field(ge=1, le=1000)], ...] = Field(
        default=(), description="one a layer; (): all 1"
    )

    @property
    def layer_dilations(self) -> tuple[int, ...]:
        """The dilation of every layer."""
        return self.dilations or (1,) * self.layers

    @model_validator(mode="after")
    def _check_dilation_count(self) -> Self:
        if self.dilations and len(self.dilations) != self.layers:
            raise ValueError(f"dilations: expected one for each of {self.layers} layers, found {len(self.dilations)}")
        return self


class HeadSpec(_FrozenModel):
    """What the network's outputs mean. A field of another kind of head keeps its default: it would change nothing."""

    kind: HeadKind = "point"
    loss: PointLoss = Field(default="mse", description="of a point head")
    delta: float = Field(default=1.0, gt=0.0, description="of the Huber loss: the error where square turns to line")
    levels: tuple[float, ...] = Field(
        default=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        max_length=199,
        description="of a quantile head; the median belongs to them whether named or not",
    )
    bins: int = Field(default=256, ge=2, le=65_536, description="of a categorical head")
    bound: float = Field(default=10.0, gt=0.0, description="of a categorical head: bins cover -bound to bound, scaled")

    @property
    def is_shiftable(self) -> bool:
        """Whether the head can correct a base other than zero."""
        return self.kind not in ("neg_binomial", "categorical")

    @property
    def is_count(self) -> bool:
        """Whether the head reads unscaled counts, and nothing else."""
        return self.kind == "neg_binomial"

    @property
    def uniforms_per_draw(self) -> int:
        """Uniforms that one draw from the head takes; 0: nothing can be drawn."""
        return {"point": 0, "student_t": 2}.get(self.kind, 1)

    @field_validator("levels")
    @classmethod
    def _check_levels(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        outside = [level for level in levels if not 0 < level < 1]
        if outside:
            raise ValueError(f"levels lie between 0 and 1, both excluded; found {outside[0]}. Write 0.9, not 90")
        for level, following in pairwise(levels):
            if following <= level:
                raise ValueError(f"levels rise strictly; found {following} after {level}. Sort them, each once")
        if not set(levels) - {0.5}:
            raise ValueError(
                "a quantile head needs a level besides the median. For the median alone: kind point, loss mae"
            )
        return levels

    @model_validator(mode="after")
    def _check_fields_match_kind(self) -> Self:
        for field, kind in {
            "loss": "point",
            "levels": "quantile",
            "bins": "categorical",
            "bound": "categorical",
        }.items():
            if self.kind != kind and getattr(self, field) != type(self).model_fields[field].default:
                raise ValueError(f"{field} belongs to a {kind} head; this one is {self.kind}. Leave {field} out")
        if self.loss != "huber" and self.delta != type(self).model_fields["delta"].default:
            raise ValueError(f"delta belongs to the huber loss; the loss is {self.loss}. Leave delta out")
        return self


class TrainingSpec(_FrozenModel):
    """How the network is fitted. An epoch is `epoch_steps` optimiser steps, not a pass over the data."""

    steps: int = Field(default=1000, ge=1, description="optimiser steps at the most")
    epoch_steps: int = Field(default=50, ge=1, description="steps between validations (and checkpoints)")
    batch: int = Field(default=64, ge=1, description="windows a step")
    learning_rate: float = Field(default=1e-3, gt=0.0)
    schedule: LearningRateSchedule = Field(
        default="constant", description="of the learning rate; cosine: a short rise, then down to nothing"
    )
    average: float = Field(
        default=0.0,
        ge=0.0,
        lt=1.0,
        description="decay of a moving average of the weights, which is what is kept; 0: none",
    )
    weighting: LossWeighting = Field(
        default="none", description="seasonal_error: errors count in units of the seasonal naive's, as in MASE"
    )
    recent: float = Field(
        default=0.0,
        ge=0.0,
        description="mean distance of windows from the end of their series, in horizons; 0: from anywhere",
    )
    unroll: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="blocks after the window that a rollout network is asked for as it is used, fed with its own output; "
        "reached step by step in the first half of the training",
    )
    gradient_clip: float = Field(default=1.0, gt=0.0, description="largest global norm of the gradient")
    patience: int = Field(default=0, ge=0, description="epochs without a better rollout before stopping; 0: never")
    valid_windows: int = Field(default=1, ge=0, description="rolling origins held out at the end")
    valid_stride: int | None = Field(
        default=None, ge=1, description="steps between them; None: a horizon, so that no two share a step"
    )
    refit: bool = Field(
        default=False, description="whether to train once more, on what was held out too, for as long as proved best"
    )
    seed: int = Field(default=0, ge=0, lt=2**31)


class Spec(_FrozenModel):
    """A whole forecaster. What is not said here cannot change a forecast."""

    name: SpecName
    context: StepCount = Field(description="steps of history the network is trained to start from")
    horizon: StepCount = Field(description="steps ahead that validation and backtests score")
    min_history: int | None = Field(
        default=None, ge=1, description="shortest history it answers; None: the whole context"
    )
    reads: InputMode = Field(
        default="window",
        description="the last `context` steps; or a whole history, state and scale carried from its start",
    )
    season: int | None = Field(default=None, ge=1, description="steps of a season; None: the frequency's usual one")
    segment: int = Field(default=1, ge=1, description="time points that one step of the recurrence reads")
    decoder: DecoderKind = Field(
        default="rollout", description="a segment at a time, fed back; or a whole horizon in one go"
    )
    base: BaselineKind = Field(default="zero", description="what the network corrects")
    scaling: Scaling = "standard"
    transform: Transform = Field(
        default="none", description="log: scaled in logarithms (of an asinh that knows zero), where a season multiplies"
    )
    head: HeadSpec = HeadSpec()
    lags: tuple[StepCount, ...] = Field(
        default=(), description="how far back further values are looked up for every step"
    )
    calendar: tuple[str, ...] = Field(default=(), description="calendar features, of the local time of the series")
    covariates: tuple[str, ...] = Field(default=(), description="columns that are known ahead")
    channels: tuple[str, ...] = Field(
        default=(), description="columns of which the past alone is known: foretold beside y, and fed back with it"
    )
    static: tuple[str, ...] = Field(default=(), description="columns that say what a series is")
    group: str | None = Field(default=None, description="static column whose larger groups get intervals of their own")
    network: NetworkSpec = NetworkSpec()
    members: int = Field(
        default=1, ge=1, le=64, description="networks of other seeds, trained at once; their median is the forecast"
    )
    blend: tuple[StatisticalModel, ...] = Field(
        default=(),
        description="statistical models whose forecasts are blended with the network's, with weights from the validation windows",
    )
    training: TrainingSpec = TrainingSpec()

    @property
    def min_steps(self) -> int:
        """Steps that a history must have; shorter than the context, it is padded."""
        return min(self.min_history or self.context, self.context)

    @property
    def validation_steps(self) -> int:
        """Steps at the end of every series that validate."""
        windows, stride = self.training.valid_windows, self.training.valid_stride or self.horizon
        return self.horizon + (windows - 1) * stride if windows else 0

    @property
    def block(self) -> int:
        """Time points that the decoder gives in one go: a segment, or the horizon rounded up to whole segments."""
        return self.segment if self.decoder == "rollout" else -(-self.horizon // self.segment) * self.segment

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.context % self.segment:
            raise ValueError(f"context: expected a multiple of segment {self.segment}, found {self.context}")
        if self.base != "zero" and not self.head.is_shiftable:
            raise ValueError(f"base: a {self.head.kind} head takes base zero only, found {self.base}")
        if self.head.is_count and self.scaling != "none":
            raise ValueError(f"scaling: a {self.head.kind} head reads counts, so scaling none; found {self.scaling}")
        if self.transform == "log" and (self.head.is_count or self.scaling == "mean_abs"):
            what = (
                f"a {self.head.kind} head reads counts"
                if self.head.is_count
                else "the width of mean_abs is none of logarithms"
            )
            raise ValueError(
                f"transform: {what}; found log. Choose transform none, or scaling last, standard or level_season"
            )
        if self.reads == "history" and self.scaling == "last":
            raise ValueError(
                "scaling: one that reads the whole history keeps the scale of its first steps, and the last value of those says "
                "nothing later; found last. Choose standard or mean_abs with base last, or reads window"
            )
        if self.training.refit and not self.training.valid_windows:
            raise ValueError(
                "training.refit: nothing was held out to train on once more; found valid_windows 0. Leave refit out"
            )
        if self.training.unroll and self.decoder == "direct":
            raise ValueError(
                f"training.unroll: a direct decoder gives a whole horizon in one go and is fed nothing back in it; found "
                f"{self.training.unroll}. Leave unroll out, or choose decoder rollout"
            )
        if len(set(self.blend)) != len(self.blend):
            raise ValueError(f"blend: expected every model once, found {', '.join(self.blend)}")
        if self.blend and not self.training.valid_windows:
            raise ValueError(
                "blend: its weights are found on validation windows; found valid_windows 0. Hold one out, or leave blend out"
            )
        short = [lag for lag in self.lags if lag < self.segment]
        if short:
            raise ValueError(f"lags: expected at least the segment's {self.segment} steps, found {short[0]}")
        return self

    @classmethod
    def parse(cls, fields: Any, *, where: str) -> Self:
        """Validates plain data (from YAML or JSON); raises BadSpec with every fault and its place."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, fault['loc'])) or 'spec'}: {fault['msg']}" for fault in error.errors()
            )
            raise BadSpec(f"{where} is not a forecaster's specification: {faults}.", where=where) from error


class Layout(NamedTuple):
    """How a network reads and tells.

    Attributes:
        segment: Time points that one step of the recurrence reads.
        block: Time points that the decoder gives in one go; they are then fed back, segment by segment.
        back: How many of the latest values lags and base look at (1 at least).
        lead: Steps that a window has before its context, for lags and base to look at; 0 if they need none.
        context: Steps of history it was trained to start from.
        reads: Whether a forecast starts from the last of them, or from the whole history.
        targets: What it reads and foretells of a row: y, and after it the channels.
        noise: Uniforms that one draw of its head takes; 0: nothing can be drawn.
    """

    segment: int
    block: int
    lookback: int
    pre_context: int
    context: int
    reads: InputMode
    num_targets: int
    uniforms_per_draw: int

    @classmethod
    def from_spec(cls, spec: Spec, *, season: int) -> Self:
        """That of the networks of a specification, for data of a season."""
        seen = {"zero": 0, "last": 1, "seasonal_naive": season, "linear": season + 1}[spec.base]  # by the base
        back = max(1, seen, *spec.lags)
        lead = 0 if back == 1 else back
        targets = 1 + len(spec.channels)
        return cls(spec.segment, spec.block, back, lead, spec.context, spec.reads, targets, spec.head.uniforms_per_draw)

    def window_length(self, max_history: int) -> int:
        """Steps of a window that shows the network all it reads of histories of up to `max_history` steps.

        A whole history has nothing before it: the lead is padding, and so is the rest of its first segment.
        """
        return self.pre_context + (
            self.context if self.reads == "window" else -(-max_history // self.segment) * self.segment
        )

    def round_up_horizon(self, horizon: int) -> int:
        """The horizon, rounded up to whole blocks."""
        return -(-horizon // self.block) * self.block
