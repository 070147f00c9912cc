"""The complete specification of a model, and which combinations of its fields are valid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from forecaster.errors import BadSpec, describe_field_error
from forecaster.spec.fields import (
    BaselineKind,
    DecoderKind,
    FeatureKind,
    FrozenModel,
    InputMode,
    NonNegativity,
    Scaling,
    SpecName,
    StatisticalModel,
    StepCount,
    Transform,
)
from forecaster.spec.head import HeadSpec
from forecaster.spec.network import NetworkSpec
from forecaster.spec.training import TrainingSpec


class Spec(FrozenModel):
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
