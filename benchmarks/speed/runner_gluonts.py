"""GluonTS: the DeepAR estimator for torch without optional parts: no lags, time features, dropout or logger."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings

import numpy as np
import torch
from cases import FIRST_TIMESTAMP, SpeedCase, make_histories, make_values
from gluonts.dataset.common import ListDataset
from gluonts.torch.distributions import NormalOutput
from gluonts.torch.model.deepar import DeepAREstimator
from gluonts.torch.model.predictor import PyTorchPredictor
from gluonts.transform import ExpectedNumInstanceSampler
from runner_loop import EntrantNotAvailable, PreparedEntrant, serve_requests

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
warnings.filterwarnings("ignore")
for name in ("lightning", "lightning.pytorch", "gluonts"):
    logging.getLogger(name).setLevel(logging.ERROR)

FOLDER = tempfile.TemporaryDirectory()  # GluonTS always writes a checkpoint at the end of an epoch


def prepare_training(case: SpeedCase) -> PreparedEntrant:
    """Prepares `train` on an existing, cached data set; the training is one epoch, so that it writes one checkpoint."""
    data = to_gluonts_dataset(make_values(case))

    def train(steps: int) -> PyTorchPredictor:
        return make_estimator(case, horizon=1, steps=steps).train(data, cache_data=True)

    computes = (
        "Gaussian likelihood at every step, scaled by the mean; its LSTM also reads age, scale and a static feature; one "
        "checkpoint, which cannot be switched off"
    )
    return PreparedEntrant(train, {"parameters": count_parameters(train(1)), "computes": computes})


def prepare_rollout(case: SpeedCase) -> PreparedEntrant:
    """Prepares `predict`: one sampled path per series, all series in one batch."""
    histories = to_gluonts_dataset(make_histories(case))
    predictor = make_estimator(case, horizon=case.horizon, steps=1).train(to_gluonts_dataset(lengthen_case(case)))
    predictor.batch_size = case.series

    def predict(_: int) -> list[np.ndarray]:
        return [forecast.samples for forecast in predictor.predict(histories, num_samples=1)]

    forecasts = predict(0)
    assert (len(forecasts), *forecasts[0].shape) == (case.series, 1, case.horizon)
    return PreparedEntrant(
        predict, {"parameters": count_parameters(predictor), "computes": "one sampled path per series"}
    )


def make_estimator(case: SpeedCase, *, horizon: int, steps: int) -> DeepAREstimator:
    """Returns an estimator of the case's size."""
    return DeepAREstimator(
        freq="h",
        prediction_length=horizon,
        context_length=case.context,
        num_layers=case.layers,
        hidden_size=case.hidden,
        lr=0.01,
        dropout_rate=0.0,
        distr_output=NormalOutput(),
        lags_seq=[1],
        time_features=[],
        num_parallel_samples=1,
        batch_size=case.batch,
        num_batches_per_epoch=steps,
        # many windows per pass over a series, since a pass costs more than cutting
        train_sampler=ExpectedNumInstanceSampler(num_instances=float(case.batch), min_future=horizon),
        trainer_kwargs={
            "max_epochs": 1,
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": FOLDER.name,
        },
    )


def lengthen_case(case: SpeedCase) -> np.ndarray:
    """Returns one series that is long enough for a training step."""
    return np.resize(make_values(case)[:1], (1, 2 * (case.context + case.horizon)))


def to_gluonts_dataset(panel: np.ndarray) -> ListDataset:
    """Returns an hourly float32 data set."""
    return ListDataset([{"start": FIRST_TIMESTAMP, "target": row.astype(np.float32)} for row in panel], freq="h")


def count_parameters(predictor: PyTorchPredictor) -> int:
    """Returns the number of parameters."""
    return sum(parameter.numel() for parameter in predictor.prediction_net.parameters())


def prepare_entrant(case: SpeedCase) -> PreparedEntrant:
    """Prepares DeepAR for a case."""
    if case.cell != "lstm":
        raise EntrantNotAvailable("its DeepAR has an LSTM only")
    return prepare_rollout(case) if case.group == "rollout" else prepare_training(case)


if __name__ == "__main__":
    serve_requests({"GluonTS DeepAR": prepare_entrant}, ("gluonts", "torch", "lightning", "pandas"))
