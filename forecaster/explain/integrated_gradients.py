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
MAX_POINTS = 1024  # of the paths at which gradients are evaluated
NUM_SPLITS = 4  # random halves of the values; each gives two paths
_START = 0.02  # of the way: paths begin here, because forecasts of an exactly constant history may jump
_BEND = 0.1  # of the way; at 0 the forecast may jump, because values that did not move are all equal
_ORDER = 6  # points of Gauss-Legendre quadrature on each part of a path
_LARGEST_SUM = 4.0  # sum of the sizes of all errors, relative to the largest sum of errors
_MAX_STEPS_AT_ONCE = 1 << 16  # of all points that are evaluated together; bounds the memory


class PathIntegral(NamedTuple):
    """The integral of the gradient from the start of the paths, next to the reference, to the input; the mean over paths.

    Attributes:
        contributions: Of each entry; 0 where the entry is missing.
        final_gradient: The gradient at the input.
        start: The forecast at the start of the paths.
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
    """A straight part of a path.

    Attributes:
        start: Entries at its start.
        end: Entries at its end.
        start_forecast: Forecast at its start.
        end_forecast: Forecast at its end.
    """

    start: Float64[np.ndarray, "entry"]
    end: Float64[np.ndarray, "entry"]
    start_forecast: float
    end_forecast: float


def integrate_gradients(
    forecast: NetworkForecast,
    explained: ExplainedInput,
    *,
    floor: float,
    splits: int = NUM_SPLITS,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> PathIntegral:
    """Integrates the gradient of the mean forecast over the horizon (Sundararajan, Taly and Yan 2017).

    The forecast is the median of the members, as it is served; the scale is measured on each point. The result is the mean of
    path methods (their section 4, which are complete: Friedman 2004). Each path goes to the input from next to the reference
    (_START) in two straight legs: a random half of the values arrives first, while the other half has moved by _BEND, and then
    the other half arrives; with the halves exchanged, this is the second path of a split. Without splits there is one straight
    path (their equation 1). The gradient of a network that is free of the scale is the same everywhere on it, so that these
    attributions ignore how values act together.

    By the gradient theorem, contributions on each part of a path sum to the change of the forecast along it, so the error of
    each part is known. The parts with the largest errors are halved until the sum of all errors is at most `tolerance` times the
    change of the forecast, and the sum of their sizes a few times as much, or until MAX_POINTS is reached. That happens where the
    forecast jumps on a path: with a running scale, at a history that begins with equal values.

    Args:
        forecast: The forecast of the input.
        explained: The input.
        floor: Changes of the forecast smaller than this count as this large, in units of the data.
        splits: Number of random halves.
        tolerance: Of the sum.
        seed: Of the halves.
    """
    vertices, edges = _build_paths(explained, splits=splits, seed=seed)
    forecasts, gradients = forecast.evaluate(vertices)
    parts = _integrate_parts(
        forecast, [_Part(vertices[a], vertices[b], float(forecasts[a]), float(forecasts[b])) for a, b in edges]
    )
    points, points_of_halves, num_paths = len(vertices) + _ORDER * len(parts), 2 * _ORDER + 1, max(1, 2 * splits)
    start, end = float(forecasts[0]), float(forecasts[1])
    allowed = tolerance * num_paths * max(abs(end - start), floor)
    while np.isfinite(forecasts).all():
        errors = np.array([part.error for part in parts])
        if abs(errors.sum()) <= allowed and np.abs(errors).sum() <= _LARGEST_SUM * allowed:
            break
        num_large = int((np.abs(errors) > allowed / len(parts)).sum())
        count = min((MAX_POINTS - points) // points_of_halves, num_large)
        if count < 1:
            break
        order = np.argsort(-np.abs(errors), kind="stable")
        halves = _halve(forecast, [parts[index].part for index in order[:count]])
        parts = [parts[index] for index in order[count:]] + _integrate_parts(forecast, halves)
        points += count * points_of_halves
    contributions = np.sum([part.contributions for part in parts], axis=0) / num_paths
    return PathIntegral(contributions, gradients[1], start, end, points)


class _Integrated(NamedTuple):
    """The contributions on a part of a path, and the change of the forecast that they miss."""

    part: _Part
    contributions: Float64[np.ndarray, "entry"]
    error: float


def _integrate_parts(forecast: NetworkForecast, parts: Sequence[_Part]) -> list[_Integrated]:
    """Integrates the gradient along each part by Gauss-Legendre quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(_ORDER)
    fractions = (nodes[:, None] + 1) / 2
    points = np.concatenate([part.start + fractions * (part.end - part.start) for part in parts])
    gradients = forecast.evaluate(points)[1].reshape(len(parts), _ORDER, -1)
    integrated = []
    for part, part_gradients in zip(parts, gradients, strict=True):
        contributions = (part.end - part.start) * (weights @ part_gradients) / 2
        change = part.end_forecast - part.start_forecast
        integrated.append(_Integrated(part, contributions, change - float(contributions.sum())))
    return integrated


