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
from cases import STAMP, Case, histories, values
from forecaster_cases import fitted, panel, size, spec_of
from runner_loop import NotAvailable, Ready, serve

from forecaster.bundle import artifact
from forecaster.data.windows import stack
from forecaster.evaluation.backtest import Backtest, backtest
from forecaster.model.recurrence.compiled import kernel
from forecaster.model.rollout import roll, warm_up
from forecaster.prediction.predictor import Predictor, fastest_engine
from forecaster.spec import Spec
from forecaster.training.fit import fit
from pipelines.settings import Root
from pipelines.sources import Data
from pipelines.training.train import train

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

FOLDER = tempfile.TemporaryDirectory()


def command(case: Case) -> Ready:
    """What `forecaster train` does once it is imported: reads a CSV, fits with checkpoints, calibrates, backtests, tracks."""
    root, source = Root(Path(FOLDER.name) / "root"), Path(FOLDER.name) / f"{case.name}.csv"
    series, length = values(case).shape
    ids, stamps = np.repeat([f"s{number}" for number in range(series)], length), _stamps(length)
    frame = {"unique_id": ids, "ds": np.tile(stamps, series), "y": values(case).ravel()}
    pd.DataFrame(frame).to_csv(source, index=False)

    def act(steps: int) -> object:
        return train(Data(str(source)), spec_of(case, steps=steps, valid_windows=1), root)

    computes = (
        "mean squared error at every step; reads a CSV, validates and writes a durable checkpoint every 50 steps, calibrates, "
        "backtests against seasonal naive, writes a bundle with plots, all tracked in MLflow (SQLite)"
    )
    return Ready(act, {"parameters": size(case), "computes": computes})


def fitting(case: Case) -> Ready:
    """`fit` on a panel that is made before; no checkpoint, validation or log, as for the others."""
    known = panel(values(case))

    def act(steps: int) -> object:
        return fit(known, spec_of(case, steps=steps), accelerator="cpu")

    how = "the compiled kernel" if kernel() else "the equations in torch"
    computes = f"mean squared error at every step, gradients clipped; reads value and whether it was observed; {how}"
    return Ready(act, {"parameters": size(case), "computes": computes})


def members(case: Case, count: int) -> Ready:
    """A fit of several networks at once, where the specification knows them."""
    known = panel(values(case))
    plain = spec_of(case, steps=1).model_dump()
    places = [plain, *(part for part in plain.values() if isinstance(part, dict))]
    place = next((part for part in places if "members" in part), None)
    if place is None and count > 1:
        raise NotAvailable("not available: the specification has no members yet")

    def act(steps: int) -> object:
        if place is not None:
            place["members"] = count
        plain["training"]["steps"] = plain["training"]["epoch_steps"] = steps
        return fit(known, Spec.parse(plain, where="runner_ours.py"), accelerator="cpu")

    return Ready(act, {"parameters": count * size(case), "computes": "mean squared error at every step"})


def forecast_each(case: Case) -> Ready:
    """`Predictor.forecast_each` of a bundle that was written and loaded, as a service asks it: checks, stamps and all."""
    with tempfile.TemporaryDirectory() as folder:
        artifact.save(fitted(case), Path(folder) / "bundle", card="")
        forecaster = artifact.load(Path(folder) / "bundle")
    predictor = Predictor(forecaster, engine=fastest_engine(forecaster, threads=torch.get_num_threads()))
    series = list(panel(histories(case)).series)

    def act(_: int) -> list[Any]:
        return predictor.forecast_each(series, case.horizon)

    said = act(0)
    assert (len(said), len(said[0].mean)) == (case.series, case.horizon)
    engine = type(predictor.engine).__name__
    computes = (
        f"values scaled by the row, one path; checks of every series, stamps and float64 values in the answer; {engine}"
    )
    return Ready(act, {"parameters": size(case), "computes": computes})


def engine(case: Case) -> Ready:
    """The rollout alone, in torch, on a window that is made before."""
    network, window = fitted(case).network.eval(), stack(list(histories(case)), context=case.context)

    @torch.inference_mode()
    def act(_: int) -> object:
        return roll(network, warm_up(network, window), horizon=case.horizon)

    return Ready(act, {"parameters": size(case), "computes": "values scaled by the row, one path"})


def origins(case: Case, *, reads: str) -> Ready:
    """`backtest` of a predictor at all origins of one series, with a network that reads windows or whole histories."""
    whole, predictor = panel(values(case)), Predictor(fitted(case, reads=reads))

    def act(_: int) -> Backtest:
        asked = {"it": predictor}
        return backtest(
            whole, asked, horizon=case.horizon, windows=case.origins, stride=1, season=24, keep=case.context
        )

    said = act(0).forecasts["it"]
    assert said.shape == (1, case.origins, case.horizon)
    assert np.isfinite(said).all()
    how = {
        "window": "reads the last steps before every origin",
        "history": "reads the series once and carries its state",
    }
    return Ready(
        act, {"parameters": size(case), "computes": f"{how[reads]}; values scaled, cutoffs and scales of MASE"}
    )


def _stamps(length: int) -> np.ndarray:
    return np.asarray(pd.date_range(STAMP, periods=length, freq="h").strftime("%Y-%m-%d %H:%M:%S"))


ENTRANTS: dict[str, Callable[[Case], Ready]] = {
    "forecaster train": command,
    "fit": fitting,
    "fit, 5 members": partial(members, count=5),
    "fit, 1 member": partial(members, count=1),
    "Predictor.forecast_each": forecast_each,
    "engine in torch": engine,
    "backtest, state carried": partial(origins, reads="history"),
    "backtest, windows": partial(origins, reads="window"),
}

if __name__ == "__main__":
    packages = ("forecaster", "torch", "pytorch-lightning", "pandas", "mlflow", "onnxruntime")
    serve(ENTRANTS, packages)
