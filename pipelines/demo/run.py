"""Runs the demo: trains real models, serves one, requests forecasts over HTTP, and writes the page that shows them."""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from forecaster.bundle.pretrained.base import BASE_NAME, base_predictor
from forecaster.data.datasets import evaluate_sine_trend
from forecaster.data.split import hold_out
from forecaster.errors import ForecasterError, RefusedByGate, SourceNotFound
from forecaster.evaluation.backtest import backtest
from forecaster.evaluation.baselines import ForecastFunction, seasonal_naive, zero_shot
from forecaster.evaluation.calibration import add_quantiles
from forecaster.evaluation.scores import SCORED_LEVELS, overall_scores, score_table
from forecaster.metrics import nanmean
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.series import Forecast, Panel
from forecaster.spec import Spec
from pipelines.demo.figures import DrawnForecast, plot_side_by_side
from pipelines.demo.page import DemoReport, TrainingSummary, render_demo_page, render_score_lines
from pipelines.demo.series_choice import RULE, ChosenSeries, choose_series
from pipelines.demo.service import request_forecasts, run_service
from pipelines.retraining.retrain import RetrainOptions, retrain
from pipelines.settings import Root
from pipelines.sources import DataSource, read_panel, read_spec
from pipelines.training.train import TrainOptions, train

DEMO_LEVELS = [0.1, 0.9]  # the bounds of an 80 % interval
UNROLLED_STEPS = 200  # as many as the classical recipe has; configs/sine_unrolled.yaml has more, and a smaller error
_CONFIGS = ("hospital.yaml", "sine.yaml", "sine_unrolled.yaml")
_MODEL, _SEASONAL_NAIVE, _LAST_VALUE, _PRETRAINED = "forecaster", "seasonal naive", "last value", "pretrained network"

_log = logging.getLogger(__name__)


class SineForecast(NamedTuple):
    """The forecast of the sine by one recipe, and its error."""

    label: str
    drawn: DrawnForecast
    rmse: float
    spec: Spec


class HeldOutYear(NamedTuple):
    """The scores of the champion and the baselines in the held-out year, and the series to show."""

    scores: Mapping[str, Mapping[str, float]]
    num_series: int
    chosen: Sequence[ChosenSeries]


def run_demo(configs: Path, root: Root) -> None:
    """Trains on the hospital data and on a sine with a trend, promotes, serves, forecasts over HTTP, compares and draws."""
    missing = [name for name in _CONFIGS if not (configs / name).is_file()]
    if missing:
        raise SourceNotFound(
            f"Expected {', '.join(_CONFIGS)} in {configs}; did not find {', '.join(missing)}. Run the demo in a clone of the "
            "repository, or set --configs.",
            where=str(configs),
        )
    started, folder = time.monotonic(), root.path / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    _log.info(
        "1. A synthetic series, f(t) = t sin(t) / 3 + 2 sin(5 t): train by two recipes, and forecast past the end"
    )
    sines = [
        _forecast_sine("classical", read_spec(configs / "sine.yaml"), root),
        _forecast_sine("unrolled", _shorten_training(read_spec(configs / "sine_unrolled.yaml")), root),
    ]
    _log.info("2. Monthly patient counts of 767 series: train, track, backtest, register, judge")
    options = RetrainOptions(trigger="demo", force_retrain=True)
    hospital = DataSource("hospital")
    spec = read_spec(configs / "hospital.yaml")
    panel = read_panel(hospital)
    result = retrain(hospital, spec, root, options, panel=panel)
    _log.info("   version %s: %s", result.version.number, result.verdict)
    _log.info("3. Serve the champion, and request over HTTP the forecast of the year that was held out")
    if result.champion is None:
        raise RefusedByGate(f"Expected a champion to serve; the gate promoted none: {result.verdict}.")
    year = _score_held_out_year(result.champion, panel)
    hospital_figure = _forecast_hospital(result.champion, panel, year.chosen, root)
    sine_figure, sine_text = _plot_sines(sines), _describe_sines(sines)
    for name, figure in {"sine.png": sine_figure, "hospital.png": hospital_figure}.items():
        figure.savefig(folder / name)
    report = DemoReport(
        models=[
            *(
                TrainingSummary(
                    sine.spec.name, "the sine with a trend", _describe_recipe(sine.spec), f"RMSE {sine.rmse:.2f}"
                )
                for sine in sines
            ),
            TrainingSummary(
                spec.name,
                f"monthly patient counts of {len(panel.series)} series",
                _describe_recipe(spec),
                f"version {result.version.number}; {result.verdict}",
            ),
        ],
        scores=year.scores,
        num_series=year.num_series,
        hospital_figure=hospital_figure,
        sine_figure=sine_figure,
        sine_text=sine_text,
        commands=_list_commands(root, spec.name),
    )
    (folder / "index.html").write_text(render_demo_page(report), encoding="utf-8")
    _log_summary(report, folder, seconds=time.monotonic() - started)


