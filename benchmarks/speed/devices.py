"""Training on several processes of one machine, beside one process: the same losses, and the time of a step.

    PYTHONPATH=. python benchmarks/speed/devices.py             seven minutes on two free cores
    PYTHONPATH=. python benchmarks/speed/devices.py --rounds 1

Each process has one thread of PyTorch. A step is that of a long fit without a short one, so the start of the processes is left
out; it is printed beside. The series are generated. Writes benchmarks/results/devices.md.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from pytorch_lightning.loggers import Logger

from forecaster.series import Panel, Series
from forecaster.spec import Spec
from forecaster.training.fit import fit

RESULTS = Path(__file__).parent.parent / "results" / "devices.md"
NUM_SERIES, LENGTH, HORIZON, SEASON = 16, 500, 24, 24
SHORT_STEPS, COMPARED_STEPS = 25, 50
CASES = {
    (64, 1, 128): 225,
    (128, 2, 128): 125,
    (128, 2, 512): 75,
}  # units, layers, windows of a batch: steps of a long fit


class LossRecorder(Logger):
    """Keeps the scores of every epoch."""

    name, version = "losses", "0"

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Keeps the scores of an epoch."""
        self.epochs.append(dict(metrics))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Keeps nothing."""


class DeviceTiming(NamedTuple):
    """Seconds of wall time."""

    step: float
    start: float


def build_panel() -> Panel:
    """Returns waves with noise and some gaps."""
    rng = np.random.default_rng(0)
    waves = np.sin(np.arange(LENGTH) * 2 * np.pi / SEASON) * rng.uniform(1, 5, size=(NUM_SERIES, 1))
    values = np.where(rng.random(waves.shape) < 0.05, np.nan, 10 + waves + rng.normal(size=waves.shape))
    start = pd.Timestamp("2020-01-01")
    return Panel([Series(f"series {index}", start, "h", row) for index, row in enumerate(values)], "h")


def build_spec(hidden: int, layers: int, batch: int, *, steps: int, epoch_steps: int) -> Spec:
    """Returns an LSTM that is rolled out by single values."""
    training = {"steps": steps, "epoch_steps": epoch_steps, "batch": batch, "valid_windows": 1}
    network = {"cell": "lstm", "hidden": hidden, "layers": layers}
    fields = {"name": "devices", "context": 96, "horizon": HORIZON, "network": network, "training": training}
    return Spec.parse(fields, where="benchmark")


def fit_seconds(panel: Panel, spec: Spec, devices: int) -> float:
    """Returns the wall time of a fit."""
    torch.set_num_threads(devices)  # which are divided among the processes
    started = time.perf_counter()
    fit(panel, spec, accelerator="cpu", devices=str(devices))
    return time.perf_counter() - started


def measure(panel: Panel, case: tuple[int, int, int], devices: int) -> DeviceTiming:
    """Measures a step, and what a fit takes besides its steps."""
    short, long = (
        fit_seconds(panel, build_spec(*case, steps=steps, epoch_steps=SHORT_STEPS), devices)
        for steps in (SHORT_STEPS, CASES[case])
    )
    step = (long - short) / (CASES[case] - SHORT_STEPS)
    return DeviceTiming(step, short - SHORT_STEPS * step)


def largest_difference(panel: Panel) -> float:
    """Returns the largest difference between the losses of one and of two processes, over the epochs of a short training."""
    curves = []
    for devices in (1, 2):
        recorder = LossRecorder()
        torch.set_num_threads(devices)
        spec = build_spec(64, 1, 128, steps=COMPARED_STEPS, epoch_steps=5)
        fit(panel, spec, accelerator="cpu", devices=str(devices), loggers=[recorder])
        curves.append([[epoch["train/loss"], epoch["valid/rollout"]] for epoch in recorder.epochs])
    return float(np.abs(np.subtract(*curves)).max())


def main() -> None:
    """Measures all cases and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    panel = build_panel()
    lines = [
        "# Several processes",
        "",
        f"`python benchmarks/speed/devices.py --rounds {options.rounds}`: LSTM, context 96, one thread for each process, torch "
        f"{torch.__version__}, CPU. Wall milliseconds of an optimizer step, medians over rounds.",
        "",
        "| hidden | layers | batch | one process | two processes | one / two | start of the second process, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in CASES:
        rounds = [[measure(panel, case, devices) for devices in (1, 2)] for _ in range(options.rounds)]
        one, two = (float(np.median([timings[index].step for timings in rounds])) for index in (0, 1))
        start = float(np.median([timings[1].start - timings[0].start for timings in rounds]))
        cells = " | ".join(str(value) for value in case)
        lines.append(f"| {cells} | {1000 * one:.2f} | {1000 * two:.2f} | {one / two:.2f} | {start:.1f} |")
        print(lines[-1], flush=True)
    lines += [
        "",
        f"Losses of training and validation, every 5 of {COMPARED_STEPS} steps: the largest difference between one process and "
        f"two is {largest_difference(panel):.1e}.",
    ]
    print(lines[-1])
    RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