def _halve(forecast: NetworkForecast, parts: Sequence[_Part]) -> list[_Part]:
    """Returns both halves of each part."""
    middles = np.stack([(part.start + part.end) / 2 for part in parts])
    at_middles = forecast.predict(middles).tolist()
    halves = []
    for part, middle, value in zip(parts, middles, at_middles, strict=True):
        halves.append(part._replace(end=middle, end_forecast=value))
        halves.append(part._replace(start=middle, start_forecast=value))
    return halves


def _build_paths(
    explained: ExplainedInput, *, splits: int, seed: int
) -> tuple[Float64[np.ndarray, "vertex entry"], list[tuple[int, int]]]:
    """Returns the corners of all paths, of which the first is their start and the second the input, and their legs."""
    entries, reference = np.nan_to_num(explained.entries), np.nan_to_num(explained.reference)
    start = reference + _START * (entries - reference)
    vertices, edges = [start, entries], [(0, 1)] if splits == 0 else []
    rng = np.random.default_rng(seed)
    for _ in range(splits):
        is_first = np.zeros(len(entries), dtype=bool)
        for column in explained.columns:
            is_first[column.entries] = (rng.permutation(int(column.steps.max()) + 1) % 2 == 0)[column.steps]
        for half in (is_first, ~is_first):
            edges += [(0, len(vertices)), (len(vertices), 1)]
            vertices.append(reference + np.where(half, 1.0, _BEND) * (entries - reference))
    return np.stack(vertices), edges


class _Resumption(NamedTuple):
    """The state of one row before the explained steps, and the number of steps that it has read."""

    state: RolloutState
    first: int


class NetworkForecast:
    """The mean forecast over the horizon, the median of all members, as a function of the entries of an input.

    A state of the steps before the first entry is kept where they determine the scale, so that they are read once.
    """

    def __init__(self, networks: Sequence[Regressor], explained: ExplainedInput) -> None:
        self._networks, self._explained = networks, explained
        window, _ = explained.fill(torch.from_numpy(explained.entries)[None])
        with torch.no_grad():
            self._resumptions = [_read_constant_steps(network, window, explained.steps) for network in networks]
        first_steps = [0 if resumption is None else resumption.first for resumption in self._resumptions]
        num_steps = sum(len(window.values[0]) - first for first in first_steps)
        self._rows_at_once = max(1, _MAX_STEPS_AT_ONCE // num_steps)

    @property
    def resumes(self) -> bool:
        """Whether all members resume from the state before the first entry."""
        return all(resumption is not None for resumption in self._resumptions)

    def predict(self, entries: Float64[np.ndarray, "row entry"]) -> Float64[np.ndarray, "row"]:
        """Returns the forecasts of rows of entries."""
        with torch.inference_mode():
            return np.concatenate([self._predict(part).numpy() for part in self._split(torch.from_numpy(entries))])

    def evaluate(
        self, entries: Float64[np.ndarray, "row entry"]
    ) -> tuple[Float64[np.ndarray, "row"], Float64[np.ndarray, "row entry"]]:
        """Returns the forecasts of rows of entries, and their gradients; missing entries are ignored."""
        forecasts, gradients = [], []
        for part in self._split(torch.from_numpy(entries)):
            leaf = part.clone().requires_grad_()
            with torch.enable_grad():
                values = self._predict(leaf)
                gradients.append(torch.autograd.grad(values.sum(), leaf)[0].numpy())
            forecasts.append(values.detach().numpy())
        return np.concatenate(forecasts), np.nan_to_num(np.concatenate(gradients), posinf=0.0, neginf=0.0)

    def _split(self, rows: Tensor) -> tuple[Tensor, ...]:
        return torch.split(rows, self._rows_at_once)

    def _predict(self, entries: Tensor) -> Float64[Tensor, "row"]:
        window, future_covariates = self._explained.fill(entries)
        forecasts = [
            _roll_out_from(network, window, resumption, horizon=self._explained.horizon, future=future_covariates)
            for network, resumption in zip(self._networks, self._resumptions, strict=True)
        ]
        return _ensemble_median(torch.stack(forecasts)).mean(1)


def _roll_out_from(
    network: Regressor,
    window: Window,
    resumption: _Resumption | None,
    *,
    horizon: int,
    future: Tensor | None,
) -> Float64[Tensor, "row horizon"]:
    rows = len(window.values)
    if resumption is None:
        state, remaining = start_rollout(network, window)
    else:
        state = repeat_state(resumption.state, copies=rows)
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
