"""The demo: from a history to a forecast over HTTP and a picture of it, everything real."""

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
from forecaster.series import Forecast, Series
from pipelines.retraining.retrain import retrain
from pipelines.settings import SERVING_PREFIX, Root, build_serving_environment
from pipelines.sources import DataSource, read_panel, read_spec
from pipelines.training.train import train

DEMO_LEVELS = [0.1, 0.9]  # an interval that is to hold 80 % of what comes
SHOWN_SERIES = 3  # series that are asked for and drawn
START_TIMEOUT_S = 120.0  # patience for the service to be ready

_log = logging.getLogger(__name__)


def run_demo(configs: Path, root: Root) -> None:
    """Trains on the hospital data and on the sine with a trend, promotes, serves, asks, checks and draws."""
    if not (configs / "hospital.yaml").is_file():
        raise SourceNotFound(
            f"Expected hospital.yaml and sine.yaml in {configs}; found none. Run it in a clone, or name the folder.",
            where=str(configs),
        )
    pictures = root.path / "demo"
    pictures.mkdir(parents=True, exist_ok=True)
    _log.info("1. The classical series, f(t) = t sin(t) / 3 + 2 sin(5 t): train, roll out past the end")
    drawn = [_forecast_sine(configs / "sine.yaml", root, pictures)]
    _log.info("2. Monthly patient counts of 767 series: train, track, backtest, register, judge")
    done = retrain(DataSource("hospital"), read_spec(configs / "hospital.yaml"), root, trigger="demo")
    _log.info("   version %s: %s", done.version.number, done.verdict)
    _log.info("3. Serve the champion, and ask it over HTTP for the year that was held out")
    if done.champion is None:
        raise RefusedByGate(f"No champion to serve: {done.verdict}.")
    drawn += _forecast_hospital(done.champion, root, pictures)
    _log.info("\nForecasts drawn:\n%s", "\n".join(f"  {path}" for path in drawn))
    _log.info("Runs, metrics and plots side by side, in a browser at http://127.0.0.1:5000:")
    _log.info(
        "  %s ui --backend-store-uri %s --port 5000",
        Path(sys.executable).parent / "mlflow",
        root.store_uri,
    )


def _forecast_sine(config: Path, root: Root, figures_folder: Path) -> Path:
    """Forty steps past the end of training, where only the formula knows what comes."""
    spec, data = read_spec(config), DataSource("sine_trend")
    forecaster = train(data, spec, root, test_windows=0, trigger="demo").forecaster
    history = read_panel(data).series[0]
    forecast = Predictor(forecaster).forecast(history, spec.horizon)
    truth = evaluate_sine_trend(0.1 * np.arange(len(history), len(history) + spec.horizon))
    rmse = float(np.sqrt(np.mean((forecast.mean - truth) ** 2)))
    _log.info(
        "   RMSE over %d steps past the end: %.2f (standard deviation of the truth: %.2f)",
        spec.horizon,
        rmse,
        truth.std(),
    )
    _log.info("   (fed with its own output a plain recurrence drifts; docs/experiments.md has the figures)")
    path = figures_folder / "sine.png"
    title = f"t sin(t) / 3 + 2 sin(5 t): {spec.horizon} steps past the end, RMSE {rmse:.2f}"
    plot_forecast(history, forecast, actual=truth, title=title).savefig(path)
    return path


def _forecast_hospital(champion: FittedModel, root: Root, figures_folder: Path) -> list[Path]:
    """Asks the running service, holds its answers against the library's, and draws them beside what came."""
    spec = champion.spec
    split = hold_out(read_panel(DataSource("hospital")), spec.horizon)
    known, whole = split.history.series[:SHOWN_SERIES], split.full.series[:SHOWN_SERIES]
    with _run_service(root, spec.name) as address:
        answer = _request_forecasts(address, known, spec.horizon)
    _log.info("   answered by %s", answer["model"])
    own, paths = Predictor(champion).forecast_batch(known, spec.horizon, levels=DEMO_LEVELS), []
    for served, local, history, later in zip(answer["forecasts"], own, known, whole, strict=True):
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
        plot_forecast(history, forecast, actual=later.y[len(history) :], title=title).savefig(paths[-1])
    _log.info("   %d answers are equal to the library's within 1e-6", len(paths))
    return paths


def _are_equal(first: Forecast, second: Forecast) -> bool:
    """Within 1e-6, the mean and every quantile."""
    pairs = [
        (first.mean, second.mean),
        *((values, second.quantiles[level]) for level, values in first.quantiles.items()),
    ]
    return len(pairs) == 1 + len(DEMO_LEVELS) and all(np.allclose(a, b, rtol=1e-6, atol=1e-6) for a, b in pairs)


@contextmanager
def _run_service(root: Root, model: str) -> Iterator[str]:
    """The service on a free port of this machine, ended when the block ends."""
    port = _find_free_port()
    address = f"http://127.0.0.1:{port}"
    ours = {name: value for name, value in os.environ.items() if not name.startswith(SERVING_PREFIX)}
    environment = build_serving_environment(ours, root, model=model, host="127.0.0.1", port=port)
    log = root.path / "demo" / "service.log"
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", "serving"], env=environment, stdout=output, stderr=output)
        try:
            _wait_until_ready(process, address, log)
            yield address
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    patient_until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < patient_until:
        if process.poll() is not None:
            raise ForecasterError(f"The service ended before it was ready, with code {process.returncode}. See {log}.")
        try:
            with urlopen(f"{address}/readyz", timeout=2):
                return
        except (URLError, OSError):
            time.sleep(0.2)
    raise ForecasterError(f"The service was not ready within {START_TIMEOUT_S:.0f} seconds. See {log}.")


def _request_forecasts(address: str, histories: Sequence[Series], horizon: int) -> dict[str, Any]:
    series = [
        {"id": one.id, "start": format_timestamp(one.start), "freq": one.freq, "y": one.y.tolist()} for one in histories
    ]
    body = json.dumps({"series": series, "horizon": horizon, "levels": DEMO_LEVELS}).encode()
    request = Request(f"{address}/v1/forecast", body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=30) as response:
        return json.load(response)  # type: ignore[no-any-return]


def _find_free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