def _shorten_training(spec: Spec) -> Spec:
    """Returns the specification with at most UNROLLED_STEPS steps, so that the demo is quick."""
    training = spec.training
    steps = min(training.steps, UNROLLED_STEPS)
    changes = {"steps": steps, "epoch_steps": min(training.epoch_steps, steps)}
    return spec.model_copy(update={"training": training.model_copy(update=changes)})


def _forecast_sine(label: str, spec: Spec, root: Root) -> SineForecast:
    """Forecasts the sine past the end of the training data, and compares the forecast with the formula."""
    data = DataSource("sine_trend")
    panel = read_panel(data)
    model = train(data, spec, root, TrainOptions(test_windows=0, trigger="demo"), panel=panel).model
    history = panel.series[0]
    forecast = Predictor(model).forecast(history, spec.horizon)
    actuals = evaluate_sine_trend(0.1 * np.arange(len(history), len(history) + spec.horizon))
    rmse = float(np.sqrt(np.mean((forecast.mean - actuals) ** 2)))
    _log.info(
        "   %s, %d steps: RMSE over %d steps past the end: %.2f (standard deviation of the actuals: %.2f)",
        label,
        spec.training.steps,
        spec.horizon,
        rmse,
        actuals.std(),
    )
    return SineForecast(label, DrawnForecast(f"{label}: RMSE {rmse:.2f}", history, forecast, actuals), rmse, spec)


def _plot_sines(sines: Sequence[SineForecast]) -> Figure:
    return plot_side_by_side(
        [sine.drawn for sine in sines],
        history_steps=120,
        title=f"t sin(t) / 3 + 2 sin(5 t): {sines[0].spec.horizon} steps past the end of training",
        labels=("t", "f(t)"),
        share_y=True,
    )


def _describe_sines(sines: Sequence[SineForecast]) -> str:
    classical, unrolled = sines
    return (
        f"The classical recipe learns the next step only, and drifts when it is fed its own output: RMSE {classical.rmse:.2f} "
        f"over {classical.spec.horizon} steps after {classical.spec.training.steps} training steps. Unrolled, the network is "
        f"trained on its own output, on longer windows in their own scale: RMSE {unrolled.rmse:.2f} after "
        f"{unrolled.spec.training.steps} steps. One seed each; docs/experiments.md has five, and longer trainings."
    )


def _describe_recipe(spec: Spec) -> str:
    network, training = spec.network, spec.training
    unrolled = f", unrolled for {training.unroll}" if training.unroll else ""
    origin = ", from the weights of the pretrained network" if training.initial == BASE_NAME else ""
    return (
        f"{network.cell.upper()} of {network.hidden}, windows of {spec.context} steps, at most {training.steps} training "
        f"steps{unrolled}{origin}"
    )


def _score_held_out_year(champion: FittedModel, panel: Panel) -> HeldOutYear:
    """Scores the champion and the baselines on the last window, and chooses the series to show."""
    spec, season = champion.spec, champion.season
    forecasters: dict[str, ForecastFunction | Predictor] = {
        _MODEL: Predictor(champion),
        _SEASONAL_NAIVE: seasonal_naive(season),
        _LAST_VALUE: seasonal_naive(1),
        _PRETRAINED: zero_shot(base_predictor(panel.freq, horizon=spec.horizon, season=season), season=season),
    }
    result = backtest(
        panel, forecasters, horizon=spec.horizon, windows=1, season=season, min_history=spec.min_steps + 1
    )
    errors = nanmean(result.scaled_errors(_MODEL), axis=(1, 2))
    histories = [series.take_first(len(series) - spec.horizon) for series in result.series]
    with_quantiles = add_quantiles(result, {_MODEL: champion}, levels=SCORED_LEVELS)
    return HeldOutYear(
        overall_scores(score_table(with_quantiles)),
        int(np.isfinite(errors).sum()),
        choose_series(histories, errors, season=season),
    )


