"""The specification of a model (`Spec`), saved with it, and the layout of its networks (`Layout`)."""

from __future__ import annotations

from collections.abc import Sequence
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

from forecaster.errors import BadSpec, describe_field_error

CellKind = Literal["gru", "lstm", "elman", "relu"]
Scaling = Literal["none", "mean_abs", "standard", "last", "level_season", "running"]
Transform = Literal["none", "log"]
HeadKind = Literal["point", "quantile", "gaussian", "student_t", "neg_binomial", "categorical", "symbols"]
PointLoss = Literal["mse", "mae", "huber"]
BaselineKind = Literal["zero", "last", "seasonal_naive", "linear", "mixture"]
FeatureKind = Literal["values", "seasonal"]
DecoderKind = Literal["rollout", "direct", "block"]
LearningRateSchedule = Literal["constant", "cosine"]
LossWeighting = Literal["none", "seasonal_error"]
InputMode = Literal["window", "history"]
InitialWeights = Literal["random", "base"]
NonNegativity = Literal["auto", True, False]
StatisticalModel = Literal["dynamic_optimized_theta", "auto_ets", "auto_arima"]
SpecName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
MAX_SYMBOL_LENGTH = 200  # characters
Symbol = Annotated[str, StringConstraints(min_length=1, max_length=MAX_SYMBOL_LENGTH)]
UNKNOWN_SYMBOL = "<unk>"
"""What stands for every symbol outside of a vocabulary. It has the code 0, and is read but never predicted."""
MAX_VOCABULARY = 4096  # symbols of a vocabulary, because every step is expanded to as many numbers
MAX_STEPS = 100_000  # of a context or a horizon
StepCount = Annotated[int, Field(ge=1, le=MAX_STEPS)]
RUNNING_LAGS = 24  # latest values that the features of the running scale contain
RUNNING_CYCLES = 5  # seasons that a running seasonal index averages
LONG_CYCLES = 3  # long seasons that are averaged
DIVERGENCE_FACTOR = 1e4  # a forecast beyond this multiple of the history's largest scaled value has diverged


