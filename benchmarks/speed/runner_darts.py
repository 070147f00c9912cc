"""Darts: RNNModel, without logger, checkpoint, progress bar or summary."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

import numpy as np
import pandas as pd
import torch
from cases import STAMP, Case, histories, values
from darts import TimeSeries
from darts.models import RNNModel
from runner_loop import Ready, serve
from torch.utils.data import RandomSampler

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
warnings.filterwarnings("ignore")
for name in ("pytorch_lightning", "lightning", "darts"):
    logging.getLogger(name).setLevel(logging.ERROR)

QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def training(case: Case) -> Ready:
    """`fit` on series that are made before; one epoch draws as many windows as the steps need, so that none is begun twice."""
    series = series_of(values(case))
    windows = case.series * (case.length - case.context)

    def act(steps: int) -> RNNModel:
        model = network(case)
        sampler = RandomSampler(range(windows), replacement=True, num_samples=steps * case.batch)
        loading = {"sampler": sampler, "shuffle": False, "pin_memory": False}
        model.fit(series, epochs=1, verbose=False, dataloader_kwargs=loading)
        assert model.trainer.global_step == steps
        return model

    computes = (
        "mean squared error at every step, float32; windows drawn by a sampler of torch, the whole training one epoch"
    )
    return Ready(act, {"parameters": size(act(1)), "computes": computes})


def rollout(case: Case) -> Ready:
    """`predict` for all series in one batch."""
    model, series = trained(case), series_of(histories(case))

    def act(_: int) -> list[TimeSeries]:
        return model.predict(
            n=case.horizon,
            series=series,
            batch_size=case.series,
            verbose=False,
            show_warnings=False,
            dataloader_kwargs={"pin_memory": False},
        )

    said = act(0)
    assert (len(said), len(said[0])) == (case.series, case.horizon)
    return Ready(act, {"parameters": size(model), "computes": "raw values, one path"})


def backtest(case: Case) -> Ready:
    """`historical_forecasts` with its optimisation, all origins in batches of 512."""
    model, [series] = trained(case), series_of(values(case))
    start = case.length - case.horizon - case.origins + 1

    def act(_: int) -> list[TimeSeries]:
        return model.historical_forecasts(
            series,
            start=start,
            start_format="position",
            forecast_horizon=case.horizon,
            stride=1,
            retrain=False,
            last_points_only=False,
            enable_optimization=True,
            verbose=False,
            show_warnings=False,
            predict_kwargs={"batch_size": 512, "dataloader_kwargs": {"pin_memory": False}},
        )

    said = act(0)
    assert (len(said), len(said[0])) == (case.origins, case.horizon)
    return Ready(
        act, {"parameters": size(model), "computes": "historical_forecasts, retrain=False, enable_optimization=True"}
    )


def network(case: Case) -> RNNModel:
    """An untrained model of the case's size."""
    return RNNModel(
        input_chunk_length=case.context,
        training_length=case.context,
        model=case.cell.upper(),
        hidden_dim=case.hidden,
        n_rnn_layers=case.layers,
        batch_size=case.batch,
        optimizer_kwargs={"lr": 0.01},
        random_state=0,
        pl_trainer_kwargs=QUIET,
    )


def trained(case: Case) -> RNNModel:
    """A model that made a step."""
    model = network(case)
    model.fit(series_of(values(case))[:1], epochs=1, verbose=False, max_samples_per_ts=case.batch)
    return model


def series_of(panel: np.ndarray) -> list[TimeSeries]:
    """Float32, by the hour."""
    stamps = pd.date_range(STAMP, periods=panel.shape[1], freq="h")
    return [TimeSeries.from_times_and_values(stamps, row.astype(np.float32)) for row in panel]


def size(model: Any) -> int:
    """How many parameters it has."""
    return sum(each.numel() for each in model.model.parameters())


def entrant(case: Case) -> Ready:
    """What Darts does in a case."""
    return {"rollout": rollout, "backtest": backtest}.get(case.group, training)(case)


if __name__ == "__main__":
    serve({"Darts RNNModel": entrant}, ("darts", "torch", "pytorch-lightning", "pandas"))
