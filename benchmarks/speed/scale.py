"""Growth of a training with the number of series: time and memory of every stage, from a long frame to forecasts.

    python benchmarks/speed/scale.py                         1,000, 10,000 and 100,000 series of 500 points
    python benchmarks/speed/scale.py --series 1000 10000

Every size runs in its own process, one at a time. Peak memory is the largest resident set during a stage (only on Linux). Writes
benchmarks/results/scale.md and scale.png.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from forecaster.bundle import artifact
from forecaster.data.calendar import default_season
from forecaster.data.encoding import EMPTY_ENCODING
from forecaster.data.frames.panel import to_panel
from forecaster.data.split import hold_out
from forecaster.data.windows import CutoffIndex, PanelTensor
from forecaster.evaluation.backtest import backtest
from forecaster.evaluation.baselines import seasonal_naive
from forecaster.evaluation.calibration import calibrate_model
from forecaster.evaluation.validation import build_validation_batches
from forecaster.prediction.predictor import Predictor
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.training.fit import fit, fit_digest

RESULTS = Path(__file__).parent.parent / "results"
POINTS_PER_SERIES = 500
SPEC = Spec.parse(
    {
        "name": "scale",
        "context": 28,
        "horizon": 14,
        "scaling": "mean_abs",
        "network": {"cell": "lstm", "hidden": 64},
        "training": {"steps": 200, "epoch_steps": 100, "batch": 64},
    },
    where="the benchmark",
)
GIB = 1 << 30
STATUS_FILE = Path("/proc/self/status")


def main() -> None:
    """Runs a process for each size and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--alone", action="store_true", help="measure one size in this process and print it as JSON")
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(measure_stages(options.series[0], threads=options.threads)))
        return
    results: dict[int, dict[str, dict[str, float]]] = {}
    for series in options.series:
        command = [sys.executable, __file__, "--alone", "--series", str(series), "--threads", str(options.threads)]
        completed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        results[series] = json.loads(completed.stdout.splitlines()[-1])
        print(format_table(results), flush=True)
    (RESULTS / "scale.md").write_text(format_report(results, options.threads))
    plot_scale(results)


class StageTimer:
    """Time and memory of each stage."""

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, float]] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Measures the time and the peak memory of the block."""
        gc.collect()
        _reset_peak_memory()
        wall_started, cpu_started = time.perf_counter(), time.process_time()
        yield
        times = {"seconds": time.perf_counter() - wall_started, "cpu": time.process_time() - cpu_started}
        self.stages[stage] = times | {"peak": _read_status_gib("VmHWM"), "after": _read_status_gib("VmRSS")}
        summary = ", ".join(f"{name} {value:.2f}" for name, value in self.stages[stage].items())
        print(f"{stage}: {summary}", file=sys.stderr, flush=True)


def measure_stages(series: int, *, threads: int) -> dict[str, dict[str, float]]:
    """Runs all stages of a training, its test and a forecast of all series."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(threads)
    timed = StageTimer()
    with timed("building the long frame"):
        frame = make_long_frame(series)
    with timed("frame to panel"):
        panel = to_panel(frame)
    del frame
    with timed("digest"):
        fit_digest(panel, SPEC)
    season = default_season(panel.freq)
    split = hold_out(panel, SPEC.horizon)
    with timed("validation cutoffs"):
        build_validation_batches(
            split.full.series,
            context=SPEC.context,
            horizon=SPEC.horizon,
            windows=1,
            season=season,
            encoding=EMPTY_ENCODING,
        )
    with timed("panel tensor and cutoffs"):
        CutoffIndex.from_source(
            PanelTensor.from_series(split.history.series, context=SPEC.context, horizon=1, encoding=EMPTY_ENCODING),
            min_history=SPEC.min_steps,
        )
    with timed("fit of 200 steps"):
        model = fit(split.history, SPEC, accelerator="cpu").model
    with timed("calibration, one cutoff"):
        model = calibrate_model(model, split.history, windows=1)
    with timed("backtest, one cutoff"):
        result = _run_backtest(panel, {"model": Predictor(model)}, season)
    with timed("scores and table of the backtest"):
        result.scores("model")
        result.to_frame()
    del result
    with tempfile.TemporaryDirectory() as folder, timed("saving and loading the bundle"):
        artifact.save_bundle(model, Path(folder) / "bundle", card="")
        loaded = artifact.load_bundle(Path(folder) / "bundle")
    with timed("forecasts of all series, with quantiles"):
        Predictor(loaded).forecast_batch(panel.series, SPEC.horizon, levels=(0.1, 0.9))
    return timed.stages