class _FrozenModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NetworkSpec(_FrozenModel):
    """The recurrent network. A layer of dilation d connects each step of the recurrence (a segment) to the step d before it."""

    cell: CellKind = Field(default="gru", description="cell of the recurrence")
    layers: int = Field(
        default=1, ge=1, le=16, description="layers of cells, each of which reads the outputs of the one below"
    )
    hidden: int = Field(default=64, ge=1, le=4096, description="units of the state of each layer")
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0, description="dropout between layers, during training")
    residual: bool = Field(
        default=False, description="whether every layer above the first adds its input to its output"
    )
    dilations: tuple[Annotated[int, Field(ge=1, le=1000)], ...] = Field(
        default=(), description="dilation of each layer; (): all 1"
    )
    embed: bool = Field(
        default=False,
        description="whether a linear layer with SiLU maps the inputs to `hidden` features, which the first layer adds to its "
        "output if layers are residual, and which the decoder reads too",
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
    """How the network's outputs are interpreted. Fields that belong to another kind of head must keep their defaults."""

    kind: HeadKind = Field(
        default="point",
        description="what the network predicts: a value (point), quantiles, or the parameters of a distribution",
    )
    loss: PointLoss = Field(default="mse", description="loss of a point head")
    delta: float = Field(
        default=1.0, gt=0.0, description="Huber loss: the error at which it changes from quadratic to linear"
    )
    levels: tuple[float, ...] = Field(
        default=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        max_length=199,
        description="levels of a quantile head; the median is always included",
    )
    bins: int = Field(default=256, ge=2, le=65_536, description="bins of a categorical head")
    bound: float = Field(
        default=10.0, gt=0.0, description="categorical head: the bins cover scaled values from -bound to bound"
    )
    vocabulary: tuple[Symbol, ...] = Field(
        default=(),
        max_length=MAX_VOCABULARY,
        description="symbols that a symbols head predicts, with the codes 1, 2 and so on; (): those of the training data, sorted",
    )

    @property
    def is_shiftable(self) -> bool:
        """Whether the head supports a base other than zero."""
        return self.kind not in ("neg_binomial", "categorical", "symbols")

    @property
    def is_symbolic(self) -> bool:
        """Whether the values of a series are codes of symbols."""
        return self.kind == "symbols"

    @property
    def is_count(self) -> bool:
        """Whether the head requires unscaled counts."""
        return self.kind == "neg_binomial"

    @property
    def uniforms_per_draw(self) -> int:
        """The number of uniforms that one draw from the head consumes; 0 if the head cannot be sampled."""
        return {"point": 0, "student_t": 2}.get(self.kind, 1)

    @field_validator("levels")
    @classmethod
    def _check_levels(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        outside = [level for level in levels if not 0 < level < 1]
        if outside:
            raise ValueError(f"levels must lie between 0 and 1, exclusive; found {outside[0]}. Write 0.9, not 90")
        for level, following in pairwise(levels):
            if following <= level:
                raise ValueError(
                    f"levels must rise strictly; found {following} after {level}. Sort them and remove duplicates"
                )
        if not set(levels) - {0.5}:
            raise ValueError(
                "a quantile head needs a level besides the median. For the median alone, choose kind point and loss mae"
            )
        return levels

    @field_validator("vocabulary")
    @classmethod
    def _check_vocabulary(cls, vocabulary: tuple[str, ...]) -> tuple[str, ...]:
        if UNKNOWN_SYMBOL in vocabulary:
            raise ValueError(
                f"expected symbols other than {UNKNOWN_SYMBOL!r}, which stands for every symbol outside of the vocabulary; found "
                "it in the vocabulary. Remove it"
            )
        if len(set(vocabulary)) != len(vocabulary):
            repeated = next(symbol for index, symbol in enumerate(vocabulary) if symbol in vocabulary[:index])
            raise ValueError(f"expected every symbol once, found {repeated!r} twice. Remove duplicates")
        return vocabulary

    @model_validator(mode="after")
    def _check_fields_match_kind(self) -> Self:
        for field, kind in {
            "loss": "point",
            "levels": "quantile",
            "bins": "categorical",
            "bound": "categorical",
            "vocabulary": "symbols",
        }.items():
            if self.kind != kind and getattr(self, field) != type(self).model_fields[field].default:
                raise ValueError(f"{field} belongs to a {kind} head; this one is {self.kind}. Leave {field} out")
        if self.loss != "huber" and self.delta != type(self).model_fields["delta"].default:
            raise ValueError(f"delta belongs to the huber loss; the loss is {self.loss}. Leave delta out")
        return self


class TrainingSpec(_FrozenModel):
    """How the network is trained. An epoch is `epoch_steps` optimizer steps, not a pass over the data."""

    initial: InitialWeights = Field(
        default="random", description="weights that training starts from; base: those of the pretrained network"
    )
    steps: int = Field(
        default=1000, ge=0, description="maximum number of optimizer steps; 0: the initial weights are used as they are"
    )
    epoch_steps: int = Field(default=50, ge=1, description="steps between validations (and checkpoints)")
    batch: int = Field(default=64, ge=1, description="windows per optimizer step")
    learning_rate: float = Field(
        default=1e-3, gt=0.0, description="learning rate of the optimizer, after the warm-up of a schedule"
    )
    schedule: LearningRateSchedule = Field(
        default="constant", description="learning rate schedule; cosine: a short linear warm-up, then a decay to zero"
    )
    average: float = Field(
        default=0.0,
        ge=0.0,
        lt=1.0,
        description="decay of the moving average of the weights, which replaces them in the fitted model; 0: no averaging",
    )
    weighting: LossWeighting = Field(
        default="none", description="seasonal_error: errors are scaled by those of the seasonal naive, as in MASE"
    )
    recent: float = Field(
        default=0.0,
        ge=0.0,
        description="mean distance of training windows from the end of their series, in horizons; 0: uniform over the series",
    )
    unroll: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="blocks after the window that a rollout network predicts free running, on its own output, during training; "
        "the number rises step by step during the first half of training",
    )
    origins: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="last segments of each window from which a direct decoder predicts during training",
    )
    gradient_clip: float = Field(default=1.0, gt=0.0, description="maximum global norm of the gradient")
    patience: int = Field(
        default=0,
        ge=0,
        description="epochs without improvement of the validation score before stopping; 0: never stop early",
    )
    valid_windows: int = Field(default=1, ge=0, description="rolling origins held out for validation at the end")
    valid_stride: int | None = Field(
        default=None,
        ge=1,
        description="steps between rolling origins; None: one horizon, so that windows do not overlap",
    )
    refit: bool = Field(
        default=False,
        description="whether to train again on all data, held-out steps included, for the best number of steps",
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="seed of the initial weights and of the training windows")


