"""The demo: trains real models, serves one, requests forecasts over HTTP, and draws them."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import numpy as np
import pandas as pd

from forecaster.data.datasets import evaluate_sine_trend
from forecaster.data.split import hold_out
from forecaster.errors import ForecasterError, RefusedByGate, SourceNotFound
from forecaster.evaluation.plots import plot_forecast
from forecaster.frequency import format_timestamp
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.series import Forecast, Panel, Series
from pipelines.retraining.retrain import RetrainOptions, retrain
from pipelines.settings import SERVING_PREFIX, Root, build_serving_environment
from pipelines.sources import DataSource, read_panel, read_spec
from pipelines.training.train import TrainOptions, train

DEMO_LEVELS = [0.1, 0.9]  # the bounds of an 80 % interval
SHOWN_SERIES = 3  # series that are forecast over HTTP and drawn
START_TIMEOUT_S = 120.0  # until the service is ready

_log = logging.getLogger(__name__)


def run_demo(configs: Path, root: Root) -> None:
    """Trains on the hospital data and on a sine with a trend, promotes, serves, forecasts over HTTP, compares and draws."""
    if not (configs / "hospital.yaml").is_file():
        raise SourceNotFound(
            f"Expected hospital.yaml and sine.yaml in {configs}; found none. Run the demo in a clone of the repository, or set "
            "--configs.",
            where=str(configs),
        )
    figures_folder = root.path / "demo"
    figures_folder.mkdir(parents=True, exist_ok=True)
    _log.info("1. A synthetic series, f(t) = t sin(t) / 3 + 2 sin(5 t): train, and forecast past the end")
    paths = [_forecast_sine(configs / "sine.yaml", root, figures_folder)]
    _log.info("2. Monthly patient counts of 767 series: train, track, backtest, register, judge")
    options = RetrainOptions(trigger="demo", force_retrain=True)
    hospital = DataSource("hospital")
    panel = read_panel(hospital)
    result = retrain(hospital, read_spec(configs / "hospital.yaml"), root, options, panel=panel)
    _log.info("   version %s: %s", result.version.number, result.verdict)
    _log.info("3. Serve the champion, and request over HTTP the forecast of the year that was held out")
    if result.champion is None:
        raise RefusedByGate(f"Expected a champion to serve; the gate promoted none: {result.verdict}.")
    paths += _forecast_hospital(result.champion, panel, root, figures_folder)
    _log.info("\nFigures of the forecasts:\n%s", "\n".join(f"  {path}" for path in paths))
    _log.info("To compare runs, metrics and plots in a browser at http://127.0.0.1:5000, run:")
    _log.info(
        "  %s ui --backend-store-uri %s --port 5000",
        Path(sys.executable).parent / "mlflow",
        root.store_uri,
    )


def _forecast_sine(config: Path, root: Root, figures_folder: Path) -> Path:
    """Forecasts the sine past the end of the training data, and compares the forecast with the formula."""
    spec, data = read_spec(config), DataSource("sine_trend")
    panel = read_panel(data)
    model = train(data, spec, root, TrainOptions(test_windows=0, trigger="demo"), panel=panel).model
    history = panel.series[0]
    forecast = Predictor(model).forecast(history, spec.horizon)
    actuals = evaluate_sine_trend(0.1 * np.arange(len(history), len(history) + spec.horizon))
    rmse = float(np.sqrt(np.mean((forecast.mean - actuals) ** 2)))
    _log.info(
        "   RMSE over %d steps past the end: %.2f (standard deviation of the actuals: %.2f)",
        spec.horizon,
        rmse,
        actuals.std(),
    )
    _log.info("   (a plain recurrence drifts when it is fed its own output; docs/experiments.md has the figures)")
    path = figures_folder / "sine.png"
    title = f"t sin(t) / 3 + 2 sin(5 t): {spec.horizon} steps past the end, RMSE {rmse:.2f}"
    plot_forecast(history, forecast, actual=actuals, title=title).savefig(path)
    return path


def _forecast_hospital(champion: FittedModel, panel: Panel, root: Root, figures_folder: Path) -> list[Path]:
    """Requests forecasts from the running service, compares them with the library's, and draws them with the actuals."""
    spec = champion.spec
    split = hold_out(panel, spec.horizon)
    histories, full_series = split.history.series[:SHOWN_SERIES], split.full.series[:SHOWN_SERIES]
    with _run_service(root, spec.name) as url:
        response = _request_forecasts(url, histories, spec.horizon)
    _log.info("   forecasts of %s", response["model"])
    outcomes, paths = Predictor(champion).forecast_batch(histories, spec.horizon, levels=DEMO_LEVELS), []
    for served, local, history, series in zip(response["forecasts"], outcomes, histories, full_series, strict=True):
        forecast = Forecast(
            history.id,
            pd.DatetimeIndex(served["ds"]),
            np.array(served["mean"]),
            quantiles={float(level): np.array(values) for level, values in served["quantiles"].items()},
        )
        if isinstance(local, ForecasterError) or not _are_equal(forecast, local):
            raise AssertionError(f"The service and the library disagree on series {history.id!r}.")
        paths.append(figures_folder / f"hospital_{history.id}.png")
        title = f"hospital {history.id}: forecast over HTTP"
        plot_forecast(history, forecast, actual=series.y[len(history) :], title=title).savefig(paths[-1])
    _log.info("   %d served forecasts equal those of the library within 1e-6", len(paths))
    return paths


def _are_equal(first: Forecast, second: Forecast) -> bool:
    """Whether the mean and every quantile are equal within 1e-6."""
    pairs = [
        (first.mean, second.mean),
        *((values, second.quantiles[level]) for level, values in first.quantiles.items()),
    ]
    return len(pairs) == 1 + len(DEMO_LEVELS) and all(np.allclose(a, b, rtol=1e-6, atol=1e-6) for a, b in pairs)


@contextmanager
def _run_service(root: Root, model: str) -> Iterator[str]:
    """Runs the service on a free port of this machine; yields its URL, and stops it when the block ends."""
    port = _find_free_port()
    url = f"http://127.0.0.1:{port}"
    environ = {name: value for name, value in os.environ.items() if not name.startswith(SERVING_PREFIX)}
    environment = build_serving_environment(environ, root, model=model, host="127.0.0.1", port=port)
    log = root.path / "demo" / "service.log"
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", "serving"], env=environment, stdout=output, stderr=output)
        try:
            _wait_until_ready(process, url, log)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ForecasterError(
                f"Expected the service to start; it exited with code {process.returncode}. See {log}."
            )
        try:
            with urlopen(f"{url}/readyz", timeout=2):
                return
        except (URLError, OSError):
            time.sleep(0.2)
    raise ForecasterError(
        f"Expected the service to be ready within {START_TIMEOUT_S:.0f} seconds; it was not. See {log}."
    )


def _request_forecasts(url: str, histories: Sequence[Series], horizon: int) -> dict[str, Any]:
    series = [
        {
            "id": history.id,
            "start": format_timestamp(history.start),
            "freq": history.freq,
            "y": history.y.tolist(),
        }
        for history in histories
    ]
    body = json.dumps({"series": series, "horizon": horizon, "levels": DEMO_LEVELS}).encode()
    request = Request(f"{url}/v1/forecast", body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=30) as response:
        return json.load(response)  # type: ignore[no-any-return]


def _find_free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
