"""Blends: the weighted mean of a network's forecast and of statistical models that are fitted to the same history."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from forecaster.engines.statistical.models import FitTask, forecast_tasks, require_model_package
from forecaster.errors import BundleDamaged
from forecaster.shapes import Float64

NETWORK = "network"
"""The name of the network in a blend."""
MAX_FIT_STEPS = 1024  # models are fitted to the last steps of a history only: fitting time grows faster than linearly

_ComponentName = Literal["network", "dynamic_optimized_theta", "auto_ets", "auto_arima"]
_Weight = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _BlendFile(BaseModel):
    """`blend.json` of a bundle: the weights, which sum to 1 and include the network's, even if it is 0."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    weights: dict[_ComponentName, _Weight]

    @model_validator(mode="after")
    def _check_weights_sum_to_one(self) -> _BlendFile:
        if NETWORK not in self.weights or not math.isclose(sum(self.weights.values()), 1, abs_tol=1e-9):
            raise ValueError(f"expected weights of the network and other models that sum to 1, found {self.weights}")
        return self


class BlendedForecasts(NamedTuple):
    """Blended forecasts, and the warnings for each of them."""

    forecasts: Float64[np.ndarray, "history horizon"]
    warnings: tuple[tuple[str, ...], ...]


class ComponentForecasts(NamedTuple):
    """The forecasts of one statistical model: NaN for histories it cannot be fitted to, with the reason in `failures`."""

    forecasts: Float64[np.ndarray, "history horizon"]
    failures: tuple[str | None, ...]


def serialize_blend_weights(weights: Mapping[str, float]) -> bytes:
    """Serializes the weights as the content of `blend.json`."""
    return _BlendFile.model_validate({"weights": dict(weights)}).model_dump_json().encode()


def parse_blend_weights(content: bytes) -> dict[str, float]:
    """Parses the output of `serialize_blend_weights`; raises BundleDamaged for any other content."""
    try:
        return {str(name): weight for name, weight in _BlendFile.model_validate_json(content).weights.items()}
    except ValidationError as error:
        raise BundleDamaged(
            f"Expected blend weights written by forecaster; {error.errors()[0]['msg']}. Train the model again.",
            where="blend.json",
        ) from error


def format_blend_weights(weights: Mapping[str, float]) -> str:
    """Formats the weights for messages: 62 % network, 38 % dynamic_optimized_theta."""
    return ", ".join(f"{100 * weight:g} % {name}" for name, weight in weights.items())


def list_statistical_components(weights: Mapping[str, float]) -> list[str]:
    """Lists the statistical models with a nonzero weight."""
    return [name for name, weight in weights.items() if weight and name != NETWORK]


def require_packages(names: Sequence[str]) -> None:
    """Raises MissingPackage if the package that fits one of these models is not installed."""
    for name in names:
        require_model_package(name, purpose="a blend with")


def forecast_component(
    name: str, histories: Sequence[Float64[np.ndarray, "_"]], *, season: int, horizon: int
) -> ComponentForecasts:
    """Forecasts each history with a statistical model that is fitted to its last MAX_FIT_STEPS steps."""
    forecasts = np.full((len(histories), horizon), np.nan)
    failures: list[str | None] = []
    results = forecast_tasks([FitTask(name, history[-MAX_FIT_STEPS:], season, horizon) for history in histories])
    for row, result in zip(forecasts, results, strict=True):
        failures.append(result if isinstance(result, str) else None)
        if not isinstance(result, str):
            row[:] = result
    return ComponentForecasts(forecasts, tuple(failures))


def combine_forecasts(
    forecasts: Mapping[str, Float64[np.ndarray, "*rows horizon"]], weights: Mapping[str, float]
) -> Float64[np.ndarray, "*rows horizon"]:
    """Returns the weighted sum of the forecasts. Where a statistical model has none (NaN), the network's forecast replaces it."""
    network = forecasts[NETWORK]
    total = weights[NETWORK] * network
    for name in list_statistical_components(weights):
        total = total + weights[name] * np.where(np.isnan(forecasts[name]), network, forecasts[name])
    return np.asarray(total)


def blend_forecasts(
    network_forecasts: Float64[np.ndarray, "row horizon"],
    histories: Sequence[Float64[np.ndarray, "_"]],
    weights: Mapping[str, float],
    *,
    season: int,
) -> BlendedForecasts:
    """Blends a network's forecasts with those of the statistical models with a nonzero weight, each row independently.

    A single history is used for all rows. Where a model cannot be fitted to a history, the network's forecast replaces its
    forecast, with a warning.
    """
    components = {
        name: forecast_component(name, histories, season=season, horizon=network_forecasts.shape[1])
        for name in list_statistical_components(weights)
    }
    warnings = tuple(
        tuple(
            f"{name} could not be fitted ({failure}); the network's forecast replaces it in the blend"
            for name, component in components.items()
            if (failure := component.failures[index]) is not None
        )
        for index in range(len(histories))
    )
    forecasts = {
        NETWORK: network_forecasts,
        **{
            name: np.broadcast_to(component.forecasts, network_forecasts.shape)
            for name, component in components.items()
        },
    }
    return BlendedForecasts(
        combine_forecasts(forecasts, weights), warnings * (len(network_forecasts) // len(histories))
    )
