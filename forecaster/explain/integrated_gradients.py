"""Integrated gradients of a forecast, through the rollout that serves it, with points added until the attributions add up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from forecaster.data.windows import Window
from forecaster.explain.explained_input import ExplainedInput
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import RolloutState, repeat_state, roll_out, start_rollout, warm_up
from forecaster.model.scaling import settle_scale
from forecaster.shapes import Float64

TOLERANCE = 0.01  # of the sum of attributions, relative to what it should be
MAX_POINTS = 512  # of the path at which gradients are evaluated
_ORDER = 8  # points of Gauss-Legendre quadrature on each part of the path
_MAX_STEPS_AT_ONCE = 1 << 17  # of all points that are evaluated together; bounds the memory


class PathIntegral(NamedTuple):
    """The integral of the gradient along the straight path from the reference to the input.

    Attributes:
        contributions: Of each entry; 0 where the entry is missing.
        final_gradient: The gradient at the input.
        start: The forecast at the reference.
        end: The forecast of the input.
        points: Number of gradients.
    """

    contributions: Float64[np.ndarray, "entry"]
    final_gradient: Float64[np.ndarray, "entry"]
    start: float
    end: float
    points: int

    @property
    def gap(self) -> float:
        """The change of the forecast minus the sum of the contributions: the error of the integration."""
        return self.end - self.start - float(self.contributions.sum())


class _Part(NamedTuple):
    """A part of the path and the forecasts at its ends."""

    low: float
    high: float
    forecast_low: float
    forecast_high: float


def integrate_gradients(
    networks: Sequence[Regressor], explained: ExplainedInput, *, floor: float, tolerance: float = TOLERANCE
) -> PathIntegral:
    """Integrates the gradient of the mean forecast over the horizon (Sundararajan, Taly and Yan 2017, equation 1).

    The forecast is the median of the members, as it is served; the scale is measured on each point of the path. The gradient
    theorem holds on each part of the path, so the error of each part is known: parts with the largest errors are halved until the
    sum of all errors is at most `tolerance` times the change of the forecast, or MAX_POINTS is reached.

    Args:
        networks: The members.
        explained: The input.
        floor: Changes of the forecast smaller than this count as this large, in units of the data.
        tolerance: Of the sum.
    """
    forecaster = _DifferentiableForecast(networks, explained)
    nodes, weights = np.polynomial.legendre.leggauss(_ORDER)
    nodes, weights = (nodes + 1) / 2, weights / 2
    difference = np.nan_to_num(explained.entries - explained.reference)
    forecasts, gradients = forecaster.evaluate(np.concatenate([[0.0, 1.0], nodes]))
    start, end, final_gradient = float(forecasts[0]), float(forecasts[1]), gradients[1]
    whole = _Part(0.0, 1.0, start, end)
    pending = [(whole, difference * (weights @ gradients[2:]))]
    done = np.zeros_like(difference)
    allowed = tolerance * max(abs(end - start), floor)
    points = 2 + _ORDER
    while pending and np.isfinite(end - start):
        errors = [abs(part.forecast_high - part.forecast_low - float(values.sum())) for part, values in pending]
        limit = allowed / 2 * np.array([part.high - part.low for part, _ in pending])
        split = [index for index in np.argsort(errors)[::-1] if errors[index] > limit[index]]
        split = split[: (MAX_POINTS - points) // (2 * _ORDER + 1)]
        if sum(errors) <= allowed or not split:
            break
        kept = [index for index in range(len(pending)) if index not in split]
        halves: list[tuple[float, float]] = []
        for index in split:
            part = pending[index][0]
            middle = (part.low + part.high) / 2
            halves += [(part.low, middle), (middle, part.high)]
        middles = [high for _, high in halves[::2]]
        inner = [low + (high - low) * nodes for low, high in halves]
        forecasts, gradients = forecaster.evaluate(np.concatenate([middles, *inner]))
        points += len(forecasts)
        by_half = gradients[len(middles) :].reshape(len(halves), _ORDER, -1)
        refined: list[tuple[_Part, Float64[np.ndarray, "entry"]]] = []
        for number, (low, high) in enumerate(halves):
            parent, forecast_middle = pending[split[number // 2]][0], float(forecasts[number // 2])
            ends = (
                (parent.forecast_low, forecast_middle) if number % 2 == 0 else (forecast_middle, parent.forecast_high)
            )
            refined.append((_Part(low, high, *ends), (high - low) * difference * (weights @ by_half[number])))
        pending = [pending[index] for index in kept] + refined
    for _, values in pending:
        done += values
    return PathIntegral(done, final_gradient, start, end, points)


class _Resumption(NamedTuple):
    """The state of one row before the explained steps, and the number of steps that it has read."""

    state: RolloutState
    first: int


class _DifferentiableForecast:
    """The mean forecast over the horizon as a function of the position on the path, with its gradient."""

    def __init__(self, networks: Sequence[Regressor], explained: ExplainedInput) -> None:
        self._networks, self._explained = networks, explained
        self._entries = torch.from_numpy(np.nan_to_num(explained.entries))
        self._reference = torch.from_numpy(np.nan_to_num(explained.reference))
        window, _ = explained.fill(self._entries[None])
        with torch.no_grad():
            self._resumptions = [_read_constant_steps(network, window, explained.steps) for network in networks]

    def evaluate(
        self, fractions: Float64[np.ndarray, "point"]
    ) -> tuple[Float64[np.ndarray, "point"], Float64[np.ndarray, "point entry"]]:
        """Returns the forecasts at fractions of the path, and their gradients with respect to the entries."""
        steps = self._explained.inputs.values.shape[1] * len(self._networks)
        parts = np.array_split(fractions, -(-len(fractions) * steps // _MAX_STEPS_AT_ONCE))
        results = [self._evaluate_part(torch.from_numpy(part)) for part in parts if len(part)]
        forecasts, gradients = (np.concatenate(arrays) for arrays in zip(*results, strict=True))
        # A running scale that is still zero after the first values has no derivative there; these steps contribute nothing.
        return forecasts, np.nan_to_num(gradients, nan=0.0, posinf=0.0, neginf=0.0)

    def _evaluate_part(self, fractions: Tensor) -> tuple[np.ndarray, np.ndarray]:
        leaf = torch.lerp(self._reference, self._entries, fractions[:, None]).requires_grad_()
        with torch.enable_grad():
            window, future_covariates = self._explained.fill(leaf)
            forecasts = _ensemble_median(
                torch.stack(
                    [
                        _roll_out_from(
                            network, window, resumption, horizon=self._explained.horizon, future=future_covariates
                        )
                        for network, resumption in zip(self._networks, self._resumptions, strict=True)
                    ]
                )
            ).mean(1)
            gradients = torch.autograd.grad(forecasts.sum(), leaf)[0]
        return forecasts.detach().numpy(), gradients.numpy()


def _roll_out_from(
    network: Regressor, window: Window, resumption: _Resumption | None, *, horizon: int, future: Tensor | None
) -> Float64[Tensor, "row horizon"]:
    if resumption is None:
        state, remaining = start_rollout(network, window)
    else:
        state = repeat_state(resumption.state, copies=len(window.values))
        remaining = window.slice_steps(slice(resumption.first, None))
    state = warm_up(network, remaining, state)
    return roll_out(network, state, horizon=horizon, future_covariates=future)[0]


def _read_constant_steps(network: Regressor, window: Window, steps: int) -> _Resumption | None:
    """Returns the state after the steps that are not explained; None if the scale depends on the explained steps, or if all are.

    The state before a multiple of the segment is returned, so that the rest consists of whole segments.
    """
    state, remaining = start_rollout(network, window)
    skipped = remaining.values.shape[1] - -(-steps // network.segment) * network.segment
    is_whole = network.reads == "history" and remaining.values.shape[1] > network.context
    if skipped <= 0 or not (is_whole or network.is_running):
        return None
    settled = settle_scale(
        remaining.targets,
        network.scaling,
        initial_steps=network.context if is_whole else remaining.values.shape[1],
        season=network.season,
        transform=network.transform,
    )
    if network.is_running:  # its first change alone, which later values leave as it is
        head = remaining.targets[:, :skipped]
        low, high = head.nan_to_num(torch.inf).amin(1), head.nan_to_num(-torch.inf).amax(1)
        if not bool((high > low).all()):
            return None
    elif int(settled.settled_at.max()) > skipped:
        return None
    return _Resumption(warm_up(network, remaining.slice_steps(slice(skipped)), state), network.pre_context + skipped)


def _ensemble_median(forecasts: Float64[Tensor, "member row horizon"]) -> Float64[Tensor, "row horizon"]:
    """Returns the median of the finite members, as `forecaster.engines.engine.ensemble_median`; NaN where there are none."""
    finite = forecasts.isfinite()
    ordered = forecasts.masked_fill(~finite, torch.inf).sort(dim=0).values
    count = finite.sum(0, keepdim=True)
    low, high = (
        ordered.gather(0, index.clamp(0, len(forecasts) - 1))[0]
        for index in ((count - 1).div(2, rounding_mode="floor"), count // 2)
    )
    return ((low + high) / 2).masked_fill(count[0] == 0, torch.nan)
