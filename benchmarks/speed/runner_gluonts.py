"""GluonTS: the DeepAR estimator for torch, with nothing that can be left out: no lags, time features, dropout or logger."""

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

FOLDER = tempfile.TemporaryDirectory()  # it always writes a checkpoint at the end of an epoch


def prepare_training(case: SpeedCase) -> PreparedEntrant:
    """`train` on a data set that is made before and cached; the whole training is one epoch, so that it writes one checkpoint."""
    data = to_gluonts_dataset(make_values(case))

    def act(steps: int) -> PyTorchPredictor:
        return make_estimator(case, horizon=1, steps=steps).train(data, cache_data=True)

    computes = (
        "Gaussian likelihood at every step, scaled by the mean; its LSTM also reads age, scale and a static feature; one "
        "checkpoint, which cannot be switched off"
    )
    return PreparedEntrant(act, {"parameters": count_parameters(act(1)), "computes": computes})


def prepare_rollout(case: SpeedCase) -> PreparedEntrant:
    """`predict`, one sampled path a series, all series in one batch."""
    past = to_gluonts_dataset(make_histories(case))
    predictor = make_estimator(case, horizon=case.horizon, steps=1).train(to_gluonts_dataset(lengthen_case(case)))
    predictor.batch_size = case.series

    def act(_: int) -> list[np.ndarray]:
        return [forecast.samples for forecast in predictor.predict(past, num_samples=1)]

    said = act(0)
    assert (len(said), *said[0].shape) == (case.series, 1, case.horizon)
    return PreparedEntrant(act, {"parameters": count_parameters(predictor), "computes": "one sampled path a series"})


def make_estimator(case: SpeedCase, *, horizon: int, steps: int) -> DeepAREstimator:
    """An estimator of the case's size."""
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
        # many windows each time a series is passed, since passing costs more than cutting
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
    """One series that is long enough to train a step on."""
    return np.resize(make_values(case)[:1], (1, 2 * (case.context + case.horizon)))


def to_gluonts_dataset(panel: np.ndarray) -> ListDataset:
    """By the hour, float32."""
    return ListDataset([{"start": FIRST_TIMESTAMP, "target": row.astype(np.float32)} for row in panel], freq="h")


def count_parameters(predictor: PyTorchPredictor) -> int:
    """How many parameters it has."""
    return sum(each.numel() for each in predictor.prediction_net.parameters())


def prepare_entrant(case: SpeedCase) -> PreparedEntrant:
    """What DeepAR does in a case."""
    if case.cell != "lstm":
        raise EntrantNotAvailable("its DeepAR has an LSTM only")
    return prepare_rollout(case) if case.group == "rollout" else prepare_training(case)


if __name__ == "__main__":
    serve_requests({"GluonTS DeepAR": prepare_entrant}, ("gluonts", "torch", "lightning", "pandas"))
