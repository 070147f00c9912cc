"""`POST /v1/explain`: what the network of the model in use does while it reads a history, and what its forecast rests on.

This looks into weights that no engine shows, so the bundle is read once more, into torch, when the first one asks.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import Field

from forecaster.errors import BundleError, ForecasterError, MissingPackage
from serving.asgi.bodies import Body
from serving.deadline import Deadline
from serving.deployment.slot import DeployedModel, bundle_path
from serving.errors import ApiError
from serving.forecasting.outcomes import require_model
from serving.formats import limits, parsing
from serving.formats import series as reading
from serving.formats.schema import ForecastOptions, HistoryField, ModelInfo, StrictModel
from serving.settings import Settings

if TYPE_CHECKING:
    from forecaster.prediction.predictor import FittedModel

MAX_EXPLAINED_STEPS = 1024
OptionalValues = list[float | None]  # null where there is nothing: what was not observed or not read


class ExplainRequest(StrictModel):
    """One history, and how much of it is to be explained."""

    series: HistoryField
    horizon: int | None = Field(
        default=None, ge=1, description="steps ahead whose mean forecast is explained; the model's own, if not given"
    )
    steps: int = Field(default=256, ge=1, le=MAX_EXPLAINED_STEPS, description="latest steps to explain, at the most")
    deadline_ms: int | None = Field(default=None, ge=1, description="as of /v1/forecast")


class LayerExplanation(StrictModel):
    """What one layer of the recurrence did."""

    gates: dict[str, OptionalValues] = Field(
        description="by name, the mean over the units at each step; none of an Elman layer"
    )
    norm: OptionalValues = Field(description="Euclidean norm of the hidden state at each step")
    half_life: float | None = Field(description="of its update or forget gate alone, in steps of the series")


class ExplainResponse(StrictModel):
    """The latest steps of a history and what they mean for its forecast; every list has a place for each of `ds`."""

    model: ModelInfo
    id: str
    horizon: int
    ds: list[str] | list[int]
    y: OptionalValues
    half_life: float | None = Field(description="of the network's memory, in steps; null where nothing moves its state")
    influence: OptionalValues = Field(description="shares of the steps in what moves the state after the last")
    layers: list[LayerExplanation] = Field(description="lowest first")
    attribution: OptionalValues = Field(description="what each value adds to the forecast, in its units")
    channels: dict[str, OptionalValues] = Field(description="the same of each channel")
    forecast: float | None = Field(description="the network's mean forecast over the horizon")
    baseline: float | None = Field(description="the same from a history that the model's scaling turns to zeros")
    gap: float | None = Field(description="forecast less baseline less all attributions: the error of the integral")
    methods: dict[str, str] = Field(description="what half_life, gates and attribution are, and where they are from")
    notes: list[str] = Field(description="what a reader should know of it")


def run_explanation(body: Body, model: DeployedModel | None, settings: Settings, deadline: Deadline) -> bytes:
    """An ExplainAnswer. Raises Problem: 422 also for what stands in the way of the forecast of the series."""
    asked = parsing.validate_fields(ExplainRequest, parsing.parse_json(body))
    model, deadline = require_model(model), deadline.capped(asked.deadline_ms)
    learned = model.predictor.fitted_model
    horizon = asked.horizon or learned.spec.horizon
    limits.validate_request_size(ForecastOptions(horizon=horizon), [asked.series], settings)
    deadline.check()
    try:
        read = reading.parse_series(
            asked.series, model_freq=learned.freq, encoding=learned.encoding, horizon=horizon, start_cache={}
        )
        forecaster = _load_fitted_model(bundle_path(settings.slot, model.release))
        deadline.check()
        from forecaster.explain.attribution import METHODS, explain

        told = explain(forecaster, read.series, horizon=horizon, steps=asked.steps)
    except (BundleError, MissingPackage) as error:
        raise ApiError(
            "not_ready", f"The bundle of the model in use cannot be read again ({error.code}). Try again later."
        ) from error
    except ForecasterError as error:
        raise ApiError.from_forecaster_error(error) from error
    fields: dict[str, Any] = {
        "model": model.info,
        "id": told.id,
        "horizon": told.horizon,
        "ds": read.style.format(told.ds),
        "y": told.y,
        "half_life": told.half_life,
        "influence": told.influence,
        "layers": [layer._asdict() for layer in told.layers],
        "attribution": told.attribution,
        "channels": told.channels,
        "forecast": told.forecast,
        "baseline": told.baseline,
        "gap": told.integration_error,
        "methods": METHODS,
        "notes": told.notes,
    }
    return orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY)  # NaN becomes null


@lru_cache(maxsize=1)
def _load_fitted_model(bundle: Path) -> FittedModel:
    from forecaster.bundle import artifact

    return artifact.load_bundle(bundle)
