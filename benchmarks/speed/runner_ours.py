"""Our entrants, in the project's environment: the training command with tracking, the fit alone, forecasts and backtests."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from cases import FIRST_TIMESTAMP, SpeedCase, make_histories, make_values
from forecaster_cases import count_parameters, fit_one_step, make_panel, make_spec
from runner_loop import EntrantNotAvailable, PreparedEntrant, serve_requests

from forecaster.bundle import artifact
from forecaster.data.windows import build_window
from forecaster.evaluation.backtest import Backtest, backtest
from forecaster.model.recurrence.compiled import load_compiled_backend
from forecaster.model.rollout import roll_out, warm_up
from forecaster.prediction.predictor import Predictor
from forecaster.spec import Spec
from forecaster.training.fit import fit
from pipelines.settings import Root
from pipelines.sources import DataSource
from pipelines.training.train import train

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

FOLDER = tempfile.TemporaryDirectory()


def prepare_train_command(case: SpeedCase) -> PreparedEntrant:
    """Prepares what `forecaster train` does after its imports: read a CSV, fit with checkpoints, calibrate, backtest, track."""
    root, data_file = Root(Path(FOLDER.name) / "root"), Path(FOLDER.name) / f"{case.name}.csv"
    series, length = make_values(case).shape
    ids, timestamps = np.repeat([f"s{number}" for number in range(series)], length), _timestamps(length)
    frame = {"unique_id": ids, "ds": np.tile(timestamps, series), "y": make_values(case).ravel()}
    pd.DataFrame(frame).to_csv(data_file, index=False)

    def run_training(steps: int) -> object:
        return train(DataSource(str(data_file)), make_spec(case, steps=steps, valid_windows=1), root)

    computes = (
        "mean squared error at every step; reads a CSV, validates and writes a durable checkpoint every 50 steps, calibrates, "
        "backtests against seasonal naive, writes a bundle with plots, all tracked in MLflow (SQLite)"
    )
    return PreparedEntrant(run_training, {"parameters": count_parameters(case), "computes": computes})


def prepare_fit(case: SpeedCase) -> PreparedEntrant:
    """Prepares `fit` on an existing panel; without checkpoint, validation and log, as for the peers."""
    panel = make_panel(make_values(case))

    def run_fit(steps: int) -> object:
        return fit(panel, make_spec(case, steps=steps), accelerator="cpu")

    backend = "the compiled kernel" if load_compiled_backend() else "torch"
    computes = f"mean squared error at every step, gradients clipped; reads values and their mask; {backend}"
    return PreparedEntrant(run_fit, {"parameters": count_parameters(case), "computes": computes})


def prepare_member_fit(case: SpeedCase, count: int) -> PreparedEntrant:
    """Prepares a fit of several networks together, if the specification supports members."""
    panel = make_panel(make_values(case))
    fields = make_spec(case, steps=1).model_dump()
    parts = [fields, *(part for part in fields.values() if isinstance(part, dict))]
    member_fields = next((part for part in parts if "members" in part), None)
    if member_fields is None and count > 1:
        raise EntrantNotAvailable("not available: the specification has no members yet")

    def run_fit(steps: int) -> object:
        if member_fields is not None:
            member_fields["members"] = count
        fields["training"]["steps"] = fields["training"]["epoch_steps"] = steps
        return fit(panel, Spec.parse(fields, where="runner_ours.py"), accelerator="cpu")

    return PreparedEntrant(
        run_fit, {"parameters": count * count_parameters(case), "computes": "mean squared error at every step"}
    )


def prepare_forecast(case: SpeedCase) -> PreparedEntrant:
    """Prepares `Predictor.forecast_batch` of a loaded bundle, as a service calls it, including validation and timestamps."""
    with tempfile.TemporaryDirectory() as folder:
        artifact.save_bundle(fit_one_step(case), Path(folder) / "bundle", card="")
        model = artifact.load_bundle(Path(folder) / "bundle")
    predictor = Predictor(model)
    series = list(make_panel(make_histories(case)).series)

    def forecast(_: int) -> list[Any]:
        return predictor.forecast_batch(series, case.horizon)

    forecasts = forecast(0)
    assert (len(forecasts), len(forecasts[0].mean)) == (case.series, case.horizon)
    engine = type(predictor.engine).__name__
    computes = (
        f"values scaled by the row, one path; validates every series, returns timestamps and float64 values; {engine}"
    )
    return PreparedEntrant(forecast, {"parameters": count_parameters(case), "computes": computes})


def prepare_engine(case: SpeedCase) -> PreparedEntrant:
    """Prepares the rollout alone, in torch, on an existing window."""
    network, window = fit_one_step(case).network.eval(), build_window(list(make_histories(case)), context=case.context)

    @torch.inference_mode()
    def run_rollout(_: int) -> object:
        return roll_out(network, warm_up(network, window), horizon=case.horizon)

    return PreparedEntrant(
        run_rollout, {"parameters": count_parameters(case), "computes": "values scaled by the row, one path"}
    )


def prepare_backtest(case: SpeedCase, *, reads: str) -> PreparedEntrant:
    """Prepares `backtest` of a predictor at all cutoffs of one series, with a network that reads windows or whole histories."""
    panel, predictor = make_panel(make_values(case)), Predictor(fit_one_step(case, reads=reads))

    def run_backtest(_: int) -> Backtest:
        predictors = {"model": predictor}
        return backtest(
            panel, predictors, horizon=case.horizon, windows=case.origins, stride=1, season=24, min_history=case.context
        )

    forecasts = run_backtest(0).forecasts["model"]
    assert forecasts.shape == (1, case.origins, case.horizon)
    assert np.isfinite(forecasts).all()
    reading = {
        "window": "reads the last steps before every cutoff",
        "history": "reads the series once and carries its state",
    }
    return PreparedEntrant(
        run_backtest,
        {
            "parameters": count_parameters(case),
            "computes": f"{reading[reads]}; values scaled, cutoffs and scales of MASE",
        },
    )


def _timestamps(length: int) -> np.ndarray:
    return np.asarray(pd.date_range(FIRST_TIMESTAMP, periods=length, freq="h").strftime("%Y-%m-%d %H:%M:%S"))


ENTRANTS: dict[str, Callable[[SpeedCase], PreparedEntrant]] = {
    "forecaster train": prepare_train_command,
    "fit": prepare_fit,
    "fit, 5 members": partial(prepare_member_fit, count=5),
    "fit, 1 member": partial(prepare_member_fit, count=1),
    "Predictor.forecast_batch": prepare_forecast,
    "engine in torch": prepare_engine,
    "backtest, state carried": partial(prepare_backtest, reads="history"),
    "backtest, windows": partial(prepare_backtest, reads="window"),
}

if __name__ == "__main__":
    PACKAGES = ("forecaster", "torch", "pytorch-lightning", "pandas", "mlflow", "onnxruntime")
    serve_requests(ENTRANTS, PACKAGES)
