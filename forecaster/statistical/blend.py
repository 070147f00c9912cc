"""A blend: a network's forecast and those of statistical models fitted to the same history, each with its weight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from forecaster.errors import BundleDamaged
from forecaster.shapes import Float64
from forecaster.statistical.models import FitTask, forecast_tasks, require_model_package

NETWORK = "network"
"""What the network's own forecast is called in a blend."""
MAX_FIT_STEPS = 1024  # last steps of a history that a model is fitted to: its time grows faster than they do

_ComponentName = Literal["network", "dynamic_optimized_theta", "auto_ets", "auto_arima"]
_Weight = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _BlendFile(BaseModel):
    """`blend.json` of a bundle: the weights, which add to one; the network's is among them, even if it is nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    weights: dict[_ComponentName, _Weight]

    @model_validator(mode="after")
    def _check_weights_sum_to_one(self) -> _BlendFile:
        if NETWORK not in self.weights or not math.isclose(sum(self.weights.values()), 1, abs_tol=1e-9):
            raise ValueError(f"expected weights of the network and others that add to 1, found {self.weights}")
        return self


class BlendedForecasts(NamedTuple):
    """Blended forecasts, and what readers of each should know."""

    forecasts: Float64[np.ndarray, "history horizon"]
    warnings: tuple[tuple[str, ...], ...]


class ComponentForecasts(NamedTuple):
    """What one statistical model says of some histories: NaN where it cannot be fitted, and why."""

    forecasts: Float64[np.ndarray, "history horizon"]
    failures: tuple[str | None, ...]


def serialize_blend_weights(weights: Mapping[str, float]) -> bytes:
    """The weights as a file."""
    return _BlendFile.model_validate({"weights": dict(weights)}).model_dump_json().encode()


def parse_blend_weights(content: bytes) -> dict[str, float]:
    """The weights that `serialize_blend_weights` wrote; raises BundleDamaged for anything else."""
    try:
        return {str(name): weight for name, weight in _BlendFile.model_validate_json(content).weights.items()}
    except ValidationError as error:
        raise BundleDamaged(
            f"Expected a blend written by forecaster; {error.errors()[0]['msg']}. Train again.", where="blend.json"
        ) from error


def format_blend_weights(weights: Mapping[str, float]) -> str:
    """The weights as people read them: 62 % network, 38 % dynamic_optimized_theta."""
    return ", ".join(f"{100 * weight:g} % {name}" for name, weight in weights.items())


def list_statistical_components(weights: Mapping[str, float]) -> list[str]:
    """The statistical models that have a part in the forecasts."""
    return [name for name, weight in weights.items() if weight and name != NETWORK]


def require_packages(names: Sequence[str]) -> None:
    """Raises MissingPackage where a model of a blend cannot be fitted here."""
    for name in names:
        require_model_package(name, purpose="a blend with")


def forecast_component(
    name: str, histories: Sequence[Float64[np.ndarray, "_"]], *, season: int, horizon: int
) -> ComponentForecasts:
    """The forecasts of a statistical model that is fitted to the last LONGEST steps of each history."""
    forecasts = np.full((len(histories), horizon), np.nan)
    faults: list[str | None] = []
    told = forecast_tasks([FitTask(name, history[-MAX_FIT_STEPS:], season, horizon) for history in histories])
    for row, answer in zip(forecasts, told, strict=True):
        faults.append(answer if isinstance(answer, str) else None)
        if not isinstance(answer, str):
            row[:] = answer
    return ComponentForecasts(forecasts, tuple(faults))


def combine_forecasts(
    forecasts: Mapping[str, Float64[np.ndarray, "*rows horizon"]], weights: Mapping[str, float]
) -> Float64[np.ndarray, "*rows horizon"]:
    """The weighted sum; where another has no forecast (NaN), the network's own stands in."""
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
    """The blend of a network's forecasts with those of the models that have a weight; each row as if it were alone.

    One history stands for all rows where it is the only one. A model that cannot be fitted to a history gives way to the
    network there, with a warning.
    """
    found = {
        name: forecast_component(name, histories, season=season, horizon=network_forecasts.shape[1])
        for name in list_statistical_components(weights)
    }
    warnings = tuple(
        tuple(
            f"{name} could not be fitted ({fault}); in the blend the network's own forecast stands in for it"
            for name, one in found.items()
            if (fault := one.failures[place]) is not None
        )
        for place in range(len(histories))
    )
    told = {
        NETWORK: network_forecasts,
        **{name: np.broadcast_to(one.forecasts, network_forecasts.shape) for name, one in found.items()},
    }
    return BlendedForecasts(combine_forecasts(told, weights), warnings * (len(network_forecasts) // len(histories)))
