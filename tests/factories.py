"""Small things to test with: series, specifications, forecasters of random weights."""

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
    """A day's rhythm, a trend and some noise about 1, where no gate is saturated; never twice the same value."""
    clock, draw = np.arange(steps), np.random.default_rng(seed)
    return 1 + 0.1 * seed + 0.005 * clock + 0.3 * np.sin(2 * np.pi * clock / 24) + 0.1 * draw.normal(size=steps)


def make_series(y: np.ndarray, *, name: str = "a", freq: str = "h") -> Series:
    return Series(name, START, freq, np.asarray(y, dtype=np.float64))


def make_panel(*series_values: np.ndarray, freq: str = "h") -> Panel:
    return Panel([make_series(y, name=f"series_{number}", freq=freq) for number, y in enumerate(series_values)], freq)


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
    whole = {"name": "small", "context": 16, "horizon": 5, "min_history": 4, "season": 4, "scaling": scaling}
    return Spec.parse(whole | fields | {"network": network, "training": training or {}}, where="a test")


def make_network(spec: Spec, *, seed: int = 1) -> Regressor:
    """Random weights, larger than a fresh network's, so that its outputs depend on all it has read."""
    network = build_network(spec, seed=seed).eval().requires_grad_(False)
    for weight in network.parameters():
        weight.mul_(1.5)
    return network


def make_forecaster(spec: Spec, *, seed: int = 1) -> FittedModel:
    return FittedModel(spec, "h", spec.season or 1, START, EMPTY_ENCODING, make_network(spec, seed=seed))


def teacher_forced_predictions(network: Regressor, window: Window, state: RolloutState) -> tuple[Tensor, RolloutState]:
    """The scaled prediction made at each step for the next (segment 1, point head), and the memory after the last."""
    assert network.segment == 1
    outputs, past, after = run_over_window(network, window, state)
    recent = past.unfold(1, network.lookback, 1)[:, 1 : outputs.shape[1] + 1]
    return network.head.mean(network.decode(outputs, recent, None))[:, :, 0], after


def predict_next_step(network: Regressor, state: RolloutState) -> Tensor:
    """The scaled prediction for the step after a memory."""
    return network.head.mean(network.decode(state.output, state.recent, None))[:, 0]
