"""`POST /v1/explain`: gates, memory and attributions of the network for one history.

Engines do not expose the weights and gates that this needs, so the first request loads the bundle again, into torch. A
server without torch, such as the image, responds with 501.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import Field

from forecaster.errors import BundleError, ForecasterError
from serving.asgi.admission import MAX_SHORT_STEPS, one_by_one
from serving.asgi.bodies import Body
from serving.deployment.releases import bundle_path
from serving.deployment.slot import DeployedModel
from serving.errors import ApiError
from serving.forecasting.endpoint import ComputeJob, EncodedResponse, Endpoint
from serving.forecasting.symbols import refuse_symbols
from serving.formats import limits, parsing
from serving.formats.schema import ForecastOptions, HistoryField, ModelInfo, RequestModel, StrictModel
from serving.formats.series import ParsedSeries, parse_series
from serving.settings import Settings

if TYPE_CHECKING:
    from forecaster.prediction.predictor import FittedModel

MAX_EXPLAINED_STEPS = 1024
_ROLLOUTS, _ROLLOUTS_OF_FAITHFULNESS = 256, 512  # of an explanation, approximately
OptionalValues = list[float | None]  # null if a value is missing, or the network did not read the step


class ExplainRequest(RequestModel):
    """One history, and the number of steps to explain."""

    series: HistoryField = Field(description="the history whose forecast is explained")
    horizon: int | None = Field(
        default=None, ge=1, description="steps whose mean forecast is explained; by default the model's horizon"
    )
    steps: int = Field(
        default=256, ge=1, le=MAX_EXPLAINED_STEPS, description="largest number of steps to explain, the latest ones"
    )
    faithfulness: bool = Field(
        default=False,
        description="whether to measure how faithful the attributions are, with some hundreds of forecasts",
    )
    deadline_ms: int | None = Field(default=None, ge=1, description="as in /v1/forecast")


class LayerExplanation(StrictModel):
    """The activity of one recurrent layer."""

    gates: dict[str, OptionalValues] = Field(
        description="mean over the units at each step, by gate; empty for an Elman layer"
    )
    norm: OptionalValues = Field(description="Euclidean norm of the hidden state at each step")
    half_life: float | None = Field(
        description="half-life implied by the update or forget gate alone, in steps of the series"
    )


class FaithfulnessReport(StrictModel):
    """The area over the perturbation curve of four rankings: integrated_gradients, input_x_gradient, occlusion and random."""

    aopcr: dict[str, float | None] = Field(
        description="area over the perturbation curve by ranking, in units of the data; the larger, the more faithful"
    )
    shares: list[float] = Field(description="shares of the values that are replaced")
    drops: dict[str, OptionalValues] = Field(
        description="by ranking, the fall of the forecast when the values that raise it most are replaced, for each share"
    )
    rises: dict[str, OptionalValues] = Field(
        description="by ranking, its rise when the values that lower it most are replaced, for each share"
    )
    num_features: int = Field(description="number of values that can be replaced, or of blocks of them")
    block: int = Field(description="consecutive steps that are replaced together; 1 for up to 512 values")


class ExplainResponse(StrictModel):
    """The latest steps of a history and their effect on the forecast.

    Every list has one entry for each of `ds`, except those of `covariates`, which continue over `future_ds`.
    """

    model: ModelInfo
    id: str = Field(description="id of the series")
    horizon: int = Field(description="steps whose mean forecast is explained")
    ds: list[str] | list[int] = Field(description="timestamps of the steps, as in the request")
    y: OptionalValues = Field(description="values of the history; null where missing")
    half_life: float | None = Field(
        description="half-life of the network's memory, in steps; null if no step influences its state"
    )
    influence: OptionalValues = Field(
        description="share of each step in the influence on the state after the last step"
    )
    layers: list[LayerExplanation] = Field(description="recurrent layers, lowest first")
    attribution: OptionalValues = Field(description="contribution of each value to the forecast, in its units")
    channels: dict[str, OptionalValues] = Field(description="attributions of the values of each channel")
    forecast: float | None = Field(description="the network's mean forecast over the horizon")
    baseline: float | None = Field(
        description="mean forecast if all values were nearly `reference`, and covariates at their mean in the training data"
    )
    gap: float | None = Field(
        description="forecast minus baseline minus all attributions: the numerical error of the integral"
    )
    covariates: dict[str, OptionalValues] = Field(
        description="attributions of each covariate, at `ds` and then at `future_ds`; calendar features are `calendar hour`"
    )
    future_ds: list[str] | list[int] = Field(description="timestamps of the horizon")
    reference: float | None = Field(
        description="mean of the explained values, which the attributions compare them with"
    )
    completeness_error: float | None = Field(description="size of `gap` relative to forecast minus baseline")
    integration_points: int = Field(description="number of gradients that were evaluated")
    faithfulness: FaithfulnessReport | None = Field(
        description="null unless requested, and if all values are equal; see `methods`"
    )
    methods: dict[str, str] = Field(
        description="definitions and sources of half_life, gates, attribution and faithfulness"
    )
    notes: list[str] = Field(description="remarks on this explanation")


def decode_explain(body: Body, _: str, __: Settings) -> ExplainRequest:
    """Decodes a request. Raises ApiError (400, 422)."""
    return parsing.validate_fields(ExplainRequest, parsing.parse_json(body))


def count_explain_steps(request: ExplainRequest, _: DeployedModel) -> int:
    """Returns the size of the work, in steps; it is never small, because torch evaluates the network many times."""
    rollouts = _ROLLOUTS + _ROLLOUTS_OF_FAITHFULNESS * request.faithfulness
    return max(MAX_SHORT_STEPS + 1, rollouts * len(request.series.y))


def compute_explanation(job: ComputeJob[ExplainRequest]) -> EncodedResponse:
    """Returns an encoded ExplainResponse. Raises ApiError; 422 also if the series cannot be forecast."""
    request, model, deadline, settings, _ = job
    refuse_symbols(model, what="an explanation")
    limits.validate_history_size([request.series], settings)
    deadline.check()
    try:
        parsed = parse_series(
            request.series,
            model=model.predictor.fitted_model,
            horizon=request.horizon or 1,
            start_cache={},
            is_pretrained=model.is_pretrained,
        )
        horizon = request.horizon or model.find_horizon(parsed.series.freq)
        limits.validate_request_size(ForecastOptions(horizon=horizon), [request.series], settings)
        fitted_model = _find_fitted_model(parsed, model, settings)
        deadline.check()
        from forecaster.explain.attribution import METHODS, explain

        explanation = explain(
            fitted_model, parsed.series, horizon=horizon, steps=request.steps, faithfulness=request.faithfulness
        )
    except BundleError as error:
        raise ApiError(
            "not_ready",
            f"Expected to load the bundle of the model in use again; that failed with {error.code!r}. Try again later.",
        ) from error
    except ForecasterError as error:
        raise ApiError.from_forecaster_error(error) from error
    assert explanation.future_ds is not None
    faithfulness = explanation.faithfulness
    fields: dict[str, Any] = {
        "model": model.info,
        "id": explanation.id,
        "horizon": explanation.horizon,
        "ds": parsed.style.format(explanation.ds),
        "y": explanation.y,
        "half_life": explanation.half_life,
        "influence": explanation.influence,
        "layers": [layer._asdict() for layer in explanation.layers],
        "attribution": explanation.attribution,
        "channels": explanation.channels,
        "forecast": explanation.forecast,
        "baseline": explanation.baseline,
        "gap": explanation.integration_error,
        "covariates": explanation.covariates,
        "future_ds": parsed.style.format(explanation.future_ds),
        "reference": explanation.reference,
        "completeness_error": explanation.completeness_error,
        "integration_points": explanation.integration_points,
        "faithfulness": None if faithfulness is None else faithfulness._asdict(),
        "methods": METHODS,
        "notes": [*parsed.warnings, *explanation.notes],
    }
    return EncodedResponse(orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY))  # NaN becomes null


def _find_fitted_model(parsed: ParsedSeries, model: DeployedModel, settings: Settings) -> FittedModel:
    """Returns the model with its networks. Raises BundleError or MissingPackage."""
    if not model.is_pretrained:
        return _load_fitted_model(bundle_path(settings.slot, model.release))
    from forecaster.bundle.pretrained.base import specialize_base

    horizon = model.predictor.fitted_model.spec.horizon
    return specialize_base(parsed.series.freq, horizon=horizon, season=parsed.season).to_fitted_model()


@lru_cache(maxsize=1)
def _load_fitted_model(bundle: Path) -> FittedModel:
    from forecaster.bundle import artifact

    return artifact.load_bundle(bundle)


EXPLAIN = Endpoint(decode_explain, count_explain_steps, one_by_one(compute_explanation))
