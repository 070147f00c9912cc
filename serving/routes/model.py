"""`GET /v1/model`: the model in use, its specification and its model card."""

from __future__ import annotations

from math import isfinite
from typing import Any, Literal

from pydantic import Field

from forecaster.errors import LevelOutOfRange
from forecaster.frequency.timestamps import format_timestamp
from forecaster.prediction.bounds import Bounds, ZeroBound
from serving.deployment.slot import DeployedModel
from serving.deployment.status import BundleRejectionStatus, FollowerStatus, SlotCheckStatus
from serving.formats.schema import ModelInfo, StrictModel


class CalibrationSummary(StrictModel):
    """How the prediction intervals were calibrated."""

    basis: Literal["ranks", "gaussian", "assumed"] = Field(
        description="`ranks`: from the ranks of the errors; `gaussian`: from the spread of few errors; `assumed`: without any "
        "observed error"
    )
    windows: int = Field(description="number of windows with errors")


class BoundsSummary(StrictModel):
    """The bounds of forecasts. A series whose history lies outside of a bound is forecast without it."""

    lower: float | None = Field(description="forecasts are not below it; null: no lower bound")
    upper: float | None = Field(description="forecasts are not above it; null: no upper bound")
    zero: ZeroBound = Field(
        description="why zero is a lower bound: `training_data` has no negative values; `specification`; `each_history` without "
        "negative values; `counts` are predicted; or `never`: it is none"
    )


class ModelResponse(StrictModel):
    """The model in use."""

    model: ModelInfo
    spec: dict[str, Any] = Field(description="the complete specification of the model")
    freq: str | None = Field(
        description="pandas offset alias, or an integer as text if timestamps are integers; null: series of any frequency, as "
        "the pretrained network `base` takes them"
    )
    season: int | None = Field(description="steps of a season; null: any, by default the usual one of the frequency")
    cutoff: str | None = Field(
        description="last timestamp of the training data; digits if timestamps are integers; null: they are synthetic"
    )
    text_covariates: list[str] = Field(
        description="covariates that the model has learned as text; it reads the others as numbers"
    )
    min_history: int = Field(description="smallest number of steps of a history")
    calibration: CalibrationSummary | None = Field(description="null if the model gives point forecasts only")
    intervals: Literal["calibrated", "network"] | None = Field(
        description="where the quantiles of `levels` come from: calibrated offsets from the mean, or the network itself; null: "
        "there are none"
    )
    bounds: BoundsSummary
    facts: dict[str, Any] = Field(
        description="facts about the training from the bundle's manifest: scores, versions, data, choice of the blend"
    )
    card: str = Field(
        description="model card in Markdown, for people: training data, scores against baselines, limits. Programs find the "
        "same in the other fields"
    )
    age_s: float = Field(description="seconds since this worker loaded the model")
    slot: SlotCheckStatus | None = Field(
        default=None, description="this worker's last check of the slot, where it finds new models"
    )
    follower: FollowerStatus | None = Field(default=None, description="present only if the service follows a registry")
    refused: BundleRejectionStatus | None = Field(
        default=None, description="present only if this worker rejected the bundle in the slot"
    )


def _find_intervals(model: DeployedModel) -> Literal["calibrated", "network"] | None:
    if model.predictor.fitted_model.calibration is not None:
        return "calibrated"
    try:
        model.predictor.forecast_batch([], 1, levels=[0.5])
    except LevelOutOfRange:
        return None
    return "network"


def describe_model(model: DeployedModel) -> dict[str, Any]:
    """Returns the fields of a ModelResponse, apart from those about the deployment."""
    fitted_model = model.predictor.fitted_model
    bounds = Bounds.from_facts(fitted_model.spec, fitted_model.facts)
    table = None if fitted_model.calibration is None else fitted_model.calibration.pool
    return {
        "model": model.info,
        "spec": fitted_model.spec.model_dump(mode="json"),
        "freq": None if model.is_pretrained else fitted_model.freq,
        "season": None if model.is_pretrained else fitted_model.season,
        "cutoff": None if model.is_pretrained else format_timestamp(fitted_model.cutoff),
        "text_covariates": list(fitted_model.encoding.categories),
        "min_history": fitted_model.spec.min_steps,
        "calibration": None if table is None else {"basis": table.basis, "windows": table.windows},
        "intervals": _find_intervals(model),
        "bounds": {
            "lower": bounds.lowest if isfinite(bounds.lowest) else None,
            "upper": bounds.upper if isfinite(bounds.upper) else None,
            "zero": bounds.zero,
        },
        "facts": fitted_model.facts,
        "card": model.card,
        "age_s": round(model.age_s, 3),
    }
