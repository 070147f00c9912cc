"""Factories of small test objects: series, specifications, and models with random weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from forecaster.data.encoding import EMPTY_ENCODING
from forecaster.data.windows import Window
from forecaster.model.regressor import Regressor, build_network
from forecaster.model.rollout import RolloutState, run_over_window
from forecaster.prediction.predictor import FittedModel
from forecaster.series import Panel, Series
from forecaster.spec import Spec

START = pd.Timestamp("2026-01-01")


def make_wave(steps: int, *, seed: int = 0) -> np.ndarray:
    """Returns values around 1 with a daily season, a trend and noise. No gate is saturated there, and no value occurs twice."""
    steps_index, rng = np.arange(steps), np.random.default_rng(seed)
    return (
        1 + 0.1 * seed + 0.005 * steps_index + 0.3 * np.sin(2 * np.pi * steps_index / 24) + 0.1 * rng.normal(size=steps)
    )


def make_series(y: np.ndarray, *, name: str = "a", freq: str = "h") -> Series:
    return Series(name, START, freq, np.asarray(y, dtype=np.float64))


def make_panel(*series_values: np.ndarray, freq: str = "h") -> Panel:
    return Panel([make_series(y, name=f"series_{index}", freq=freq) for index, y in enumerate(series_values)], freq)


def make_spec(
    *,
    cell: str = "gru",
    layers: int = 1,
    scaling: str = "standard",
    dropout: float = 0.0,
    training: dict[str, Any] | None = None,
    **fields: Any,
) -> Spec:
    network = {"cell": cell, "layers": layers, "hidden": 6, "dropout": dropout}
    defaults = {"name": "small", "context": 16, "horizon": 5, "min_history": 4, "season": 4, "scaling": scaling}
    return Spec.parse(defaults | fields | {"network": network, "training": training or {}}, where="a test")


def make_network(spec: Spec, *, seed: int = 1) -> Regressor:
    """Builds a network with random weights, larger than at initialization, so that outputs depend on the whole input."""
    network = build_network(spec, seed=seed).eval().requires_grad_(False)
    for weight in network.parameters():
        weight.mul_(1.5)
    return network


def make_fitted_model(spec: Spec, *, seed: int = 1) -> FittedModel:
    return FittedModel(spec, "h", spec.season or 1, START, EMPTY_ENCODING, make_network(spec, seed=seed))


def teacher_forced_predictions(network: Regressor, window: Window, state: RolloutState) -> tuple[Tensor, RolloutState]:
    """Returns the scaled prediction at each step for the next step (segment 1, point head), and the final rollout state."""
    assert network.segment == 1
    outputs, targets, final_state, _ = run_over_window(network, window, state)
    recent = targets.unfold(1, network.lookback, 1)[:, 1 : outputs.shape[1] + 1]
    return network.head.mean(network.decode(outputs, recent, None))[:, :, 0], final_state


def predict_next_step(network: Regressor, state: RolloutState) -> Tensor:
    """Returns the scaled prediction for the step after a rollout state."""
    return network.head.mean(network.decode(state.output, state.recent, None))[:, 0]