class Spec(_FrozenModel):
    """The complete specification of a model. Nothing outside it changes a forecast."""

    name: SpecName = Field(description="name of the model in the registry: letters, digits, `-` and `_`, at most 64")
    context: StepCount = Field(description="steps of history that the network is trained on")
    horizon: StepCount = Field(description="steps ahead that validation and backtests score")
    min_history: int | None = Field(
        default=None, ge=1, description="minimum number of steps of a history; None: the whole context"
    )
    reads: InputMode = Field(
        default="window",
        description="window: the last `context` steps; history: the whole history, with state and scale from its start",
    )
    season: int | None = Field(
        default=None, ge=1, description="steps of a season; None: the default season of the frequency"
    )
    segment: int = Field(default=1, ge=1, description="time points that one step of the recurrence reads")
    long_season: StepCount | None = Field(
        default=None,
        description="steps of a second, longer season, which the seasonal features read; None: the season before the last",
    )
    decoder: DecoderKind = Field(
        default="rollout",
        description="rollout: one segment at a time, fed back; direct: the whole horizon at once, by a step of a recurrence for "
        "each segment; block: `block_steps` at once, by a hidden layer",
    )
    block_steps: StepCount | None = Field(
        default=None, description="time points that a block decoder predicts at once; None: the horizon"
    )
    base: BaselineKind = Field(default="zero", description="baseline forecast that the network corrects")
    scaling: Scaling = Field(
        default="standard",
        description="unit and level in which the network reads a history, measured on that history alone; running: at every "
        "step, on the past of that step",
    )
    transform: Transform = Field(
        default="none",
        description="log: scaled in logarithms (of an asinh, which is defined at zero), for multiplicative seasonality",
    )
    lower: float | None = Field(
        default=None,
        description="forecasts are not below it, unless the history has values below it; None: no such bound",
    )
    upper: float | None = Field(
        default=None,
        description="forecasts are not above it, unless the history has values above it; None: no such bound",
    )
    non_negative: NonNegativity = Field(
        default="auto",
        description="whether zero is a lower bound of forecasts of histories without negative values; auto: if the training data "
        "have none",
    )
    head: HeadSpec = Field(default=HeadSpec(), description="how the network's outputs are interpreted")
    features: FeatureKind = Field(
        default="values",
        description="what a step of the recurrence reads: the values of its segment; seasonal: the latest values without season, "
        "what the last seasons forecast, and numbers that describe the past",
    )
    lags: tuple[StepCount, ...] = Field(
        default=(), description="lags, in steps, of further values that are inputs of every step"
    )
    calendar: tuple[str, ...] = Field(default=(), description="calendar features, in the local time of the series")
    covariates: tuple[str, ...] = Field(default=(), description="known-future covariate columns")
    channels: tuple[str, ...] = Field(
        default=(), description="past-only columns: predicted together with y, and fed back"
    )
    static: tuple[str, ...] = Field(default=(), description="static feature columns")
    group: str | None = Field(
        default=None, description="static column whose larger groups get their own prediction intervals"
    )
    network: NetworkSpec = Field(default=NetworkSpec(), description="the recurrent network")
    members: int = Field(
        default=1,
        ge=1,
        le=64,
        description="number of networks with different seeds, trained together; the forecast is their median",
    )
    blend: tuple[StatisticalModel, ...] = Field(
        default=(),
        description="statistical models blended with the network; the weights are fitted on the validation windows",
    )
    training: TrainingSpec = Field(default=TrainingSpec(), description="how the network is trained")

    @property
    def min_steps(self) -> int:
        """The minimum number of steps of a history. Histories shorter than the context are padded."""
        return min(self.min_history or self.context, self.context)

    @property
    def static_columns(self) -> tuple[str, ...]:
        """The static columns that are read: the features, and the column of the groups."""
        return self.static if self.group is None or self.group in self.static else (*self.static, self.group)

    @property
    def validation_steps(self) -> int:
        """The number of steps at the end of every series that are held out for validation."""
        windows, stride = self.training.valid_windows, self.training.valid_stride or self.horizon
        return self.horizon + (windows - 1) * stride if windows else 0

    @property
    def block(self) -> int:
        """Time points that the decoder predicts at once: a segment, or its block or the horizon in whole segments."""
        if self.decoder == "rollout":
            return self.segment
        return -(-(self.block_steps or self.horizon) // self.segment) * self.segment

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.context % self.segment:
            raise ValueError(f"context: expected a multiple of segment {self.segment}, found {self.context}")
        if self.base != "zero" and not self.head.is_shiftable:
            raise ValueError(
                f"base: a {self.head.kind} head takes base zero only, found {self.base}. Choose base zero, or another head"
            )
        if self.head.is_count and self.scaling != "none":
            raise ValueError(
                f"scaling: a {self.head.kind} head needs unscaled counts; found {self.scaling}. Choose none"
            )
        if self.transform == "log" and (self.head.is_count or self.scaling == "mean_abs"):
            reason = (
                f"a {self.head.kind} head needs unscaled counts"
                if self.head.is_count
                else "scaling mean_abs is not defined for logarithms"
            )
            raise ValueError(
                f"transform: {reason}; found log. Choose transform none, or scaling last, standard or level_season"
            )
        self._check_bounds()
        if self.head.is_symbolic:
            self._check_symbols()
        if self.reads == "history" and self.scaling == "last":
            raise ValueError(
                "scaling: a model that reads the whole history keeps the scale of its first steps, and the last value of these "
                "steps is not representative later; found last. Choose standard or mean_abs with base last, or reads window"
            )
        needs_running = [
            name
            for name, is_chosen in {
                "base mixture": self.base == "mixture",
                "features seasonal": self.features == "seasonal",
            }.items()
            if is_chosen and self.scaling != "running"
        ]
        if needs_running:
            raise ValueError(
                f"scaling: {needs_running[0]} is defined in units of the running scale; found {self.scaling}. Choose running"
            )
        if self.scaling == "running" and (
            self.transform == "log" or not self.head.is_shiftable or self.training.unroll
        ):
            raise ValueError(
                "scaling: the running scale has no log transform, takes no head with a fixed support and is not unrolled; found "
                f"transform {self.transform}, head {self.head.kind}, unroll {self.training.unroll}. Choose another scaling"
            )
        if self.block_steps is not None and self.decoder != "block":
            raise ValueError(
                f"block_steps: belongs to a block decoder; found decoder {self.decoder}. Leave block_steps out, or choose block"
            )
        if self.long_season is not None and self.features != "seasonal" and self.base != "mixture":
            raise ValueError(
                f"long_season: belongs to seasonal features and to base mixture; found {self.features} and {self.base}. "
                "Leave long_season out"
            )
        if self.training.origins > 1 and (
            self.decoder == "rollout" or self.training.origins > self.context // self.segment
        ):
            raise ValueError(
                f"training.origins: expected at most one origin per segment of the context, for a direct or block decoder; found "
                f"{self.training.origins} with decoder {self.decoder}. Leave origins out, or choose block and a longer context"
            )
        if not self.training.steps and self.training.initial == "random":
            raise ValueError(
                "training.steps: random weights need training; found 0 steps. Choose at least 1 step, or initial base"
            )
        if self.training.initial == "base" and self.members > 1 and not self.training.steps:
            raise ValueError(
                f"members: without training all members have the same weights; found {self.members}. Choose 1 member"
            )
        if self.training.refit and not self.training.valid_windows:
            raise ValueError(
                "training.refit: there are no held-out steps to add; found valid_windows 0. Leave refit out, or hold a window out"
            )
        if self.training.unroll and self.decoder != "rollout":
            raise ValueError(
                f"training.unroll: a {self.decoder} decoder predicts many steps at once, without feedback; found "
                f"{self.training.unroll}. Leave unroll out, or choose decoder rollout"
            )
        if len(set(self.blend)) != len(self.blend):
            raise ValueError(f"blend: expected every model once, found {', '.join(self.blend)}. Remove duplicates")
        if self.blend and not self.training.valid_windows:
            raise ValueError(
                "blend: its weights are fitted on validation windows; found valid_windows 0. Hold one out, or leave blend out"
            )
        short_lags = [lag for lag in self.lags if lag < self.segment]
        if short_lags:
            raise ValueError(f"lags: expected at least the segment's {self.segment} steps, found {short_lags[0]}")
        return self

    def _check_symbols(self) -> None:
        """Refuses what is defined for numbers only."""
        for name, found, allowed, reason in (
            ("scaling", self.scaling, "none", "codes have no scale"),
            ("transform", self.transform, "none", "codes have no logarithm"),
            ("channels", list(self.channels), [], "the head predicts symbols, and channels are numbers"),
            ("group", self.group, None, "groups have intervals of their own, and symbols have no intervals"),
            ("blend", list(self.blend), [], "statistical models predict numbers"),
            ("members", self.members, 1, "symbols have no median"),
            ("lower", self.lower, None, "symbols have no order"),
            ("upper", self.upper, None, "symbols have no order"),
            ("non_negative", self.non_negative, "auto", "symbols have no sign"),
            ("training.weighting", self.training.weighting, "none", "symbols have no seasonal error"),
            ("training.unroll", self.training.unroll, 0, "a predicted symbol has no gradient"),
            ("training.initial", self.training.initial, "random", "the pretrained network predicts numbers"),
        ):
            if found != allowed:
                raise ValueError(
                    f"{name}: a symbols head takes {'none' if allowed is None or allowed == [] else allowed} only, because "
                    f"{reason}; found {found}. Change {name}, or choose another head"
                )

    def with_vocabulary(self, vocabulary: Sequence[str]) -> Self:
        """Returns the specification with the vocabulary of its symbols head."""
        return self.model_copy(update={"head": self.head.model_copy(update={"vocabulary": tuple(vocabulary)})})

    def _check_bounds(self) -> None:
        lower, upper = self.lower, self.upper
        if lower is not None and upper is not None and lower >= upper:
            raise ValueError(
                f"lower: expected less than upper {upper:g}, found {lower:g}. Exchange them, or leave one out"
            )
        if self.non_negative is True and upper is not None and upper <= 0:
            raise ValueError(
                f"upper: expected more than zero where non_negative is true, found {upper:g}. Leave one of them out"
            )
        if self.non_negative is False and self.head.is_count:
            raise ValueError(
                f"non_negative: a {self.head.kind} head predicts counts, which are never below zero; found false. Leave it out, "
                "or choose another head"
            )

    def to_identity_json(self) -> str:
        """Returns the JSON that identifies the specification of a checkpoint.

        Fields that version 0.1 did not have are left out at their defaults, so that its checkpoints remain valid.
        """
        newer = ("features", "long_season", "block_steps", "lower", "upper", "non_negative")
        exclude: dict[str, Any] = {
            name: True for name in newer if getattr(self, name) == type(self).model_fields[name].default
        }
        exclude["training"] = {
            name: True
            for name in ("origins", "initial")
            if getattr(self.training, name) == type(self.training).model_fields[name].default
        }
        if not self.network.embed:
            exclude["network"] = {"embed": True}
        if not self.head.vocabulary:
            exclude["head"] = {"vocabulary": True}
        return self.model_dump_json(exclude=exclude)

    def override(
        self,
        *,
        horizon: int | None = None,
        season: int | None = None,
        members: int | None = None,
        blend: Sequence[str] = (),
        seed: int | None = None,
        where: str,
    ) -> Self:
        """Returns the specification with other values of the fields that are given; raises BadSpec."""
        fields = self.model_dump()
        fields["horizon"] = horizon or self.horizon
        fields["season"] = season or self.season
        fields["members"] = members or self.members
        fields["blend"] = list(blend or self.blend)
        fields["training"]["seed"] = self.training.seed if seed is None else seed
        return self.parse(fields, where=where)

    @classmethod
    def parse(cls, fields: Any, *, where: str) -> Self:
        """Validates plain data (from YAML or JSON); raises BadSpec with every validation error and its field."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            details = "; ".join(
                f"{'.'.join(map(str, detail['loc'])) or 'spec'}: {describe_field_error(detail, cls)}"
                for detail in error.errors()
            )
            raise BadSpec(f"{where} is not a valid model specification: {details}.", where=where) from error


def running_lookback(season: int, long_season: int | None = None) -> int:
    """Returns the number of latest values that the features and simple forecasts of the running scale read."""
    return max(RUNNING_LAGS + 1, (RUNNING_CYCLES + 1) * season, LONG_CYCLES * (long_season or 0) + season)


class Layout(NamedTuple):
    """The sizes of a network's input and output.

    Attributes:
        segment: Time points that one step of the recurrence reads.
        block: Time points that the decoder predicts at once; they are then fed back, segment by segment.
        lookback: The number of latest values that lags and base use (at least 1).
        pre_context: Steps of a window before its context, for lags and base; 0 if they need none.
        context: Steps of history that the network was trained on.
        reads: Whether a forecast starts from the last `context` steps, or from the whole history.
        num_targets: Targets of a row, which the network reads and predicts: y, followed by the channels.
        uniforms_per_draw: Uniforms that one draw from the head consumes; 0 if the head cannot be sampled.
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
        """Returns the layout of the networks of a specification, for data with this season."""
        baseline_steps = {"zero": 0, "last": 1, "seasonal_naive": season, "linear": season + 1, "mixture": 1}[spec.base]
        is_running = spec.scaling == "running"
        lookback = max(running_lookback(season, spec.long_season) if is_running else 1, baseline_steps, *spec.lags)
        return cls(
            segment=spec.segment,
            block=spec.block,
            lookback=lookback,
            pre_context=0 if lookback == 1 or is_running else lookback,
            context=spec.context,
            reads=spec.reads,
            num_targets=1 + len(spec.channels),
            uniforms_per_draw=spec.head.uniforms_per_draw,
        )

    def window_length(self, max_history: int) -> int:
        """Returns the length of a window that holds all that the network reads of histories of up to `max_history` steps.

        Where the whole history is read, no steps precede it: the pre-context is padding, as is the rest of its first segment.
        """
        return self.pre_context + (
            self.context if self.reads == "window" else -(-max_history // self.segment) * self.segment
        )

    def round_up_horizon(self, horizon: int) -> int:
        """Returns the horizon, rounded up to whole blocks."""
        return -(-horizon // self.block) * self.block