def _run_backtest(panel: Panel, predictors: dict[str, Any], season: int) -> Any:
    all_predictors = {**predictors, "seasonal_naive": seasonal_naive(season)}
    return backtest(
        panel, all_predictors, horizon=SPEC.horizon, windows=1, season=season, min_history=SPEC.min_steps + 1
    )


def make_long_frame(series: int) -> pd.DataFrame:
    """Returns weekly cycles with noise, one row per series and day, ids as text, as read from a Parquet file."""
    rng = np.random.default_rng(0)
    clock = np.arange(POINTS_PER_SERIES)
    level = rng.uniform(10, 1000, size=(series, 1))
    y = level * (1 + 0.3 * np.sin(2 * np.pi * (clock + rng.integers(7, size=(series, 1))) / 7))
    y += 0.1 * level * rng.normal(size=y.shape)
    ids = pd.Series([f"series_{number:06d}" for number in range(series)], dtype="str")
    days = pd.date_range("2024-01-01", periods=POINTS_PER_SERIES, freq="D", unit="us")
    return pd.DataFrame(
        {
            "unique_id": ids.repeat(POINTS_PER_SERIES).reset_index(drop=True),
            "ds": np.tile(days.to_numpy(), series),
            "y": y.ravel(),
        }
    )


def _reset_peak_memory() -> None:
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def _read_status_gib(field: str) -> float:
    """Returns a field of the process status in GiB."""
    if not STATUS_FILE.exists():
        return float("nan")
    line = next(line for line in STATUS_FILE.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024 / GIB


def format_table(results: dict[int, dict[str, dict[str, float]]]) -> str:
    """Formats stages by sizes."""
    headings = " | ".join(f"{series:,}: s | peak, GiB" for series in results)
    lines = [f"| stage | {headings} |", "|---" * (1 + 2 * len(results)) + "|"]
    for stage in next(iter(results.values())):
        cells = " | ".join(
            f"{measured[stage]['seconds']:.2f} | {measured[stage]['peak']:.2f}" for measured in results.values()
        )
        lines.append(f"| {stage} | {cells} |")
    cells = " | ".join(
        f"{sum(stage['seconds'] for stage in measured.values()):.1f} | {max(stage['peak'] for stage in measured.values()):.2f}"
        for measured in results.values()
    )
    return "\n".join([*lines, f"| total | {cells} |", ""])


def format_report(results: dict[int, dict[str, dict[str, float]]], threads: int) -> str:
    """Formats the table and its conditions."""
    return "\n".join(
        [
            "# Growth with the number of series",
            "",
            f"`python benchmarks/speed/scale.py --series {' '.join(map(str, results))} --threads {threads}`: daily series of "
            f"{POINTS_PER_SERIES} points, LSTM {SPEC.network.hidden}, context {SPEC.context}, horizon {SPEC.horizon}, "
            f"{SPEC.training.steps} steps in two epochs, CPU, torch {torch.__version__}. A new process per size; wall "
            "time, peak resident memory of the whole process during the stage.",
            "",
            format_table(results),
            "![Seconds of each stage by number of series](scale.png)",
            "",
        ]
    )


def plot_scale(results: dict[int, dict[str, dict[str, float]]]) -> None:
    """Plots seconds and memory by number of series, both axes logarithmic."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 5), layout="constrained")
    sizes = list(results)
    panels: list[tuple[Any, str, Callable[[float], float]]] = [
        (left, "seconds", lambda value: max(value, 1e-3)),
        (right, "peak", lambda value: value),
    ]
    for axes, field, transform in panels:
        for stage in next(iter(results.values())):
            axes.plot(sizes, [transform(results[size][stage][field]) for size in sizes], marker="o", label=stage)
        axes.set(xscale="log", yscale="log", xlabel=f"series of {POINTS_PER_SERIES} points")
    left.set_ylabel("seconds")
    right.set_ylabel("peak resident memory, GiB")
    left.legend(fontsize="small")
    figure.savefig(RESULTS / "scale.png", dpi=110)


if __name__ == "__main__":
    sys.exit(main())
