"""What requests to a model of symbols may ask for, and requests to a model of numbers may not."""

from __future__ import annotations

from forecaster.data import symbols
from forecaster.errors import BadSpec
from serving.deployment.slot import DeployedModel
from serving.errors import ApiError
from serving.formats.schema import ForecastOptions


def validate_symbol_options(options: ForecastOptions, model: DeployedModel) -> None:
    """Raises ApiError (422) for an option of symbols if the model predicts numbers."""
    spec = model.predictor.fitted_model.spec
    given = "probabilities" if options.probabilities else "temperature" if options.temperature != 1 else None
    if given is not None and not spec.head.is_symbolic:
        raise ApiError.from_forecaster_error(
            BadSpec(
                f"Expected a model of symbols for `{given}`; the model in use ({spec.name!r}) predicts numbers. Leave it out, or "
                "request `levels` or `samples`.",
                where=given,
            )
        )


def refuse_symbols(model: DeployedModel, *, what: str) -> None:
    """Raises ApiError (422) if the model predicts symbols, on a route for models of numbers."""
    try:
        symbols.refuse_symbols(model.predictor.fitted_model.spec, what=what, advice="Use /v1/forecast.")
    except BadSpec as error:
        raise ApiError.from_forecaster_error(error) from error
