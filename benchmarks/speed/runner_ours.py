"""Ours, in the project's own environment: the command's training with tracking, the fit alone, forecasts and backtests."""

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
from forecaster.prediction.predictor import Predictor, build_fastest_engine
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
    """What `forecaster train` does once it is imported: reads a CSV, fits with checkpoints, calibrates, backtests, tracks."""
    root, source = Root(Path(FOLDER.name) / "root"), Path(FOLDER.name) / f"{case.name}.csv"
    series, length = make_values(case).shape
    ids, stamps = np.repeat([f"s{number}" for number in range(series)], length), _timestamps(length)
    frame = {"unique_id": ids, "ds": np.tile(stamps, series), "y": make_values(case).ravel()}
    pd.DataFrame(frame).to_csv(source, index=False)

    def act(steps: int) -> object:
        return train(DataSource(str(source)), make_spec(case, steps=steps, valid_windows=1), root)

    computes = (
        "mean squared error at every step; reads a CSV, validates and writes a durable checkpoint every 50 steps, calibrates, "
        "backtests against seasonal naive, writes a bundle with plots, all tracked in MLflow (SQLite)"
    )
    return PreparedEntrant(act, {"parameters": count_parameters(case), "computes": computes})


def prepare_fit(case: SpeedCase) -> PreparedEntrant:
    """`fit` on a panel that is made before; no checkpoint, validation or log, as for the others."""
    known = make_panel(make_values(case))

    def act(steps: int) -> object:
        return fit(known, make_spec(case, steps=steps), accelerator="cpu")

    how = "the compiled kernel" if load_compiled_backend() else "the equations in torch"
    computes = f"mean squared error at every step, gradients clipped; reads value and whether it was observed; {how}"
    return PreparedEntrant(act, {"parameters": count_parameters(case), "computes": computes})


def prepare_member_fit(case: SpeedCase, count: int) -> PreparedEntrant:
    """A fit of several networks at once, where the specification knows them."""
    known = make_panel(make_values(case))
    plain = make_spec(case, steps=1).model_dump()
    places = [plain, *(part for part in plain.values() if isinstance(part, dict))]
    place = next((part for part in places if "members" in part), None)
    if place is None and count > 1:
        raise EntrantNotAvailable("not available: the specification has no members yet")

    def act(steps: int) -> object:
        if place is not None:
            place["members"] = count
        plain["training"]["steps"] = plain["training"]["epoch_steps"] = steps
        return fit(known, Spec.parse(plain, where="runner_ours.py"), accelerator="cpu")

    return PreparedEntrant(
        act, {"parameters": count * count_parameters(case), "computes": "mean squared error at every step"}
    )


def prepare_forecast(case: SpeedCase) -> PreparedEntrant:
    """`Predictor.prepare_forecast` of a bundle that was written and loaded, as a service asks it: checks, stamps and all."""
    with tempfile.TemporaryDirectory() as folder:
        artifact.save_bundle(fit_one_step(case), Path(folder) / "bundle", card="")
        forecaster = artifact.load_bundle(Path(folder) / "bundle")
    predictor = Predictor(forecaster, engine=build_fastest_engine(forecaster, threads=torch.get_num_threads()))
    series = list(make_panel(make_histories(case)).series)

    def act(_: int) -> list[Any]:
        return predictor.forecast_batch(series, case.horizon)

    said = act(0)
    assert (len(said), len(said[0].mean)) == (case.series, case.horizon)
    engine = type(predictor.engine).__name__
    computes = (
        f"values scaled by the row, one path; checks of every series, stamps and float64 values in the answer; {engine}"
    )
    return PreparedEntrant(act, {"parameters": count_parameters(case), "computes": computes})


def prepare_engine(case: SpeedCase) -> PreparedEntrant:
    """The rollout alone, in torch, on a window that is made before."""
    network, window = fit_one_step(case).network.eval(), build_window(list(make_histories(case)), context=case.context)

    @torch.inference_mode()
    def act(_: int) -> object:
        return roll_out(network, warm_up(network, window), horizon=case.horizon)

    return PreparedEntrant(
        act, {"parameters": count_parameters(case), "computes": "values scaled by the row, one path"}
    )


def prepare_backtest(case: SpeedCase, *, reads: str) -> PreparedEntrant:
    """`backtest` of a predictor at all origins of one series, with a network that reads windows or whole histories."""
    whole, predictor = make_panel(make_values(case)), Predictor(fit_one_step(case, reads=reads))

    def act(_: int) -> Backtest:
        asked = {"it": predictor}
        return backtest(
            whole, asked, horizon=case.horizon, windows=case.origins, stride=1, season=24, min_history=case.context
        )

    said = act(0).forecasts["it"]
    assert said.shape == (1, case.origins, case.horizon)
    assert np.isfinite(said).all()
    how = {
        "window": "reads the last steps before every origin",
        "history": "reads the series once and carries its state",
    }
    return PreparedEntrant(
        act,
        {"parameters": count_parameters(case), "computes": f"{how[reads]}; values scaled, cutoffs and scales of MASE"},
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
