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
from serving.deployment.slot import InUse, bundle_of
from serving.errors import Problem
from serving.forecasting.outcomes import in_use
from serving.formats import limits, parsing
from serving.formats import series as reading
from serving.formats.schema import Ask, AskedSeries, ModelName, Strict
from serving.settings import Settings

if TYPE_CHECKING:
    from forecaster.prediction.predictor import Forecaster

MOST_STEPS = 1024
Perhaps = list[float | None]  # null where there is nothing: what was not observed or not read


class ExplainRequest(Strict):
    """One history, and how much of it is to be explained."""

    series: AskedSeries
    horizon: int | None = Field(
        default=None, ge=1, description="steps ahead whose mean forecast is explained; the model's own, if not given"
    )
    steps: int = Field(default=256, ge=1, le=MOST_STEPS, description="latest steps to explain, at the most")
    deadline_ms: int | None = Field(default=None, ge=1, description="as of /v1/forecast")


class ExplainedLayer(Strict):
    """What one layer of the recurrence did."""

    gates: dict[str, Perhaps] = Field(
        description="by name, the mean over the units at each step; none of an Elman layer"
    )
    norm: Perhaps = Field(description="Euclidean norm of the hidden state at each step")
    half_life: float | None = Field(description="of its update or forget gate alone, in steps of the series")


class ExplainAnswer(Strict):
    """The latest steps of a history and what they mean for its forecast; every list has a place for each of `ds`."""

    model: ModelName
    id: str
    horizon: int
    ds: list[str] | list[int]
    y: Perhaps
    half_life: float | None = Field(description="of the network's memory, in steps; null where nothing moves its state")
    influence: Perhaps = Field(description="shares of the steps in what moves the state after the last")
    layers: list[ExplainedLayer] = Field(description="lowest first")
    attribution: Perhaps = Field(description="what each value adds to the forecast, in its units")
    channels: dict[str, Perhaps] = Field(description="the same of each channel")
    forecast: float | None = Field(description="the network's mean forecast over the horizon")
    baseline: float | None = Field(description="the same from a history that the model's scaling turns to zeros")
    gap: float | None = Field(description="forecast less baseline less all attributions: the error of the integral")
    methods: dict[str, str] = Field(description="what half_life, gates and attribution are, and where they are from")
    notes: list[str] = Field(description="what a reader should know of it")


def answer(body: Body, model: InUse | None, settings: Settings, deadline: Deadline) -> bytes:
    """An ExplainAnswer. Raises Problem: 422 also for what stands in the way of the forecast of the series."""
    asked = parsing.validated(ExplainRequest, parsing.parse(body))
    model, deadline = in_use(model), deadline.within(asked.deadline_ms)
    learned = model.predictor.forecaster
    horizon = asked.horizon or learned.spec.horizon
    limits.check(Ask(horizon=horizon), [asked.series], settings)
    deadline.check()
    try:
        read = reading.to_series(
            asked.series, served=learned.freq, encoding=learned.encoding, horizon=horizon, starts={}
        )
        forecaster = _forecaster(bundle_of(settings.slot, model.release))
        deadline.check()
        from forecaster.explain.attribution import METHODS, explain

        told = explain(forecaster, read.series, horizon=horizon, steps=asked.steps)
    except (BundleError, MissingPackage) as error:
        raise Problem(
            "not_ready", f"The bundle of the model in use cannot be read again ({error.code}). Try again later."
        ) from error
    except ForecasterError as error:
        raise Problem.of(error) from error
    fields: dict[str, Any] = {
        "model": model.name,
        "id": told.id,
        "horizon": told.horizon,
        "ds": read.style.write(told.ds),
        "y": told.y,
        "half_life": told.half_life,
        "influence": told.influence,
        "layers": [layer._asdict() for layer in told.layers],
        "attribution": told.attribution,
        "channels": told.channels,
        "forecast": told.forecast,
        "baseline": told.baseline,
        "gap": told.gap,
        "methods": METHODS,
        "notes": told.notes,
    }
    return orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY)  # NaN becomes null


@lru_cache(maxsize=1)
def _forecaster(bundle: Path) -> Forecaster:
    from forecaster.bundle import artifact

    return artifact.load(bundle)