def _forecast_hospital(champion: FittedModel, panel: Panel, chosen: Sequence[ChosenSeries], root: Root) -> Figure:
    """Requests forecasts from the running service, compares them with the library's, and draws them with the actuals."""
    spec = champion.spec
    split = hold_out(panel, spec.horizon, min_history=spec.min_steps + 1)
    histories = [split.history.series[choice.series_index] for choice in chosen]
    full_series = [split.full.series[choice.series_index] for choice in chosen]
    with run_service(root, spec.name) as url:
        response = request_forecasts(url, histories, spec.horizon, DEMO_LEVELS)
    _log.info("   forecasts of %s", response["model"])
    outcomes, drawn = Predictor(champion).forecast_batch(histories, spec.horizon, levels=DEMO_LEVELS), []
    for choice, served, local, history, series in zip(
        chosen, response["forecasts"], outcomes, histories, full_series, strict=True
    ):
        forecast = _parse_forecast(served, history.id)
        if isinstance(local, ForecasterError) or not _are_equal(forecast, local):
            raise AssertionError(f"The service and the library disagree on series {history.id!r}.")
        title = f"{history.id}: MASE {choice.error:.2f} ({choice.position})"
        drawn.append(DrawnForecast(title, history, forecast, series.y[len(history) :]))
    _log.info("   %d served forecasts equal those of the library within 1e-6", len(drawn))
    return plot_side_by_side(
        drawn,
        history_steps=4 * spec.horizon,
        title=f"Monthly patients, {spec.horizon} months ahead over HTTP: series by the quartiles of their error",
        labels=("", "patients"),
    )


def _parse_forecast(served: Mapping[str, Any], unique_id: str) -> Forecast:
    return Forecast(
        unique_id,
        pd.DatetimeIndex(served["ds"]),
        np.array(served["mean"]),
        quantiles={float(level): np.array(values) for level, values in served["quantiles"].items()},
    )


def _are_equal(first: Forecast, second: Forecast) -> bool:
    """Whether the mean and every quantile are equal within 1e-6."""
    pairs = [
        (first.mean, second.mean),
        *((values, second.quantiles[level]) for level, values in first.quantiles.items()),
    ]
    return len(pairs) == 1 + len(DEMO_LEVELS) and all(np.allclose(a, b, rtol=1e-6, atol=1e-6) for a, b in pairs)


def _list_commands(root: Root, model: str) -> dict[str, str]:
    """Returns commands to try next in the order in which one would, with what each does."""
    binaries = Path(sys.executable).parent
    forecaster, location = shlex.quote(str(binaries / "forecaster")), f" --root {shlex.quote(str(root.path))}"
    return {
        f"{shlex.quote(str(binaries / 'mlflow'))} ui --backend-store-uri {root.store_uri} --port 5000": (
            "compares runs, metrics and plots at http://127.0.0.1:5000"
        ),
        f"{forecaster} serve {model}{location}": "serves the champion, with a page at http://127.0.0.1:3000",
        f"{forecaster} forecast {model} hospital --levels 0.1 --levels 0.9{location}": "forecasts the year after the data",
        f"{forecaster} backtest {model} hospital{location}": "scores the champion beside the baselines",
        f"{forecaster} data check data.csv": "checks your own data: unique_id, ds, y",
        f"{forecaster} train data.csv --horizon 12{location}": "trains on your own data, by the preset of its frequency",
    }


def _log_summary(report: DemoReport, folder: Path, *, seconds: float) -> None:
    _log.info("\nThe held-out year, means over %d series:", report.num_series)
    for line in render_score_lines(report.scores):
        _log.info("  %s", line)
    _log.info(
        "\nFigures (the series of the first are, %s):\n  %s\n  %s", RULE, folder / "hospital.png", folder / "sine.png"
    )
    _log.info("\nNext:")
    for command, text in report.commands.items():
        _log.info("  %s\n      %s", command, text)
    _log.info("\nEverything on one page (%.0f seconds): %s", seconds, folder / "index.html")
