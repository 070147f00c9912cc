"""Darts: RNNModel, without logger, checkpoint, progress bar or summary."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

import numpy as np
import pandas as pd
import torch
from cases import FIRST_TIMESTAMP, SpeedCase, make_histories, make_values
from darts import TimeSeries
from darts.models import RNNModel
from runner_loop import PreparedEntrant, serve_requests
from torch.utils.data import RandomSampler

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
warnings.filterwarnings("ignore")
for name in ("pytorch_lightning", "lightning", "darts"):
    logging.getLogger(name).setLevel(logging.ERROR)

QUIET_TRAINER = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def prepare_training(case: SpeedCase) -> PreparedEntrant:
    """Prepares `fit` on existing series; one epoch draws as many windows as the steps need, so that no second epoch starts."""
    series = to_darts_series(make_values(case))
    windows = case.series * (case.length - case.context)

    def train(steps: int) -> RNNModel:
        model = make_model(case)
        sampler = RandomSampler(range(windows), replacement=True, num_samples=steps * case.batch)
        dataloader_options = {"sampler": sampler, "shuffle": False, "pin_memory": False}
        model.fit(series, epochs=1, verbose=False, dataloader_kwargs=dataloader_options)
        assert model.trainer.global_step == steps
        return model

    computes = (
        "mean squared error at every step, float32; windows drawn by a sampler of torch, the whole training one epoch"
    )
    return PreparedEntrant(train, {"parameters": count_parameters(train(1)), "computes": computes})


def prepare_rollout(case: SpeedCase) -> PreparedEntrant:
    """Prepares `predict` for all series in one batch."""
    model, series = train_one_step(case), to_darts_series(make_histories(case))

    def predict(_: int) -> list[TimeSeries]:
        return model.predict(
            n=case.horizon,
            series=series,
            batch_size=case.series,
            verbose=False,
            show_warnings=False,
            dataloader_kwargs={"pin_memory": False},
        )

    forecasts = predict(0)
    assert (len(forecasts), len(forecasts[0])) == (case.series, case.horizon)
    return PreparedEntrant(predict, {"parameters": count_parameters(model), "computes": "raw values, one path"})


def prepare_backtest(case: SpeedCase) -> PreparedEntrant:
    """Prepares `historical_forecasts` with its optimisation, all cutoffs in batches of 512."""
    model, [series] = train_one_step(case), to_darts_series(make_values(case))
    start = case.length - case.horizon - case.origins + 1

    def predict(_: int) -> list[TimeSeries]:
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

    forecasts = predict(0)
    assert (len(forecasts), len(forecasts[0])) == (case.origins, case.horizon)
    return PreparedEntrant(
        predict,
        {
            "parameters": count_parameters(model),
            "computes": "historical_forecasts, retrain=False, enable_optimization=True",
        },
    )


def make_model(case: SpeedCase) -> RNNModel:
    """Returns an untrained model of the case's size."""
    return RNNModel(
        input_chunk_length=case.context,
        training_length=case.context,
        model=case.cell.upper(),
        hidden_dim=case.hidden,
        n_rnn_layers=case.layers,
        batch_size=case.batch,
        optimizer_kwargs={"lr": 0.01},
        random_state=0,
        pl_trainer_kwargs=QUIET_TRAINER,
    )


def train_one_step(case: SpeedCase) -> RNNModel:
    """Returns a model trained for one step."""
    model = make_model(case)
    model.fit(to_darts_series(make_values(case))[:1], epochs=1, verbose=False, max_samples_per_ts=case.batch)
    return model


def to_darts_series(panel: np.ndarray) -> list[TimeSeries]:
    """Returns hourly float32 series."""
    timestamps = pd.date_range(FIRST_TIMESTAMP, periods=panel.shape[1], freq="h")
    return [TimeSeries.from_times_and_values(timestamps, row.astype(np.float32)) for row in panel]


def count_parameters(model: Any) -> int:
    """Returns the number of parameters."""
    return sum(parameter.numel() for parameter in model.model.parameters())


def prepare_entrant(case: SpeedCase) -> PreparedEntrant:
    """Prepares Darts for a case."""
    return {"rollout": prepare_rollout, "backtest": prepare_backtest}.get(case.group, prepare_training)(case)


if __name__ == "__main__":
    serve_requests({"Darts RNNModel": prepare_entrant}, ("darts", "torch", "pytorch-lightning", "pandas"))
