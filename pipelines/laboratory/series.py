"""The experiment `series`: the same networks on time series in place of characters, one generated and one real."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from forecaster.data.datasets import load_hospital
from forecaster.data.frames.panel import to_panel
from forecaster.data.split import hold_out
from forecaster.evaluation.backtest import backtest
from forecaster.evaluation.baselines import SEASONAL_NAIVE, ForecastFunction, build_baselines
from forecaster.evaluation.plots import BASELINE_COLOR
from forecaster.evaluation.scores import overall_scores, score_table
from forecaster.prediction.predictor import Predictor
from forecaster.progress import Progress
from forecaster.series import Panel, Series
from forecaster.shapes import Float64
from forecaster.spec import CellKind, NetworkSpec, Spec, TrainingSpec
from forecaster.training.fit import fit
from pipelines.laboratory.pictures import color_of, create_axes, draw_curves, label_axes
from pipelines.laboratory.records import Experiment, Findings, Measure, Trial, round_curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AHEAD = (1, 4, 16, 64)
_LENGTH, _TRAINED = 1000, 604
_ORDER = 4  # lags of the linear autoregression
_LINEAR = "linear, 4 lags"


@dataclass(frozen=True)
class SeriesSettings:
    """Sizes of the experiment: steps of the optimiser on the sine and on the monthly series."""

    cells: tuple[CellKind, ...] = ("elman", "gru", "lstm")
    sine_steps: int = 600
    hospital_steps: int = 1000
    hidden: int = 40


def make_noisy_sine(seed: int, *, length: int = _LENGTH) -> Series:
    """Returns sin(0.01 t) + 0.2 e for t = 1, 2 and so on, e standard normal: the series of Zhang et al. (2023, section 9.1)."""
    noise = np.random.default_rng(seed).normal(scale=0.2, size=length)
    return Series("sine", 1, "1", np.sin(0.01 * np.arange(1, length + 1)) + noise)


def run_series(seed: int, progress: Progress, *, settings: SeriesSettings | None = None) -> Findings:
    """Trains each cell on the sine and on monthly patient counts, beside a linear autoregression and seasonal naive."""
    settings = settings or SeriesSettings()
    sine, hospital = make_noisy_sine(seed), to_panel(load_hospital())
    linear = forecast_linearly(sine.y)
    measures: dict[str, dict[str, float]] = {_LINEAR: _score_sine(sine, linear)}
    curves: dict[str, dict[str, Sequence[float]]] = {_LINEAR: {"RMSE": round_curve(_errors_by_step(sine, linear))}}
    for index, cell in enumerate(settings.cells):
        progress.update(index, cell)
        forecasts = _forecast_sine(sine, _make_sine_spec(cell, settings, seed=seed))
        measures[cell] = _score_sine(sine, forecasts) | _score_hospital(hospital, cell, settings, seed=seed)
        curves[cell] = {"RMSE": round_curve(_errors_by_step(sine, forecasts))}
    measures[SEASONAL_NAIVE] = _score_last_year(hospital, build_baselines(season=12)[SEASONAL_NAIVE])
    return Findings(measures, curves)


def forecast_linearly(y: Float64[np.ndarray, "step"], *, order: int = _ORDER) -> Float64[np.ndarray, "origin ahead"]:
    """Returns the forecasts of a linear autoregression, fitted by least squares to the first 604 steps, at every later origin."""
    lags = np.lib.stride_tricks.sliding_window_view(y, order)
    design = np.column_stack([lags[: _TRAINED - order], np.ones(_TRAINED - order)])
    weights = np.linalg.lstsq(design, y[order:_TRAINED], rcond=None)[0]
    recent = lags[_TRAINED - order : len(y) - max(AHEAD) - order + 1]
    forecasts = []
    for _ in range(max(AHEAD)):
        forecasts.append(recent @ weights[:-1] + weights[-1])
        recent = np.column_stack([recent[:, 1:], forecasts[-1]])
    return np.column_stack(forecasts)


def _forecast_sine(sine: Series, spec: Spec) -> Float64[np.ndarray, "origin ahead"]:
    predictor = Predictor(fit(Panel([sine.take_first(_TRAINED)], sine.freq), spec, accelerator="cpu").model)
    histories = [sine.take_first(cut) for cut in range(_TRAINED, len(sine) - max(AHEAD) + 1)]
    outcomes = predictor.forecast_batch(histories, max(AHEAD))
    return np.stack([outcome.mean for outcome in outcomes])  # type: ignore[union-attr]  # every history is long enough


def _errors_by_step(sine: Series, forecasts: Float64[np.ndarray, "origin ahead"]) -> Float64[np.ndarray, "ahead"]:
    """Returns the root mean squared error of each step ahead."""
    actual = np.lib.stride_tricks.sliding_window_view(sine.y, max(AHEAD))[_TRAINED:]
    errors: Float64[np.ndarray, "ahead"] = np.sqrt(np.mean((forecasts - actual) ** 2, axis=0))
    return errors


def _score_sine(sine: Series, forecasts: Float64[np.ndarray, "origin ahead"]) -> dict[str, float]:
    errors = _errors_by_step(sine, forecasts)
    return {f"sine, RMSE {ahead} ahead": float(errors[ahead - 1]) for ahead in AHEAD}


def _make_sine_spec(cell: CellKind, settings: SeriesSettings, *, seed: int) -> Spec:
    training = TrainingSpec(
        steps=settings.sine_steps,
        epoch_steps=50,
        batch=32,
        learning_rate=0.005,
        patience=4,
        valid_windows=4,
        valid_stride=16,
        unroll=32,
        seed=seed,
    )
    network = NetworkSpec(cell=cell, hidden=settings.hidden)
    return Spec(
        name="sine", context=64, horizon=max(AHEAD), season=1, scaling="none", network=network, training=training
    )


def _score_hospital(panel: Panel, cell: CellKind, settings: SeriesSettings, *, seed: int) -> dict[str, float]:
    training = TrainingSpec(
        steps=settings.hospital_steps, epoch_steps=100, batch=128, learning_rate=0.002, patience=4, seed=seed
    )
    network = NetworkSpec(cell=cell, hidden=settings.hidden)
    spec = Spec(
        name="hospital", context=15, horizon=12, season=12, scaling="mean_abs", network=network, training=training
    )
    model = fit(hold_out(panel, spec.horizon, min_history=spec.context).history, spec, accelerator="cpu").model
    return _score_last_year(panel, Predictor(model))


def _score_last_year(panel: Panel, forecaster: ForecastFunction | Predictor) -> dict[str, float]:
    result = backtest(panel, {"forecaster": forecaster}, horizon=12, windows=1, season=12)
    return {"hospital, MASE": overall_scores(score_table(result))["forecaster"]["mase"]}


def draw_series(trials: Sequence[Trial]) -> Figure:
    """Draws the errors by step ahead on the sine, and the errors on the monthly series."""
    figure, (by_step, hospital) = create_axes(columns=2, height=3.6)
    draw_curves(by_step, trials, "RMSE")
    by_step.axhline(0.2, color=BASELINE_COLOR, linestyle=":", linewidth=1)
    by_step.legend(frameon=False, fontsize=8)
    label_axes(by_step, title="Noisy sine; dotted: standard deviation of the noise", x="steps ahead", y="RMSE")
    cells = [cell for cell, values in trials[0].measures.items() if "hospital, MASE" in values]
    for index, cell in enumerate(cells):
        errors = [trial.measures[cell]["hospital, MASE"] for trial in trials]
        hospital.plot([index] * len(errors), errors, "o", color=color_of(cell), alpha=0.7)
    hospital.set_xticks(range(len(cells)), cells)
    label_axes(hospital, title="Monthly patient counts, the last year", x="", y="MASE")
    return figure


SERIES = Experiment(
    name="series",
    question="What do the networks of the textbook do with a time series in place of characters?",
    conditions="sin(0.01 t) with noise of 0.2, 1,000 steps, trained on the first 604 and forecast from every later origin "
    "up to 64 steps ahead; windows of 64 steps, 600 steps of Adam, unrolled over up to 32 steps. The 767 "
    "monthly series of the bundled data set `hospital`, last 12 months held out; windows of 15 months, at most "
    "1,000 steps. 40 units. The best epoch is chosen on windows before the test.",
    merit="RMSE at 64 steps ahead on the sine, against the linear autoregression of the textbook and the noise of "
    "0.2; MASE on the last year, against seasonal naive.",
    published="Zhang et al. (Dive into Deep Learning, section 9.1): the 64-step forecasts of a linear autoregression "
    "with 4 lags are of little use; an exercise of the section on LSTM asks for a time series in place of "
    "characters. No figures.",
    measures=(*(Measure(f"sine, RMSE {ahead} ahead", 3) for ahead in AHEAD), Measure("hospital, MASE", 3)),
    run=run_series,
    draw=draw_series,
)
