"""The types and limits of the fields of a specification."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

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
DIVERGENCE_FACTOR = 1e4  # a forecast beyond this multiple of the history's largest scaled value has diverged


class FrozenModel(BaseModel):
    """A part of a specification: immutable, without further fields, NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
