"""NeuralForecast: LSTM and GRU, recurrent and direct, without logger, checkpoint, progress bar or validation."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from cases import FIRST_TIMESTAMP, SpeedCase, make_histories, make_values
from neuralforecast import NeuralForecast
from neuralforecast.losses.pytorch import MSE
from neuralforecast.models import GRU, LSTM
from neuralforecast.tsdataset import TimeSeriesDataset
from runner_loop import PreparedEntrant, serve_requests

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
warnings.filterwarnings("ignore")
for name in ("pytorch_lightning", "lightning", "lightning_fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)

TRAINING_GROUPS = ("classical", "large", "process")


def prepare_training(case: SpeedCase, *, recurrent: bool) -> PreparedEntrant:
    """Prepares `NeuralForecast.fit` on an existing frame."""
    frame = to_long_frame(make_values(case))

    def train(steps: int) -> NeuralForecast:
        model = NeuralForecast(models=[make_model(case, recurrent=recurrent, steps=steps)], freq="h")
        model.fit(df=frame, val_size=0)
        assert len(model.models[0].train_trajectories) == steps
        return model

    scored_steps = (
        "the last step only, which is its default"
        if recurrent
        else f"{case.horizon} steps ahead, predicted in one pass"
    )
    computes = f"mean squared error at {scored_steps}; float32; {describe_difference(case, recurrent=recurrent)}"
    return PreparedEntrant(
        train,
        {
            "parameters": count_parameters(train(1)),
            "computes": computes,
            "smaller": is_smaller(case, recurrent=recurrent),
        },
    )


def prepare_rollout(case: SpeedCase, *, use_model_predict: bool) -> PreparedEntrant:
    """Prepares `NeuralForecast.predict` of a frame, or the model's own `predict` of an existing data set."""
    frame = to_long_frame(make_histories(case))
    model = NeuralForecast(models=[make_model(case, recurrent=True, steps=1)], freq="h")
    model.fit(df=frame, val_size=0)
    dataset, *_ = TimeSeriesDataset.from_df(frame)

    def predict(_: int) -> object:
        return model.models[0].predict(dataset) if use_model_predict else model.predict(df=frame)

    assert len(predict(0)) == case.series * case.horizon  # type: ignore[arg-type]
    computes = f"raw values, one path; {describe_difference(case, recurrent=True)}"
    return PreparedEntrant(
        predict,
        {"parameters": count_parameters(model), "computes": computes, "smaller": is_smaller(case, recurrent=True)},
    )


def make_model(case: SpeedCase, *, recurrent: bool, steps: int) -> LSTM | GRU:
    """Returns an untrained model of the case's size, with the smallest possible decoder."""
    return {"lstm": LSTM, "gru": GRU}[case.cell](
        h=case.horizon,
        # a recurrent model reads one step more than input_size; so all train over the same number of steps
        input_size=case.context - 1 if recurrent and case.group in TRAINING_GROUPS else case.context,
        h_train=1,
        encoder_n_layers=case.layers,
        encoder_hidden_size=case.hidden,
        decoder_layers=1,
        recurrent=recurrent,
        loss=MSE(),
        max_steps=steps,
        learning_rate=0.01,
        val_check_steps=max(steps, 1),
        batch_size=min(case.series, 32),
        valid_batch_size=1024,
        windows_batch_size=case.batch,
        inference_windows_batch_size=1024,
        start_padding_enabled=case.group == "rollout",
        scaler_type="identity",
        random_seed=0,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def is_smaller(case: SpeedCase, *, recurrent: bool) -> bool:
    """Returns whether the network is smaller than the case's: recurrent LSTMs feed back a projection of size 1 (`proj_size`)."""
    return recurrent and case.cell == "lstm"


def describe_difference(case: SpeedCase, *, recurrent: bool) -> str:
    """Describes the difference to the network of the case."""
    if is_smaller(case, recurrent=recurrent):
        return "a smaller network: its feedback is projected to size 1 (proj_size)"
    return f"a full {case.cell.upper()}"


def to_long_frame(panel: np.ndarray) -> pd.DataFrame:
    """Returns a long frame: unique_id, ds, y as float32."""
    series, length = panel.shape
    timestamps = pd.date_range(FIRST_TIMESTAMP, periods=length, freq="h")
    ids, y = np.repeat(np.arange(series), length), panel.ravel().astype(np.float32)
    return pd.DataFrame({"unique_id": ids, "ds": np.tile(timestamps, series), "y": y})


def count_parameters(forecast: NeuralForecast) -> int:
    """Returns the number of parameters."""
    return sum(parameter.numel() for parameter in forecast.models[0].parameters())


ENTRANTS: dict[str, Callable[[SpeedCase], PreparedEntrant]] = {
    "NeuralForecast recurrent": lambda case: (
        prepare_rollout(case, use_model_predict=False)
        if case.group == "rollout"
        else prepare_training(case, recurrent=True)
    ),
    "NeuralForecast direct": lambda case: prepare_training(case, recurrent=False),
    "NeuralForecast recurrent, model.predict": lambda case: prepare_rollout(case, use_model_predict=True),
    "NeuralForecast recurrent GRU, model.predict": lambda case: prepare_rollout(
        replace(case, cell="gru"), use_model_predict=True
    ),
}

if __name__ == "__main__":
    serve_requests(ENTRANTS, ("neuralforecast", "torch", "pytorch-lightning", "pandas"))
