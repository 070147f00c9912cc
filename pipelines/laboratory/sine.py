"""The experiment `sine`: four cells on f(t) = t sin(t) / 3 + 2 sin(5 t), with the recipe of configs/sine.yaml."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from forecaster.data.datasets import evaluate_sine_trend, make_sine_trend
from forecaster.data.frames.panel import to_panel
from forecaster.data.windows import Example, PanelTensor, Window
from forecaster.evaluation.plots import BASELINE_COLOR
from forecaster.model.regressor import Regressor, build_network
from forecaster.model.rollout import encode_inputs, start_rollout
from forecaster.prediction.predictor import Predictor
from forecaster.progress import Progress
from forecaster.series import Panel
from forecaster.spec import CellKind, NetworkSpec, Spec, TrainingSpec
from forecaster.training.fit import fit
from forecaster.training.lightning import pl
from forecaster.training.loss import teacher_forced_loss
from pipelines.laboratory.gradients import measure_gradient_by_lag, measure_gradient_norm
from pipelines.laboratory.pictures import create_axes, draw_curves, label_axes
from pipelines.laboratory.records import Experiment, Findings, Measure, Trial, round_curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CELLS: tuple[CellKind, ...] = ("elman", "relu", "gru", "lstm")
HORIZONS = (10, 40, 100)
CLIP, NO_CLIP = 1.0, 1e9
PUBLISHED_MSE = 0.0446  # one-step mean squared error of a published plain RNN on this series at iteration 200
_LAGS = 100  # steps over which the gradient is followed


@dataclass(frozen=True)
class SineSettings:
    """Sizes of the experiment; the defaults are those of configs/sine.yaml."""

    cells: tuple[CellKind, ...] = CELLS
    steps: int = 200
    hidden: int = 64
    context: int = 30
    batch: int = 50
    steps_per_score: int = 10


class _ScoreCallback(pl.Callback):
    """Scores the network on every window after each chunk of optimiser steps, and times the chunks."""

    def __init__(self, example: Example, *, settings: SineSettings) -> None:
        self._example, self._settings = example, settings
        self.errors: list[float] = []
        self.norms: list[float] = []
        self.seconds: list[float] = []
        self._started = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Starts the clock of a chunk; before the first one the random weights are scored."""
        if not self.errors:
            self._score(pl_module)
        self._started = time.process_time()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stops the clock and scores the network."""
        self.seconds.append((time.process_time() - self._started) / self._settings.steps_per_score)
        self._score(pl_module)

    def _score(self, pl_module: Any) -> None:
        with torch.enable_grad():
            loss = teacher_forced_loss(pl_module.network, self._example)
            self.norms.append(measure_gradient_norm(loss, pl_module.network.parameters()))
        self.errors.append(float(loss.detach()))


def run_sine(seed: int, progress: Progress, *, settings: SineSettings | None = None) -> Findings:
    """Trains each cell with and without clipping; scores one-step errors by iteration, free-running errors, and gradients."""
    settings = settings or SineSettings()
    panel = to_panel(make_sine_trend())
    measures: dict[str, dict[str, float]] = {}
    curves: dict[str, dict[str, Sequence[float]]] = {}
    for index, cell in enumerate(settings.cells):
        progress.update(index, cell)
        measures[cell], curves[cell] = _run_cell(cell, panel, seed=seed, settings=settings)
    return Findings(measures, curves)


def _run_cell(
    cell: CellKind, panel: Panel, *, seed: int, settings: SineSettings
) -> tuple[dict[str, float], dict[str, Sequence[float]]]:
    series, longest = panel.series[0], max(HORIZONS)
    windows = _all_windows(panel, context=settings.context)
    spec = _make_spec(cell, settings=settings, seed=seed, clip=CLIP)
    callback = _ScoreCallback(windows, settings=settings)
    model = fit(panel, spec, callbacks=[callback], steps_per_chunk=settings.steps_per_score, accelerator="cpu").model
    free = _ScoreCallback(windows, settings=settings)
    unclipped = _make_spec(cell, settings=settings, seed=seed, clip=NO_CLIP)
    fit(panel, unclipped, callbacks=[free], steps_per_chunk=settings.steps_per_score, accelerator="cpu")
    forecast = Predictor(model).forecast(series, longest).mean
    future = evaluate_sine_trend(0.1 * np.arange(len(series), len(series) + longest))
    errors = np.sqrt(np.cumsum((forecast - future) ** 2) / np.arange(1, longest + 1))
    lags = {
        f"gradient by lag, {moment}": _gradient_by_lag(network, panel)
        for moment, network in (("trained", model.network), ("random weights", build_network(spec, seed=seed)))
    }
    measures = {
        f"one-step MSE at iteration {settings.steps}": callback.errors[-1],
        "without clipping": free.errors[-1],
        **{f"free-running RMSE, {horizon} steps": float(errors[horizon - 1]) for horizon in HORIZONS},
        "CPU ms per iteration": 1000 * float(np.median(callback.seconds)),
        "gradient at lag 20": float(lags["gradient by lag, trained"][20]),
    }
    curves: dict[str, Sequence[float]] = {
        "iteration": [float(step) for step in range(0, settings.steps + 1, settings.steps_per_score)],
        "one-step MSE": round_curve(callback.errors),
        "gradient norm": round_curve(callback.norms),
        "gradient norm, without clipping": round_curve(free.norms),
        "free-running RMSE": round_curve(errors),
        **{name: round_curve(values) for name, values in lags.items()},
    }
    return measures, curves


def _make_spec(cell: CellKind, *, settings: SineSettings, seed: int, clip: float) -> Spec:
    training = TrainingSpec(
        steps=settings.steps,
        epoch_steps=settings.steps,
        batch=settings.batch,
        learning_rate=0.01,
        gradient_clip=clip,
        valid_windows=0,
        seed=seed,
    )
    network = NetworkSpec(cell=cell, hidden=settings.hidden)
    return Spec(
        name="sine",
        context=settings.context,
        horizon=40,
        season=1,
        scaling="none",
        network=network,
        training=training,
    )


def _all_windows(panel: Panel, *, context: int) -> Example:
    """Returns every window of the series with the value that follows it."""
    tensor = PanelTensor.from_series(panel.series, context=context, horizon=1)
    positions = tensor.starts[0] + torch.arange(context, len(panel.series[0]))
    return tensor.extract_examples(positions, context=context, horizon=1)


def _gradient_by_lag(network: Regressor, panel: Panel) -> np.ndarray:
    """Follows the gradient through windows of 100 steps that end at every tenth step."""
    windows = _all_windows(panel, context=_LAGS + 1).window
    state, remaining = start_rollout(network, Window(windows.values[::10]))
    with torch.no_grad():
        inputs = encode_inputs(network, remaining, state).inputs
    return measure_gradient_by_lag(network.recurrent, inputs)


def draw_sine(trials: Sequence[Trial]) -> Figure:
    """Draws errors by iteration and by horizon, gradients by lag, and gradient norms with and without clipping."""
    figure, (by_iteration, by_horizon, by_lag, norms) = create_axes(columns=2, rows=2, height=3.4)
    draw_curves(by_iteration, trials, "one-step MSE", x="iteration")
    by_iteration.axhline(PUBLISHED_MSE, color=BASELINE_COLOR, linestyle=":", linewidth=1)
    by_iteration.annotate(
        "published RNN, iteration 200", (0, PUBLISHED_MSE), xytext=(2, -9), textcoords="offset points", fontsize=8
    )
    by_iteration.set_yscale("log")
    label_axes(by_iteration, title="One-step error on all windows", x="iteration", y="mean squared error")
    draw_curves(by_horizon, trials, "free-running RMSE")
    by_horizon.set_yscale("log")
    label_axes(by_horizon, title="Free running past the end", x="horizon in steps", y="RMSE up to the horizon")
    draw_curves(by_lag, trials, "gradient by lag, trained")
    draw_curves(by_lag, trials, "gradient by lag, random weights", linestyle=":", label="{}, random weights")
    by_lag.set_yscale("log")
    by_lag.set_ylim(1e-12, None)
    label_axes(by_lag, title="Gradient that reaches back", x="lag in steps", y="relative norm")
    draw_curves(norms, trials, "gradient norm", x="iteration")
    draw_curves(
        norms, trials, "gradient norm, without clipping", x="iteration", linestyle=":", label="{}, without clipping"
    )
    norms.axhline(CLIP, color=BASELINE_COLOR, linestyle=":", linewidth=1)
    norms.set_yscale("log")
    label_axes(norms, title="Norm of the gradient, before clipping at 1", x="iteration", y="norm")
    by_iteration.legend(frameon=False, fontsize=8)
    by_lag.legend(frameon=False, fontsize=7, ncols=2)
    norms.legend(frameon=False, fontsize=7, ncols=2)
    return figure


SINE = Experiment(
    name="sine",
    question="How well do four cells learn a sine with a trend, and how far back does the gradient reach?",
    conditions="f(t) = t sin(t) / 3 + 2 sin(5 t), 300 steps of 0.1; windows of 30 steps, 64 units, 200 iterations of Adam "
    "at 0.01 with batches of 50, gradient clipped at 1 (configs/sine.yaml). The one-step error is that of all "
    "steps of all windows.",
    merit="One-step mean squared error at iteration 200, at most the published one.",
    published="A plain RNN has 0.0446 at iteration 200.",
    measures=(
        Measure("one-step MSE at iteration 200", 4),
        Measure("without clipping", 4),
        *(Measure(f"free-running RMSE, {horizon} steps", 2) for horizon in HORIZONS),
        Measure("CPU ms per iteration", 2),
        Measure("gradient at lag 20", 6),
    ),
    run=run_sine,
    draw=draw_sine,
)
