"""The specification of the head: how the outputs of the network are interpreted."""

from __future__ import annotations

from itertools import pairwise
from typing import Self

from pydantic import Field, field_validator, model_validator

from forecaster.spec.fields import MAX_VOCABULARY, UNKNOWN_SYMBOL, FrozenModel, HeadKind, PointLoss, Symbol


class HeadSpec(FrozenModel):
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
