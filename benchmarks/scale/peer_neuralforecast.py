"""Forecasts a Parquet file with an LSTM of NeuralForecast; prints the processor seconds of `predict` and the peak of memory.

    PYTHON benchmarks/scale/peer_neuralforecast.py FILE --horizon 28 --level 80

`benchmarks/scale/batch.py --neuralforecast PYTHON` runs it with another Python, because the packages of both libraries limit each
other's versions. The network has the size of the pretrained network (two layers of 96 units) and reads the last 196 values. It is
fitted for one step to the first hundred series, which is not measured: the time of forecasts counts, which does not depend on
the weights. Missing values are replaced by zeros before.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import time
import warnings

import pandas as pd
import torch
from neuralforecast import NeuralForecast
from neuralforecast.losses.pytorch import MQLoss
from neuralforecast.models import LSTM


def main() -> None:
    """Forecasts the file, and prints what it took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--horizon", type=int, required=True)
    parser.add_argument("--level", type=int, required=True)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    frame = pd.read_parquet(arguments.file).fillna({"y": 0.0})
    few = frame[frame["unique_id"].isin(frame["unique_id"].unique()[:100])]
    network = LSTM(
        h=arguments.horizon,
        input_size=196,
        encoder_n_layers=2,
        encoder_hidden_size=96,
        loss=MQLoss(level=[arguments.level]),
        max_steps=1,
        valid_batch_size=1024,
        inference_windows_batch_size=1024,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    forecaster = NeuralForecast(models=[network], freq="D")
    forecaster.fit(few)
    forecaster.predict(few)
    start = time.process_time()
    forecasts = forecaster.predict(frame)
    forecasts.to_parquet(f"{arguments.file}.forecast")
    seconds = time.process_time() - start
    print(json.dumps({"cpu_s": seconds, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


if __name__ == "__main__":
    main()
